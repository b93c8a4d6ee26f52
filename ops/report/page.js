"use strict";
// Draws every plot into its place, in the colours of the page, and again when these change.
const dark = matchMedia("(prefers-color-scheme: dark)");
const plots = JSON.parse(document.getElementById("plots").textContent);

function draw() {
  const style = getComputedStyle(document.body);
  const ink = style.color;
  const faint = style.getPropertyValue("--line");
  const axis = { gridcolor: faint, zerolinecolor: faint, linecolor: faint, automargin: true };
  for (const { id, data, layout } of plots) {
    const place = document.getElementById(id);
    const own = {
      ...layout,
      xaxis: { ...axis, ...layout.xaxis },
      yaxis: { ...axis, ...layout.yaxis },
      font: { color: ink, family: style.fontFamily, size: 12 },
      paper_bgcolor: "transparent",
      plot_bgcolor: "transparent",
      height: Number(place.dataset.height),
      margin: { l: 10, r: 10, t: 50, b: 10 },
      legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", traceorder: "normal" },
      showlegend: true,
      hoverlabel: { namelength: -1 },
      // A finger scrolls the page.
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    };
    Plotly.react(place, data, own, { displayModeBar: false, responsive: true });
  }
}

draw();
dark.addEventListener("change", draw);
