"""Figures of interventions: patching beside steering, patches by layer and position, transfers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from ..schemas import InvalidInputError, StorageError
from .report_charts import DIRECTION_COLOURS, RANDOM_COLOUR, Spec, draw_svg

__all__ = ["CHARTS", "matched_chart", "patch_chart", "transfer_chart", "write_chart"]

_NATS = "effect [nats]"
_ZERO: dict[str, Any] = {"color": "#8a9199", "strokeDash": [1, 3]}
_MAX_LABELLED = 16  # layers: figures in more cells than that could not be read


def matched_chart(rows: pd.DataFrame) -> Spec:
    """Return patching beside steering of the same size by layer, random directions in grey.

    ``rows`` are those of :func:`~actlake.steer.compare_with_steering`. Bars are 95 % intervals
    over pairs.

    Raises
    ------
    InvalidInputError
        If there is no row of a patch or of steering.
    """
    own = rows[rows["what"].isin(["patch", "steer"])]
    _require(own, "patch or steer")
    place = {what: part["position"].iloc[0] for what, part in own.groupby("what")}
    arm = {"full": "all of the residual", "coordinate": "the coordinate"}[own["arm"].iloc[0]]
    names = {
        "patch": f"patch of {arm} at {place.get('patch', '-')}",
        "steer": f"steering as far at {place.get('steer', '-')}",
    }
    shown = own.assign(series=own["what"].map(names))
    series = [names[what] for what in ("patch", "steer") if what in set(own["what"])]
    x = alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0, grid=False))
    offset = alt.XOffset("series:N", sort=series)
    scale = alt.Scale(domain=series, range=list(DIRECTION_COLOURS[: len(series)]))
    legend = alt.Legend(title=None, orient="top", labelLimit=400, direction="vertical")
    colour = alt.Color("series:N", scale=scale, legend=legend)
    shape = alt.Shape(
        "series:N", scale=alt.Scale(domain=series, range=["circle", "triangle-up"]), legend=legend
    )
    keep = ["layer", "series", "estimate", "ci_low", "ci_high"]
    chart = _data(shown, keep)
    random = _data(rows[rows["what"] == "random"], ["layer", "index", "estimate"])
    layers = [
        alt.Chart(alt.InlineData(values=[{"zero": 0}])).mark_rule(**_ZERO).encode(y="zero:Q"),
        random.mark_tick(color=RANDOM_COLOUR, opacity=0.7).encode(x=x, y="estimate:Q"),
        chart.mark_rule(strokeWidth=2).encode(
            x=x,
            xOffset=offset,
            y=alt.Y("ci_low:Q", title=_NATS),
            y2="ci_high:Q",
            color=colour,
        ),
        chart.mark_point(filled=True, size=60, opacity=1).encode(
            x=x,
            xOffset=offset,
            y=alt.Y("estimate:Q", title=_NATS),
            color=colour,
            shape=shape,
        ),
    ]
    n_layers = own["layer"].nunique()
    title = _title(
        "Patching beside steering of the same size",
        f"{own['model'].iloc[0]}, {int(own['n_pairs'].iloc[0])} pairs; grey: as far along "
        "random directions",
    )
    layered = alt.layer(*layers).properties(width=max(240, 42 * n_layers), height=240, title=title)
    return _spec(layered)


def patch_chart(rows: pd.DataFrame, *, arms: Sequence[str] = ("full", "coordinate")) -> Spec:
    """Return heat maps of layer and position, one per arm and mode.

    ``rows`` are those of :func:`~actlake.steer.sweep_patches`. The colour is the share that a
    patch recovers (denoising) or leaves (noising), or where the two runs do not differ enough for
    a ratio its effect in nats.

    Raises
    ------
    InvalidInputError
        If there is no row of these arms.
    """
    own = rows[rows["arm"].isin(list(arms))]
    _require(own, " or ".join(arms))
    no_ratio = bool(own["small_total"].any()) or own["estimate"].isna().any()
    value, what = ("effect", _NATS) if no_ratio else ("estimate", "share of the total effect")
    reach = max(0.01 if no_ratio else 1.0, float(own[value].abs().max()))
    positions = list(dict.fromkeys(own["position"]))
    keep = ["mode", "arm", "layer", "position", value]
    base = _data(own, keep).encode(
        x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("position:N", sort=positions, title=None),
    )
    scale = alt.Scale(scheme="blueorange", domain=[-reach, reach], domainMid=0, reverse=True)
    cells = base.mark_rect().encode(
        color=alt.Color(f"{value}:Q", scale=scale, legend=alt.Legend(title=what, titleLimit=160))
    )
    n_layers = own["layer"].nunique()
    parts = [cells]
    if n_layers <= _MAX_LABELLED:
        light = alt.condition(
            f"abs(datum.{value}) > {0.6 * reach}", alt.value("#fff"), alt.value("#222")
        )
        digits = ".3f" if no_ratio else ".2f"
        parts.append(
            base.mark_text(fontSize=9).encode(text=alt.Text(f"{value}:Q", format=digits),
                                              color=light)
        )  # fmt: skip
    panel = alt.layer(*parts).properties(width=34 * n_layers, height=24 * len(positions))
    header = alt.Header(title=None, labelFontSize=11)
    faceted = panel.facet(
        row=alt.Row("mode:N", header=header, sort=["denoise", "noise"]),
        column=alt.Column("arm:N", header=header, sort=list(arms)),
    )
    meaning = (
        "the runs do not differ enough for a share"
        if no_ratio
        else "denoise: recovered, noise: left"
    )
    title = _title(
        "Patches by layer and position",
        f"{own['model'].iloc[0]}, {int(own['n_pairs'].iloc[0])} pairs; {meaning}",
    )
    return _spec(faceted.properties(title=title))


def transfer_chart(rows: pd.DataFrame) -> Spec:
    """Return the effect of mapped directions against strength beside the target's own.

    ``rows`` are those of :func:`~actlake.steer.compare_transfer`: the controls of the maps are
    thin grey lines.

    Raises
    ------
    InvalidInputError
        If there is no row of an own or a mapped direction.
    """
    effects = rows[rows["metric"] == "shift"]
    own = effects[effects["role"].isin(["own", "mapped"])]
    _require(own, "own or mapped")
    names = list(dict.fromkeys(own["direction"]))
    scale = alt.Scale(
        domain=names,
        range=[DIRECTION_COLOURS[i % len(DIRECTION_COLOURS)] for i in range(len(names))],
    )
    legend = alt.Legend(title=None, orient="top", labelLimit=300)
    colour = alt.Color("direction:N", scale=scale, legend=legend)
    x = alt.X("alpha_separation:Q", title="α in class separations of the target")
    y = alt.Y("estimate:Q", title="effect [nats/token]")
    drawn = _data(own, ["direction", "alpha_separation", "estimate", "ci_low", "ci_high"])
    null = effects[~effects["role"].isin(["own", "mapped"])]
    parts = [
        alt.Chart(alt.InlineData(values=[{"zero": 0}])).mark_rule(**_ZERO).encode(y="zero:Q"),
        _data(null, ["direction", "alpha_separation", "estimate"])
        .mark_line(color=RANDOM_COLOUR, strokeWidth=1, opacity=0.5)
        .encode(x=x, y=y, detail="direction:N"),
        drawn.mark_area(opacity=0.16).encode(
            x=x, y=alt.Y("ci_low:Q", title="effect [nats/token]"), y2="ci_high:Q", color=colour
        ),
        drawn.mark_line(strokeWidth=2, point=True).encode(x=x, y=y, color=colour),
    ]
    first = own.iloc[0]
    title = _title(
        "Steering with a direction of another model",
        f"{first['source_model']} to {first['model']}; grey: random directions and broken maps",
    )
    return _spec(alt.layer(*parts).properties(width=360, height=260, title=title))


# By the name of the analysis that a chart is of.
CHARTS: dict[str, Callable[[pd.DataFrame], Spec]] = {
    "matched": matched_chart,
    "patching": patch_chart,
    "transfer": transfer_chart,
}


def write_chart(spec: Spec, path: str | Path) -> Path:
    """Draw ``spec`` as SVG into ``path`` and return it.

    Raises
    ------
    StorageError
        If the file cannot be written.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(draw_svg(spec) + "\n", encoding="utf-8")
    except OSError as err:
        msg = f"{target}: the figure cannot be written: {err.strerror or err}"
        raise StorageError(msg) from err
    return target


def _data(rows: pd.DataFrame, columns: list[str]) -> alt.Chart:
    """Return a chart of rows; numbers are rounded, since a figure shows no more."""
    plain = rows[columns].round(6).astype(object)
    found = plain.where(plain.notna(), None).to_dict("records")
    values = [{str(name): value for name, value in record.items()} for record in found]
    return alt.Chart(alt.InlineData(values=values))


def _title(text: str, subtitle: str) -> alt.TitleParams:
    return alt.TitleParams(
        text, subtitle=subtitle, anchor="start", fontSize=13, subtitleFontSize=11
    )


def _spec(chart: alt.LayerChart | alt.FacetChart) -> Spec:
    spec: Spec = chart.to_dict(validate=False)
    spec.pop("config", None)
    return spec


def _require(rows: pd.DataFrame, what: str) -> None:
    if rows.empty:
        msg = f"there is no row of {what} to draw; expected the rows of the analysis"
        raise InvalidInputError(msg)
