"""The report's mediation: how much of the effect passes through each layer's state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from .report_charts import RANDOM_COLOUR, Records, Spec
from .report_intervention_panels import SERIES, Series, curves_panel, points_of, short
from .report_numbers import decimal, interval, number, percent, require_columns, rows_of, string
from .report_page import Column, Page, details, esc, figure, grid, key, table
from .report_statements import Statement, bracket, cards, p_words, reason_of, split_runs

__all__ = ["add_mediation", "mediation_statement"]

_NEEDED = ("run", "metric", "way", "mediator", "layer", "estimate")
_EFFECTS = {
    "NIE": "through the state (NIE)",
    "NDE": "past it (NDE)",
    "TE": "in all (TE)",
}
_MEDIATORS = {"coordinate": "the coordinate along the direction", "full": "all of the state"}
_WAYS = {"forward": "forward", "reverse": "reverse"}


def add_mediation(
    page: Page, tables: Mapping[str, pd.DataFrame], labels: Mapping[str, str]
) -> None:
    """Add the effects through and past each layer; nothing where no mediation was run."""
    found = tables.get("mediation")
    if found is None or found.empty:
        return
    found = require_columns(found, "mediation", _NEEDED)
    statements, parts, listed = [], [], []
    for _, label, rows in split_runs(found, labels):
        statements.append(mediation_statement(label, rows))
        for way in _WAYS:
            there = rows[rows["way"] == way]
            panels = [
                _panel(page, there, mediator, aside=way == "reverse")
                for mediator in _MEDIATORS
                if (there["mediator"] == mediator).any()
            ]
            if not panels:
                continue
            shown = grid(panels, width="19rem")
            parts.append(
                f'<h3>{esc(label)} <span class="note">{esc(_setting(rows))}</span></h3>{shown}'
                if way == "forward"
                else details(f"{label}: in reverse, from the source to the base", shown)
            )
        listed += [{**row, "label": label} for row in _listed(rows)]
    caption = (
        "How to read: the total effect of the system prompt (nats) is split at each layer into "
        "what passes through the mediator and what goes past it, with 95 % intervals over pairs; "
        "the two add up to the total only without interaction. The control is the grey band: the "
        "indirect effect through random directions of the same size."
    )
    items = [
        (f"{'dashed' if i else 'line'}+{SERIES[i][1]}", SERIES[i][0], words)
        for i, words in enumerate(_EFFECTS.values())
    ]
    items.append(("band", RANDOM_COLOUR, "range of NIE through random directions"))
    body = cards(statements) + figure(caption, key(items), "".join(parts))
    body += details("Mediation as a table", table(_COLUMNS, listed, label="Mediation"))
    page.add("mediation", "Mediation by layer", body, lead=_lead(found, labels))


def _lead(found: pd.DataFrame, labels: Mapping[str, str]) -> str:
    """Return the layer of each model that most passes through along the direction."""
    along = found[
        (found["way"] == "forward") & (found["metric"] == "NIE")
        & (found["mediator"] == "coordinate") & found["estimate"].notna()
    ]  # fmt: skip
    parts = []
    for _, label, rows in split_runs(along, labels):
        top = rows_of(rows.loc[[rows["estimate"].astype(float).idxmax()]])[0]
        parts.append(f"layer {int(top['layer'])} in {label}")
    return f"Along the direction most passes through {', '.join(parts)}." if parts else ""


def mediation_statement(label: str, rows: pd.DataFrame) -> Statement:
    """Return the layer with the largest indirect effect along the direction, and its control."""
    forward = rows[(rows["way"] == "forward") & (rows["metric"] == "NIE")]
    along = forward[forward["mediator"] == "coordinate"]
    known = along[along["estimate"].notna()]
    sentences = []
    if known.empty:
        why = reason_of(along) if len(along) else "this mediator was not run"
        sentences.append(f"No indirect effect along the direction: {why}.")
    else:
        top = rows_of(known.loc[[known["estimate"].astype(float).idxmax()]])[0]
        layer = int(top["layer"])
        text = (
            f"Along the direction most passes through layer {layer}: "
            f"{decimal(number(top['estimate']))} nats{bracket(top)}"
        )
        sentences.append(f"{text}{_proportion(rows, layer)}.")
        sentences.append(_against_random(forward, top))
        sentences.append(_interaction(rows, layer))
    full = forward[(forward["mediator"] == "full") & forward["estimate"].notna()]
    if len(full):
        best = rows_of(full.loc[[full["estimate"].astype(float).idxmax()]])[0]
        sentences.append(
            f"With all of the state as the mediator the most is "
            f"{decimal(number(best['estimate']))} nats{bracket(best)}, at layer "
            f"{int(best['layer'])}."
        )
    caveat = (
        "the largest layer is picked after looking; its p-value over layers allows for that, its "
        "interval does not"
    )
    return Statement(label, tuple(s for s in sentences if s), caveat)


def _proportion(rows: pd.DataFrame, layer: int) -> str:
    """Return the share mediated at a layer in words, or why there is none."""
    found = rows[
        (rows["way"] == "forward") & (rows["metric"] == "proportion")
        & (rows["mediator"] == "coordinate") & (rows["layer"] == layer)
    ]  # fmt: skip
    if found.empty:
        return ""
    row = rows_of(found)[0]
    share = number(row["estimate"])
    if share is None:
        return f"; no share of the total effect: {reason_of(found)}"
    low, high = number(row.get("ci_low")), number(row.get("ci_high"))
    ends = f" ({percent(low)} to {percent(high)})" if low is not None and high is not None else ""
    return f", {percent(share)} of the total effect{ends}"


def _against_random(forward: pd.DataFrame, top: Mapping[str, Any]) -> str:
    random = forward[(forward["mediator"] == "random") & (forward["layer"] == top["layer"])]
    values = random["estimate"].dropna().astype(float)
    if values.empty:
        return "No random directions were run, so nothing says that the direction matters."
    beaten = float(top["estimate"]) > float(values.max())
    p, n = number(top.get("p_value_max")), number(top.get("n_draws"))
    head = "more than" if beaten else "no more than"
    text = (
        f"That is {head} through {len(values)} random directions of the same size there "
        f"({interval(float(values.min()), float(values.max()))} nats)"
    )
    if p is None:
        return f"{text}; no p-value over layers."
    verdict = "stands out" if p <= 0.05 else "does not stand out"
    return f"{text}; over all layers it {verdict} ({p_words(p, n)})."


def _interaction(rows: pd.DataFrame, layer: int) -> str:
    found = rows[
        (rows["way"] == "forward") & (rows["metric"] == "interaction")
        & (rows["mediator"] == "coordinate") & (rows["layer"] == layer) & rows["estimate"].notna()
    ]  # fmt: skip
    if found.empty:
        return ""
    row = rows_of(found)[0]
    return f"TE − NDE − NIE is {decimal(number(row['estimate']))} nats there{bracket(row)}."


def _setting(rows: pd.DataFrame) -> str:
    first = rows_of(rows)[0]
    parts = [f"at {first['position']}"] if first.get("position") else []
    pairs = number(first.get("n_pairs"))
    if pairs is not None:
        parts.append(f"{decimal(pairs, 0)} pairs")
    return ", ".join(parts)


def _panel(page: Page, rows: pd.DataFrame, mediator: str, *, aside: bool) -> str:
    mine = rows[rows["mediator"] == mediator]
    known = mine[mine["estimate"].notna() & mine["metric"].isin(list(_EFFECTS))]
    spec: Spec | None = None
    if len(known):
        series = [
            Series(words, points_of(known[known["metric"] == metric], "layer"), place)
            for place, (metric, words) in enumerate(_EFFECTS.items())
            if (known["metric"] == metric).any()
        ]
        spec = curves_panel(
            series, x_title="layer", y_title="effect [nats]", whole=True, band=_band(rows, mediator)
        )
    heading = f"Mediator: {_MEDIATORS[mediator]}"
    return page.panel(heading, spec, absent=f"Not estimated: {reason_of(mine)}.", aside=aside)


def _band(rows: pd.DataFrame, mediator: str) -> Records:
    """Return the range of the random directions' indirect effects by layer.

    They are as long as the coordinate's change, so they are no control for all of the state.
    """
    if mediator != "coordinate":
        return []
    random = rows[(rows["mediator"] == "random") & (rows["metric"] == "NIE")]
    random = random[random["estimate"].notna()]
    return [
        {"x": int(part["layer"].iloc[0]), "low": short(float(part["estimate"].min())),
         "high": short(float(part["estimate"].max()))}
        for _, part in random.groupby("layer")
    ]  # fmt: skip


def _listed(rows: pd.DataFrame) -> list[dict[str, Any]]:
    kept = rows[rows["mediator"] != "random"]
    return rows_of(kept.sort_values(["way", "mediator", "metric", "layer"]))


_COLUMNS = [
    Column("model", lambda r: r["label"]),
    Column("way", lambda r: str(r["way"])),
    Column("mediator", lambda r: str(r["mediator"])),
    Column("effect", lambda r: str(r["metric"])),
    Column("layer", lambda r: decimal(number(r["layer"]), 0), "number"),
    Column("estimate", lambda r: decimal(number(r["estimate"])), "number"),
    Column(
        "95 % interval", lambda r: interval(number(r.get("ci_low")), number(r.get("ci_high"))),
        "number",
    ),
    Column("p", lambda r: decimal(number(r.get("p_value"))), "number"),
    Column("p over layers", lambda r: decimal(number(r.get("p_value_max"))), "number"),
    Column("remark", lambda r: string(r.get("reason")) or "", "long"),
]  # fmt: skip
