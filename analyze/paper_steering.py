"""A paper's figures of steering: the dose-response, and directions of other models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from .paper_parts import LeftOut, PaperPart, PaperTables, count, names_of
from .paper_style import BLACK, COLOURS, GREY, MARKERS, add_legend, grid_of, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["doses", "steering_transfer"]

_CONTROLS = {
    "random_source": "random source directions, same map",
    "permuted_anchors": "maps of permuted texts",
    "random_orthogonal": "random orthogonal maps",
}


def doses(tables: PaperTables) -> PaperPart | LeftOut:
    """Return the effect of steering by strength, and how many steered texts are coherent."""
    steering = tables.results.steering
    if steering is None or steering.empty:
        return LeftOut("steering was not run ([steer])")
    rows = _over_prompts(steering)
    shown = rows.assign(label=rows["run"].map(tables.label), outcome="effect")
    texts = _coherence(tables)
    shown = pd.concat([shown, texts], ignore_index=True) if len(texts) else shown
    random = shown["direction"].astype(str).str.startswith("random").to_numpy(dtype=bool)
    shown = shown.assign(random=random)
    columns = [
        "label", "run", "outcome", "direction", "direction_index", "random", "layer", "alpha_raw",
        "alpha_separation", "alpha_norm", "estimate", "ci_low", "ci_high", "n_pairs", "n_texts",
    ]  # fmt: skip
    counted = count(rows.get("n_pairs"), "pair")
    caption = (
        "Dose-response of steering. Strength is in class separations of the layer that is "
        "steered; the effect is the change of the log-probability difference between the two "
        "responses of a pair, in nats per token, with 95\\,\\% intervals"
        + (f" ({counted})" if counted else "")
        + ". Grey: random directions of the same length."
    )
    if len(texts):
        caption += (
            " Below: the share of coherent texts among those that the steered model writes "
            f"({count(texts['n_texts'], 'text')} per point)."
        )
    return PaperPart(shown.reindex(columns=columns), caption, draw=_draw_doses)


def _over_prompts(steering: pd.DataFrame) -> pd.DataFrame:
    """Return the rows over all prompts, of the first metric and the widest set of prompts."""
    rows = steering[steering["prompt"].isna()] if "prompt" in steering else steering
    for column, wanted in (("metric", None), ("prompt_set", "all")):
        if column in rows and len(rows):
            values = rows[column]
            rows = rows[values == (wanted if wanted in set(values) else values.iloc[0])]
    return rows


def _coherence(tables: PaperTables) -> pd.DataFrame:
    """Return the share of coherent texts by run, direction and strength."""
    texts = tables.table("scored")
    needed = {"run", "direction", "alpha_separation", "alpha_raw", "coherent"}
    if texts.empty or not needed <= set(texts.columns):
        return pd.DataFrame()
    texts = texts.assign(alpha_separation=texts["alpha_separation"].astype(float).round(9))
    grouped = texts.groupby(["run", "direction", "alpha_separation"], sort=False)
    found = grouped.agg(
        estimate=("coherent", "mean"), n_texts=("coherent", "size"), alpha_raw=("alpha_raw", "mean")
    ).reset_index()
    return found.assign(label=found["run"].map(tables.label), outcome="coherent")


def _draw_doses(rows: pd.DataFrame) -> Figure:
    from matplotlib.lines import Line2D

    labels = list(dict.fromkeys(rows["label"]))
    outcomes = [name for name in ("effect", "coherent") if name in set(rows["outcome"])]
    own = list(dict.fromkeys(rows[~rows["random"]]["direction"]))
    figure, grid = grid_of(len(labels), rows=len(outcomes), height=1.6, share_x=True)
    for outcome, line in zip(outcomes, grid, strict=True):
        for label, axes in zip(labels, line, strict=True):
            here = rows[(rows["label"] == label) & (rows["outcome"] == outcome)]
            _dose_panel(axes, here, own)
            if outcome == outcomes[0]:
                axes.set_title(shorten(label, 36))
            if outcome == "coherent":
                axes.set_ylim(-0.03, 1.06)
        name = {"effect": "effect [nats/token]", "coherent": "coherent texts"}[outcome]
        line[0].set_ylabel(name)
    for axes in grid[-1]:
        axes.set_xlabel("α [class separations]")
    handles: list[Any] = [
        Line2D([], [], color=COLOURS[i % 6], marker=MARKERS[i % 6], label=str(name))
        for i, name in enumerate(own)
    ]
    if rows["random"].any():
        handles.append(Line2D([], [], color=GREY, lw=0.7, label="random directions"))
    add_legend(figure, handles)
    return figure


def _dose_panel(axes: Axes, rows: pd.DataFrame, own: list[Any]) -> None:
    axes.axvline(0, color=GREY, lw=0.5)
    axes.axhline(0, color=GREY, lw=0.5)
    random = rows[rows["random"]]
    keys = ["direction", "direction_index"]
    for _, one in random.groupby(keys, sort=True, dropna=False):
        line = one.sort_values("alpha_separation")
        axes.plot(line["alpha_separation"], line["estimate"], color=GREY, lw=0.5, alpha=0.6)
    for i, name in enumerate(own):
        line = rows[rows["direction"] == name].sort_values("alpha_separation")
        x, low, high, value = (
            line[column].to_numpy(dtype=float)
            for column in ("alpha_separation", "ci_low", "ci_high", "estimate")
        )
        axes.fill_between(x, low, high, color=COLOURS[i % 6], alpha=0.22)
        axes.plot(x, value, color=COLOURS[i % 6], marker=MARKERS[i % 6])


def steering_transfer(tables: PaperTables) -> PaperPart | LeftOut:
    """Return the effect of directions of other models beside the target's own and controls."""
    rows = tables.table("steer-transfer")
    if rows.empty:
        return LeftOut("no direction was steered in another model ([steer_transfer])")
    rows = rows[(rows["metric"] == "effect") & rows["estimate"].notna()]
    if rows.empty:
        return LeftOut("no direction of another model has an effect: see its reason in the table")
    # The rows of a pair stand together; those of the own direction do not name the source.
    source = rows["source_run"].groupby(rows["run"], sort=False).transform(lambda s: s.ffill())
    source = source.where(rows["role"] != "own", None)
    shown = rows.assign(
        target=rows["run"].map(tables.label),
        source=[tables.label(name) if isinstance(name, str) else "own" for name in source],
        source_run=source,
    )
    # The own direction is measured again for each source, with the same prompts: once is enough.
    shown = shown[~((shown["role"] == "own") & shown.duplicated(["run", "role"]))]
    columns = [
        "target", "source", "run", "source_run", "role", "map", "direction", "direction_index",
        "layer", "source_layer", "alpha_separation", "estimate", "ci_low", "ci_high", "p_value",
        "p_broken", "p_orthogonal", "cosine", "n_pairs",
    ]  # fmt: skip
    strengths = sorted({float(a) for a in rows["alpha_separation"].dropna()})
    caption = (
        "Steering a target model with a direction of another model, mapped by "
        f"{names_of(rows['map'].dropna().tolist() or ['a map'])}: effect in nats per token at "
        f"$\\alpha = {strengths[-1]:g}$ class separations of the target, with 95\\,\\% intervals "
        f"({count(rows['n_pairs'], 'pair')}). Black: the target's own direction. Grey ticks: "
        "random source directions through the same map, maps of permuted texts, and random "
        "orthogonal maps."
    )
    return PaperPart(shown.reindex(columns=columns), caption, draw=_draw_transfer)


