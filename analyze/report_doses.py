"""The report's dose-response: how success grows with the strength, and whether the claim holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from .report_charts import Records
from .report_intervention_panels import SERIES, Series, curves_panel, points_of, short
from .report_numbers import decimal, interval, number, percent, require_columns, rows_of, string
from .report_page import Column, Page, details, figure, grid, key, reason_list, table
from .report_statements import (
    Statement,
    bracket,
    cards,
    p_words,
    reason_of,
    split_runs,
    strength,
    tally,
)

__all__ = ["add_doses", "dose_statement"]

_NEEDED = ("run", "metric", "side", "subset", "estimate", "alpha_raw")
_SIDES = {"positive": "Towards the concept", "negative": "Away from it"}
_VERDICTS = {
    "needed": "Yes, a strength of {} is needed",
    "not needed": "No, a strength of {} is not needed",
    "no effect shown": "A strength of {} shows no effect, so nothing is needed",
    "undecided": "Whether a strength of {} is needed cannot be told",
    "not tested": "Whether a strength of {} is needed was not tested",
}


def add_doses(page: Page, tables: Mapping[str, pd.DataFrame], labels: Mapping[str, str]) -> None:
    """Add the dose-response of each model; nothing where it was not analysed."""
    doses = tables.get("doses")
    if doses is None or doses.empty:
        return
    doses = require_columns(doses, "doses", _NEEDED)
    verdicts = tables.get("doses-verdicts", pd.DataFrame())
    statements, panels, reasons, listed = [], [], [], []
    for run, label, rows in split_runs(doses, labels):
        of_run = verdicts[verdicts["run"].astype(str) == run] if len(verdicts) else verdicts
        for group, part, claims in _groups(rows, of_run):
            name = label if group == "all" else f"{label}, {group}"
            statements.append(dose_statement(name, part, claims))
            panels += _panels(page, name, part, claims)
            missing = part[part["estimate"].isna()]
            reasons += [
                f"{name}, {string(r['metric'])}, {string(r['side'])}: "
                f"{string(r.get('reason')) or 'no reason was recorded'}"
                for r in rows_of(missing)
            ]
            listed += [{**row, "label": name} for row in rows_of(part)]
    caption = (
        "How to read: the share of samples that move as steered, with 95 % intervals that widen "
        "for prompts answering alike; no change is no success, and strength 0 steers nowhere, so "
        "it has no point. Coherent texts, where they were judged, are the second curve, and the "
        "shaded part is where they fall below the band of the unsteered model: success there is "
        "broken text. Upright lines mark the middle of the curve (α50), the smallest strength that "
        "differs from none, and the claim. The control for the direction stands under Steering."
    )
    items = [
        (f"line+{SERIES[0][1]}", SERIES[0][0], "samples that move as steered"),
        (f"dashed+{SERIES[1][1]}", SERIES[1][0], "coherent texts"),
        (f"line+{SERIES[0][1]}", SERIES[0][0], "mean effect (second panel of each)"),
        ("band", "#000", "coherence breaks down"),
    ]
    body = cards(statements) + figure(caption, key(items), grid(panels, width="24rem"))
    body += reason_list(reasons)
    body += details("The dose-response as a table", table(_COLUMNS, listed, label="Doses"))
    judged = verdicts[verdicts["side"] == "positive"] if len(verdicts) else verdicts
    answers = [str(row["verdict"]) for row in rows_of(judged)]
    lead = f"The claimed strength: {tally(answers, 'curve')}." if answers else ""
    page.add("doses", "Dose-response", body, lead=lead)


def _groups(
    rows: pd.DataFrame, verdicts: pd.DataFrame
) -> list[tuple[str, pd.DataFrame, pd.DataFrame]]:
    """Return the rows and verdicts of each group that was analysed apart, over all samples."""
    groups = rows["group"].fillna("all").astype(str) if "group" in rows else None
    if groups is None:
        return [("all", rows, verdicts)]
    out = []
    for group in dict.fromkeys(groups):
        claims = verdicts
        if len(verdicts) and "group" in verdicts:
            claims = verdicts[verdicts["group"].astype(str) == group]
        out.append((group, rows[groups == group], claims))
    return out


def dose_statement(label: str, rows: pd.DataFrame, verdicts: pd.DataFrame) -> Statement:
    """Return whether the claimed strength is needed, and from which strength on there is effect."""
    claims = [row for row in rows_of(verdicts) if row.get("side") == "positive"]
    sentences = [sentence for row in claims for sentence in _claim(row)]
    if not sentences:
        sentences.append("No claimed strength was judged on the positive side.")
    for side, words in _SIDES.items():
        here = rows[(rows["side"] == side) & (rows["subset"] == "all")]
        if len(here):
            sentences.append(f"{words}: {_least(here)}; {_middle(here)}; {_breakdown(here)}.")
    sentences.append(_slopes(rows))
    caveat = (
        "success is any move in the direction steered, however small; the size of the effect is "
        "the second panel"
    )
    return Statement(label, tuple(s for s in sentences if s), caveat)


def _claim(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the answer to whether the claimed strength is needed, what suffices, and the units."""
    claimed = f"{decimal(number(row.get('claimed_raw')), 1)} raw"
    verdict = string(row.get("verdict")) or "undecided"
    text = _VERDICTS.get(verdict, _VERDICTS["undecided"]).format(claimed)
    text += f": {string(row.get('reason')) or 'no reason was recorded'}"
    if number(row.get("sufficient_raw")) is not None:
        text += f". Enough is {strength(row, 'sufficient')}"
        difference = number(row.get("difference"))
        if difference is not None:
            low, high = number(row.get("difference_low")), number(row.get("difference_high"))
            ends = interval(low, high)
            text += f" (success differs by {decimal(difference)}{f', {ends}' if ends else ''})"
    if row.get("claimed_coherent") is False:
        text += ". At the claimed strength texts are less coherent than the unsteered model's"
    return f"{text}.", f"The claim is {strength(row, 'claimed')}."


