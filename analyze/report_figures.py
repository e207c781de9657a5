"""The report's figures: subsets, AUROC by layer, PCA and steering, each with its key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from .report_charts import (
    ARM_COLOURS,
    ARM_SHAPES,
    BOW_COLOUR,
    DIRECTION_COLOURS,
    RANDOM_COLOUR,
    SERIES_SHAPES,
    auroc_domain,
    layer_panel,
    method_colour,
    pca_panel,
    steering_panel,
    subset_panel,
)
from .report_numbers import (
    RunView,
    decimal,
    interval,
    number,
    percent,
    rows_of,
    sort_subsets,
    string,
    subset_numbers,
)
from .report_page import Column, Page, details, esc, figure, grid, key, reason_list, table

__all__ = ["add_auroc", "add_pca", "add_steering", "add_subsets"]

_MAX_POINTS = 900  # per model: more would say nothing more and make the page heavy


def add_subsets(page: Page, views: Sequence[RunView]) -> None:
    """Add the dot chart: probe beside bag of words in each subset."""
    per_view = [[n for m in v.methods for n in subset_numbers(v, m)] for v in views]
    ends = [x for ns in per_view for n in ns for x in (n.estimate, n.ci_low, n.bow, n.bow_low)]
    domain = auroc_domain(ends)
    panels, reasons = [], []
    for view, numbers in zip(views, per_view, strict=True):
        drawn = any(n.estimate is not None for n in numbers)
        spec = subset_panel(numbers, methods=view.methods, domain=domain) if drawn else None
        missing = [n for n in numbers if n.estimate is None]
        reasons += [f"{view.label}, {n.subset}, {n.method}: {n.reason}" for n in missing]
        panels.append(page.panel(view.label, spec, absent="No estimate."))
    caption = (
        "How to read: a probe that reads meaning keeps its dot to the right where the black "
        "diamond (the bag of words, the control) falls to chance; a probe that falls with the "
        "diamond reads words. Bars are 95 % intervals; the dotted line is chance."
    )
    shapes = [(SERIES_SHAPES[i % 3], m) for i, m in enumerate(_methods(views))]
    items = [(s, method_colour(_methods(views), m), f"probe, {m}") for s, m in shapes]
    items.append(("diamond", BOW_COLOUR, "bag of words"))
    body = figure(caption, key(items), grid(panels, width="19rem")) + reason_list(reasons)
    page.add("measures", "What the probe measures", body)


def add_auroc(page: Page, views: Sequence[RunView]) -> None:
    """Add AUROC by layer, one panel per subset; the other pools lie in boxes."""
    values: list[float | None] = []
    for view in views:
        curves = view.probe("auroc")
        for frame, names in (
            (curves, ("estimate", "ci_low", "bow_estimate")),
            (view.null, ("q025", "max")),
        ):
            values += [number(x) for name in names if name in frame for x in frame[name]]
    domain = auroc_domain(values)
    parts = []
    for view in views:
        where = f"{view.site}, {view.pool}"
        panels = _layer_panels(page, view, pool=view.pool, domain=domain)
        parts.append(f'<h3>{esc(view.label)} <span class="note">{esc(where)}</span></h3>{panels}')
        for pool in view.other_pools():
            panels = _layer_panels(page, view, pool=pool, domain=domain, aside=True)
            parts.append(details(f"{view.label}: pool {pool}", panels))
    caption = (
        "How to read: a curve is the held-out AUROC of a probe at each layer with its 95 % band; "
        "the controls are the dashed line (bag of words on the same texts) and the grey band "
        "(middle 95 % of random directions, dotted line: the largest). Layer L is the output of "
        "block L; the second row of labels is the relative depth (L + 1) / layers. Do not pick "
        "the top of a curve: the nested values stand in the findings."
    )
    methods = _methods(views)
    items = [
        (f"line+{SERIES_SHAPES[i % 3]}", method_colour(methods, m), m)
        for i, m in enumerate(methods)
    ]
    items += [
        ("dashed", BOW_COLOUR, "bag of words"),
        ("band", RANDOM_COLOUR, "random directions, 2.5–97.5 %"),
        ("dotted", "#6b6b6b", "largest random direction"),
    ]
    page.add("auroc", "AUROC by layer", figure(caption, key(items), "".join(parts)))


def _layer_panels(
    page: Page, view: RunView, *, pool: str, domain: tuple[float, float], aside: bool = False
) -> str:
    rows = view.probe("auroc", pool=pool)
    panels = []
    for subset in sort_subsets(rows["subset"]):
        spec = layer_panel(view, subset, pool=pool, domain=domain)
        reasons = [string(r) for r in rows[rows["subset"] == subset]["reason"]]
        why = next((r for r in reasons if r), "no reason was recorded")
        panels.append(page.panel(subset, spec, absent=f"Not estimated: {why}.", aside=aside))
    return grid(panels, width="15rem")


def add_pca(
    page: Page,
    views: Sequence[RunView],
    *,
    variance: pd.DataFrame | None,
    points: pd.DataFrame | None,
    arm_names: Mapping[str, str],
) -> None:
    """Add the scatter of the first two components at the quoted layer, one panel per subset."""
    heading = "PCA"
    if points is None or points.empty:
        page.add("pca", heading, '<p class="absent">PCA was not run in this study.</p>')
        return
    parts, shown_variance = [], []
    for view in views:
        own = points[(points["run"] == view.run) & points["pc1"].notna() & points["pc2"].notna()]
        own = own[own["pool"] == view.pool] if view.pool in set(own["pool"]) else own
        if own.empty:
            parts.append(f'<h3>{esc(view.label)}</h3><p class="absent">No components here.</p>')
            continue
        pool = str(own["pool"].iloc[0])
        layers = sorted({int(x) for x in own["layer"]})
        wanted = view.layer if view.layer is not None else layers[len(layers) // 2]
        layer = min(layers, key=lambda x: abs(x - wanted))
        own = own[(own["layer"] == layer) & (own["pool"] == pool)]
        rule = view.layer_rule if layer == view.layer else "the nearest layer with components"
        note = f"{pool}, layer {layer} ({rule})"
        kept = _thin(own)
        if len(kept) < len(own):
            note += f"; {len(kept)} of {len(own)} texts are drawn"
        ratios = _variance(variance, view, pool=pool, layer=layer)
        shown_variance += ratios
        titles = [
            f"PC{i + 1}" + (f" ({percent(number(ratios[i][_RATIO]))})" if i < len(ratios) else "")
            for i in range(2)
        ]
        domains = [_spread(own[c]) for c in ("pc1", "pc2")]
        panels = [
            page.panel(
                str(subset),
                pca_panel(
                    kept[kept["subset"] == subset], arm_names=arm_names,
                    domains=(domains[0], domains[1]), titles=(titles[0], titles[1]),
                ),
            )
            for subset in sort_subsets(kept["subset"])
        ]  # fmt: skip
        head = f'<h3>{esc(view.label)} <span class="note">{esc(note)}</span></h3>'
        parts.append(head + grid(panels, width="13rem"))
    caption = (
        "How to read: each mark is a text on the first two principal components, with the same "
        "axes in every panel of a model. The control is the table below: a component may carry "
        "much variance and have nothing to do with the concept (cosine with the probe near 0)."
    )
    items = [(ARM_SHAPES[a], c, string(arm_names.get(a)) or a) for a, c in ARM_COLOURS.items()]
    body = figure(caption, key(items), "".join(parts))
    columns = [
        Column("model", lambda r: r["label"]),
        Column("layer", lambda r: decimal(number(r["layer"]), 0), "number"),
        Column("component", lambda r: f"PC{r['place']}"),
        Column("variance", lambda r: percent(number(r[_RATIO])), "number"),
        Column(
            "cosine with probe", lambda r: decimal(number(r.get("cosine_with_probe"))), "number"
        ),
        Column("effective rank", lambda r: decimal(number(r.get("effective_rank")), 1), "number"),
    ]
    if shown_variance:
        body += table(columns, shown_variance, label="PCA variance")
    page.add("pca", heading, body)


_RATIO = "explained_variance_ratio"


def _variance(
    variance: pd.DataFrame | None, view: RunView, *, pool: str, layer: int
) -> list[dict[str, Any]]:
    """Return the first three components' rows, with the model's label and the place from 1."""
    if variance is None or variance.empty:
        return []
    keep = (variance["run"] == view.run) & (variance["pool"] == pool) & (variance["layer"] == layer)
    rows = rows_of(variance[keep].sort_values("component").head(3))
    return [{**r, "label": view.label, "place": i + 1} for i, r in enumerate(rows)]


def _spread(values: pd.Series[float]) -> tuple[float, float]:
    """Return an axis that holds all values with a margin of 6 per cent."""
    low, high = float(values.min()), float(values.max())
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin


def _thin(points: pd.DataFrame) -> pd.DataFrame:
    """Return at most ``_MAX_POINTS`` rows, evenly spaced through each subset and arm."""
    step = -(-len(points) // _MAX_POINTS)
    if step == 1:
        return points
    return points.sort_values(["subset", "arm", "text"]).iloc[::step]


def add_steering(page: Page, views: Sequence[RunView], steering: pd.DataFrame | None) -> None:
    """Add effect against strength, one panel per model, with the random directions."""
    heading = "Steering"
    if steering is None or steering.empty:
        page.add("steering", heading, '<p class="absent">Steering was not run in this study.</p>')
        return
    names = [str(d) for d in dict.fromkeys(steering["direction"]) if d != "random"]
    panels, reasons, listed = [], [], []
    for view in views:
        rows = view.own(steering)
        if rows.empty:
            panels.append(page.panel(view.label, None, absent="Steering was not run here."))
            continue
        known = rows[rows["estimate"].notna()].sort_values("alpha_separation")
        missing = rows[rows["estimate"].isna()]
        reasons += [f"{view.label}: {string(r)}" for r in missing["reason"]]
        spec = steering_panel(known, directions=names) if len(known) else None
        layers = sorted({int(x) for x in rows["layer"].dropna()})
        where = f", layer {', '.join(map(str, layers))}" if layers else ""
        panels.append(page.panel(f"{view.label}{where}", spec, absent="No estimate."))
        listed += [
            {**row, "label": view.label, **_random_range(known, row)}
            for row in rows_of(known[known["direction"] != "random"])
        ]
    caption = (
        "How to read: the shift of the log-probability difference (positive minus negative "
        "completion, nats per token) against α = 0, with the 95 % interval over prompts. The "
        "control is the grey: random directions of the same norm. An effect inside the grey is "
        "what any push does; a curve that bends back at large α has left the model's usual range. "
        "Each model has its own vertical scale; the tooltips give α in all four units."
    )
    items = [
        ("line+circle", DIRECTION_COLOURS[i % len(DIRECTION_COLOURS)], n)
        for i, n in enumerate(names)
    ]
    items.append(("line", RANDOM_COLOUR, "random directions"))
    body = figure(caption, key(items), grid(panels, width="19rem")) + reason_list(reasons)
    columns = [
        Column("model", lambda r: r["label"]),
        Column("direction", lambda r: str(r["direction"])),
        Column("α [separations]", lambda r: decimal(number(r["alpha_separation"]), 2), "number"),
        Column("α [raw]", lambda r: decimal(number(r.get("alpha_raw")), 2), "number"),
        Column("α [residual norms]", lambda r: decimal(number(r.get("alpha_norm")), 2), "number"),
        Column("angle [°]", lambda r: decimal(number(r.get("alpha_angle")), 1), "number"),
        Column("effect [nats/token]", lambda r: decimal(number(r["estimate"])), "number"),
        Column("95 % interval", lambda r: _range(r, "ci_low", "ci_high"), "number"),
        Column("random directions", lambda r: _range(r, "low", "high"), "number"),
    ]
    body += details("The steering curves as a table", table(columns, listed, label="Steering"))
    page.add("steering", heading, body)


def _random_range(known: pd.DataFrame, row: Mapping[str, Any]) -> dict[str, float | None]:
    others = known[known["direction"] == "random"]
    same = others[
        (others["alpha_raw"] - row["alpha_raw"]).abs() <= 1e-6 * max(1, abs(row["alpha_raw"]))
    ]
    return {"low": number(same["estimate"].min()), "high": number(same["estimate"].max())}


def _range(row: Mapping[str, Any], low: str, high: str) -> str:
    return interval(number(row.get(low)), number(row.get(high)))


def _methods(views: Sequence[RunView]) -> list[str]:
    return list(dict.fromkeys(m for v in views for m in v.methods))
