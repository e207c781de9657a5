"""Chart panels that several sections of the report share: curves, intervals, heat maps, scatters.

Every builder takes records whose keys are named in its docstring, so that panels of one figure
have one skeleton and their CSV has plain columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import altair as alt

from .report_charts import ARM_COLOURS, ARM_SHAPES, RANDOM_COLOUR, Panel, Records, Spec

__all__ = [
    "SERIES_COLOURS",
    "band_panel",
    "colour_of",
    "curve_panel",
    "heat_panel",
    "interval_panel",
    "scatter_panel",
]

# Okabe & Ito (2008) without the yellow, which is too light for a line on white.
SERIES_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_DASHES: tuple[list[int], ...] = ([1, 0], [7, 3], [2, 2], [8, 2, 2, 2], [4, 4])
_FAINT: dict[str, Any] = {"color": "#8a9199", "strokeDash": [1, 3]}
_MAX_LABELLED = 100  # cells of a heat map that have room for their number


def colour_of(names: Sequence[str], name: str) -> str:
    """Return the colour of a series by its place among ``names``."""
    return SERIES_COLOURS[list(names).index(name) % len(SERIES_COLOURS)]


def _tips(names: Mapping[str, str]) -> list[alt.Tooltip]:
    """Return tooltips by field; a field ``name:.3f`` has a format."""
    tips = []
    for name, title in names.items():
        column, _, form = name.partition(":")
        numeric: dict[str, Any] = {"format": form} if form else {}
        tips.append(alt.Tooltip(f"{column}:{'Q' if form else 'N'}", title=title, **numeric))
    return tips


def curve_panel(
    curves: Records,
    *,
    series: Sequence[str],
    x: alt.X,
    title: str,
    domain: tuple[float, float] | None = None,
    rules: Mapping[str, float] | None = None,
    limits: Records | None = None,
    tips: Mapping[str, str] | None = None,
    height: int = 210,
) -> Spec:
    """Return curves of several series in one panel.

    Parameters
    ----------
    curves
        ``series``, the field of ``x``, ``estimate``, ``low``, ``high`` (None where unknown).
    series
        All series of the figure in the order of their colours.
    x
        The horizontal axis.
    title
        Of the vertical axis.
    domain
        Of the vertical axis; None fits the values.
    rules
        Horizontal dashed lines by name.
    limits
        Dotted curves that belong to the series: ``series``, the field of ``x``, ``limit``, and
        ``end`` where a series has several.
    tips
        Further tooltips by field.
    height
        Of the panel in pixels.
    """
    panel = Panel()
    scale = alt.Scale(domain=list(domain), nice=False) if domain else alt.Scale(zero=False)
    colours = [colour_of(series, s) for s in series]
    colour = alt.Color("series:N", scale=alt.Scale(domain=list(series), range=colours), legend=None)
    dashes = [_DASHES[i % len(_DASHES)] for i in range(len(series))]
    dash = alt.StrokeDash(
        "series:N", scale=alt.Scale(domain=list(series), range=dashes), legend=None
    )
    y = alt.Y("estimate:Q", title=title, scale=scale, axis=alt.Axis(tickCount=6))
    of_x = cast("dict[str, Any]", x.to_dict())
    field = str(of_x["field"])
    shown = _tips({"series": "series", f"{field}:.3~f": str(of_x.get("title", field)),
                   "estimate:.3f": title, "low:.3f": "CI from", "high:.3f": "CI to",
                   **(tips or {})})  # fmt: skip
    parts: list[alt.Chart] = []
    for name, value in (rules or {}).items():
        parts.append(
            panel.chart([{"value": round(value, 4)}], name)
            .mark_rule(**(_FAINT if name == "chance" else {"color": "#000", "strokeDash": [7, 3]}))
            .encode(y=alt.Y("value:Q", scale=scale, title=title))
        )
    lines = panel.chart(curves, "curves")  # the first name is kept where all have an interval
    known = [c for c in curves if c["low"] is not None and c["high"] is not None]
    if known:
        area = panel.chart(known, "with interval").mark_area(opacity=0.12)
        y_low = alt.Y("low:Q", scale=scale, title=title)
        parts.append(area.encode(x=x, y=y_low, y2="high:Q", color=colour))
    if limits:
        drawn = panel.chart(limits, "limits").mark_line(strokeDash=[1, 3], strokeWidth=1.6)
        y_limit = alt.Y("limit:Q", scale=scale, title=title)
        parts.append(drawn.encode(x=x, y=y_limit, color=colour, detail=["series:N", "end:N"]))
    parts += [
        lines.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour, strokeDash=dash),
        lines.mark_point(filled=True, size=32, opacity=1).encode(
            x=x, y=y, color=colour, tooltip=shown
        ),
    ]
    return panel.spec(parts, height=height)


def band_panel(
    rows: Records,
    bands: Records,
    *,
    kinds: Sequence[str],
    x: alt.X,
    domain: tuple[float, float],
    maxima: Records | None = None,
) -> Spec:
    """Return an observed curve over the bands of several null distributions.

    Parameters
    ----------
    rows
        The observed ``layer``, ``estimate``, ``low``, ``high``.
    bands
        ``kind``, ``layer``, ``q025``, ``q975``, ``max`` of every null.
    kinds
        The nulls in the order of their colours.
    x
        The layer axis.
    domain
        Of AUROC.
    maxima
        ``kind``, ``limit``: the 97.5 % point of each null's largest value over layers.
    """
    panel = Panel()
    scale = alt.Scale(domain=list(domain), nice=False)
    colours = [colour_of(kinds, k) for k in kinds]
    colour = alt.Color("kind:N", scale=alt.Scale(domain=list(kinds), range=colours), legend=None)
    axis = alt.Axis(title="AUROC", format=".1f", tickCount=6)
    tips = _tips({"kind": "null", "layer": "layer", "q025:.3f": "2.5 % point",
                  "q975:.3f": "97.5 % point", "max:.3f": "largest"})  # fmt: skip
    band = panel.chart(bands, "nulls")
    parts = [
        panel.chart([{"y": 0.5}], "chance").mark_rule(**_FAINT)
        .encode(y=alt.Y("y:Q", scale=scale, axis=axis)),
        band.mark_area(opacity=0.13).encode(
            x=x, y=alt.Y("q025:Q", scale=scale, axis=axis, stack=None), y2="q975:Q", color=colour
        ),
        band.mark_line(strokeWidth=1.4).encode(
            x=x, y=alt.Y("q975:Q", scale=scale, axis=axis), color=colour
        ),
        band.mark_point(filled=True, size=14).encode(
            x=x, y=alt.Y("q975:Q", scale=scale, axis=axis), color=colour, tooltip=tips
        ),
    ]  # fmt: skip
    if maxima:
        limit = panel.chart(maxima, "largest over layers")
        parts.append(
            limit.mark_rule(strokeDash=[6, 3], strokeWidth=1.4).encode(
                y=alt.Y("limit:Q", scale=scale, axis=axis), color=colour
            )
        )
    curve = panel.chart(rows, "probe")
    y = alt.Y("estimate:Q", scale=scale, axis=axis)
    shown = _tips({"layer": "layer", "estimate:.3f": "AUROC", "low:.3f": "CI from",
                   "high:.3f": "CI to"})  # fmt: skip
    parts += [
        curve.mark_line(color="#000", strokeWidth=2).encode(x=x, y=y),
        curve.mark_point(color="#000", filled=True, size=36, opacity=1)
        .encode(x=x, y=y, tooltip=shown),
    ]  # fmt: skip
    return panel.spec(parts, height=210)


def interval_panel(
    rows: Records,
    *,
    series: Sequence[str],
    title: str,
    domain: tuple[float, float],
    reference: float,
    tips: Mapping[str, str] | None = None,
    label_limit: int = 180,
) -> Spec:
    """Return estimates with their intervals, one line each, over the ranges of their controls.

    Parameters
    ----------
    rows
        ``label``, ``series``, ``estimate``, ``low``, ``high``, and of the control ``control``,
        ``control_low``, ``control_high`` (None where there is none).
    series
        All series of the figure in the order of their colours.
    title
        Of the horizontal axis.
    domain
        Of the horizontal axis.
    reference
        Where the vertical dotted line stands (chance, no change).
    tips
        Further tooltips by field.
    label_limit
        Pixels for the labels.
    """
    panel = Panel()
    labels = list(dict.fromkeys(r["label"] for r in rows))
    scale = alt.Scale(domain=list(domain), nice=False, clamp=True)
    axis = alt.Axis(title=title, tickCount=5)
    y = alt.Y(
        "label:N", sort=labels, title=None, scale=alt.Scale(padding=0.3),
        axis=alt.Axis(labelLimit=label_limit, ticks=False, grid=True, tickBand="extent"),
    )  # fmt: skip
    colours = [colour_of(series, s) for s in series]
    colour = alt.Color("series:N", scale=alt.Scale(domain=list(series), range=colours), legend=None)
    names = ("circle", "triangle-up", "cross", "square", "diamond")
    shapes = alt.Scale(
        domain=list(series), range=[names[i % len(names)] for i in range(len(series))]
    )
    several = len({r["series"] for r in rows}) > 1 and len(rows) > len(labels)
    offset: dict[str, Any] = (
        {"yOffset": alt.YOffset("series:N", sort=list(series))} if several else {}
    )
    shown = _tips({"label": "what", "series": "series", "estimate:.3f": title, "low:.3f": "CI from",
                   "high:.3f": "CI to", "control:.3f": "control, mean",
                   "control_low:.3f": "control from", "control_high:.3f": "control to",
                   **(tips or {})})  # fmt: skip
    parts = [
        panel.chart([{"x": reference}], "reference").mark_rule(**_FAINT)
        .encode(x=alt.X("x:Q", scale=scale, axis=axis))
    ]  # fmt: skip
    controls = [r for r in rows if r["control_low"] is not None]
    if controls:
        ranged = panel.chart(controls, "control")
        parts += [
            ranged.mark_bar(color=RANDOM_COLOUR, opacity=0.4, height=11).encode(
                x=alt.X("control_low:Q", scale=scale, axis=axis), x2="control_high:Q", y=y,
                tooltip=shown, **offset,
            ),
            ranged.mark_tick(color="#555", thickness=2, size=11).encode(
                x=alt.X("control:Q", scale=scale, axis=axis), y=y, **offset
            ),
        ]  # fmt: skip
    points = panel.chart(rows, "estimates")  # the first name is kept where all have an interval
    bars = panel.chart([r for r in rows if r["low"] is not None], "with interval")
    parts += [
        bars.mark_rule(strokeWidth=2).encode(
            x=alt.X("low:Q", scale=scale, axis=axis), x2="high:Q", y=y, color=colour,
            tooltip=shown, **offset,
        ),
        points.mark_point(filled=True, size=60, opacity=1).encode(
            x=alt.X("estimate:Q", scale=scale, axis=axis), y=y, color=colour,
            shape=alt.Shape("series:N", scale=shapes, legend=None), tooltip=shown, **offset,
        ),
    ]  # fmt: skip
    step = 15 * len(series) + 8 if several else 23
    return panel.spec(parts, height=max(step * len(labels), 46))


def heat_panel(
    cells: Records,
    *,
    titles: tuple[str, str],
    value: str,
    domain: tuple[float, float],
    orders: tuple[Sequence[Any], Sequence[Any]],
    tips: Mapping[str, str] | None = None,
) -> Spec:
    """Return a heat map whose cells have their numbers where there is room.

    Parameters
    ----------
    cells
        ``x``, ``y``, ``value``, and the fields of ``tips``.
    titles
        Of the horizontal and the vertical axis.
    value
        What the colour is.
    domain
        Of the value; one that spans 0 evenly has two hues.
    orders
        The places along each axis.
    tips
        Further tooltips by field.
    """
    panel = Panel()
    low, high = domain
    two_hues = math.isclose(low, -high)
    scale = alt.Scale(scheme="blueorange" if two_hues else "blues", domain=[low, high], clamp=True)
    if two_hues:
        scale = alt.Scale(scheme="blueorange", domain=[low, high], clamp=True, reverse=True)
    x_order, y_order = ([str(v) for v in order] for order in orders)
    turned = -35 if max(map(len, x_order), default=0) > 4 else 0
    x = alt.X("x:N", title=titles[0] or None, sort=x_order,
              axis=alt.Axis(labelAngle=turned, labelLimit=110))  # fmt: skip
    y = alt.Y("y:N", title=titles[1] or None, sort=y_order, axis=alt.Axis(labelLimit=110))
    legend = alt.Legend(orient="bottom", gradientLength=140, title=value, titleLimit=240)
    shown = _tips({"x": titles[0] or "column", "y": titles[1] or "row", "value:.3f": value,
                   **(tips or {})})  # fmt: skip
    base = panel.chart(cells, "cells")
    parts = [
        base.mark_rect().encode(
            x=x, y=y, color=alt.Color("value:Q", scale=scale, legend=legend), tooltip=shown
        )
    ]
    if len(x_order) * len(y_order) <= _MAX_LABELLED:
        edge = 0.62 * high if two_hues else low + 0.6 * (high - low)
        test = f"abs(datum.value) > {edge}" if two_hues else f"datum.value > {edge}"
        light = alt.condition(test, alt.value("#fff"), alt.value("#222"))
        parts.append(
            base.mark_text(fontSize=10 if len(x_order) < 7 else 8).encode(
                x=x, y=y, text=alt.Text("value:Q", format=".2f"), color=light
            )
        )
    return panel.spec(parts, height=max(24 * len(y_order), 72))


def scatter_panel(
    points: Records, *, arm_names: Mapping[str, str], domains: tuple[Sequence[float], ...]
) -> Spec:
    """Return marks at ``x`` and ``y``, coloured and shaped by ``arm``, without scales to read.

    Parameters
    ----------
    points
        ``text``, ``arm``, ``subset``, ``scenario``, ``x``, ``y``.
    arm_names
        The study's names of the arms.
    domains
        Of the two axes.
    """
    panel = Panel()
    names = {arm: arm_names.get(arm) or arm for arm in ARM_COLOURS}
    values = [{**p, "arm": names.get(p["arm"] or "", p["arm"])} for p in points]
    arms = list(names.values())
    colour = alt.Scale(domain=arms, range=list(ARM_COLOURS.values()))
    shape = alt.Scale(domain=arms, range=list(ARM_SHAPES.values()))
    bare = alt.Axis(labels=False, ticks=False, grid=False, title=None)
    x_scale, y_scale = (alt.Scale(domain=list(d), nice=False, zero=False) for d in domains)
    chart = panel.chart(values, "texts").mark_point(filled=True, size=22, opacity=0.65)
    drawn = chart.encode(
        x=alt.X("x:Q", scale=x_scale, axis=bare),
        y=alt.Y("y:Q", scale=y_scale, axis=bare),
        color=alt.Color("arm:N", scale=colour, legend=None),
        shape=alt.Shape("arm:N", scale=shape, legend=None),
        tooltip=["text:N", "arm:N", "subset:N", "scenario:N"],
    )
    return panel.spec([drawn], height=220)