def _least(rows: pd.DataFrame) -> str:
    found = rows[rows["metric"] == "minimum_effective_dose"]
    if found.empty:
        return "no test of the smallest effective strength"
    row = rows_of(found)[0]
    if number(row["estimate"]) is None:
        return f"no smallest effective strength: {reason_of(found)}"
    p = number(row.get("p_value"))
    shown = "p < .0001" if p is not None and p < 1e-4 else p_words(p, None)
    return f"the smallest strength that differs from none is {strength(row)} (Dunnett, {shown})"


def _middle(rows: pd.DataFrame) -> str:
    found = rows[rows["metric"] == "alpha50"]
    if found.empty:
        return "no curve was fitted"
    row = rows_of(found)[0]
    if number(row["estimate"]) is None:
        return f"α50 {reason_of(found)}"
    return f"α50 is {strength(row)}{bracket(row, digits=2)} raw"


def _breakdown(rows: pd.DataFrame) -> str:
    found = rows[rows["metric"] == "breakdown"]
    if found.empty:
        return "coherence was not judged, so a breakdown would not show"
    row = rows_of(found)[0]
    if number(row["estimate"]) is None:
        return f"no breakdown: {reason_of(found)}"
    return f"from {strength(row)} on texts are less coherent than the unsteered model's"


def _slopes(rows: pd.DataFrame) -> str:
    found = rows[(rows["metric"] == "anti_steerable_share") & (rows["subset"] == "all")]
    if found.empty:
        return ""
    row = rows_of(found)[0]
    share = number(row["estimate"])
    if share is None:
        return f"No slope per prompt: {reason_of(found)}."
    low, high = number(row.get("ci_low")), number(row.get("ci_high"))
    ends = f" ({percent(low)} to {percent(high)})" if low is not None and high is not None else ""
    n = number(row.get("n_prompts"))
    text = f"{percent(share)} of {decimal(n, 0)} prompts{ends} move against the steering"
    slope = rows_of(rows[(rows["metric"] == "slope_mean") & (rows["subset"] == "all")])
    if slope and number(slope[0]["estimate"]) is not None:
        text += (
            f"; the mean slope is {decimal(number(slope[0]['estimate']), 4)} nats per raw unit"
            f"{bracket(slope[0], digits=4)}"
        )
    return f"{text}."


