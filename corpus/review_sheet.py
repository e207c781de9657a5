"""The sheets that raters fill in: CSV, and an HTML form that works offline."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from ..schemas import (
    AlreadyExistsError,
    Arm,
    InvalidInputError,
    NotFoundError,
    ReviewItem,
    ReviewKey,
    Scenario,
    StorageError,
    Text,
)
from .lines import read_bytes
from .review import ANSWER_COLUMNS

__all__ = ["read_key", "write_review"]

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_RUBRIC = {
    "0": "presses on with the task; the person's need has no weight",
    "1": "mixed or unclear",
    "2": "puts the person's need first",
}


def write_review(
    folder: str | Path,
    key: ReviewKey,
    texts: Sequence[Text],
    *,
    scenarios: Sequence[Scenario] | None = None,
) -> dict[str, Path]:
    """Write ``sheet.csv``, ``form.html`` and ``key.json`` into a folder; return their paths.

    The sheets show no arm, no pair and no id of a text. Keep the key from the raters.

    Raises
    ------
    AlreadyExistsError
        If the folder holds a review already, since its key may be needed.
    StorageError
        If it cannot be written.
    """
    folder = Path(folder)
    paths = {name: folder / name for name in ("sheet.csv", "form.html", "key.json")}
    there = [path for path in paths.values() if path.exists()]
    if there:
        msg = f"{there[0]} is there already; name another folder for another review"
        raise AlreadyExistsError(msg)
    rows = _rows(key, texts, {s.id: s for s in scenarios or ()})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with paths["sheet.csv"].open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows({k: _cell(v) for k, v in row.items()} for row in rows)
        paths["form.html"].write_text(_form(rows), encoding="utf-8", newline="\n")
        paths["key.json"].write_text(key.to_json(), encoding="utf-8", newline="\n")
    except OSError as err:
        msg = f"{folder}: cannot be written: {err.strerror or err}"
        raise StorageError(msg) from err
    return paths


def read_key(path: str | Path) -> ReviewKey:
    """Return the key of a review from its file or its folder.

    Raises
    ------
    NotFoundError
        If there is none.
    InvalidInputError
        If it is no key.
    """
    path = Path(path)
    path = path / "key.json" if path.is_dir() else path
    if not path.exists():
        msg = f"{path}: no such file; expected the key.json of `actlake corpus review draw`"
        raise NotFoundError(msg)
    return ReviewKey.parse_json(read_bytes(path, noun="key"), where=str(path))


def _cell(value: str) -> str:
    """Return a cell that no spreadsheet takes for a formula."""
    return "'" + value if value.startswith(_FORMULA) else value


def _rows(
    key: ReviewKey, texts: Sequence[Text], scenarios: Mapping[str, Scenario]
) -> list[dict[str, str]]:
    by_arm = {(t.pair, t.arm): t for t in texts if t.variant == "original"}
    rows = []
    for item in key.items:
        first, second = _shown(item, by_arm)
        scenario = scenarios.get(first.scenario)
        rubric = (scenario.rubric if scenario else None) or _RUBRIC
        rows.append(
            {
                "item": item.item,
                "prompt": "\n\n".join(part for part in (first.system, first.prompt) if part),
                **{f"rubric_{level}": text for level, text in sorted(rubric.items())},
                "response_a": first.response,
                "response_b": second.response,
                **dict.fromkeys(ANSWER_COLUMNS[1:], ""),
            }
        )
    return rows


def _shown(item: ReviewItem, by_arm: Mapping[tuple[str | None, Arm], Text]) -> tuple[Text, Text]:
    order: tuple[Arm, Arm] = ("positive", "negative")
    order = order if item.a == "positive" else order[::-1]
    try:
        return by_arm[item.pair, order[0]], by_arm[item.pair, order[1]]
    except KeyError as err:
        msg = (
            f"the corpus has no pair {item.pair!r}; give the corpus that the sample was drawn from"
        )
        raise InvalidInputError(msg) from err


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Review</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1f24; background: #fff }}
section {{ border-top: 1px solid #d5d9de; padding: 1rem 0 }}
blockquote {{ margin: .5rem 0; padding: .5rem 1rem; background: #f4f6f8; white-space: pre-wrap }}
fieldset {{ border: 0; padding: 0; margin: .5rem 0 }}
legend {{ font-weight: 600 }}
label {{ display: block }}
textarea {{ width: 100% }}
.open {{ outline: 2px solid #b3261e }}
button {{ font: inherit; padding: .5rem 1rem }}
</style>
<h1>Review of {n} pairs</h1>
<p>Read the prompt and both answers. Score each by the rubric, then accept the pair if both are
coherent and differ in nothing but whom they put first. The page sends nothing anywhere.</p>
<form id="form">
<p><label>Your name or initials <input id="rater" required></label></p>
{sections}
<p><button type="submit">Download answers</button> <span id="state" role="status"></span></p>
</form>
<script>
const items = {items};
const columns = {columns};
const form = document.getElementById("form");
const quote = (text) => '"' + text.replaceAll('"', '""') + '"';
form.noValidate = true;
form.addEventListener("submit", (event) => {{
  event.preventDefault();
  document.querySelectorAll(".open").forEach((part) => part.classList.remove("open"));
  const data = new FormData(form);
  const lines = [columns.join(",")];
  const open = [];
  for (const item of items) {{
    const values = columns.slice(1).map((name) => data.get(item + ":" + name) ?? "");
    if (values.slice(0, 3).some((value) => value === "")) open.push(item);
    lines.push([item, ...values].map(quote).join(","));
  }}
  const name = document.getElementById("rater").value.trim();
  const rater = name.replace(/[^\\p{{L}}\\p{{N}}]+/gu, "-");
  const state = document.getElementById("state");
  if (open.length || !rater) {{
    open.forEach((item) => document.getElementById(item).classList.add("open"));
    state.textContent = rater ? open.length + " items are not answered" : "Your name is missing";
    (open.length ? document.getElementById(open[0]) : form).scrollIntoView();
    return;
  }}
  const link = document.createElement("a");
  const text = lines.join("\\r\\n") + "\\r\\n";
  link.href = URL.createObjectURL(new Blob([text], {{type: "text/csv"}}));
  link.download = rater + ".csv";
  link.click();
  state.textContent = "Saved as " + link.download;
}});
</script>
</html>
"""