def _draw_transfer(rows: pd.DataFrame) -> Figure:
    from matplotlib.lines import Line2D

    targets = sorted(dict.fromkeys(rows["target"]))
    most = max(rows[rows["target"] == target]["source"].nunique() for target in targets)
    figure, (line,) = grid_of(len(targets), height=0.75 + 0.3 * most, share_y="none")
    for target, axes in zip(targets, line, strict=True):
        here = rows[rows["target"] == target]
        names = list(dict.fromkeys(here["source"]))
        names = [name for name in names if name == "own"] + [n for n in names if n != "own"]
        at = {name: len(names) - 1 - i for i, name in enumerate(names)}
        axes.axvline(0, color=GREY, lw=0.5)
        broken = here[here["role"].isin(list(_CONTROLS))]
        axes.plot(
            broken["estimate"].to_numpy(dtype=float),
            broken["source"].map(at).to_numpy(dtype=float) - 0.2, "|", color=GREY, ms=4, alpha=0.7,
        )  # fmt: skip
        for role, colour, marker in (("own", BLACK, "D"), ("mapped", COLOURS[0], "o")):
            one = here[here["role"] == role]
            y = one["source"].map(at).to_numpy(dtype=float)
            axes.hlines(y, one["ci_low"].astype(float), one["ci_high"].astype(float), color=colour)
            axes.plot(one["estimate"].to_numpy(dtype=float), y, marker, color=colour)
        axes.set_yticks([at[name] for name in names], [f"from {shorten(n)}" if n != "own" else n
                                                       for n in names])  # fmt: skip
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_title(f"in {shorten(target)}")
        axes.set_xlabel("effect [nats/token]")
    handles = [
        Line2D([], [], color=BLACK, marker="D", label="own direction"),
        Line2D([], [], color=COLOURS[0], marker="o", label="mapped direction"),
        Line2D([], [], color=GREY, marker="|", ls="", label="controls"),
    ]
    add_legend(figure, handles)
    return figure