def _panels(page: Page, label: str, rows: pd.DataFrame, verdicts: pd.DataFrame) -> list[str]:
    """Return a model's two panels: success beside coherence, and the mean effect."""
    whole = rows[rows["subset"] == "all"]
    known = whole[whole["estimate"].notna()]
    x, title = _axis(known)
    marks = _marks(known, verdicts, x)
    broken = _broken(known, x)
    rates = known[known["metric"].isin(["success_rate", "coherence"])]
    series = [
        Series(name, points_of(known[known["metric"] == metric], x), place)
        for place, (metric, name) in enumerate(
            (("success_rate", "success"), ("coherence", "coherent texts"))
        )
        if (rates["metric"] == metric).any()
    ]
    spec = (
        curves_panel(
            series, x_title=title, y_title="share", marks=marks, broken=broken,
            y_domain=(-0.02, 1.05),
        )
        if series
        else None
    )  # fmt: skip
    out = [page.panel(f"{label}: success", spec, absent=f"Not estimated: {reason_of(whole)}.")]
    effects = points_of(known[known["metric"] == "effect_mean"], x)
    if effects:
        unit = string(rows_of(known)[0].get("outcome")) or "outcome"
        effect = curves_panel(
            [Series("mean effect", effects)], x_title=title, y_title=f"mean change of {unit}",
            marks=marks, broken=broken,
        )  # fmt: skip
        out.append(page.panel(f"{label}: mean effect", effect))
    return out


def _axis(known: pd.DataFrame) -> tuple[str, str]:
    """Return the column of strengths and its name: separations where all of them are known."""
    rates = known[known["alpha_raw"].notna()]
    if "alpha_separation" in rates and len(rates) and rates["alpha_separation"].notna().all():
        return "alpha_separation", "α in class separations"
    return "alpha_raw", "α, raw"


def _marks(known: pd.DataFrame, verdicts: pd.DataFrame, x: str) -> Records:
    """Return the upright lines: the middle of the curve, the least effective dose, the claim."""
    out = []
    for metric, name in (("alpha50", "α50"), ("minimum_effective_dose", "least effective")):
        rows = known[(known["metric"] == metric) & (known["side"] == "positive")]
        out += [{"x": short(r.get(x)), "label": name} for r in rows_of(rows)]
    claimed = x.replace("alpha_", "claimed_")
    out += [
        {"x": short(r.get(claimed)), "label": "claim"}
        for r in rows_of(verdicts)
        if r.get("side") == "positive"
    ]
    return [mark for mark in out if mark["x"] is not None]


def _broken(known: pd.DataFrame, x: str) -> Records:
    """Return the spans of strengths from which on coherence lies below the baseline's band."""
    strengths = [v for v in map(short, known[x]) if v is not None]
    out = []
    for row in rows_of(known[known["metric"] == "breakdown"]):
        start = short(row.get(x))
        if start is not None and strengths:
            end = max(strengths) if start > 0 else min(strengths)
            out.append({"from": start, "to": end})
    return out


_COLUMNS = [
    Column("model", lambda r: r["label"]),
    Column("figure", lambda r: str(r["metric"])),
    Column("side", lambda r: str(r["side"])),
    Column("samples", lambda r: str(r["subset"])),
    Column("α [raw]", lambda r: decimal(number(r["alpha_raw"]), 2), "number"),
    Column("α [separations]", lambda r: decimal(number(r.get("alpha_separation")), 2), "number"),
    Column("α [residual norms]", lambda r: decimal(number(r.get("alpha_norm")), 2), "number"),
    Column("angle [°]", lambda r: decimal(number(r.get("alpha_angle")), 1), "number"),
    Column("estimate", lambda r: decimal(number(r["estimate"])), "number"),
    Column(
        "95 % interval", lambda r: interval(number(r.get("ci_low")), number(r.get("ci_high"))),
        "number",
    ),
    Column("under the biased rule", lambda r: decimal(number(r.get("biased_estimate"))), "number"),
    Column("p", lambda r: decimal(number(r.get("p_value")), 4), "number"),
    Column("samples known", lambda r: decimal(number(r.get("n_samples")), 0), "number"),
    Column("remark", lambda r: string(r.get("reason")) or "", "long"),
]  # fmt: skip
