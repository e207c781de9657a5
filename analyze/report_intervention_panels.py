"""The panels of interventions: curves with bands, maps of layer and position, dots with controls.

Series differ in colour, in the shape of their marks and in their dashes, so that none rests on
colour alone; a map writes its figures into its cells, or shows them when one points at a cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import pandas as pd

from .report_charts import RANDOM_COLOUR, Panel, Records, Spec
from .report_numbers import number, rows_of

__all__ = [
    "HEAT_COLOURS",
    "SERIES",
    "Series",
    "curves_panel",
    "dots_panel",
    "heat_panel",
    "heat_scale",
    "points_of",
    "short",
]

# Orange to blue over white, which every common colour vision deficiency tells apart.
HEAT_COLOURS = ("#b35806", "#e6a35c", "#f9e3c8", "#ffffff", "#cfe1f2", "#6baed6", "#08519c")
# Okabe & Ito (2008), with a shape and a dash each.
SERIES = (
    ("#0072B2", "circle", (1, 0)),
    ("#D55E00", "triangle-up", (6, 3)),
    ("#009E73", "square", (2, 2)),
    ("#CC79A7", "diamond", (8, 2, 2, 2)),
)
_ZERO: dict[str, Any] = {"color": "#8a9199", "strokeDash": [1, 3]}
_MAX_LABELLED = 12  # layers: figures in more cells than that could not be read in a narrow panel
_HEIGHT = 220
_ROOM = 90  # pixels for the name of a row


@dataclass(frozen=True)
class Series:
    """One curve: records with ``x``, ``y``, and where there is an interval ``low`` and ``high``."""

    name: str
    records: Records
    place: int = 0  # its colour, shape and dash in ``SERIES``


def short(value: object) -> float | None:
    """Return a number to five significant digits, since a figure shows no more, or None."""
    known = number(value)
    return None if known is None else float(f"{known:.5g}")


def points_of(rows: pd.DataFrame, x: str) -> Records:
    """Return the rows that have an estimate as points over column ``x``, in its order."""
    known = rows[rows["estimate"].notna() & rows[x].notna()].sort_values(x)
    return [
        {"x": short(r[x]), "y": short(r["estimate"]), "low": short(r.get("ci_low")),
         "high": short(r.get("ci_high"))}
        for r in rows_of(known)
    ]  # fmt: skip


def _named(panel: Panel, values: Records, name: str) -> alt.Chart:
    """Return a chart of ``values``, kept under ``name``: it stands in the chart's CSV."""
    panel.datasets[name] = values
    return alt.Chart(alt.NamedData(name))


def _plain(values: Sequence[Mapping[str, Any]]) -> Records:
    return [dict(value) for value in values]


def curves_panel(
    series: Sequence[Series],
    *,
    x_title: str,
    y_title: str,
    whole: bool = False,
    band: Sequence[Mapping[str, Any]] = (),
    marks: Sequence[Mapping[str, Any]] = (),
    broken: Sequence[Mapping[str, Any]] = (),
    y_domain: tuple[float, float] | None = None,
) -> Spec:
    """Return curves over a strength or over layers, with their intervals.

    ``band`` (``x``, ``low``, ``high``) is the range of the random directions, ``marks``
    (``x``, ``label``) are vertical lines with a name, ``broken`` (``from``, ``to``) spans where
    texts break down. ``whole`` says that ``x`` counts layers.
    """
    panel = Panel()
    x_axis = alt.Axis(format="d", tickMinStep=1, title=x_title) if whole else alt.Axis(
        tickCount=8, title=x_title
    )  # fmt: skip
    x = alt.X("x:Q", axis=x_axis, scale=alt.Scale(nice=False, zero=False, padding=8))
    scale = alt.Scale(domain=list(y_domain), nice=False) if y_domain else alt.Scale()
    y_axis = alt.Axis(tickCount=6, title=y_title)
    parts: list[alt.Chart] = []
    if broken:
        spans = _named(panel, _plain(broken), "breakdown").mark_rect(color="#000", opacity=0.07)
        parts.append(spans.encode(x=alt.X("from:Q", axis=x_axis), x2="to:Q"))
    zero = _named(panel, [{"y": 0}], "zero").mark_rule(**_ZERO)
    parts.append(zero.encode(y=alt.Y("y:Q", scale=scale, axis=y_axis)))
    if band:
        grey = _named(panel, _plain(band), "random directions")
        shown = grey.mark_area(color=RANDOM_COLOUR, opacity=0.35)
        if len(band) == 1:
            shown = grey.mark_rule(color=RANDOM_COLOUR, strokeWidth=8, opacity=0.5)
        tips = [alt.Tooltip(f"{k}:Q", format=".4g") for k in ("x", "low", "high")]
        parts.append(
            shown.encode(x=x, y=alt.Y("low:Q", scale=scale, axis=y_axis), y2="high:Q", tooltip=tips)
        )
    for one in series:
        parts += _curve(panel, one, x=x, scale=scale, y_axis=y_axis)
    if marks:
        lines = _named(panel, _plain(marks), "marked strengths")
        parts.append(
            lines.mark_rule(color="#333", strokeDash=[4, 2]).encode(x=x, tooltip="label:N")
        )
        parts += _mark_names(panel, marks, series, x=x)
    return panel.spec(parts, height=_HEIGHT)


