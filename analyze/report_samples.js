// The sample browser: one prompt to a row, strengths in columns. Texts are only ever set as text.
(() => {
  const data = document.getElementById("samples-data");
  if (!data) return;
  const { runs, units, scores, prompts, texts, samples } = JSON.parse(data.textContent);
  const [RUN, DIRECTION, PROMPT, STRENGTH, RAW, TEXT, SCORE] = [0, 1, 2, 3, 4, 5, 6];
  const PER_PAGE = 4;
  const MOST_COLUMNS = 5;
  const root = document.getElementById("sample-browser");
  let start = 0;

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }
  const shown = (value, digits) => {
    if (value === null) return "–";
    const text = value.toFixed(digits).replace(/^-(?=[0.]*$)/, "");
    return text.replace("-", "\u2212");
  };
  const distinct = (values) => [...new Set(values)];

  const form = make("form", { class: "sample-controls", "aria-label": "Choose steered texts" });
  form.addEventListener("submit", (event) => event.preventDefault());
  function field(title, control) {
    form.append(make("label", {}, make("span", {}, title), control));
    return control;
  }
  function fill(select, options) {
    const before = select.value;
    select.replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
    if (options.some(([value]) => value === before)) select.value = before;
  }
  const model = field("model", make("select", { id: "sample-model" }));
  const direction = field("direction", make("select", { id: "sample-direction" }));
  const scenario = field("scenario", make("select", { id: "sample-scenario" }));
  const score = field("score", make("select", { id: "sample-score" }));
  const least = field("from", make("input", { id: "sample-least", type: "number", step: "any" }));
  const most = field("to", make("input", { id: "sample-most", type: "number", step: "any" }));
  const words = field("contains", make("input", { id: "sample-words", type: "search" }));
  const strengths = make("fieldset", { id: "sample-strengths" });
  form.append(strengths);

  const status = make("p", { role: "status", class: "note", id: "sample-status" });
  const earlier = make("button", { type: "button", id: "sample-earlier" }, "Earlier prompts");
  const later = make("button", { type: "button", id: "sample-later" }, "Later prompts");
  const head = make("tr");
  const body = make("tbody");
  const tableBox = make(
    "div", { class: "scroll", role: "region", tabindex: "0", "aria-label": "Steered texts" },
    make("table", { class: "samples" }, make("thead", {}, head), body));
  const empty = make("p", { class: "absent", hidden: "" }, "No text passes these filters.");
  const pager = make("p", { class: "sample-pager" }, earlier, later);

  const ofModel = () => samples.filter((s) => s[RUN] === Number(model.value));
  const ofDirection = () => ofModel().filter((s) => s[DIRECTION] === direction.value);
  const unit = () => (units[Number(model.value)] === "alpha_separation" ? "class separations" : "raw");
  const chosen = () => [...strengths.querySelectorAll("input:checked")].map((i) => Number(i.value));

  function offerStrengths() {
    const all = distinct(ofDirection().map((s) => s[STRENGTH])).sort((a, b) => a - b);
    const step = Math.max(1, (all.length - 1) / (MOST_COLUMNS - 1));
    const first = new Set(all.length <= MOST_COLUMNS
      ? all : Array.from({ length: MOST_COLUMNS }, (_, i) => all[Math.round(i * step)]));
    if (all.includes(0)) first.add(0);
    strengths.replaceChildren(make("legend", {}, `strength α [${unit()}]`));
    for (const alpha of all) {
      const box = make("input", { type: "checkbox", value: String(alpha) });
      box.checked = first.has(alpha);
      box.addEventListener("change", restart);
      strengths.append(make("label", {}, box, shown(alpha, Number.isInteger(alpha) ? 0 : 2)));
    }
  }
  function offerAll() {
    fill(direction, distinct(ofModel().map((s) => s[DIRECTION])).map((d) => [d, d]));
    const places = distinct(ofModel().map((s) => prompts[s[PROMPT]][0])).sort();
    fill(scenario, [["", "all"], ...places.map((p) => [`=${p}`, p])]);
    offerStrengths();
  }

  function passes(sample) {
    const place = score.value === "" ? null : SCORE + Number(score.value);
    const value = place === null ? null : sample[place];
    if (place !== null && least.value !== "" && !(value !== null && value >= Number(least.value))) return false;
    if (place !== null && most.value !== "" && !(value !== null && value <= Number(most.value))) return false;
    return texts[sample[TEXT]].toLowerCase().includes(words.value.toLowerCase());
  }

  function cell(found, alpha) {
    const box = make("td", { "data-strength": `α = ${shown(alpha, Number.isInteger(alpha) ? 0 : 2)}` });
    const kept = found.filter(passes);
    if (!kept.length) {
      box.append(make("p", { class: "none" }, found.length ? "does not pass the filters" : "no text"));
    }
    for (const sample of kept) {
      const text = make("p", { class: "text" });
      text.textContent = texts[sample[TEXT]] || "(empty)";
      const facts = scores.map((s, i) => [s, sample[SCORE + i]]).filter(([, v]) => v !== null);
      const list = make("p", { class: "scores" });
      list.textContent = [`α ${shown(sample[RAW], 2)} raw`,
        ...facts.map(([s, v]) => (s.flag ? `${v ? "" : "not "}${s.title}` : `${s.title} ${shown(v, s.digits)}`)),
      ].join(" · ");
      box.append(text, list);
    }
    return box;
  }

  function draw() {
    const alphas = chosen();
    const own = ofDirection().filter((s) => scenario.value === ""
      || prompts[s[PROMPT]][0] === scenario.value.slice(1));
    const asked = new Map();
    for (const sample of own) {
      if (!alphas.includes(sample[STRENGTH])) continue;
      if (!asked.has(sample[PROMPT])) asked.set(sample[PROMPT], []);
      asked.get(sample[PROMPT]).push(sample);
    }
    const rows = [...asked].filter(([, found]) => found.some(passes));
    const n = rows.reduce((sum, [, found]) => sum + found.filter(passes).length, 0);
    start = Math.max(0, Math.min(start, Math.floor((rows.length - 1) / PER_PAGE) * PER_PAGE));
    head.replaceChildren(make("th", { scope: "col" }, "prompt"), ...alphas.map((alpha) =>
      make("th", { scope: "col" }, `α = ${shown(alpha, Number.isInteger(alpha) ? 0 : 2)} ${unit()}`)));
    body.replaceChildren(...rows.slice(start, start + PER_PAGE).map(([prompt, found]) => {
      const [place, name, text] = prompts[prompt];
      const what = make("p", { class: "text" });
      what.textContent = text;
      const small = make("p", { class: "scores" });
      small.textContent = `${place} · ${name}`;
      return make("tr", {}, make("th", { scope: "row" }, what, small),
        ...alphas.map((alpha) => cell(found.filter((s) => s[STRENGTH] === alpha), alpha)));
    }));
    const end = Math.min(start + PER_PAGE, rows.length);
    status.textContent = rows.length
      ? `Prompts ${start + 1} to ${end} of ${rows.length}; ${n} ${n === 1 ? "text passes" : "texts pass"}.`
      : "0 prompts; 0 texts pass.";
    tableBox.hidden = !rows.length;
    empty.hidden = rows.length > 0;
    earlier.disabled = start === 0;
    later.disabled = end >= rows.length;
    pager.hidden = rows.length <= PER_PAGE;
  }
  function restart() { start = 0; draw(); }

  fill(model, runs.map((name, i) => [String(i), name]));
  fill(score, [["", "any"], ...scores.map((s, i) => [String(i), s.flag ? `${s.title} (1 yes, 0 no)` : s.title])]);
  model.addEventListener("change", () => { offerAll(); restart(); });
  direction.addEventListener("change", () => { offerStrengths(); restart(); });
  for (const control of [scenario, score]) control.addEventListener("change", restart);
  for (const control of [least, most, words]) control.addEventListener("input", restart);
  earlier.addEventListener("click", () => { start -= PER_PAGE; draw(); });
  later.addEventListener("click", () => { start += PER_PAGE; draw(); });
  offerAll();
  root.replaceChildren(form, status, tableBox, empty, pager);
  draw();
  root.dataset.state = "ready";
})();
