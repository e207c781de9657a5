"""What a section of the report says in words: a card per model with sentence and caveat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from .report_numbers import RunView, decimal, number, string
from .report_page import esc

__all__ = [
    "Statement",
    "bracket",
    "cards",
    "label_runs",
    "p_words",
    "reason_of",
    "split_runs",
    "strength",
    "tally",
]


@dataclass(frozen=True)
class Statement:
    """What the numbers of one model say; the first sentence is the finding."""

    label: str
    sentences: tuple[str, ...]
    caveat: str = ""


def cards(statements: Sequence[Statement]) -> str:
    """Return a card per statement as HTML: the finding, what else there is, what to mind."""
    out = []
    for item in statements:
        lead, *rest = item.sentences
        more = "".join(f"<p>{esc(sentence)}</p>" for sentence in rest)
        mind = f'<p class="caveat">Mind: {esc(item.caveat)}.</p>' if item.caveat else ""
        out.append(
            f'<article class="card"><h3>{esc(item.label)}</h3>'
            f'<p class="lead">{esc(lead)}</p>{more}{mind}</article>'
        )
    return f'<div class="findings">{"".join(out)}</div>' if out else ""


def tally(answers: Sequence[str], what: str = "model") -> str:
    """Return how often each answer was given: ``needed in 2 of 3 models, undecided in 1``."""
    n = len(answers)
    counted = {answer: answers.count(answer) for answer in dict.fromkeys(answers)}
    if len(counted) == 1:
        where = f"the one {what}" if n == 1 else f"all {n} {what}s"
        return f"{answers[0]} in {where}"
    first, *rest = sorted(counted.items(), key=lambda item: -item[1])
    parts = [f"{first[0]} in {first[1]} of {n} {what}s", *(f"{a} in {k}" for a, k in rest)]
    return ", ".join(parts)


def label_runs(views: Sequence[RunView]) -> dict[str, str]:
    """Return the names of the models by run, in the order of the page."""
    return {view.run: view.label for view in views}


def split_runs(
    table: pd.DataFrame, labels: Mapping[str, str]
) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Return (run, label, its rows): the runs of ``labels`` first, then as they come."""
    here = list(dict.fromkeys(str(run) for run in table["run"]))
    order = [run for run in labels if run in here] + [run for run in here if run not in labels]
    for run in order:
        yield run, string(labels.get(run)) or run, table[table["run"].astype(str) == run]


def reason_of(rows: pd.DataFrame) -> str:
    """Return why the rows have no estimate, without a full stop."""
    if "reason" not in rows.columns:
        return "no reason was recorded"
    known = (string(reason) for reason in rows["reason"])
    return next((reason.rstrip(".") for reason in known if reason), "no reason was recorded")


def bracket(row: Mapping[str, object], *, digits: int = 3, scale: float = 1.0) -> str:
    """Return `` (95 % interval a to b)`` of a row, or that there is no interval."""
    low, high = number(row.get("ci_low")), number(row.get("ci_high"))
    if low is None or high is None:
        return " (no interval)"
    ends = f"{decimal(low * scale, digits)} to {decimal(high * scale, digits)}"
    return f" (95 % interval {ends})"


def p_words(p: float | None, n_draws: float | None) -> str:
    """Return ``p = .09``, and where no smaller one was possible how many draws stood behind it."""
    if p is None:
        return "no p-value"
    shown = f"p = {p:.3f}" if p >= 0.00095 else f"p = {p:.1e}"
    if n_draws is not None and p <= 1 / (1 + n_draws) + 1e-12:
        return f"{shown}, the smallest that {n_draws:.0f} draws can give"
    return shown


_UNITS = (
    ("raw", "{} raw", 1),
    ("separation", "{} class separations", 2),
    ("norm", "{} mean residual norms", 2),
    ("angle", "{}° of turn", 0),
)


def strength(row: Mapping[str, object], prefix: str = "alpha") -> str:
    """Return a strength in the units that are known: raw, separations, norms, degrees."""
    found = ((number(row.get(f"{prefix}_{unit}")), words, d) for unit, words, d in _UNITS)
    parts = [words.format(decimal(value, digits)) for value, words, digits in found
             if value is not None]  # fmt: skip
    return " = ".join(parts) if parts else "a strength that was not recorded"