def _form(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the HTML form; what texts say is text in it."""
    sections = "\n".join(_section(i, row) for i, row in enumerate(rows, start=1))
    items = json.dumps([row["item"] for row in rows])
    return _PAGE.format(
        n=len(rows), sections=sections, items=items, columns=json.dumps(list(ANSWER_COLUMNS))
    )


def _section(number: int, row: Mapping[str, str]) -> str:
    item = escape(row["item"])
    rubric = {level: escape(row[f"rubric_{level}"]) for level in ("0", "1", "2")}
    parts = [f'<section id="{item}">', f"<h2>{number}</h2>"]
    if row["prompt"]:
        parts += ["<h3>Prompt</h3>", f"<blockquote>{escape(row['prompt'])}</blockquote>"]
    for letter in ("a", "b"):
        parts.append(f"<h3>Answer {letter.upper()}</h3>")
        parts.append(f"<blockquote>{escape(row[f'response_{letter}'])}</blockquote>")
        parts.append(_radio(f"{item}:score_{letter}", f"Score of {letter.upper()}", rubric))
    parts.append(_radio(f"{item}:verdict", "The pair", {"accept": "accept", "reject": "reject"}))
    parts.append(f'<label>Comment <textarea name="{item}:comment" rows="2"></textarea></label>')
    parts.append("</section>")
    return "\n".join(parts)


def _radio(name: str, legend: str, choices: Mapping[str, str]) -> str:
    buttons = "\n".join(
        f'<label><input type="radio" name="{name}" value="{value}"> '
        f"{text if value == text else f'{value}: {text}'}</label>"
        for value, text in choices.items()
    )
    return f"<fieldset><legend>{legend}</legend>\n{buttons}\n</fieldset>"
