"""The report's sample browser: texts of steered models side by side, one prompt to a row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from .report_numbers import decimal, number, printable, require_columns, rows_of, string
from .report_page import Column, Page, data_element, esc, table
from .report_statements import split_runs

__all__ = ["SampleChoice", "add_samples", "choose_samples"]

_NEEDED = ("run", "prompt", "direction", "text", "alpha_raw")
_FLAGS = ("coherent", "refusal")
_BUDGET = 1_000_000  # characters of texts and prompts
# The scores that are shown where a table has them: (column, its name, decimals).
_SCORES = (
    ("judge_score", "rubric score", 0),
    ("choice_log_odds", "forced choice, log-odds", 2),
    ("logprob_difference", "log-prob difference", 3),
    ("empathy_share", "empathy words", 3),
    ("task_share", "task words", 3),
    ("sentiment", "sentiment", 2),
    ("hostility_count", "hostile words", 0),
    ("coherent", "coherent", 0),
    ("refusal", "refusal", 0),
    ("perplexity", "perplexity, unsteered", 1),
    ("distinct_2", "distinct-2", 2),
    ("longest_repeat", "longest repeat", 0),
    ("n_words", "words", 0),
)


@dataclass(frozen=True)
class SampleChoice:
    """The rows that the page holds, and how many it does not."""

    rows: pd.DataFrame
    n_left_out: int


def choose_samples(scored: pd.DataFrame, *, budget: int = _BUDGET) -> SampleChoice:
    """Return whole prompts of all models in turn, until their texts come to ``budget`` characters.

    A prompt comes with all strengths of a direction, or not at all: half a row could not be
    compared. Studied directions come before random ones.
    """
    plain = scored.assign(text=[string(text) or "" for text in scored["text"]])
    is_random = plain["direction"].astype(str).str.startswith("random")
    groups = list(
        plain.assign(_random=is_random).groupby(
            ["_random", "run", "direction", "prompt"], sort=False
        )
    )
    turn: dict[tuple[object, ...], int] = {}
    order: list[tuple[bool, int, int, pd.Index[Any]]] = []
    for name, part in groups:
        place = turn.setdefault(name[:3], 0)
        turn[name[:3]] += 1
        order.append((bool(name[0]), place, len(order), part.index))
    kept: list[Any] = []
    spent = 0
    for _, _, _, index in sorted(order, key=lambda item: item[:3]):
        cost = _cost(plain.loc[index])
        if spent + cost > budget:
            break
        spent += cost
        kept.extend(index)
    rows = plain[plain.index.isin(kept)]
    return SampleChoice(rows, len(plain) - len(rows))


def _cost(rows: pd.DataFrame) -> int:
    """Return the characters that the rows take in the page's JSON, every text counted once."""
    texts = [*dict.fromkeys(rows["text"])]
    if "prompt_text" in rows:
        texts += [string(text) or "" for text in dict.fromkeys(rows["prompt_text"])]
    return sum(len(json.dumps(text)) for text in texts)


def add_samples(page: Page, tables: Mapping[str, pd.DataFrame], labels: Mapping[str, str]) -> None:
    """Add the browser of steered texts; nothing where no text was written."""
    scored = tables.get("scored")
    if scored is None or scored.empty:
        return
    scored = require_columns(scored, "scored", _NEEDED).reset_index(drop=True)
    choice = choose_samples(scored)
    page.use(script="report_samples.js", style="report_interventions.css")
    note = (
        "Each row is one prompt, each column a strength of the same direction; α = 0 is the "
        "unsteered model. The control is a random direction of the same size: choose it under "
        "“direction” and compare. Texts are shown as they were written, broken ones included."
    )
    if choice.n_left_out:
        note += (
            f" {choice.n_left_out} of {len(scored)} texts are left out, so that the page stays "
            "small; all of them are in the results, in the table “scored” of each model."
        )
    else:
        note += f" All {len(scored)} texts are here."
    body = (
        f'<p class="note">{esc(note)}</p>'
        f'<div id="sample-browser">{_static(choice.rows, labels)}</div>'
        f"{data_element('samples-data', _payload(choice.rows, labels))}"
    )
    n_models, n_directions = scored["run"].nunique(), scored["direction"].nunique()
    lead = (
        f"{len(scored)} texts of {n_models} model{'s' if n_models != 1 else ''} under "
        f"{n_directions} direction{'s' if n_directions != 1 else ''}."
    )
    page.add("samples", "What steered models write", body, lead=lead)


def _payload(rows: pd.DataFrame, labels: Mapping[str, str]) -> dict[str, Any]:
    """Return the rows as JSON for the script: every text and prompt once, then numbers."""
    scores: list[dict[str, Any]] = [
        {"title": title, "digits": digits, "column": column, "flag": column in _FLAGS}
        for column, title, digits in _SCORES
        if column in rows and rows[column].map(_score).notna().any()
    ]
    texts: dict[str, int] = {}
    prompts: dict[tuple[str, str, str], int] = {}
    samples = []
    runs: list[str] = []
    for _, label, part in split_runs(rows, labels):
        runs.append(label)
        unit = _unit(part)
        for row in rows_of(part):
            asked = string(row.get("prompt_text")) or printable(row["prompt"])
            name = (
                string(row.get("scenario")) or "no scenario", printable(row["prompt"]), asked,
            )  # fmt: skip
            samples.append(
                [
                    len(runs) - 1,
                    string(row["direction"]) or "",
                    prompts.setdefault(name, len(prompts)),
                    _short(row.get(unit)),
                    _short(row["alpha_raw"]),
                    texts.setdefault(row["text"], len(texts)),
                    *(_score(row.get(score["column"])) for score in scores),
                ]
            )
    return {
        "runs": runs,
        "units": [_unit(part) for _, _, part in split_runs(rows, labels)],
        "scores": [{k: v for k, v in score.items() if k != "column"} for score in scores],
        "prompts": [list(name) for name in prompts],
        "texts": list(texts),
        "samples": samples,
    }


def _unit(rows: pd.DataFrame) -> str:
    """Return the column of strengths: separations where all of them are known."""
    column = "alpha_separation"
    return column if column in rows and rows[column].notna().all() else "alpha_raw"


def _short(value: object) -> float | None:
    known = number(value)
    return None if known is None else float(f"{known:.4g}")


def _score(value: object) -> float | None:
    """Return a score as a number: 1 and 0 for yes and no; None where it is not known."""
    if isinstance(value, bool):
        return float(value)
    return _short(value)


def _static(rows: pd.DataFrame, labels: Mapping[str, str]) -> str:
    """Return the first prompt of every model as a table, for readers without scripts."""
    shown = []
    for _, label, part in split_runs(rows, labels):
        first = part.iloc[0]
        same = part[(part["prompt"] == first["prompt"]) & (part["direction"] == first["direction"])]
        unit = _unit(part)
        shown += [{**row, "label": label, "strength": row[unit]}
                  for row in rows_of(same.sort_values(unit))]  # fmt: skip
    columns: Sequence[Column] = (
        Column("model", lambda r: r["label"]),
        Column("direction", lambda r: str(r["direction"])),
        Column("α", lambda r: decimal(number(r["strength"]), 2), "number"),
        Column("prompt", lambda r: string(r.get("prompt_text")) or str(r["prompt"]), "long"),
        Column("text", lambda r: r["text"], "long"),
    )
    note = (
        '<p class="note">The first prompt of each model; the page\'s script shows the others.</p>'
    )
    return note + table(columns, shown, label="Steered texts")
