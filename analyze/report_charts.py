"""The report's charts as Vega-Lite specs, one panel each, and their static drawings."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd
import vl_convert

from .report_numbers import RunView, SubsetNumber, number, records, string

__all__ = [
    "ARM_COLOURS",
    "BOW_COLOUR",
    "CONFIG",
    "DIRECTION_COLOURS",
    "METHOD_COLOURS",
    "RANDOM_COLOUR",
    "Panel",
    "Records",
    "Spec",
    "auroc_domain",
    "draw_svg",
    "layer_axis",
    "layer_panel",
    "method_colour",
    "pca_panel",
    "static_image",
    "steering_panel",
    "subset_panel",
]

Spec = dict[str, Any]
Records = list[dict[str, Any]]

# Okabe & Ito (2008): distinct under every common colour vision deficiency.
METHOD_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
DIRECTION_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
ARM_COLOURS = {"positive": "#D55E00", "negative": "#0072B2", "neutral": "#8A8A8A"}
ARM_SHAPES = {"positive": "circle", "negative": "triangle-up", "neutral": "square"}
SERIES_SHAPES = ("circle", "triangle-up", "cross", "stroke")
BOW_COLOUR = "#000000"
RANDOM_COLOUR = "#999999"
_STATIC_WIDTH = 300
_FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
_NUMBERED = re.compile(r'id="((?:clip|gradient_)\d+)"')
_TAG = re.compile(r"<[^>]*>")
_NOISE = re.compile(
    r' (?:aria-\w+|class|cursor|font-family|pointer-events|role)="[^"]*"'
    r'| (?:opacity|stroke-width)="1"'
)
_COORDINATES = re.compile(r' (?:d|transform)="[^"]*"')
_DIGITS = re.compile(r"(\d+\.\d)\d+")

CONFIG: Spec = {
    "font": _FONT,
    "background": "transparent",
    "view": {"stroke": "#d5d9de"},
    "axis": {
        "labelFontSize": 11,
        "titleFontSize": 11.5,
        "titleFontWeight": 500,
        "labelColor": "#444",
        "titleColor": "#333",
        "gridColor": "#eceff2",
        "domainColor": "#b9c0c7",
        "tickColor": "#b9c0c7",
        "titlePadding": 6,
    },
}


def method_colour(methods: Sequence[str], method: str) -> str:
    """Return the colour of a probe method: by its place among the run's methods."""
    return METHOD_COLOURS[list(methods).index(method) % len(METHOD_COLOURS)]


def auroc_domain(values: Sequence[float | None]) -> tuple[float, float]:
    """Return an AUROC axis that cuts off no value, from 0.4 or lower up to 1.02."""
    low = min([0.4, *(v for v in values if v is not None)])
    return max(math.floor(low * 10) / 10, -0.02), 1.02


class Panel:
    """One panel as it grows: layers that name their data, and the data by name.

    Altair copies and checks whatever a chart holds at every step, so it is given names alone.
    Panels of one figure then differ in their datasets only, and the page keeps one skeleton.
    """

    def __init__(self) -> None:
        self.datasets: dict[str, Records] = {}

    def chart(self, values: Records, name: str = "") -> alt.Chart:
        """Return a chart of ``values``, which are kept once under a name (by default in order).

        The names stand in the CSV of the chart beside the rows.
        """
        known = (known for known, kept in self.datasets.items() if kept == values)
        fresh = f"d{len(self.datasets)}"
        fresh = name if name and name not in self.datasets else f"{name} {fresh}".strip()
        name = next(known, fresh)
        self.datasets[name] = values
        return alt.Chart(alt.NamedData(name))

    def spec(self, layers: Sequence[alt.Chart], *, height: int) -> Spec:
        """Return the layers as one spec, without schema and config: the page has them once."""
        layered = alt.layer(*layers).properties(width="container", height=height)
        spec: Spec = layered.to_dict(validate=False)
        for name in ("$schema", "config"):
            spec.pop(name, None)
        return {**spec, "datasets": self.datasets}


def static_image(spec: Spec) -> str:
    """Return ``spec`` drawn as an SVG in a ``data:`` URL, for readers without scripts.

    An image rather than inline SVG: nothing inside can run, and ids cannot collide.
    """
    svg = draw_svg({**spec, "width": _STATIC_WIDTH})
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode("ascii")


