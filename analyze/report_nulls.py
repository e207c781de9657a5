"""The report's sections on depth and on the null distributions of every probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from .report_charts import RANDOM_COLOUR, Panel, Records, auroc_domain, layer_axis
from .report_filters import Filter, filterable_table
from .report_marks import band_panel, colour_of, curve_panel
from .report_numbers import (
    RunView,
    decimal,
    interval,
    number,
    p_text,
    records,
    rows_of,
    sort_subsets,
    string,
    subset_numbers,
)
from .report_page import Column, Page, details, figure, grid, key, notes, reason_list
from .report_select import at_layer, listed, of_view, table_of, value

__all__ = ["add_depth", "add_nulls"]

_KINDS = {
    "label_flip_refit": "label flips, refitted",
    "isotropic": "isotropic directions",
    "covariance_matched": "covariance-matched directions",
}
_OVER = "max_over_layers ({})"
_LEVEL = 0.05


def depth_axis() -> alt.X:
    """Return the axis of relative depth, (layer + 1) / layers."""
    axis = alt.Axis(title="relative depth", format=".1f", tickCount=5, grid=False)
    return alt.X("depth:Q", axis=axis, scale=alt.Scale(domain=[0, 1.03], nice=False),
                 title="relative depth")  # fmt: skip


def add_depth(page: Page, views: Sequence[RunView]) -> None:
    """Add AUROC by relative depth, all models in one panel per subset; nothing for one model."""
    if len(views) < 2:
        return
    labels = [v.label for v in views]
    curves: dict[str, Records] = {}
    for view in views:
        rows = view.probe("auroc", pool=view.pool, method=view.method)
        rows = rows[rows["estimate"].notna() & rows["depth"].notna()].sort_values("depth")
        for subset in sort_subsets(rows["subset"]):
            band = {number(r["layer"]): r for r in rows_of(view.random_band(subset))}
            for row in rows_of(rows[rows["subset"] == subset]):
                limit = band.get(number(row["layer"]))
                curves.setdefault(subset, []).append(
                    {
                        "series": view.label,
                        "depth": value(row, "depth"),
                        "layer": value(row, "layer"),
                        "estimate": value(row, "estimate"),
                        "low": value(row, "ci_low"),
                        "high": value(row, "ci_high"),
                        "bow": value(row, "bow_estimate"),
                        "limit": None if limit is None else value(limit, "q975"),
                    }
                )
    if not curves:
        return
    found = [r[name] for rows in curves.values() for r in rows for name in ("estimate", "limit")]
    domain = auroc_domain(found + [r["low"] for rows in curves.values() for r in rows])
    panels = []
    for subset in sort_subsets(curves):
        drawn = records(pd.DataFrame(curves[subset]), list(curves[subset][0]))
        words = dict.fromkeys(r["bow"] for r in drawn if r["bow"] is not None)
        rules = {"chance": 0.5} | {
            "bag of words" + (f" {i + 1}" if len(words) > 1 else ""): bow
            for i, bow in enumerate(words)
        }
        spec = curve_panel(
            [{k: v for k, v in r.items() if k not in ("bow", "limit")} for r in drawn],
            series=labels,
            x=depth_axis(),
            title="AUROC",
            domain=domain,
            rules=rules,
            limits=[
                {k: r[k] for k in ("series", "depth", "limit")}
                for r in drawn
                if r["limit"] is not None
            ],
            tips={"layer": "layer"},
        )
        panels.append(page.panel(subset, spec))
    caption = (
        "How to read: each curve is one model's held-out AUROC, its layers placed by relative "
        "depth (layer + 1) / layers, so that models of unlike height can be compared."
    )
    items = [("line+circle", colour_of(labels, name), name) for name in labels]
    items += [
        ("dashed", "#000000", "bag of words"),
        ("dotted", "#6b6b6b", "97.5 % point of random directions, in the model's colour"),
    ]
    body = figure(caption, key(items), grid(panels, width="17rem")) + notes(
        controls=(
            "the dashed line is a bag of words on the same texts and folds; the dotted curves are "
            "what 97.5 % of random directions stay below at that depth."
        ),
        caveat=(
            "depth matches places, not functions; and the top of a curve is not an estimate, since "
            "it is the best of many layers."
        ),
    )
    page.add("depth", "AUROC by relative depth", body, lead=_depth_lead(views))


def _depth_lead(views: Sequence[RunView]) -> str:
    said, words = [], []
    for view in views:
        quoted = subset_numbers(view, view.method)
        n = next((n for n in quoted if n.subset == "all"), quoted[0] if quoted else None)
        if n is None or n.estimate is None:
            reason = n.reason if n is not None else None
            said.append(f"{view.label} has no estimate ({reason or 'no reason was recorded'})")
            continue
        depth = ""
        if view.layer is not None and view.n_layers:
            depth = f" at depth {(view.layer + 1) / view.n_layers:.2f}"
        said.append(f"{view.label} {decimal(n.estimate)}{depth}")
        words += [n.bow] if n.bow is not None else []
    bags = sorted({decimal(w) for w in words})
    ends = f" A bag of words on the same texts reaches {listed(bags)}." if bags else ""
    return f"With the layer chosen inside the folds: {'; '.join(said)}.{ends}"


def add_nulls(page: Page, views: Sequence[RunView], tables: Mapping[str, pd.DataFrame]) -> None:
    """Add the null distributions beside the probe, with both p-values by layer."""
    nulls = table_of(tables, "nulls", ("null", "layer", "subset", "method", "estimate", "p_value"))
    bands = table_of(tables, "bands", ("null", "layer", "subset", "q025", "q975", "max"))
    if nulls is None or bands is None or not views:
        return
    parts, listed_rows, reasons = [], [], []
    shown_kinds = [k for k in _KINDS if k in set(nulls["null"])]
    for view in views:
        own = of_view(nulls, view)
        missing = nulls[(nulls["run"] == view.run) & nulls["estimate"].isna()]
        reasons += [f"{view.label}: {string(r)}" for r in missing["reason"].dropna()]
        own = own[own["estimate"].notna() & own["layer"].notna()]
        method = _method(own, view)
        own = own[own["method"] == method]
        if own.empty:
            parts.append(page.panel(view.label, None, absent="No null was drawn for this model."))
            continue
        here = of_view(bands, view)
        here = here[(here["method"] == method) | here["method"].isna()]
        subsets = sort_subsets(own["subset"])
        boxes = []
        for subset in subsets:
            panels = _panels(page, view, own[own["subset"] == subset],
                             here[here["subset"] == subset], kinds=shown_kinds,
                             aside=subset != subsets[0])  # fmt: skip
            boxes.append(grid(panels, width="20rem"))
        parts.append(boxes[0])
        parts += [
            details(f"{view.label}: {subset}", box)
            for subset, box in zip(subsets[1:], boxes[1:], strict=True)
        ]
        listed_rows += [{**row, "label": view.label} for row in rows_of(at_layer(own, view))]
    items = [("band+line", colour_of(shown_kinds, k), _KINDS[k]) for k in shown_kinds]
    items += [
        ("line+circle", "#000000", "the probe"),
        (
            "dashed",
            RANDOM_COLOUR,
            "97.5 % point of the largest over layers (left), p = .05 (right)",
        ),
    ]
    caption = (
        "How to read: left, the probe's held-out AUROC (black) over the middle 95 % of each null; "
        "the dashed lines are what 97.5 % of each null's largest value over all layers stay "
        "below. Right, the p-value of the probe at each layer (dotted) and corrected for the "
        "choice among layers by that largest value (solid), (1 + b) / (1 + B), on a log scale."
    )
    body = figure(caption, key(items), "".join(parts)) + notes(
        controls=(
            "label flips refit the probe after whole pairs changed sides and ask whether there is "
            "signal; isotropic directions ask whether the probe beats an arbitrary readout; "
            "covariance-matched ones ask the same of readouts that follow the activations' own "
            "spread; the largest over layers pays for having picked a layer."
        ),
        caveat=(
            "a small p against random directions is no test of signal, and a large one no proof "
            "that there is none: where the signal is strong, many random directions read it too."
        ),
    )
    body += details("The nulls at the quoted layer as a table", _table(listed_rows))
    body += reason_list(reasons)
    page.add("nulls", "Null distributions", body, lead=_lead(listed_rows, shown_kinds))


def _method(rows: pd.DataFrame, view: RunView) -> str:
    """Return the quoted method, or the first that has nulls."""
    methods = [str(m) for m in dict.fromkeys(rows["method"].dropna())]
    return view.method if view.method in methods or not methods else methods[0]


def _panels(
    page: Page,
    view: RunView,
    rows: pd.DataFrame,
    bands: pd.DataFrame,
    *,
    kinds: Sequence[str],
    aside: bool,
) -> list[str]:
    """Return the panel of the bands and that of the p-values of one subset."""
    rows = rows.sort_values("layer")
    subset = str(rows["subset"].iloc[0])
    layers = sorted({int(x) for x in rows["layer"]})
    x = layer_axis(layers, view.n_layers)
    once = rows[rows["null"] == rows["null"].iloc[0]]
    observed = records(
        once.rename(columns={"ci_low": "low", "ci_high": "high"}),
        ["layer", "estimate", "low", "high"],
    )
    by_layer = bands[bands["null"].isin(list(kinds)) & bands["layer"].notna()]
    drawn = records(by_layer.assign(kind=by_layer["null"]).sort_values("layer"),
                    ["kind", "layer", "q025", "q975", "max"])  # fmt: skip
    over = {_OVER.format(k): k for k in kinds}
    of_max = bands[bands["null"].isin(list(over))]
    maxima = [
        {"kind": over[str(r["null"])], "limit": round(limit, 4)}
        for r in rows_of(of_max)
        if (limit := value(r, "q975")) is not None
    ]
    domain = auroc_domain([r["q025"] for r in drawn] + [r["estimate"] for r in observed])
    spec = band_panel(observed, drawn, kinds=kinds, x=x, domain=domain, maxima=maxima)
    heading = f"{view.label}, {subset}"
    return [
        page.panel(heading, spec, aside=aside),
        page.panel(f"p by layer: {heading}", _p_panel(rows, kinds, x=x), aside=aside),
    ]


def _p_panel(rows: pd.DataFrame, kinds: Sequence[str], *, x: alt.X) -> dict[str, Any]:
    """Return p and corrected p by layer on a log scale, one colour per null."""
    panel = Panel()
    values = records(rows.assign(kind=rows["null"]),
                     ["kind", "layer", "p_value", "p_value_max", "n_draws"])  # fmt: skip
    colours = [colour_of(kinds, k) for k in kinds]
    colour = alt.Color("kind:N", scale=alt.Scale(domain=list(kinds), range=colours), legend=None)
    known = [v[n] for v in values for n in ("p_value", "p_value_max") if v[n] is not None]
    scale = alt.Scale(type="log", domain=[min([*known, 0.01]) / 1.6, 1.3], nice=False)
    axis = alt.Axis(title="p", values=[1e-4, 1e-3, 0.01, 0.1, 1], format="~g")
    tips = [
        alt.Tooltip("kind:N", title="null"),
        alt.Tooltip("layer:Q"),
        alt.Tooltip("p_value:Q", title="p", format=".4f"),
        alt.Tooltip("p_value_max:Q", title="p over layers", format=".4f"),
        alt.Tooltip("n_draws:Q", title="draws"),
    ]
    chart = panel.chart(values, "p")
    level = panel.chart([{"y": _LEVEL}], "level").mark_rule(color=RANDOM_COLOUR, strokeDash=[6, 3])
    y, y_max = (alt.Y(f"{n}:Q", scale=scale, axis=axis) for n in ("p_value", "p_value_max"))
    return panel.spec(
        [
            level.encode(y=alt.Y("y:Q", scale=scale, axis=axis)),
            chart.mark_line(strokeDash=[2, 3], strokeWidth=1.4).encode(x=x, y=y, color=colour),
            chart.mark_line(strokeWidth=2).encode(x=x, y=y_max, color=colour),
            chart.mark_point(filled=True, size=30, opacity=1)
            .encode(x=x, y=y_max, color=colour, tooltip=tips),
        ],
        height=210,
    )  # fmt: skip


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = [
        Column("model", lambda r: r["label"]),
        Column("subset", lambda r: str(r["subset"])),
        Column("null", lambda r: _KINDS.get(str(r["null"]), str(r["null"]))),
        Column("layer", lambda r: decimal(value(r, "layer"), 0), "number"),
        Column("AUROC", lambda r: decimal(value(r, "estimate")), "number"),
        Column("95 % interval", lambda r: interval(value(r, "ci_low"), value(r, "ci_high")),
               "number"),
        Column("draws", lambda r: decimal(value(r, "n_draws"), 0), "number"),
        Column("p", lambda r: decimal(value(r, "p_value"), 4), "number"),
        Column("p over layers", lambda r: decimal(value(r, "p_value_max"), 4), "number"),
    ]  # fmt: skip
    filters = [
        Filter("model", lambda r: r["label"]),
        Filter("subset", lambda r: str(r["subset"])),
        Filter("null", lambda r: _KINDS.get(str(r["null"]), str(r["null"]))),
    ]
    return filterable_table(columns, list(rows), label="Nulls", filters=filters)


def _lead(rows: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> str:
    """Return in how many models the probe beats each null, corrected over layers."""
    parts = []
    for kind in kinds:
        of = [r for r in rows if r["null"] == kind and r["subset"] == "all"]
        known = [r for r in of if value(r, "p_value_max") is not None]
        if not known:
            parts.append(f"{_KINDS[kind]} in none that was computed")
            continue
        beaten = [r for r in known if (value(r, "p_value_max") or 0.0) <= _LEVEL]
        text = f"{_KINDS[kind]} in {len(beaten)} of {len(known)}"
        if len(known) == 1:
            text += f" ({p_text(value(known[0], 'p_value_max') or 0.0, None)})"
        parts.append(text)
    if not parts:
        return ""
    return (
        "At the quoted layer, over all texts and corrected for the choice of the layer (p ≤ .05), "
        f"the probe beats {listed(parts)} model{'s' if len(rows) != 1 else ''}."
    )
