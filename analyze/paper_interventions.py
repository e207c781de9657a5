"""A paper's figures of interventions: patches, mediation, steering beside patching, doses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .paper_latex import escape
from .paper_parts import LeftOut, PaperPart, PaperTables, count, names_of
from .paper_style import (
    COLOURS,
    GREY,
    MARKERS,
    add_legend,
    add_scale,
    draw_cells,
    grid_of,
    label_cells,
    shorten,
    wide_enough,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["matched", "mediation", "patching"]

_MEDIATORS = {"full": "whole state", "coordinate": "coordinate along the direction"}


def patching(tables: PaperTables) -> PaperPart | LeftOut:
    """Return heat maps of denoising patches, layer by position, of the state and the coordinate."""
    rows = tables.table("patching")
    rows = rows[rows["arm"].isin(["full", "coordinate"])] if len(rows) else rows
    rows = rows[rows["mode"] == "denoise"] if len(rows) else rows
    if rows.empty:
        return LeftOut("patching was not run ([patch])")
    # A share of almost nothing says nothing: then all panels show the effect itself.
    in_nats = bool(rows["small_total"].any() or rows["estimate"].isna().any())
    ends = ("effect_ci_low", "effect_ci_high") if in_nats else ("ci_low", "ci_high")
    shown = rows.assign(
        label=rows["run"].map(tables.label),
        unit="nats" if in_nats else "share",
        value=rows["effect" if in_nats else "estimate"].astype(float),
        value_low=rows[ends[0]].astype(float),
        value_high=rows[ends[1]].astype(float),
    )
    columns = [
        "label", "run", "mode", "arm", "position", "layer", "unit", "value", "value_low",
        "value_high", "total", "interchange", "p_value_max", "n_pairs",
    ]  # fmt: skip
    what = "effect in nats" if in_nats else "share of the total effect that is recovered"
    caption = (
        f"Denoising patches by layer and position: {what} when the state of the other system "
        "prompt's run is put in, whole (top) or only its coordinate along the probe's direction "
        f"(bottom); {count(rows['n_pairs'], 'pair')}."
    )
    return PaperPart(_sorted(shown, tables).reindex(columns=columns), caption, draw=_draw_patching)


def _sorted(rows: pd.DataFrame, tables: PaperTables) -> pd.DataFrame:
    """Return the rows in the order of the models."""
    order = {run: i for i, run in enumerate(tables.in_order(rows["run"].tolist()))}
    found = rows.assign(_at=rows["run"].map(order)).sort_values("_at", kind="stable")
    return found.drop(columns="_at").reset_index(drop=True)


def _draw_patching(rows: pd.DataFrame) -> Figure:
    labels = list(dict.fromkeys(rows["label"]))
    arms = [arm for arm in ("full", "coordinate") if arm in set(rows["arm"])]
    positions = list(dict.fromkeys(rows["position"]))
    figure, grid = grid_of(
        len(labels), rows=len(arms), height=0.5 + 0.19 * len(positions), share_y="all"
    )
    in_nats = rows["unit"].iloc[0] == "nats"
    reach = float(np.nanmax(np.abs(rows["value"].to_numpy(dtype=float))))
    reach = max(reach, 1e-9) if in_nats else max(reach, 1.0)
    drawn = None
    numbered = wide_enough(int(rows.groupby("label")["layer"].nunique().max()), panels=len(labels))
    for arm, line in zip(arms, grid, strict=True):
        for label, axes in zip(labels, line, strict=True):
            own = rows[(rows["label"] == label) & (rows["arm"] == arm)]
            cells = own.pivot_table(index="position", columns="layer", values="value")
            cells = cells.reindex(index=positions)
            values = cells.to_numpy(dtype=float)
            drawn = draw_cells(axes, values, limits=(-reach, reach))
            if numbered:
                digits = 2 if reach >= 0.1 else 3
                label_cells(axes, values, digits=digits, light=np.abs(values) > 0.65 * reach)
            _layer_ticks(axes, [int(layer) for layer in cells.columns])
            axes.set_yticks(range(len(positions)), positions)
            if arm == arms[0]:
                axes.set_title(shorten(label, 36))
        line[0].set_ylabel({"full": "whole state"}.get(arm, arm))
    for axes in grid[-1]:
        axes.set_xlabel("layer")
    if drawn is not None:
        every = [axes for line in grid for axes in line]
        add_scale(figure, drawn, every, label="effect [nats]" if in_nats else "share recovered")
    return figure


def _layer_ticks(axes: Axes, layers: Sequence[int]) -> None:
    step = max(1, -(-len(layers) // 12))
    at = range(0, len(layers), step)
    axes.set_xticks(list(at), [str(layers[i]) for i in at])


def mediation(tables: PaperTables) -> PaperPart | LeftOut:
    """Return the natural indirect effect by layer, with that of random directions."""
    rows = tables.table("mediation")
    if len(rows):
        rows = rows[(rows["metric"] == "NIE") & (rows["way"] == "forward")]
        rows = rows[rows["estimate"].notna()]
    if rows.empty:
        return LeftOut("mediation was not run ([mediate])")
    scales = list(dict.fromkeys(rows["scale"]))
    rows = rows[rows["scale"] == scales[0]]
    shown = rows.assign(label=rows["run"].map(tables.label))
    columns = [
        "label", "run", "mediator", "index", "position", "scale", "layer", "estimate", "ci_low",
        "ci_high", "p_value", "p_value_max", "n_pairs",
    ]  # fmt: skip
    caption = (
        "Natural indirect effect of the system prompt through the state at one layer "
        f"({names_of(rows['position'].tolist())}), whole or its coordinate along the probe's "
        f"direction, in nats ({escape(scales[0])}) with 95\\,\\% intervals; "
        f"{count(rows['n_pairs'], 'pair')}. Grey: the coordinate along random directions of the "
        "same length. Intervals of layers are not corrected for one another; p-values over "
        "layers stand in the data."
    )
    return PaperPart(_sorted(shown, tables).reindex(columns=columns), caption, draw=_draw_mediation)


def _draw_mediation(rows: pd.DataFrame) -> Figure:
    labels = list(dict.fromkeys(rows["label"]))
    kinds = [kind for kind in _MEDIATORS if kind in set(rows["mediator"])]
    figure, (line,) = grid_of(len(labels), height=1.75)
    for label, axes in zip(labels, line, strict=True):
        own = rows[rows["label"] == label]
        axes.axhline(0, color=GREY, lw=0.5)
        _grey_lines(axes, own[own["mediator"] == "random"], x="layer")
        for i, kind in enumerate(kinds):
            _band(axes, own[own["mediator"] == kind], x="layer", colour=i)
        axes.set_title(shorten(label, 36))
        axes.set_xlabel("layer")
        _whole_layers(axes)
    line[0].set_ylabel("indirect effect [nats]")
    random = bool((rows["mediator"] == "random").any())
    _legend(figure, [_MEDIATORS[kind] for kind in kinds], random=random)
    return figure


def matched(tables: PaperTables) -> PaperPart | LeftOut:
    """Return patching beside steering that moves the state as far, by layer."""
    rows = tables.table("matched")
    if rows.empty:
        return LeftOut("patching and steering of one size were not compared ([match])")
    rows = rows[rows["what"].isin(["patch", "steer", "random"])]
    shown = rows.assign(label=rows["run"].map(tables.label))
    columns = [
        "label", "run", "what", "index", "arm", "position", "layer", "estimate", "ci_low",
        "ci_high", "change_norm", "p_value", "n_pairs",
    ]  # fmt: skip
    caption = (
        "Patching beside steering that moves the state as far (equal $\\Vert\\Delta h\\Vert$), by "
        f"layer, in nats with 95\\,\\% intervals; {count(rows['n_pairs'], 'pair')}. Grey: as far "
        "along random directions."
    )
    return PaperPart(_sorted(shown, tables).reindex(columns=columns), caption, draw=_draw_matched)


def _draw_matched(rows: pd.DataFrame) -> Figure:
    labels = list(dict.fromkeys(rows["label"]))
    figure, (line,) = grid_of(len(labels), height=1.75)
    for label, axes in zip(labels, line, strict=True):
        own = rows[rows["label"] == label]
        axes.axhline(0, color=GREY, lw=0.5)
        _grey_lines(axes, own[own["what"] == "random"], x="layer")
        for i, what in enumerate(("patch", "steer")):
            _band(axes, own[own["what"] == what], x="layer", colour=i)
        axes.set_title(shorten(label, 36))
        axes.set_xlabel("layer")
        _whole_layers(axes)
    line[0].set_ylabel("effect [nats]")
    random = bool((rows["what"] == "random").any())
    _legend(figure, ["patching", "steering as far"], random=random)
    return figure


def _band(axes: Axes, rows: pd.DataFrame, *, x: str, colour: int) -> None:
    """Draw one line with its interval."""
    own = rows.sort_values(x)
    at, low, high, value = (
        own[name].to_numpy(dtype=float) for name in (x, "ci_low", "ci_high", "estimate")
    )
    axes.fill_between(at, low, high, color=COLOURS[colour], alpha=0.22)
    axes.plot(at, value, color=COLOURS[colour], marker=MARKERS[colour])


def _grey_lines(axes: Axes, rows: pd.DataFrame, *, x: str, by: str = "index") -> None:
    for _, own in rows.groupby(by, sort=True):
        found = own.sort_values(x)
        axes.plot(
            found[x].to_numpy(dtype=float), found["estimate"].to_numpy(dtype=float),
            color=GREY, lw=0.5, alpha=0.6,
        )  # fmt: skip


def _whole_layers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def _legend(figure: Figure, names: Sequence[str], *, random: bool) -> None:
    from matplotlib.lines import Line2D

    handles: list[Any] = [
        Line2D([], [], color=COLOURS[i], marker=MARKERS[i], label=name)
        for i, name in enumerate(names)
    ]
    if random:
        handles.append(Line2D([], [], color=GREY, lw=0.7, label="random directions"))
    add_legend(figure, handles)