def _mark_names(
    panel: Panel, marks: Sequence[Mapping[str, Any]], series: Sequence[Series], *, x: alt.X
) -> list[alt.Chart]:
    """Return the names of upright lines, one under the other, on the side that has room."""
    places = [r["x"] for one in series for r in one.records]
    middle = (min(places) + max(places)) / 2 if places else 0.0
    out = []
    for i, mark in enumerate(marks):
        name = _named(panel, [dict(mark)], f"mark {i + 1}")
        right = mark["x"] > middle
        words = name.mark_text(
            align="right" if right else "left", dx=-4 if right else 4, baseline="top",
            fontSize=10, color="#333",
        )  # fmt: skip
        out.append(words.encode(x=x, y=alt.value(_HEIGHT - 14 - 12 * i), text="label:N"))
    return out


def _curve(
    panel: Panel, one: Series, *, x: alt.X, scale: alt.Scale, y_axis: alt.Axis
) -> list[alt.Chart]:
    colour, shape, dash = SERIES[one.place % len(SERIES)]
    curve = _named(panel, one.records, one.name)
    y = alt.Y("y:Q", scale=scale, axis=y_axis)
    tips = [alt.Tooltip("x:Q", format=".4g"), alt.Tooltip("y:Q", title=one.name, format=".4g")]
    tips += [
        alt.Tooltip("low:Q", title="CI from", format=".4g"),
        alt.Tooltip("high:Q", title="CI to", format=".4g"),
    ]
    ends = [r for r in one.records if r.get("low") is not None and r.get("high") is not None]
    parts = []
    if ends:
        around = _named(panel, ends, f"{one.name}, intervals")
        drawn = around.mark_area(color=colour, opacity=0.15)
        if len(ends) == 1:
            drawn = around.mark_rule(color=colour, strokeWidth=2)
        parts.append(
            drawn.encode(x=x, y=alt.Y("low:Q", scale=scale, axis=y_axis), y2=alt.Y2("high:Q"))
        )
    line = curve.mark_line(color=colour, strokeWidth=2, strokeDash=list(dash)).encode(x=x, y=y)
    size = 42 if len(one.records) <= 16 else 16
    points = curve.mark_point(color=colour, filled=True, size=size, opacity=1, shape=shape)
    return [*parts, line, points.encode(x=x, y=y, tooltip=tips)]


def heat_scale(values: Sequence[float | None], *, least: float) -> float:
    """Return the largest size of the values, at least ``least``: the end of the colours."""
    return max([least, *(abs(v) for v in values if v is not None)])