def draw_svg(spec: Spec) -> str:
    """Return ``spec`` drawn as SVG in the report's style, the same bytes for the same spec."""
    # A reader's font may be wider than the one that the labels were measured in.
    room = {"left": 16, "right": 6, "top": 5, "bottom": 5}
    config = {**CONFIG, "aria": False, "font": "sans-serif", "padding": room}
    svg = vl_convert.vegalite_to_svg({**spec, "config": config})
    svg = _TAG.sub(lambda tag: _COORDINATES.sub(_round, _NOISE.sub("", tag[0])), svg)
    # Vega numbers clip paths and gradients through the life of the process; the same drawing has
    # the same bytes.
    for i, name in enumerate(dict.fromkeys(_NUMBERED.findall(svg))):
        svg = re.sub(rf"\b{name}\b", f"k{i}", svg)
    return svg.replace("<svg ", f'<svg font-family="{_FONT}" ', 1)


def _round(attribute: re.Match[str]) -> str:
    """Return a coordinate attribute to a tenth of a pixel: Vega writes 15 digits."""
    return _DIGITS.sub(r"\1", attribute[0])


def subset_panel(
    numbers: Sequence[SubsetNumber], *, methods: Sequence[str], domain: tuple[float, float]
) -> Spec:
    """Return the dot chart of one model: probe beside bag of words in each subset."""
    panel = Panel()
    subsets = list(dict.fromkeys(n.subset for n in numbers))
    series = [*methods, "bag of words"]
    values: Records = []
    for n in numbers:
        head = {"subset": n.subset, "pairs": n.n_pairs, "delta": n.delta}
        head |= {"delta_low": n.delta_low, "delta_high": n.delta_high}
        body = {"estimate": n.estimate, "low": n.ci_low, "high": n.ci_high}
        values.append({**head, "series": n.method, **body})
        if n.method == methods[0]:
            body = {"estimate": n.bow, "low": n.bow_low, "high": n.bow_high}
            values.append({**head, "series": "bag of words", **body})
    values = [v for v in values if v["estimate"] is not None]
    colours = [*(method_colour(methods, m) for m in methods), BOW_COLOUR]
    x_scale = alt.Scale(domain=list(domain), nice=False)
    y_axis = alt.Axis(labelLimit=90, ticks=False, grid=True, tickBand="extent")
    y = alt.Y("subset:N", sort=subsets, title=None, axis=y_axis, scale=alt.Scale(padding=0.25))
    offset = alt.YOffset("series:N", sort=series)
    colour = alt.Color("series:N", scale=alt.Scale(domain=series, range=colours), legend=None)
    shapes = [SERIES_SHAPES[i % 3] for i in range(len(methods))] + ["diamond"]
    shape = alt.Shape("series:N", scale=alt.Scale(domain=series, range=shapes), legend=None)
    tips = [
        alt.Tooltip("subset:N"),
        alt.Tooltip("series:N", title="readout"),
        alt.Tooltip("estimate:Q", title="AUROC", format=".3f"),
        alt.Tooltip("low:Q", title="CI from", format=".3f"),
        alt.Tooltip("high:Q", title="CI to", format=".3f"),
        alt.Tooltip("delta:Q", title="probe − bag of words", format=".3f"),
        alt.Tooltip("pairs:Q", title="pairs"),
    ]
    chance = panel.chart([{"x": 0.5}], "chance").mark_rule(color="#8a9199", strokeDash=[1, 3])
    bars = [v for v in values if v["low"] is not None and v["high"] is not None]
    rule = panel.chart(bars, "with interval").mark_rule(strokeWidth=2, clip=True)
    points = panel.chart(values, "estimates").mark_point(filled=True, size=75, opacity=1)
    x_axis = alt.Axis(title="AUROC", format=".1f", tickMinStep=0.1, tickCount=6)
    return panel.spec(
        [
            chance.encode(x=alt.X("x:Q", scale=x_scale)),
            rule.encode(
                x=alt.X("low:Q", scale=x_scale, axis=x_axis),
                x2="high:Q", y=y, yOffset=offset, color=colour, tooltip=tips,
            ),
            points.encode(
                x=alt.X("estimate:Q", scale=x_scale, axis=x_axis),
                y=y, yOffset=offset, color=colour, shape=shape, tooltip=tips,
            ),
        ],
        height=46 * max(len(subsets), 1),
    )  # fmt: skip


def layer_axis(layers: Sequence[int], n_layers: int | None) -> alt.X:
    """Return the layer axis: whole blocks, with the relative depth on a second line."""
    step = max(1, math.ceil(len(layers) / 12))
    expr = "datum.label"
    if n_layers:
        expr = f"[datum.label, format((datum.value + 1) / {int(n_layers)}, '.2f')]"
    axis = alt.Axis(
        values=list(layers[::step]), format="d", labelExpr=expr, labelOverlap=True,
        title="layer, and relative depth below" if n_layers else "layer", grid=False,
    )  # fmt: skip
    pad = 0.25 if len(layers) > 1 else 0.5
    scale = alt.Scale(domain=[layers[0] - pad, layers[-1] + pad], nice=False, zero=False)
    return alt.X("layer:Q", axis=axis, scale=scale)


