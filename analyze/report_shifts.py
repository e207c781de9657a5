"""The report's negative steering and task-free scenarios: verdicts with what they contrast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from .report_intervention_panels import SERIES, Series, curves_panel, points_of
from .report_numbers import decimal, interval, number, require_columns, rows_of, string
from .report_page import Column, Page, figure, grid, key, reason_list, table
from .report_statements import Statement, cards, reason_of, split_runs, tally

__all__ = ["add_negative", "add_task_free", "negative_statement", "task_free_statement"]

_FIGURES = {
    "task_focus_shift": "task focus",
    "sentiment_shift": "sentiment",
    "hostile_share_shift": "share of hostile texts",
    "coherent_share_shift": "share of coherent texts",
}
_KINDS = {"conflict": "with a task conflict", "free": "task-free"}


def add_negative(page: Page, tables: Mapping[str, pd.DataFrame], labels: Mapping[str, str]) -> None:
    """Add what steering away does to task focus and to tone; nothing where it was not asked."""
    verdicts = tables.get("negative-verdicts")
    if verdicts is None or verdicts.empty:
        return
    verdicts = require_columns(verdicts, "negative-verdicts", ("run", "alpha_raw", "verdict"))
    shifts = tables.get("negative", pd.DataFrame())
    statements, panels, reasons, listed = [], [], [], []
    for run, label, mine in split_runs(verdicts, labels):
        rows = shifts[shifts["run"].astype(str) == run] if len(shifts) else shifts
        statements.append(negative_statement(label, mine))
        listed += [{**row, "label": label} for row in rows_of(mine)]
        if rows.empty:
            continue
        whole = rows[rows["subset"] == "all"]
        for metric, words in _FIGURES.items():
            part = whole[whole["metric"] == metric]
            points = points_of(part, "alpha_raw")
            # A change against strength 0 is 0 there, and has no row of its own.
            if points and all(point["x"] != 0 for point in points):
                none = {"x": 0.0, "y": 0.0, "low": 0.0, "high": 0.0}
                points = sorted([*points, none], key=lambda point: float(point["x"]))
            spec = (
                curves_panel([Series(words, points)], x_title="α, raw", y_title="change")
                if points
                else None
            )
            absent = f"Not estimated: {reason_of(part)}."
            panels.append(page.panel(f"{label}: {words}", spec, absent=absent))
            reasons += [
                f"{label}, {words} at {decimal(number(r['alpha_raw']), 2)}: "
                f"{string(r.get('reason')) or 'no reason was recorded'}"
                for r in rows_of(part[part["estimate"].isna()])
            ]
    caption = (
        "How to read: each curve is the mean change against strength 0 of the same prompts, with "
        "95 % intervals. Negative strengths steer away from the concept. The controls of a rise in "
        "task focus are beside it: it is without cruelty only if hostile texts do not become more, "
        "and counts at all only if texts stay coherent."
    )
    items = [(f"line+{SERIES[0][1]}", SERIES[0][0], "mean change, 95 % interval")]
    body = cards(statements)
    if panels:
        body += figure(caption, key(items), grid(panels, width="15rem"))
    body += reason_list(reasons) + table(_NEGATIVE, listed, label="Negative steering")
    whole = verdicts[verdicts["subset"] == "all"] if "subset" in verdicts else verdicts
    answers = [str(row["verdict"]) for row in rows_of(whole)]
    lead = f"Steering away: {tally(answers, 'strength')}." if answers else ""
    page.add("negative", "Negative steering", body, lead=lead)


def negative_statement(label: str, verdicts: pd.DataFrame) -> Statement:
    """Return whether steering away raises task focus without cruelty, by strength."""
    whole = verdicts[verdicts["subset"] == "all"] if "subset" in verdicts else verdicts
    whole = whole.sort_values("alpha_raw", ascending=False)  # the weakest first
    found: dict[str, list[str]] = {}
    for row in rows_of(whole):
        verdict = string(row["verdict"]) or "undecided"
        found.setdefault(verdict, []).append(decimal(number(row["alpha_raw"]), 2))
    parts = [f"{verdict} at α = {', '.join(alphas)}" for verdict, alphas in found.items()]
    if not parts:
        return Statement(label, ("No negative strength was judged on all texts.",))
    text = "; ".join(parts)
    lead = f"Steering away: {text}."
    reasons = []
    telling = rows_of(whole[whole["verdict"].astype(str).str.startswith("raises")])
    example = (telling or rows_of(whole))[0]
    reasons.append(
        f"At α = {decimal(number(example['alpha_raw']), 2)}: "
        f"{string(example.get('reason')) or 'no reason was recorded'}."
    )
    low = whole["sentiment_falls"].dropna() if "sentiment_falls" in whole else pd.Series(dtype=bool)
    if len(low):
        fallen = int(low.astype(bool).sum())
        reasons.append(f"Sentiment falls at {fallen} of {len(low)} negative strengths.")
    return Statement(
        label,
        (lead, *reasons),
        "strengths are judged one by one, without a correction for their number",
    )


def add_task_free(
    page: Page, tables: Mapping[str, pd.DataFrame], labels: Mapping[str, str]
) -> None:
    """Add steering with and without a task conflict; nothing where it was not asked."""
    verdicts = tables.get("task-free-verdicts")
    if verdicts is None or verdicts.empty:
        return
    verdicts = require_columns(verdicts, "task-free-verdicts", ("run", "direction", "verdict"))
    shifts = tables.get("task-free", pd.DataFrame())
    statements, panels, listed = [], [], []
    for run, label, mine in split_runs(verdicts, labels):
        rows = shifts[shifts["run"].astype(str) == run] if len(shifts) else shifts
        statements.append(task_free_statement(label, mine, rows))
        if rows.empty:
            continue
        effects = rows[rows["metric"] == "effect_mean"]
        series = [
            Series(words, points, place)
            for place, (kind, words) in enumerate(_KINDS.items())
            if (points := points_of(effects[effects["kind"] == kind], "alpha_raw"))
        ]
        spec = curves_panel(series, x_title="α, raw", y_title="mean change") if series else None
        panels.append(page.panel(label, spec, absent=f"Not estimated: {reason_of(effects)}."))
        slopes = rows[rows["metric"].str.startswith(("slope", "interaction"))]
        listed += [{**row, "label": label} for row in rows_of(slopes)]
    caption = (
        "How to read: the mean change of the outcome against strength 0 of the same prompts, with "
        "95 % intervals, in scenarios where helping costs the task something and in task-free "
        "ones. The control of each is the other: only the difference of their slopes (the "
        "interaction below) says that steering needs a conflict."
    )
    items = [
        (f"{kind}+{SERIES[i][1]}", SERIES[i][0], words)
        for i, (kind, words) in enumerate(zip(("line", "dashed"), _KINDS.values(), strict=True))
    ]
    body = cards(statements)
    if panels:
        body += figure(caption, key(items), grid(panels, width="19rem"))
    if listed:
        body += table(_SLOPES, listed, label="Slopes by type of scenario")
    towards = verdicts[verdicts["direction"] == "positive"]
    answers = [str(row["verdict"]) for row in rows_of(towards)]
    lead = f"Steering towards the concept: {tally(answers)}." if answers else ""
    page.add("task-free", "Task-free scenarios", body, lead=lead)


def task_free_statement(label: str, verdicts: pd.DataFrame, rows: pd.DataFrame) -> Statement:
    """Return whether steering works where helping costs the task nothing, in each direction."""
    sentences = []
    for row in rows_of(verdicts):
        side = "Towards the concept" if row["direction"] == "positive" else "Away from it"
        counts = [number(row.get(f"n_prompts_{kind}")) for kind in ("free", "conflict")]
        prompts = ""
        if None not in counts:
            prompts = f" ({counts[0]:.0f} task-free prompts, {counts[1]:.0f} with a conflict)"
        reason = string(row.get("reason")) or "no reason was recorded"
        sentences.append(f"{side}: {string(row['verdict'])}{prompts}: {reason}.")
    stuck: list[str] = []
    if len(rows) and {"ceiling", "floor"} <= set(rows.columns):
        for flag in ("ceiling", "floor"):
            kinds = [r["kind"] for r in rows_of(rows) if number(r[flag])]
            stuck += [f"the baseline of {_KINDS.get(k, k)} scenarios lies at the {flag}"
                      for k in dict.fromkeys(str(kind) for kind in kinds)]  # fmt: skip
    caveat = "a slope that is shown in one type and not in the other is no difference by itself"
    return Statement(label, tuple(sentences), "; ".join([caveat, *stuck]))


def _ends(row: Mapping[str, Any]) -> str:
    return interval(number(row.get("ci_low")), number(row.get("ci_high")))


_NEGATIVE = [
    Column("model", lambda r: r["label"]),
    Column("texts", lambda r: string(r.get("subset")) or "all"),
    Column("α [raw]", lambda r: decimal(number(r["alpha_raw"]), 2), "number"),
    Column("verdict", lambda r: string(r["verdict"]) or "–"),
    Column("because", lambda r: string(r.get("reason")) or "no reason was recorded", "long"),
    Column("prompts", lambda r: decimal(number(r.get("n_prompts")), 0), "number"),
]
_SLOPES = [
    Column("model", lambda r: r["label"]),
    Column("figure", lambda r: str(r["metric"]).replace("_", ", ")),
    Column("scenarios", lambda r: _KINDS.get(str(r["kind"]), "task-free minus conflict")),
    Column("estimate per raw unit", lambda r: decimal(number(r["estimate"]), 4), "number"),
    Column("95 % interval", _ends, "number"),
    Column("prompts", lambda r: decimal(number(r.get("n_prompts")), 0), "number"),
]
