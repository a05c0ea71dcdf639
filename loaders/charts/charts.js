// What the report and the window draw: curves over steps, bars, a heat map and its colour bar. A chart is given as plain
// numbers and texts; it fills the width of its host, and is drawn again when that changes.
"use strict";
globalThis.charts = (() => {
  const hosts = new WeakMap();
  const observer = new ResizeObserver((entries) => entries.forEach(({ target }) => redraw(target)));

  function show(host, draw) { // draw(width) gives an element
    hosts.set(host, { draw, width: 0 });
    observer.observe(host);
    redraw(host);
  }

  function redraw(host) {
    const shown = hosts.get(host), width = Math.floor(host.clientWidth);
    if (!width || width === shown.width) return;
    shown.width = width;
    host.replaceChildren(shown.draw(width));
  }

  function text(host, told) { // in place of a chart
    observer.unobserve(host);
    hosts.delete(host);
    host.textContent = told;
  }

  function plot(options, label, description) {
    const svg = Plot.plot({ className: "plot", ariaLabel: label, ariaDescription: description, ...options });
    svg.querySelector("style").remove(); // its rules are in charts.css: the policy allows no others
    svg.setAttribute("role", "img");
    for (const part of svg.querySelectorAll("g[aria-label]")) part.setAttribute("aria-hidden", "true"); // the picture has its label
    return svg;
  }

  const colour = (name) => `var(--${name})`;
  const finite = (points) => points.filter(([, y]) => y !== null);

  function number(value) {
    const size = Math.abs(value);
    if (value === 0) return "0";
    if (size < 0.01) return d3.format(".2e")(value);
    return d3.format(size >= 1000 ? ",.0f" : size >= 100 ? ",.1f" : ".3f")(value);
  }

  // Of an axis up to `most`.
  const tickFormat = (most) => most < 0.002 ? (y) => y ? d3.format("~e")(y) : "0" : undefined;

  // A token or a text in which blanks can be seen.
  const visible = (token) => token.replace(/^ +| +$/g, (blanks) => "␣".repeat(blanks.length))
    .replace(/\n/g, "⏎").replace(/\t/g, "⇥");

  // chart: title, series [{name, colour, kind: line | faint | dots, points: [[x, y or null]]}], and perhaps bands
  // [{colour, points: [[x, low, high]]}], marks [[x, label]], x: [from, to], zero: true, height, unit, names: {x: label}.
  function curves(host, chart) {
    const all = chart.series.flatMap(({ points }) => finite(points));
    if (!all.length) {
      text(host, "no finite value");
      return;
    }
    show(host, (width) => plot({
      width, height: chart.height ?? 190, marginLeft: 52, marginRight: 14, marginTop: chart.marks?.length ? 24 : 12, marginBottom: 38,
      x: { label: "step", domain: chart.x ?? d3.extent(all, ([x]) => x), nice: false, ticks: width / 90, labelAnchor: "center", labelArrow: "none",
        tickFormat: (step) => Number.isInteger(step) ? d3.format(",")(step) : "" },
      y: { label: null, grid: true, zero: Boolean(chart.zero), nice: true, ticks: 5, tickFormat: tickFormat(d3.max(all, ([, y]) => Math.abs(y))) },
      marks: [
        ...(chart.bands ?? []).map((band) => Plot.areaY(band.points, { x: "0", y1: "1", y2: "2", fill: colour(band.colour), fillOpacity: 0.16,
          defined: ([, low]) => low !== null, curve: "linear" })),
        ...chart.series.flatMap(drawn),
        ...marked(chart.marks ?? [], chart.x ?? d3.extent(all, ([x]) => x), width),
        ...pointed(chart),
      ],
    }, chart.title, described(chart)));
  }

  function drawn({ points, colour: name, kind }) {
    const lonely = points.filter(([, y], i) => y !== null && !(points[i - 1]?.[1] != null) && !(points[i + 1]?.[1] != null));
    const dots = kind === "dots" ? finite(points) : lonely;
    return [
      Plot.lineY(points, { x: "0", y: ([, y]) => y ?? NaN, stroke: colour(name), strokeWidth: kind === "faint" ? 1 : 2,
        strokeOpacity: kind === "faint" ? 0.4 : 1 }),
      Plot.dot(dots, { x: "0", y: "1", r: 2.8, stroke: colour(name), fill: "var(--card)", strokeWidth: 1.8 }),
    ];
  }

  function marked(marks, [from, to], width) { // of labels that are too close together, the first is shown
    let free = -Infinity;
    const per = (width - 66) / (to - from || 1);
    const labelled = [...marks].sort((a, b) => a[0] - b[0]).filter(([x, label]) => {
      const at = (x - from) * per;
      const fits = at >= free;
      if (fits) free = at + 6.8 * label.length + 8;
      return fits;
    });
    const late = ([x, label]) => (x - from) * per + 6.8 * label.length > width - 66;
    const text = (rows, side) => Plot.text(rows, { x: "0", text: "1", frameAnchor: "top", dy: -14, textAnchor: side, fill: colour("green") });
    return [Plot.ruleX(marks, { x: "0", stroke: colour("green"), strokeDasharray: "4 3" }),
      text(labelled.filter((mark) => !late(mark)), "start"), text(labelled.filter(late), "end")];
  }

  function pointed(chart) { // under the pointer: the step, and each series' value there
    const rows = new Map();
    for (const { name, points } of chart.series) {
      for (const [x, y] of finite(points)) {
        if (!rows.has(x)) rows.set(x, { x, y, lines: [`step ${chart.names?.[x] ?? d3.format(",")(x)}`] });
        rows.get(x).lines.push(`${name} ${number(y)}${chart.unit ?? ""}`);
      }
    }
    const data = [...rows.values()];
    return [Plot.ruleX(data, Plot.pointerX({ x: "x", stroke: "var(--axis)", ariaHidden: "true" })),
      Plot.tip(data, Plot.pointerX({ x: "x", y: "y", title: (row) => row.lines.join("\n"), fill: "var(--card)", stroke: "var(--axis)", ariaHidden: "true" }))];
  }

  const described = (chart) => chart.series.map(({ name, points }) => {
    const known = finite(points);
    return known.length ? `${name} from ${number(known[0][1])} to ${number(known.at(-1)[1])}` : "";
  }).filter(Boolean).join(", ");

  // rows: [{label, value, text, faded}]; to: the value that fills the width; room: for labels, in pixels.
  function bars(host, { title, rows, to, room = 110, colour: name = "blue" }) {
    const widest = Math.min(room, 10 + 8 * d3.max(rows, ({ label }) => visible(label).length));
    const place = rows.map((_, i) => i);
    show(host, (width) => plot({
      width, height: rows.length * 22 + 8, marginLeft: widest, marginRight: 62, marginTop: 4, marginBottom: 4,
      x: { axis: null, domain: [0, to ?? d3.max(rows, ({ value }) => value) ?? 1] },
      y: { label: null, domain: place, padding: 0.25, tickSize: 0, tickFormat: (i) => cut(visible(rows[i].label), widest / 7.5) },
      marks: [
        Plot.barX(rows, { x: "value", y: place, fill: colour(name), fillOpacity: (row) => row.faded ? 0.25 : 0.9 }),
        Plot.text(rows, { x: "value", y: place, text: "text", textAnchor: "start", dx: 5, fill: "var(--text)" }),
        Plot.ruleX([0], { stroke: "var(--axis)" }),
      ],
    }, title, rows.slice(0, 5).map(({ label, text }) => `${visible(label)} ${text}`).join(", ")));
  }

  const cut = (text, length) => text.length > length ? `${text.slice(0, length - 1)}…` : text;

  // values: rows * columns numbers between 0 and 1, row by row; those above the diagonal are left out where `causal` is set.
  function heat(host, { title, labels, values, rowLabel, columnLabel, causal }) {
    const n = labels.length, place = d3.range(n);
    const cells = place.flatMap((row) => place.slice(0, causal ? row + 1 : n).map((column) => ({ row, column, value: values[row * n + column] })));
    const side = Math.min(96, 14 + 7 * d3.max(labels, (label) => visible(label).length));
    const name = (i) => cut(visible(labels[i]), 12);
    const told = ({ row, column, value }) => `${rowLabel} ${visible(labels[row])}\n${columnLabel} ${visible(labels[column])}\n${value.toFixed(3)}`;
    show(host, (available) => {
      const cell = Math.max(14, Math.min(38, (available - side - 12) / n));
      return plot({
        width: side + 12 + cell * n, height: side + 8 + cell * n, marginLeft: side, marginTop: side, marginRight: 12, marginBottom: 8,
        x: { domain: place, axis: "top", label: null, tickFormat: name, tickRotate: -90, tickSize: 0, padding: 0 },
        y: { domain: place, label: null, tickFormat: name, tickSize: 0, padding: 0 },
        marks: [
          Plot.cell(cells, { x: "column", y: "row", fill: "none", stroke: "var(--line)" }),
          Plot.cell(cells, { x: "column", y: "row", fill: colour("blue"), fillOpacity: "value", inset: 0.5 }),
          Plot.tip(cells, Plot.pointer({ x: "column", y: "row", title: told, fill: "var(--card)", stroke: "var(--axis)", ariaHidden: "true" })),
        ],
        opacity: { domain: [0, 1], range: [0, 1] },
      }, title, "");
    });
  }

  function colourBar(host, label, most = 1) { // of a heat map from 0 to 1, whose colour at 1 is so strong
    const steps = d3.range(0, 1, 0.04);
    show(host, () => plot({
      width: 220, height: 52, marginLeft: 10, marginRight: 14, marginTop: 4, marginBottom: 36,
      x: { domain: [0, 1], label, labelAnchor: "center", labelArrow: "none", ticks: [0, 0.5, 1] },
      y: { axis: null },
      opacity: { domain: [0, 1], range: [0, 1] },
      marks: [Plot.rect(steps, { x1: (x) => x, x2: (x) => x + 0.04, y1: 0, y2: 1, fill: colour("blue"), fillOpacity: (x) => (x + 0.02) * most })],
    }, `${label}: from 0, without colour, to 1, full colour`, ""));
  }

  function legend(series) {
    const list = document.createElement("div");
    list.className = "legend";
    for (const { name, colour: of, kind } of series) {
      const key = document.createElement("span");
      key.className = `key ${of} ${kind ?? ""}`;
      key.textContent = name;
      list.append(key);
    }
    return list;
  }

  return { curves, bars, heat, colourBar, legend, text, number, visible };
})();
