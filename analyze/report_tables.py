"""The report's words and tables: findings per model, the key numbers, the random directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from .report_findings import find
from .report_numbers import (
    RunView,
    SubsetNumber,
    decimal,
    interval,
    number,
    percent,
    rows_of,
    string,
    subset_numbers,
)
from .report_page import Column, Page, details, esc, table

__all__ = ["add_findings", "add_key_numbers"]


def add_findings(page: Page, views: Sequence[RunView], steering: pd.DataFrame | None) -> None:
    """Add what the numbers say, in words, one card per model."""
    cards = []
    for view in views:
        lead, *rest = find(view, view.own(steering))
        rule = f"{view.method}, {view.pool}, {view.site}" + (f"; {view.cv}" if view.cv else "")
        items = "".join(
            f"<dt>{esc(f.topic)}</dt><dd>{esc(f.sentence)}"
            + (f'<span class="caveat">Mind: {esc(f.caveat)}.</span>' if f.caveat else "")
            + "</dd>"
            for f in rest
        )
        cards.append(
            f'<article class="card"><h3>{esc(view.label)}</h3><p class="lead">{esc(lead.sentence)}'
            f'</p><p class="note">{esc(rule)}</p><dl>{items}</dl></article>'
        )
    intro = (
        "An AUROC says nothing by itself: beside each stands a bag of words (TF-IDF and logistic "
        "regression) on the same texts and folds, with the interval of the paired difference. "
        "Probe values are nested: the layer is chosen inside the training folds, scenarios are "
        "held out whole, and the best layer of a test curve is never quoted. Which pool and method "
        "are quoted was fixed before the numbers were seen. Brackets hold 95 % intervals."
    )
    body = f'<p>{esc(intro)}</p><div class="findings">{"".join(cards)}</div>'
    if not views:
        body = '<p class="absent">No probe was run, so there is nothing to find.</p>'
    page.add("findings", "Findings", body)


def add_key_numbers(page: Page, views: Sequence[RunView]) -> None:
    """Add the quoted numbers of every model and subset; other pools and schemes in boxes."""
    note = (
        "AUROC is the nested estimate; “p over layers” compares it with the largest of the same "
        "random directions over all layers. The columns from “layer” to “p” belong to the named "
        "layer alone. Every p is (1 + b) / (1 + B)."
    )
    quoted = [row for v in views for m in v.methods for row in _numbers(v, v.pool, m)]
    body = f'<p class="note">{esc(note)}</p>' + table(_COLUMNS, quoted, label="Key numbers")
    rest = [
        row for v in views for p in v.other_pools() for m in v.methods for row in _numbers(v, p, m)
    ]
    if rest:
        body += details("Key numbers of the other pools", table(_COLUMNS, rest, label="Pools"))
    for scheme in dict.fromkeys(scheme for v in views for scheme in v.others):
        there = [replace(v, rows=v.others[scheme], cv=scheme) for v in views if scheme in v.others]
        rows = [row for v in there for m in v.methods for row in _numbers(v, v.pool, m)]
        body += details(f"Key numbers by {scheme}", table(_COLUMNS, rows, label=scheme))
    page.add("numbers", "Key numbers", body + _null_table(views))


def _numbers(view: RunView, pool: str, method: str) -> list[dict[str, Any]]:
    """Return one row of the table per subset."""
    return [
        {"view": view, "pool": pool, "n": n, **_companions(view, pool, n)}
        for n in subset_numbers(view, method, pool=pool)
    ]


_COLUMNS = [
    Column("model", lambda r: r["view"].label),
    Column("subset", lambda r: r["n"].subset),
    Column("method", lambda r: r["n"].method),
    Column("AUROC", lambda r: decimal(r["n"].estimate), "number"),
    Column("95 % interval", lambda r: interval(r["n"].ci_low, r["n"].ci_high), "number"),
    Column("bag of words", lambda r: decimal(r["n"].bow), "number"),
    Column("difference", lambda r: decimal(r["n"].delta), "number"),
    Column("its interval", lambda r: interval(r["n"].delta_low, r["n"].delta_high), "number"),
    Column("p over layers", lambda r: decimal(r["p_value_max"], 4), "number"),
    Column("pool", lambda r: r["pool"]),
    Column("remark", lambda r: r["n"].reason or r["n"].verdict or "", "long"),
    Column("pairs", lambda r: decimal(r["n"].n_pairs, 0), "number"),
    Column("scenarios", lambda r: decimal(r["n"].n_scenarios, 0), "number"),
    Column("held out by", lambda r: r["view"].cv or "–"),
    Column("interval by", lambda r: string(r["n"].row.get("ci_method")) or "–"),
    Column("layer", lambda r: decimal(r["layer"], 0), "number"),
    Column("within scenario", lambda r: decimal(r["auroc_within"]), "number"),
    Column("paired acc.", lambda r: decimal(r["paired_accuracy"]), "number"),
    Column("accuracy", lambda r: decimal(r["accuracy"]), "number"),
    Column("d′", lambda r: decimal(r["d_prime"], 2), "number"),
    Column("p", lambda r: decimal(r["p_value"], 4), "number"),
]
_COMPANIONS = ("auroc_within", "paired_accuracy", "accuracy", "d_prime")


def _companions(view: RunView, pool: str, n: SubsetNumber) -> dict[str, float | None]:
    """Return the other metrics of the same probe at the layer of the quoted row."""
    layer = number(n.row.get("layer"))
    layer = view.layer if layer is None else layer
    at: dict[str, object] = {"pool": pool, "method": n.method, "subset": n.subset, "layer": layer}
    out: dict[str, float | None] = {"layer": layer}
    for metric in _COMPANIONS:
        rows = view.probe(metric, **at)
        out[metric] = number(rows["estimate"].iloc[0]) if len(rows) else None
    curve = view.probe("auroc", **at)
    out["p_value"] = number(curve["p_value"].iloc[0]) if len(curve) else None
    out["p_value_max"] = number(n.row.get("p_value_max"))
    return out


def _null_table(views: Sequence[RunView]) -> str:
    bands = [(v, v.null[v.null["pool"] == v.pool].sort_values(["subset", "layer"])) for v in views]
    rows = [{**row, "label": view.label} for view, band in bands for row in rows_of(band)]
    if not rows:
        return '<p class="absent">Random directions were not run.</p>'

    def column(heading: str, name: str, digits: int = 3) -> Column:
        return Column(heading, lambda r: decimal(number(r.get(name)), digits), "number")

    columns = [
        Column("model", lambda r: r["label"]),
        Column("pool", lambda r: str(r["pool"])),
        Column("subset", lambda r: str(r["subset"])),
        column("layer", "layer", 0),
        column("directions", "n_draws", 0),
        column("mean", "mean"),
        column("sd", "sd"),
        column("sd by formula", "sd_formula"),
        column("2.5 %", "q025"),
        column("97.5 %", "q975"),
        column("largest", "max"),
        column("largest, folded", "max_folded"),
        Column("above .95", lambda r: percent(number(r.get("share_above_95"))), "number"),
        Column("folded", lambda r: percent(number(r.get("share_above_95_folded"))), "number"),
    ]
    return details("Random directions by layer", table(columns, rows, label="Random directions"))
