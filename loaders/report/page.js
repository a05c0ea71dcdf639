// Draws the charts whose numbers the page holds.
"use strict";
for (const [i, chart] of JSON.parse(document.getElementById("charts").textContent).entries()) {
  const figure = document.getElementById(`chart-${i}`), host = figure.querySelector(".host");
  if (chart.series.length > 1) figure.querySelector("figcaption").append(charts.legend(chart.series));
  charts.curves(host, chart);
}