def layer_panel(
    view: RunView, subset: str, *, pool: str, domain: tuple[float, float]
) -> Spec | None:
    """Return AUROC by layer of one model, pool and subset, or None where nothing was estimated."""
    rows = view.probe("auroc", pool=pool, subset=subset)
    rows = rows[rows["estimate"].notna() & rows["layer"].notna()].sort_values("layer")
    if rows.empty:
        return None
    panel = Panel()
    layers = sorted({int(x) for x in rows["layer"]})
    x = layer_axis(layers, view.n_layers)
    scale = alt.Scale(domain=list(domain), nice=False)
    y_axis = alt.Axis(title="AUROC", format=".1f", tickCount=6)
    band = view.random_band(subset, pool=pool)
    band_names = ["layer", "q025", "q975", "max", "mean", "n_draws", "share_above_95"]
    random_tips = [
        alt.Tooltip("layer:Q"),
        alt.Tooltip("n_draws:Q", title="random directions"),
        alt.Tooltip("q025:Q", title="2.5 % point", format=".3f"),
        alt.Tooltip("q975:Q", title="97.5 % point", format=".3f"),
        alt.Tooltip("max:Q", title="largest", format=".3f"),
        alt.Tooltip("share_above_95:Q", title="share above .95", format=".1%"),
    ]
    parts: list[alt.Chart] = []
    if len(band):
        null = panel.chart(records(band, band_names), "random directions")
        y_low = alt.Y("q025:Q", scale=scale, axis=y_axis)
        y_max = alt.Y("max:Q", scale=scale, axis=y_axis)
        parts += [
            null.mark_area(color=RANDOM_COLOUR, opacity=0.3)
            .encode(x=x, y=y_low, y2="q975:Q", tooltip=random_tips),
            null.mark_line(color="#6b6b6b", strokeDash=[2, 2], strokeWidth=1.5)
            .encode(x=x, y=y_max),
            null.mark_point(color="#6b6b6b", size=14, filled=True)
            .encode(x=x, y=y_max, tooltip=random_tips),
        ]  # fmt: skip
    own = view.bag_of_words(subset)
    quoted = rows["bow_estimate"].dropna().tolist() if "bow_estimate" in rows else []
    bow = number(own["estimate"]) if own else (number(quoted[0]) if quoted else None)
    y_rule = alt.Y("value:Q", scale=scale, axis=y_axis)
    parts.append(
        panel.chart([{"value": 0.5}], "chance")
        .mark_rule(color="#8a9199", strokeDash=[1, 3])
        .encode(y=y_rule)
    )
    if bow is not None:
        line = panel.chart([{"value": round(bow, 4)}], "bag of words")
        parts.append(
            line.mark_rule(color=BOW_COLOUR, strokeDash=[7, 3], strokeWidth=1.8)
            .encode(y=y_rule, tooltip=alt.Tooltip("value:Q", title="bag of words", format=".3f"))
        )  # fmt: skip
    names = ["layer", "depth", "method", "estimate", "ci_low", "ci_high", "p_value", "p_value_max"]
    tips = [
        alt.Tooltip("method:N"),
        alt.Tooltip("layer:Q"),
        alt.Tooltip("depth:Q", title="relative depth", format=".2f"),
        alt.Tooltip("estimate:Q", title="AUROC", format=".3f"),
        alt.Tooltip("ci_low:Q", title="CI from", format=".3f"),
        alt.Tooltip("ci_high:Q", title="CI to", format=".3f"),
        alt.Tooltip("p_value:Q", title="p, random directions", format=".4f"),
        alt.Tooltip("p_value_max:Q", title="p, maximum over layers", format=".4f"),
    ]
    size = 42 if len(layers) <= 16 else 14  # a mark for each of 80 layers must not hide the line
    y = alt.Y("estimate:Q", scale=scale, axis=y_axis)
    y_ci = alt.Y("ci_low:Q", scale=scale, axis=y_axis)
    for i, method in enumerate(view.methods):
        mine = records(rows[rows["method"] == method], names)
        colour = method_colour(view.methods, method)
        shape = SERIES_SHAPES[i % 3]
        ends = [m for m in mine if m["ci_low"] is not None and m["ci_high"] is not None]
        curve = panel.chart(mine, method)
        around = panel.chart(ends, f"{method} with interval")
        shown = around.mark_area(color=colour, opacity=0.16)
        if len(ends) == 1:
            shown = around.mark_rule(color=colour, strokeWidth=2)
        parts += [
            shown.encode(x=x, y=y_ci, y2="ci_high:Q"),
            curve.mark_line(color=colour, strokeWidth=2).encode(x=x, y=y),
            curve.mark_point(color=colour, filled=True, size=size, opacity=1, shape=shape)
            .encode(x=x, y=y, tooltip=tips),
        ]  # fmt: skip
    return panel.spec(parts, height=210)


