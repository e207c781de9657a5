"""A paper's figures of probes: AUROC by depth, transfer between models, lexical ablation."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .paper_latex import escape
from .paper_parts import LeftOut, PaperPart, PaperTables, count, names_of
from .paper_style import (
    BLACK,
    COLOURS,
    GREY,
    MARKERS,
    add_legend,
    add_scale,
    draw_cells,
    grid_of,
    label_cells,
    shorten,
)
from .report_numbers import sort_subsets

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ablation", "auroc", "transfer"]

_MAX_SUBSETS = 4
_CONTROLS = {
    "target_trained": "trained in the target",
    "random_source": "random source direction, same map",
    "permuted_anchors": "map of permuted texts",
    "random_orthogonal": "random orthogonal map",
    "bag_of_words": "bag of words",
}


def auroc(tables: PaperTables) -> PaperPart | LeftOut:
    """Return held-out AUROC by relative depth, beside the bag of words and random directions."""
    parts = []
    for view in tables.views:
        curves = view.probe("auroc", pool=view.pool)
        curves = curves[curves["layer"].notna()].assign(label=view.label)
        band = view.null[view.null["pool"] == view.pool]
        band = band.rename(columns={"q025": "random_low", "q975": "random_high"})
        band = band.rename(columns={"max": "random_max"})
        keep = ["subset", "layer", "random_low", "random_high", "random_max"]
        parts.append(_joined(curves, band[keep], on=["subset", "layer"]))
    rows = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    if rows.empty or rows["estimate"].isna().all():
        return LeftOut("no probe has an AUROC by layer")
    rows["depth"] = rows["depth"].astype(float).fillna(rows["layer"].astype(float))
    subsets = sort_subsets(rows["subset"])[:_MAX_SUBSETS]
    rows = rows[rows["subset"].isin(subsets)]
    columns = [
        "label", "run", "site", "pool", "subset", "method", "layer", "depth", "estimate",
        "ci_low", "ci_high", "bow_estimate", "random_low", "random_high", "random_max", "n_pairs",
    ]  # fmt: skip
    caption = (
        "Held-out AUROC of probes by relative depth, with 95\\,\\% intervals "
        f"({names_of(rows['pool'].tolist())}; {count(rows['n_pairs'], 'pair')}). Dashed: a bag of "
        "words on the same texts and folds. Grey: the middle 95\\,\\% of random directions, "
        "dotted their largest. Rows are subsets of the corpus. The top of a curve is not an "
        "estimate: Table~\\ref{tab:key-numbers} has the nested ones."
    )
    return PaperPart(rows[columns], caption, draw=_draw_auroc)


def _joined(left: pd.DataFrame, right: pd.DataFrame, *, on: list[str]) -> pd.DataFrame:
    keys = {name: float for name in on if name == "layer"}
    return left.astype(keys).merge(right.astype(keys), on=on, how="left")


def _draw_auroc(rows: pd.DataFrame) -> Figure:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    labels, subsets = list(dict.fromkeys(rows["label"])), sort_subsets(rows["subset"])
    methods = list(dict.fromkeys(rows["method"]))
    height = 1.5 if len(subsets) > 1 else 1.9
    figure, grid = grid_of(
        len(labels), rows=len(subsets), height=height, share_x=True, share_y="all"
    )
    # Random directions fall below chance as far as they rise above: their lower half is cut off.
    lowest = float(np.nanmin(rows[["estimate", "ci_low", "bow_estimate"]].to_numpy(dtype=float)))
    for subset, line in zip(subsets, grid, strict=True):
        for label, axes in zip(labels, line, strict=True):
            own = rows[(rows["label"] == label) & (rows["subset"] == subset)]
            _auroc_panel(axes, own.sort_values("depth"), methods)
            axes.set_ylim(max(0.0, min(0.4, lowest - 0.03)), 1.02)
            if subset == subsets[0]:
                axes.set_title(shorten(label, 36))
        line[0].set_ylabel("AUROC" if len(subsets) == 1 else f"AUROC, {subset}")
    for axes in grid[-1]:
        axes.set_xlabel("relative depth")
    handles: list[Any] = [
        Line2D([], [], color=COLOURS[i % 6], marker=MARKERS[i % 6], label=method)
        for i, method in enumerate(methods)
    ]
    if rows["bow_estimate"].notna().any():
        handles.append(Line2D([], [], color=BLACK, ls="--", label="bag of words"))
    if rows["random_low"].notna().any():
        handles.append(Patch(color=GREY, alpha=0.35, label="random directions, 95 %"))
        handles.append(Line2D([], [], color=GREY, ls=":", label="largest of them"))
    add_legend(figure, handles, columns=5)
    return figure


def _auroc_panel(axes: Axes, rows: pd.DataFrame, methods: Sequence[str]) -> None:
    axes.axhline(0.5, color=GREY, lw=0.5)
    first = rows[rows["method"] == (rows["method"].iloc[0] if len(rows) else "")]
    depth = first["depth"].to_numpy(dtype=float)
    low, high = (first[name].to_numpy(dtype=float) for name in ("random_low", "random_high"))
    axes.fill_between(depth, low, high, color=GREY, alpha=0.35)
    axes.plot(depth, first["random_max"].to_numpy(dtype=float), color=GREY, ls=":", lw=0.9)
    bow = first["bow_estimate"].to_numpy(dtype=float)
    axes.plot(depth, bow, color=BLACK, ls="--", lw=0.9, zorder=3)  # seen where a probe ties it
    for i, method in enumerate(methods):
        own = rows[rows["method"] == method]
        x = own["depth"].to_numpy(dtype=float)
        low, high = (own[end].to_numpy(dtype=float) for end in ("ci_low", "ci_high"))
        axes.fill_between(x, low, high, color=COLOURS[i % 6], alpha=0.2)
        axes.plot(
            x, own["estimate"].to_numpy(dtype=float), color=COLOURS[i % 6], marker=MARKERS[i % 6]
        )


def transfer(tables: PaperTables) -> PaperPart | LeftOut:
    """Return the matrix of probes that were carried to other models, beside its controls."""
    rows = tables.table("transfer")
    if rows.empty:
        return LeftOut("probes were not carried between models (needs two models and [transfer])")
    pools = list(dict.fromkeys(rows["pool"]))
    quoted = tables.views[0].pool if tables.views and tables.views[0].pool in pools else pools[0]
    rows = rows[(rows["metric"] == "auroc") & (rows["pool"] == quoted) & (rows["subset"] == "all")]
    here = [_nearest(own, tables) for _, own in rows.groupby("run", sort=False)]
    rows = pd.concat(here, ignore_index=True) if here else rows
    rows = rows[rows["estimate"].notna()]
    if rows.empty:
        return LeftOut("no carried probe has an AUROC")
    columns = [
        "panel", "source", "target", "source_run", "run", "pool", "layer", "source_layer", "map",
        "control", "estimate", "ci_low", "ci_high", "p_value", "n_draws",
    ]  # fmt: skip
    carried = rows["control"].isna()
    panel = rows["map"].map(lambda name: f"{name} map").where(carried, rows["control"])
    shown = rows.assign(
        panel=panel.map(lambda name: _CONTROLS.get(name, name)),
        source=rows["source_run"].map(tables.label),
        target=rows["run"].map(tables.label),
    )
    order = [f"{name} map" for name in dict.fromkeys(rows[carried]["map"])]
    order += [name for control, name in _CONTROLS.items() if control in set(rows["control"])]
    shown = shown[shown["panel"].isin(order)].assign(
        panel=lambda frame: pd.Categorical(frame["panel"], categories=order)
    )
    shown = shown.sort_values(["panel", "target", "source"], kind="stable")
    shown = shown.astype({"panel": str}).reset_index(drop=True)
    caption = (
        f"AUROC in the target (column) of a probe trained in the source (row), {escape(quoted)}, "
        "at the layer that the target's inner folds selected. The first panels are carried "
        "through a map that was fitted on texts of other scenarios; the others are their "
        "controls on the same texts. Controls of several draws show their mean."
    )
    return PaperPart(shown.reindex(columns=columns), caption, draw=_draw_transfer)


def _nearest(rows: pd.DataFrame, tables: PaperTables) -> pd.DataFrame:
    """Return the rows at the target's quoted layer, or the nearest that there is."""
    view = tables.view(rows["run"].iloc[0])
    layers = sorted({int(layer) for layer in rows["layer"].dropna()})
    middle = layers[len(layers) // 2]
    wanted = middle if view is None or view.layer is None else view.layer
    return rows[rows["layer"] == min(layers, key=lambda layer: abs(layer - wanted))]


def _draw_transfer(rows: pd.DataFrame) -> Figure:
    names = sorted(dict.fromkeys([*rows["source"], *rows["target"]]))
    panels = list(dict.fromkeys(rows["panel"]))
    figure, (line,) = grid_of(len(panels), height=0.9 + 0.28 * len(names))
    drawn = None
    for i, (panel, axes) in enumerate(zip(panels, line, strict=True)):
        own = rows[rows["panel"] == panel]
        cells = own.groupby(["source", "target"])["estimate"].mean().unstack()
        values = cells.reindex(index=names, columns=names).to_numpy(dtype=float)
        drawn = draw_cells(axes, values, limits=(0.0, 1.0))  # chance is white
        label_cells(axes, values, light=np.abs(values - 0.5) > 0.38)
        axes.set_title("\n".join(wrap(panel, 24)))
        ticks = [shorten(name) for name in names]
        axes.set_xticks(range(len(names)), ticks, rotation=35, ha="right")
        axes.set_yticks(range(len(names)), ticks)
        nothing_below = i + _columns(axes) >= len(panels)
        axes.tick_params(labelleft=_first_of_row(axes), labelbottom=nothing_below)
        axes.set_aspect("equal")
    if drawn is not None:
        add_scale(figure, drawn, line, label="AUROC")
    return figure


def _first_of_row(axes: Axes) -> bool:
    spec = axes.get_subplotspec()
    return spec is None or spec.is_first_col()


def _columns(axes: Axes) -> int:
    spec = axes.get_subplotspec()
    return 1 if spec is None else spec.get_gridspec().ncols


def ablation(tables: PaperTables) -> PaperPart | LeftOut:
    """Return a forest plot of what is lost without words, beside random words."""
    rows = tables.table("ablation")
    if rows.empty:
        return LeftOut("words were not ablated (needs [variants] or stored tokens, and [ablation])")
    rows = rows[
        (rows["metric"] == "auroc") & (rows["subset"] == "all") & (rows["readout"] == "refit")
        & rows["estimate"].notna() & (rows["arm"] != "random")
    ]  # fmt: skip
    pools = list(dict.fromkeys(rows["pool"].dropna()))
    if pools:
        wanted = tables.views[0].pool if tables.views else pools[0]
        rows = rows[rows["pool"] == (wanted if wanted in pools else pools[0])]
    here = [_nearest(own, tables) for _, own in rows.groupby(["run", "way"], sort=False)]
    rows = pd.concat(here, ignore_index=True) if here else rows
    if rows.empty:
        return LeftOut("no arm of the ablation has an AUROC")
    draws = rows[["random_mean", "random_low", "random_high"]].astype(float)
    before = rows["before_estimate"].astype(float).to_numpy()[:, None]
    rows = rows.assign(
        label=rows["run"].map(tables.label),
        condition=[_condition(row) for row in rows.to_dict("records")],
        **dict(zip(
            ("random_delta", "random_delta_low", "random_delta_high"),
            (draws.to_numpy() - before).T, strict=True,
        )),
    )  # fmt: skip
    columns = [
        "label", "run", "condition", "way", "arm", "lexicon", "k", "pool", "layer",
        "before_estimate", "estimate", "delta", "delta_ci_low", "delta_ci_high", "random_delta",
        "random_delta_low", "random_delta_high", "contrast", "contrast_ci_low",
        "contrast_ci_high", "bow_before", "bow_estimate", "n_pairs",
    ]  # fmt: skip
    caption = (
        "Change of the AUROC when words are left out of both classes, probes refitted, with "
        f"95\\,\\% intervals ({count(rows['n_pairs'], 'pair')}). Grey: the middle 95\\,\\% of "
        "draws of as many random words of like frequency, with their mean. A shortcut is lost "
        "with its keywords and kept without random words."
    )
    return PaperPart(rows.reindex(columns=columns), caption, draw=_draw_ablation)


def _condition(row: dict[Any, Any]) -> str:
    """Return what was left out: the arm, its lexicon or number of words, and how."""
    words = [str(row["arm"]).replace("_", " ")]
    words += [str(row["lexicon"])] if isinstance(row.get("lexicon"), str) else []
    if row.get("k") is not None and pd.notna(row["k"]):
        words.append(f"k = {int(row['k'])}")
    return f"{', '.join(words)} ({row['way']})"


def _draw_ablation(rows: pd.DataFrame) -> Figure:
    from matplotlib.lines import Line2D

    labels = list(dict.fromkeys(rows["label"]))
    conditions = list(dict.fromkeys(rows["condition"]))
    figure, (line,) = grid_of(len(labels), height=0.55 + 0.16 * len(conditions), share_y="all")
    at = {name: len(conditions) - 1 - i for i, name in enumerate(conditions)}
    for label, axes in zip(labels, line, strict=True):
        own = rows[rows["label"] == label].drop_duplicates("condition")
        y = own["condition"].map(at).to_numpy(dtype=float)
        axes.axvline(0, color=GREY, lw=0.5)
        low, high = (own[f"random_delta_{end}"].to_numpy(dtype=float) for end in ("low", "high"))
        axes.hlines(y - 0.18, low, high, color=GREY, lw=2.5, alpha=0.6)
        axes.plot(own["random_delta"].to_numpy(dtype=float), y - 0.18, "|", color=GREY, ms=5)
        ends = (own[f"delta_ci_{end}"].to_numpy(dtype=float) for end in ("low", "high"))
        axes.hlines(y + 0.12, *ends, color=COLOURS[0], lw=1.1)
        axes.plot(own["delta"].to_numpy(dtype=float), y + 0.12, "o", color=COLOURS[0])
        axes.set_title(shorten(label, 36))
        axes.set_xlabel("change of the AUROC")
        axes.locator_params(axis="x", nbins=4)
        axes.set_ylim(-0.6, len(conditions) - 0.4)
    line[0].set_yticks([at[name] for name in conditions], conditions)
    handles = [
        Line2D([], [], color=COLOURS[0], marker="o", label="words left out"),
        Line2D([], [], color=GREY, marker="|", lw=2.5, label="as many random words, 95 %"),
    ]
    add_legend(figure, handles)
    return figure
