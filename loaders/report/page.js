// Under the pointer: the step, and what was measured there, in all charts at once.
"use strict";
const rows = JSON.parse(document.getElementById("rows").textContent);
const charts = [...document.querySelectorAll("svg[data-keys]")];
const tip = document.getElementById("tip");

function nearest(step) {
  let low = 0, high = rows.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (rows[middle].step < step) low = middle + 1; else high = middle;
  }
  return low > 0 && step - rows[low - 1].step < rows[low].step - step ? rows[low - 1] : rows[low];
}

function place(svg, step) {
  const { left, right, from, to } = svg.dataset;
  return +left + (step - from) / (to - from || 1) * (right - left);
}

function show(event) {
  const svg = event.currentTarget, { left, right, from, to, keys } = svg.dataset;
  const box = svg.getBoundingClientRect();
  const x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
  const row = nearest(+from + (x - left) / (right - left) * (to - from));
  for (const chart of charts) {
    const line = chart.querySelector(".pointer");
    line.setAttribute("x1", place(chart, row.step));
    line.setAttribute("x2", place(chart, row.step));
    line.setAttribute("visibility", "visible");
  }
  const values = keys.split(" ").filter((key) => key in row).map((key) => `${key.replace("_", " ")}  ${row[key]}`);
  tip.textContent = [`step ${row.steps}`, ...values].join("\n");
  tip.hidden = false;
  const room = window.innerWidth - tip.offsetWidth - 8;
  tip.style.left = `${Math.max(8, Math.min(event.clientX + 14, room))}px`;
  tip.style.top = `${event.clientY + 18}px`;
}

function hide() {
  tip.hidden = true;
  for (const chart of charts) chart.querySelector(".pointer").setAttribute("visibility", "hidden");
}

for (const chart of charts) {
  chart.addEventListener("pointermove", show);
  chart.addEventListener("pointerleave", hide);
}
