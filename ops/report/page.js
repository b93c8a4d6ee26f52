"use strict";
// Draws every plot into its place, in the page's colours and width, and again when these change.
const plots = JSON.parse(document.getElementById("plots").textContent);
const WORD = 6.5, KEY = 46, ROW = 19; // pixels of a legend's letter, of what stands before a name, and of its rows

function legendRows(data, width) {
  const widest = Math.max(...data.map(({ name }) => name.length)) * WORD + KEY;
  return Math.ceil(data.length / Math.max(Math.floor(width / widest), 1));
}

function draw() {
  const style = getComputedStyle(document.body);
  const faint = style.getPropertyValue("--line");
  const axis = { gridcolor: faint, zerolinecolor: faint, linecolor: faint, automargin: true };
  for (const { id, data, layout } of plots) {
    const place = document.getElementById(id);
    const width = place.clientWidth;
    const legend = legendRows(data, width) * ROW;
    const height = Number(place.dataset.height) + legend;
    place.style.height = `${height}px`;
    const own = {
      ...layout,
      xaxis: { ...axis, ...layout.xaxis },
      yaxis: { ...axis, ...layout.yaxis },
      font: { color: style.color, family: style.fontFamily, size: 12 },
      paper_bgcolor: "transparent",
      plot_bgcolor: "transparent",
      width,
      height,
      margin: { l: 10, r: 16, t: legend + 14, b: 10 },
      showlegend: true,
      legend: { orientation: "h", traceorder: "normal", x: 0, xref: "container", y: 1, yref: "container", yanchor: "top" },
      hoverlabel: { namelength: -1 },
      // A finger scrolls the page.
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    };
    Plotly.react(place, data, own, { displayModeBar: false });
  }
}

let width = innerWidth;
draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
addEventListener("resize", () => {
  if (width !== innerWidth) {
    width = innerWidth;
    draw();
  }
});