def heat_panel(cells: Records, *, rows: Sequence[str], reach: float, digits: int = 2) -> Spec:
    """Return a map of layers and ``rows``, one colour per value from -reach to reach.

    ``cells`` have ``layer``, ``row``, ``value``, ``low`` and ``high``, and ``shade``, the number
    that is coloured.
    """
    panel = Panel()
    places = (-1, -2 / 3, -1 / 3, 0, 1 / 3, 2 / 3, 1)
    scale = alt.Scale(
        domain=[reach * p for p in places], range=list(HEAT_COLOURS), clamp=True, interpolate="rgb"
    )
    known = [c for c in cells if c.get("value") is not None]
    base = _named(panel, known, "cells").encode(
        x=alt.X(
            "layer:O", title="layer",
            axis=alt.Axis(labelAngle=0, labelOverlap=True, ticks=False, domain=False),
        ),
        y=alt.Y(
            "row:N", sort=list(rows), title=None, scale=alt.Scale(domain=list(rows)),
            axis=alt.Axis(labelLimit=_ROOM, ticks=False, domain=False),
        ),
    )  # fmt: skip
    tips = [
        alt.Tooltip("layer:O"),
        alt.Tooltip("row:N", title="position"),
        alt.Tooltip("value:Q", format=".4g"),
        alt.Tooltip("low:Q", title="from", format=".4g"),
        alt.Tooltip("high:Q", title="to", format=".4g"),
    ]
    parts: list[alt.Chart] = [
        base.mark_rect(stroke="#d5d9de", strokeWidth=0.5).encode(
            color=alt.Color("shade:Q", scale=scale, legend=None), tooltip=tips
        )
    ]
    n_layers = len({c["layer"] for c in cells})
    if n_layers <= _MAX_LABELLED:
        light = alt.condition(
            f"abs(datum.shade) > {0.75 * reach}", alt.value("#fff"), alt.value("#222")
        )
        text = alt.Text("value:Q", format=f".{digits}f")
        parts.append(base.mark_text(fontSize=9).encode(text=text, color=light))
    return panel.spec(parts, height=26 * max(len(rows), 1))


def dots_panel(dots: Records, *, rows: Sequence[str], x_title: str) -> Spec:
    """Return dots with intervals in ``rows``; records whose ``kind`` is ``control`` are grey ticks.

    ``dots`` have ``row``, ``kind`` (``own``, ``mapped``, ``control``), ``name``, ``x``, ``low``
    and ``high``.
    """
    panel = Panel()
    axis = alt.Axis(tickCount=5, title=x_title)
    y = alt.Y(
        "row:N", sort=list(rows), title=None, scale=alt.Scale(domain=list(rows)),
        axis=alt.Axis(labelLimit=150, ticks=False, grid=True),
    )  # fmt: skip
    tips = [
        alt.Tooltip("name:N", title="direction"),
        alt.Tooltip("x:Q", title=x_title, format=".4g"),
        alt.Tooltip("low:Q", title="CI from", format=".4g"),
        alt.Tooltip("high:Q", title="CI to", format=".4g"),
    ]
    zero = _named(panel, [{"x": 0}], "zero").mark_rule(**_ZERO)
    parts = [zero.encode(x=alt.X("x:Q", axis=axis))]
    controls = [d for d in dots if d["kind"] == "control"]
    if controls:
        ticks = _named(panel, controls, "controls").mark_tick(
            color="#777", opacity=0.8, thickness=1.5, size=14
        )
        parts.append(ticks.encode(x=alt.X("x:Q", axis=axis), y=y, tooltip=tips))
    for place, kind in enumerate(("own", "mapped")):
        mine = [d for d in dots if d["kind"] == kind]
        if not mine:
            continue
        colour, shape, _ = SERIES[place]
        chart = _named(panel, mine, kind)
        ends = [d for d in mine if d["low"] is not None and d["high"] is not None]
        rule = _named(panel, ends, f"{kind}, intervals").mark_rule(color=colour, strokeWidth=2)
        parts.append(rule.encode(x=alt.X("low:Q", axis=axis), x2="high:Q", y=y))
        points = chart.mark_point(filled=True, size=70, opacity=1, color=colour, shape=shape)
        parts.append(points.encode(x=alt.X("x:Q", axis=axis), y=y, tooltip=tips))
    return panel.spec(parts, height=26 * max(len(rows), 1))
