"""The report's sections across models: likeness of their layers, and probes that move between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import pandas as pd

from .report_charts import RANDOM_COLOUR, Records, auroc_domain
from .report_filters import Filter, Item, filterable, filterable_table
from .report_marks import colour_of, heat_panel, interval_panel
from .report_numbers import RunView, decimal, interval, records, rows_of, string
from .report_page import Column, Page, details, figure, grid, key, notes, reason_list
from .report_select import at_layer, label_of, listed, table_of, value

__all__ = ["add_similarity", "add_transfer"]

_METRICS = {"debiased_cka": "debiased linear CKA", "rsa": "RSA"}
_CONTROLS = {
    "target_trained": "trained on the target (ceiling)",
    "bag_of_words": "bag of words (floor)",
    "mean_only": "mean-only map",
    "mean_shift": "shift of the mean",
    "random_orthogonal": "random orthogonal map",
    "random_source": "random source direction",
    "permuted_anchors": "map of permuted anchors",
}
_SERIES = ("transferred probe", "control")
_NULLS = ("random_source", "permuted_anchors")


def add_similarity(
    page: Page, views: Sequence[RunView], tables: Mapping[str, pd.DataFrame]
) -> None:
    """Add how alike the layers of every two models are."""
    rows = table_of(
        tables, "similarity", ("metric", "estimate", "layer", "other_run", "other_layer")
    )
    if rows is None:
        return
    known = _pool(rows[rows["estimate"].notna()], views)
    panels: dict[str, list[str]] = {m: [] for m in _METRICS if m in set(known["metric"])}
    best = []
    pairs = list(dict.fromkeys(zip(known["run"], known["other_run"], strict=True)))
    for metric, drawn in panels.items():
        for run, other in pairs:
            keep = (known["run"] == run) & (known["other_run"] == other)
            of = known[keep & (known["metric"] == metric)]
            if of.empty:
                continue
            names = label_of(views, run), label_of(views, other)
            drawn.append(
                _heat(page, of, names=names, metric=metric, aside=metric != next(iter(panels)))
            )
            if metric == "debiased_cka":
                top = rows_of(of.sort_values("estimate").tail(1))[0]
                best.append((names, top))
    reasons = [
        f"{label_of(views, r['run'])}, {label_of(views, r['other_run'])}: {string(r.get('reason'))}"
        for r in rows_of(rows[rows["estimate"].isna()])
    ]
    if not any(panels.values()):
        return
    first, *others = [m for m, drawn in panels.items() if drawn]
    caption = (
        f"How to read: {_METRICS[first]} of the same texts in a layer of one model (down) and a "
        "layer of another (across), from 0 (nothing in common) to 1 (the same up to a rotation "
        "and a scale). A diagonal says that the models pass through like stages."
    )
    body = figure(caption, "", grid(panels[first], width="18rem"))
    for metric in others:
        body += details(_METRICS[metric], grid(panels[metric], width="18rem"))
    body += notes(
        controls=(
            "the debiased estimate is 0 in the mean for unrelated activations, whatever their "
            "width; intervals are a jackknife over groups of scenarios (in the tooltips and the "
            "CSV); RSA asks the same of distances between texts."
        ),
        caveat=(
            "likeness of representations is not transfer: two models may look alike and keep the "
            "concept elsewhere, which the next section tests."
        ),
    )
    page.add("similarity", "Likeness of layers", body + reason_list(reasons), lead=_likeness(best))


def _pool(rows: pd.DataFrame, views: Sequence[RunView]) -> pd.DataFrame:
    """Return the rows of the quoted pool, or of the first that there is."""
    if "pool" not in rows:
        return rows
    pools = list(dict.fromkeys(rows["pool"].dropna()))
    wanted = next((v.pool for v in views if v.pool in pools), next(iter(pools), None))
    return rows[rows["pool"] == wanted]


def _heat(
    page: Page, rows: pd.DataFrame, *, names: tuple[str, str], metric: str, aside: bool
) -> str:
    cells: Records = [
        {
            "x": str(int(r["other_layer"])), "y": str(int(r["layer"])),
            "value": value(r, "estimate"), "low": value(r, "ci_low"), "high": value(r, "ci_high"),
        }
        for r in rows_of(rows)
    ]  # fmt: skip
    across, down = (sorted({int(c[axis]) for c in cells}) for axis in ("x", "y"))
    spec = heat_panel(
        records(pd.DataFrame(cells), list(cells[0])),
        titles=(f"layer of {names[1]}", f"layer of {names[0]}"),
        value=_METRICS[metric],
        domain=(0.0, 1.0),
        orders=(across, down[::-1]),
        tips={"low:.3f": "CI from", "high:.3f": "CI to"},
    )
    return page.panel(f"{names[0]} and {names[1]}", spec, aside=aside)


def _likeness(best: Sequence[tuple[tuple[str, str], Mapping[str, Any]]]) -> str:
    parts = []
    for (a, b), row in best:
        ci = interval(value(row, "ci_low"), value(row, "ci_high"), 2)
        at = f"layers {int(row['layer'])} and {int(row['other_layer'])}"
        parts.append(
            f"{a} and {b} are most alike at {at}, CKA {decimal(value(row, 'estimate'), 2)}"
            + (f" ({ci})" if ci else "")
        )
    return "; ".join(parts) + "." if parts else ""


def add_transfer(page: Page, views: Sequence[RunView], tables: Mapping[str, pd.DataFrame]) -> None:
    """Add what a probe of one model reads in another, beside its ceiling and its controls."""
    rows = table_of(tables, "transfer", ("metric", "estimate", "layer", "source_run", "map"))
    if rows is None:
        return
    columns = [c for c in ("control", "source_layer", "map_r2") if c not in rows]
    rows = rows.assign(**dict.fromkeys(columns))
    areas = _pool(rows[(rows["metric"] == "auroc") & rows["estimate"].notna()], views)
    runs = [v for v in views if v.run in set(areas["run"]) | set(areas["source_run"])]
    chosen = []
    for source, target in permutations(runs, 2):
        keep = (areas["source_run"] == source.run) & (areas["run"] == target.run)
        here = at_layer(areas[keep], target)
        if here.empty:
            continue
        if here["source_layer"].notna().any():
            here = at_layer(here, source, "source_layer")
        chosen.append((source, target, here))
    if not chosen:
        return
    maps = [
        m for m in dict.fromkeys(areas["map"])
        if not areas[(areas["map"] == m) & areas["control"].isna()].empty
    ]  # fmt: skip
    body = _matrix(page, runs, chosen, maps) + _forests(page, chosen)
    body += notes(
        controls=(
            "the ceiling is a probe trained on the target itself, the floor a bag of words; "
            "random directions of the source go through the same map, permuted anchors make a map "
            "of no correspondence, a random orthogonal map knows nothing, and a mean-only map "
            "carries no direction."
        ),
        caveat=(
            "the maps are fitted on neutral texts that no pair is made of, and their R² is held "
            "out; an AUROC below .5 is a direction carried with its sign turned, not a failure to "
            "carry; a transfer that random source directions reach as well is the map's."
        ),
    )
    listed_rows = [
        {**r, "source": s.label, "target": t.label} for s, t, of in chosen for r in rows_of(of)
    ]
    body += details("The transfers and their controls as a table", _table(listed_rows))
    reasons = [
        f"{label_of(views, r['source_run'])} to {label_of(views, r['run'])}: "
        f"{string(r.get('reason'))}"
        for r in rows_of(_pool(rows[rows["estimate"].isna()], views))
    ]
    page.add(
        "transfer", "Probes across models", body + reason_list(reasons), lead=_carried(listed_rows)
    )


_Chosen = Sequence[tuple[RunView, RunView, pd.DataFrame]]


def _matrix(page: Page, runs: Sequence[RunView], chosen: _Chosen, maps: Sequence[object]) -> str:
    """Return source × target heat maps: every map, then the controls that depend on both."""
    kinds: list[tuple[str, object, str | None]] = [(f"{m} map", m, None) for m in maps]
    kinds += [
        (f"{_CONTROLS[c]}, {m}", m, c)
        for m in maps
        for c in _NULLS
        if any(((of["map"] == m) & (of["control"] == c)).any() for *_, of in chosen)
    ]
    labels = [v.label for v in runs]
    panels = []
    for heading, map_, control in kinds:
        cells: Records = []
        for source, target, of in chosen:
            keep = of["map"] == map_
            keep &= of["control"].isna() if control is None else of["control"] == control
            for row in rows_of(of[keep]):
                cells.append(_cell(source.label, target.label, row))
        for target in runs:
            own = [of for _, t, of in chosen if t is target]
            top = [r for of in own for r in rows_of(of[of["control"] == "target_trained"])]
            if top:
                cells.append(_cell(target.label, target.label, top[0]))
        spec = heat_panel(
            records(pd.DataFrame(cells), list(cells[0])), titles=("target", "source"),
            value="AUROC", domain=(0.0, 1.0), orders=(labels, labels),
            tips={"low:.3f": "from", "high:.3f": "to", "map_r2:.3f": "held-out R² of the map",
                  "p_value:.4f": "p, random source"},
        )  # fmt: skip
        panels.append(page.panel(heading, spec))
    caption = (
        "How to read: the AUROC on the target (across) of a probe that was trained on the source "
        "(down) and carried by a map, at the layers that are quoted of each. On the diagonal "
        "stands the ceiling, the target's own probe. The controls have the same shape: what they "
        "reach is not the concept's doing."
    )
    return figure(caption, "", grid(panels, width="17rem"))


def _cell(source: str, target: str, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "x": target, "y": source, "value": value(row, "estimate"), "low": value(row, "ci_low"),
        "high": value(row, "ci_high"), "map_r2": value(row, "map_r2"),
        "p_value": value(row, "p_value"),
    }  # fmt: skip


def _name(row: Mapping[str, Any]) -> str:
    control = string(row["control"])
    if control is None:
        return f"{row['map']} map"
    shown = _CONTROLS.get(control, control.replace("_", " "))
    return f"{shown}, {row['map']}" if control in _NULLS else shown


def _forests(page: Page, chosen: _Chosen) -> str:
    """Return, for every source and target, the transfer beside every control."""
    ends = [value(r, n) for *_, of in chosen for r in rows_of(of) for n in ("estimate", "ci_low")]
    domain = auroc_domain(ends)
    order = ["target_trained", None, "bag_of_words", *_CONTROLS]
    items = []
    for source, target, of in chosen:
        found = sorted(rows_of(of), key=lambda r: order.index(string(r["control"]))
                       if string(r["control"]) in order else len(order))  # fmt: skip
        lines = [
            {
                "label": _name(r), "series": _SERIES[string(r["control"]) is not None],
                "estimate": value(r, "estimate"), "low": value(r, "ci_low"),
                "high": value(r, "ci_high"), "control": None, "control_low": None,
                "control_high": None, "map_r2": value(r, "map_r2"),
            }
            for r in found
        ]  # fmt: skip
        spec = interval_panel(
            lines, series=_SERIES, title="AUROC on the target", domain=domain, reference=0.5,
            tips={"map_r2:.3f": "held-out R² of the map"},
        )  # fmt: skip
        heading = f"{source.label} to {target.label}"
        panel = f'<div class="grid">{page.panel(heading, spec)}</div>'
        items.append(Item(panel, {"source": source.label, "target": target.label}))
    caption = (
        "How to read: every transfer beside its controls. Bars of the probe are 95 % intervals "
        "over pairs; those of controls that are drawn many times hold 95 % of the draws."
    )
    legend = key(
        [
            ("circle", colour_of(_SERIES, _SERIES[0]), _SERIES[0]),
            ("triangle-up", colour_of(_SERIES, _SERIES[1]), "control"),
            ("dotted", RANDOM_COLOUR, "chance"),
        ]
    )
    boxes = filterable(
        items, label="Transfers", filters=["source", "target"], search=False, width="22rem"
    )
    return figure(caption, legend, boxes)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = [
        Column("source", lambda r: r["source"]),
        Column("target", lambda r: r["target"]),
        Column("what", _name),
        Column("layers", lambda r: _layers(r), "number"),
        Column("AUROC", lambda r: decimal(value(r, "estimate")), "number"),
        Column("interval", lambda r: interval(value(r, "ci_low"), value(r, "ci_high")), "number"),
        Column("less the ceiling", lambda r: decimal(value(r, "ceiling_delta")), "number"),
        Column("its interval", _of_ceiling, "number"),
        Column("less the bag of words", lambda r: decimal(value(r, "bow_delta")), "number"),
        Column("p, random source", lambda r: decimal(value(r, "p_value"), 4), "number"),
        Column("R² of the map", lambda r: decimal(value(r, "map_r2"), 2), "number"),
    ]  # fmt: skip
    filters = [
        Filter("source", lambda r: r["source"]),
        Filter("target", lambda r: r["target"]),
        Filter("what", _name),
    ]
    return filterable_table(columns, list(rows), label="Transfers", filters=filters)


def _of_ceiling(row: Mapping[str, Any]) -> str:
    return interval(value(row, "ceiling_delta_ci_low"), value(row, "ceiling_delta_ci_high"))


def _layers(row: Mapping[str, Any]) -> str:
    source = value(row, "source_layer")
    return f"{decimal(source, 0)} to {decimal(value(row, 'layer'), 0)}"


def _carried(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what the carried probes reach, what their ceilings are, and what p allows."""
    moved = [r for r in rows if string(r["control"]) is None]
    known = [x for r in moved if (x := value(r, "estimate")) is not None]
    if not known:
        return "No probe was carried."
    ceilings = [
        x for r in rows
        if r["control"] == "target_trained" and (x := value(r, "estimate")) is not None
    ]  # fmt: skip
    text = f"A probe carried to another model reaches AUROC {_range(known)}"
    if ceilings:
        text += f", the target's own {_range(ceilings)}"
    judged = [p for r in moved if (p := value(r, "p_value")) is not None]
    if judged:
        beaten = sum(p <= 0.05 for p in judged)
        draws = sorted({int(n) for r in moved if (n := value(r, "n_draws")) is not None})
        text += (
            f"; {beaten} of {len(judged)} beat random source directions through the same map "
            "(p ≤ .05)"
        )
        if draws and 1 / (1 + max(draws)) > 0.05:
            text += f", which {listed([str(d) for d in draws])} draws could not show"
    return text + "."


def _range(values: Sequence[float]) -> str:
    low, high = decimal(min(values), 2), decimal(max(values), 2)
    return low if low == high else f"{low} to {high}"