def pca_panel(
    points: pd.DataFrame,
    *,
    arm_names: Mapping[str, str],
    domains: tuple[Sequence[float], Sequence[float]],
    titles: tuple[str, str],
) -> Spec:
    """Return the scatter of PC1 and PC2 of one model's texts, coloured and shaped by arm."""
    panel = Panel()
    values = records(points, ["text", "pc1", "pc2", "arm", "scenario", "category", "split"])
    names = {arm: string(arm_names.get(arm)) or arm for arm in ARM_COLOURS}
    for v in values:
        v["arm"] = names.get(v["arm"] or "", v["arm"])
    arms = list(names.values())
    colour = alt.Scale(domain=arms, range=list(ARM_COLOURS.values()))
    shape = alt.Scale(domain=arms, range=list(ARM_SHAPES.values()))
    x_scale, y_scale = (alt.Scale(domain=list(d), nice=False, zero=False) for d in domains)
    x_axis, y_axis = (alt.Axis(tickCount=4, format=",~r", title=t) for t in titles)
    chart = panel.chart(values, "texts").mark_point(filled=True, size=26, opacity=0.6)
    return panel.spec(
        [
            chart.encode(
                x=alt.X("pc1:Q", scale=x_scale, axis=x_axis),
                y=alt.Y("pc2:Q", scale=y_scale, axis=y_axis),
                color=alt.Color("arm:N", scale=colour, legend=None),
                shape=alt.Shape("arm:N", scale=shape, legend=None),
                tooltip=["text:N", "arm:N", "scenario:N", "category:N", "split:N"],
            )
        ],
        height=220,
    )  # fmt: skip


def steering_panel(rows: pd.DataFrame, *, directions: Sequence[str]) -> Spec:
    """Return effect against alpha of one model; random directions are thin grey lines."""
    panel = Panel()
    names = ["direction", "direction_index", "estimate", "ci_low", "ci_high"]
    units = ["alpha_separation", "alpha_raw", "alpha_norm", "alpha_angle"]
    tips = [
        alt.Tooltip("direction:N"),
        alt.Tooltip("direction_index:Q", title="index"),
        alt.Tooltip("estimate:Q", title="effect [nats/token]", format=".4f"),
        alt.Tooltip("ci_low:Q", title="CI from", format=".4f"),
        alt.Tooltip("ci_high:Q", title="CI to", format=".4f"),
        alt.Tooltip("alpha_separation:Q", title="α [class separations]", format=".3f"),
        alt.Tooltip("alpha_raw:Q", title="α [raw]", format=".4g"),
        alt.Tooltip("alpha_norm:Q", title="α [mean residual norms]", format=".3g"),
        alt.Tooltip("alpha_angle:Q", title="angle change [degrees]", format=".1f"),
    ]
    x_axis, x_scale = alt.Axis(tickCount=8), alt.Scale(nice=False, padding=8)
    x = alt.X("alpha_separation:Q", title="α in class separations", axis=x_axis, scale=x_scale)
    y = alt.Y("estimate:Q", title="effect [nats/token]", axis=alt.Axis(tickCount=6))
    zero: dict[str, Any] = {"color": "#8a9199", "strokeDash": [1, 3]}
    parts = [
        panel.chart([{"alpha_separation": 0}]).mark_rule(**zero).encode(x=x),
        panel.chart([{"estimate": 0}]).mark_rule(**zero).encode(y=y),
    ]
    random = records(rows[rows["direction"] == "random"], names + units)
    if random:
        drawn = panel.chart(random, "random directions")
        detail = alt.Detail("direction_index:N")
        parts += [
            drawn.mark_line(color=RANDOM_COLOUR, strokeWidth=1, opacity=0.55)
            .encode(x=x, y=y, detail=detail),
            drawn.mark_point(color=RANDOM_COLOUR, filled=True, size=10, opacity=0.7)
            .encode(x=x, y=y, tooltip=tips),
        ]  # fmt: skip
    for i, direction in enumerate(directions):
        own = records(rows[rows["direction"] == direction], names + units)
        mine = panel.chart(own, direction)
        colour = DIRECTION_COLOURS[i % len(DIRECTION_COLOURS)]
        y_ci = alt.Y("ci_low:Q", title="effect [nats/token]")
        parts += [
            mine.mark_area(color=colour, opacity=0.18).encode(x=x, y=y_ci, y2="ci_high:Q"),
            mine.mark_line(color=colour, strokeWidth=2.2).encode(x=x, y=y),
            mine.mark_point(color=colour, filled=True, size=45, opacity=1)
            .encode(x=x, y=y, tooltip=tips),
        ]  # fmt: skip
    return panel.spec(parts, height=260)
