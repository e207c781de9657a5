"use strict";
// Draws every chart over its static image, hands out its numbers as CSV, and serves the filters.
// The expression interpreter (ast) needs no eval, so the page's content security policy can
// forbid it.
(() => {
  const { config, skeletons, charts } = JSON.parse(document.querySelector("script#charts").textContent);
  const options = { mode: "vega-lite", renderer: "svg", actions: false, ast: true, config };
  const all = (root, selector) => [...root.querySelectorAll(selector)];

  // Rows travel as columns and rows of values: half the size.
  const toRecords = ({ columns, rows }) =>
    rows.map((row) => Object.fromEntries(columns.map((name, i) => [name, row[i]])));
  const toDatasets = (tables) =>
    Object.fromEntries(Object.entries(tables).map(([name, table]) => [name, toRecords(table)]));

  const drawings = new Map();  // one promise for a panel, whoever asks for it
  function draw(panel) {
    if (!drawings.has(panel)) drawings.set(panel, drawOnce(panel));
    return drawings.get(panel);
  }

  async function drawOnce(panel) {
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

  // Between two charts the page takes a reader's clicks.
  const pause = () => new Promise((resume) => setTimeout(resume, 0));

  async function drawAll(root) {
    for (const panel of all(root, "[data-chart]")) {
      // What does not show has no width to draw to; it is drawn when it shows.
      if (panel.closest("details:not([open]), [hidden]")) continue;
      await draw(panel);
      await pause();
    }
  }

  function serve(box) {
    const items = all(box, "[data-item]");
    const texts = items.map((item) => item.textContent.toLowerCase());
    const selects = all(box, "select[data-filter]");
    const search = box.querySelector("[data-search]");
    const count = box.querySelector(".count");
    const more = box.querySelector("button.more");
    const step = Number(box.dataset.page);
    let limit = step;
    function apply() {
      const words = (search?.value ?? "").toLowerCase().split(/\s+/).filter(Boolean);
      let matches = 0;
      items.forEach((item, i) => {
        const fits = selects.every((select) =>
          !select.selectedIndex || item.dataset[`v${select.dataset.filter}`] === select.value)
          && words.every((word) => texts[i].includes(word));
        if (fits) delete item.dataset.out; else item.dataset.out = "";
        item.hidden = !fits || matches >= limit;
        matches += fits;
      });
      const shown = Math.min(matches, limit);
      count.textContent = shown < matches ? `${shown} of ${matches} matches` : `${matches} of ${items.length}`;
      more.hidden = shown >= matches;
    }
    const restart = () => { limit = step; apply(); drawAll(box); };
    for (const select of selects) select.addEventListener("change", restart);
    search?.addEventListener("input", restart);
    more.addEventListener("click", () => { limit += step; apply(); drawAll(box); });
    if (items.length > 1) box.querySelector(".filters").hidden = false;
    apply();
  }
  all(document, ".filterable").forEach(serve);

  // A spreadsheet runs a text that begins like a formula; an apostrophe makes it text.
  function toCell(value) {
    if (value === null || value === undefined) return "";
    if (typeof value === "number") return String(value);
    const text = /^[=+\-@\t\r]/.test(value) && isNaN(Number(value)) ? `'${value}` : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }
  const toCsv = (lines) => lines.map((line) => line.map(toCell).join(",") + "\r\n").join("");

  function chartCsv(name) {
    const { datasets } = charts[name];
    const several = Object.keys(datasets).length > 1;
    const columns = [...new Set(Object.values(datasets).flatMap((table) => table.columns))];
    const lines = [several ? ["part", ...columns] : columns];
    for (const [part, table] of Object.entries(datasets)) {
      for (const row of toRecords(table)) {
        const line = columns.map((column) => row[column]);
        lines.push(several ? [part, ...line] : line);
      }
    }
    return toCsv(lines);
  }

  // The rows of a table that the filters leave, whether or not they are scrolled to or paged in.
  function tableCsv(table) {
    const rows = all(table, "tr").filter((row) => !("out" in row.dataset));
    return toCsv(rows.map((row) => all(row, "th, td").map((cell) => {
      const text = cell.textContent.trim();
      if (text === "\u2013") return "";
      const digits = text.replaceAll("\u2009", "");
      return /^\u2212?[\d.]+$/.test(digits) ? digits.replace("\u2212", "-") : text;
    })));
  }

  function save(text, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(["\ufeff", text], { type: "text/csv;charset=utf-8" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  function csvButton(what, section, makeCsv) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "csv";
    button.textContent = "CSV";
    button.title = `Save the numbers of “${what}” as CSV`;
    button.setAttribute("aria-label", `${what}: save as CSV`);
    const slug = `${section}-${what}`.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-");
    button.addEventListener("click", () => save(makeCsv(), `${slug.slice(0, 100)}.csv`));
    return button;
  }

  const sectionOf = (element) => element.closest("section")?.querySelector("h2").id ?? "report";
  for (const panel of all(document, "[data-chart]")) {
    const head = panel.closest(".panel").querySelector(".head");
    const what = head.textContent.trim();
    head.append(csvButton(what, sectionOf(panel), () => chartCsv(panel.dataset.chart)));
  }
  for (const box of all(document, ".scroll")) {
    const table = box.querySelector("table");
    if (!table) continue;
    const line = document.createElement("div");
    line.className = "tools";
    line.append(csvButton(box.getAttribute("aria-label"), sectionOf(box), () => tableCsv(table)));
    box.before(line);
  }

  // The line of contents says where the reader is.
  const links = new Map(all(document, "nav.bar a").map((a) => [a.hash.slice(1), a]));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(entry.target.querySelector("h2").id)?.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-20% 0px -75% 0px" });
  for (const section of all(document, "main > section")) seen.observe(section);

  for (const box of all(document, "details")) {
    box.addEventListener("toggle", () => { if (box.open) drawAll(box); });
  }
  // The page is open with its static drawings; the charts in view are drawn first.
  const near = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) draw(target);
  }, { rootMargin: "200px" });
  window.addEventListener("load", () => {
    for (const panel of all(document, "[data-chart]")) near.observe(panel);
    drawAll(document).then(() => { document.documentElement.dataset.charts = "done"; });
  });
})();
