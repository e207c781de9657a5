"use strict";
// Draws every chart over its static image. The expression interpreter (ast) needs no eval, so the
// page's content security policy can forbid it.
(() => {
  const { config, skeletons, charts } = JSON.parse(document.getElementById("charts").textContent);
  const options = { mode: "vega-lite", renderer: "svg", actions: false, ast: true, config };

  // Rows travel as columns and rows of values: half the size.
  const toRecords = ({ columns, rows }) =>
    rows.map((row) => Object.fromEntries(columns.map((name, i) => [name, row[i]])));
  const toDatasets = (tables) =>
    Object.fromEntries(Object.entries(tables).map(([name, table]) => [name, toRecords(table)]));

  async function draw(panel) {
    if (panel.dataset.state) return;
    panel.dataset.state = "drawing";
    const live = document.createElement("div");
    live.className = "live";
    panel.prepend(live);
    try {
      const { skeleton, datasets } = charts[panel.dataset.chart];
      await vegaEmbed(live, { ...skeletons[skeleton], datasets: toDatasets(datasets) }, options);
      panel.querySelector(".static")?.remove();
      panel.dataset.state = "drawn";
    } catch (err) {
      live.remove();
      panel.dataset.state = "failed";
      console.error(`chart ${panel.dataset.chart}: ${err}`);
    }
  }

  async function drawAll(root) {
    for (const panel of root.querySelectorAll("[data-chart]")) {
      // A closed box has no width to draw to; it is drawn when it opens.
      if (!panel.closest("details:not([open])")) await draw(panel);
    }
  }

  for (const box of document.querySelectorAll("details")) {
    box.addEventListener("toggle", () => { if (box.open) drawAll(box); });
  }
  drawAll(document).then(() => { document.documentElement.dataset.charts = "done"; });
})();
