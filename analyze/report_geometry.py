"""The report's sections on t-SNE, on the cosines between directions and on effective rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from .report_charts import ARM_COLOURS, ARM_SHAPES, Records, layer_axis
from .report_filters import Filter, filterable_table
from .report_marks import colour_of, curve_panel, heat_panel, scatter_panel
from .report_nulls import depth_axis
from .report_numbers import RunView, decimal, interval, p_text, records, rows_of, string
from .report_page import Column, Page, details, esc, figure, grid, key, notes
from .report_select import at_layer, of_view, span, table_of, value

__all__ = ["add_geometry", "add_tsne"]

_MAX_POINTS = 120  # of one seed and model: a picture that no number is read off needs no more
_SPACES = ("raw", "standardised", "whitened", "outliers_removed")


def add_tsne(
    page: Page,
    views: Sequence[RunView],
    tables: Mapping[str, pd.DataFrame],
    *,
    arm_names: Mapping[str, str],
) -> None:
    """Add the t-SNE pictures of several seeds, with the warning that they are pictures."""
    points = table_of(tables, "tsne", ("layer", "text", "arm", "seed", "x", "y"))
    if points is None or not views:
        return
    parts, captions = [], []
    for view in views:
        own = at_layer(of_view(points, view), view)
        own = own[own["x"].notna() & own["y"].notna()]
        if own.empty:
            absent = "No picture was made for this model."
            parts.append(page.panel(view.label, None, absent=absent))
            continue
        captions += (
            [string(c) for c in own["caption"].dropna().unique()] if "caption" in own else []
        )
        texts = own.drop_duplicates("text").sort_values(["arm", "text"])["text"]
        step = -(-len(texts) // _MAX_POINTS)
        kept = own[own["text"].isin(set(texts.iloc[::step]))]
        panels = []
        for seed in sorted(dict.fromkeys(int(s) for s in own["seed"])):
            of = kept[kept["seed"] == seed].assign(x=kept["x"].round(2), y=kept["y"].round(2))
            domains = (span(of["x"].tolist()), span(of["y"].tolist()))
            spec = scatter_panel(
                records(of, ["text", "arm", "subset", "scenario", "x", "y"]),
                arm_names=arm_names,
                domains=domains,
            )
            panels.append(page.panel(f"seed {seed}", spec))
        note = f"{own['pool'].iloc[0]}, layer {int(own['layer'].iloc[0])}"
        if step > 1:
            note += f"; {len(texts.iloc[::step])} of {len(texts)} texts are drawn"
        head = f'<h3>{esc(view.label)} <span class="note">{esc(note)}</span></h3>'
        parts.append(head + grid(panels, width="13rem"))
    items = [(ARM_SHAPES[a], c, string(arm_names.get(a)) or a) for a, c in ARM_COLOURS.items()]
    said = next((c for c in captions if c), "distances and cluster sizes are not interpretable.")
    caption = f"How to read: each mark is a text, each panel one seed. {said}"
    body = figure(caption, key(items), "".join(parts)) + notes(
        controls=(
            "the seeds are the control: what differs between them is the picture's, not the "
            "model's."
        ),
        caveat=(
            "distances between clusters, and their sizes, mean nothing; a separation seen here is "
            "measured by the probes and by no picture."
        ),
    )
    lead = "A picture without a finding: t-SNE keeps neighbours and distorts every distance."
    page.add("tsne", "t-SNE", body, lead=lead)


def add_geometry(page: Page, views: Sequence[RunView], tables: Mapping[str, pd.DataFrame]) -> None:
    """Add the cosines between directions with their null, and the effective rank."""
    rows = table_of(tables, "geometry", ("metric", "estimate", "layer", "contrast", "other"))
    if rows is None or not views:
        return
    found = []
    heats, curves = [], []
    for view in views:
        own = of_view(rows, view)
        cosines = own[(own["metric"] == "cosine") & own["layer"].notna()]
        if cosines.empty:
            continue
        here = at_layer(cosines, view)
        found += [{**r, "label": view.label} for r in rows_of(here)]
        heats += _matrices(page, view, here, at_layer(own[own["metric"] == "reliability"], view))
        curves += _curves(page, view, cosines)
    body = ""
    if heats:
        body += "<h3>Cosines at the quoted layer</h3>" + figure(
            "How to read: the cosine between the directions of two contrasts, in four coordinate "
            "systems; on the diagonal, where it was estimated, a direction's reliability, the "
            "cosine of its estimates from two halves of the pairs. Orange is opposed, blue "
            "aligned.",
            "",
            grid(heats, width="16rem"),
        )
    if curves:
        body += "<h3>Raw cosine by layer</h3>" + figure(
            "How to read: the raw cosine by layer with its 95 % interval; the dotted curves hold "
            "the middle 95 % of the cosines under permuted labels (mean ± 1.96 sd).",
            "",
            grid(curves, width="17rem"),
        )
    if found:
        body += notes(
            controls=(
                "permuted labels rebuild both directions from shuffled texts, and so keep what "
                "the two have in common by construction; reliabilities bound what a cosine can "
                "reach, and the disattenuated value divides by them."
            ),
            caveat=(
                "two directions built from the same arms are opposed by construction, and two that "
                "share a neutral arm have an expected cosine of .5 under noise alone: read the "
                "column “by construction” before a cosine."
            ),
        )
        body += _table(found)
    body += _ranks(page, views, rows)
    if body:
        page.add("geometry", "Directions and rank", body, lead=_lead(found))


def _pairs(rows: pd.DataFrame) -> list[str]:
    names = [*rows["contrast"].dropna(), *rows["other"].dropna()]
    return [str(n) for n in dict.fromkeys(names)]


def _matrices(page: Page, view: RunView, rows: pd.DataFrame, reliable: pd.DataFrame) -> list[str]:
    """Return a heat map per coordinate system."""
    names = _pairs(rows)
    panels = []
    for space in (s for s in _SPACES if s in set(rows["space"])):
        cells: Records = []
        for row in rows_of(rows[rows["space"] == space]):
            shared = {
                "value": value(row, "estimate"),
                "p_value": value(row, "p_value"),
                "null_mean": value(row, "null_mean"),
                "null_sd": value(row, "null_sd"),
                "disattenuated": value(row, "disattenuated"),
            }
            a, b = str(row["contrast"]), str(row["other"])
            cells += [{"x": a, "y": b, **shared}, {"x": b, "y": a, **shared}]
        nothing = dict.fromkeys(("p_value", "null_mean", "null_sd", "disattenuated"))
        own = reliable[reliable["space"] == space] if "space" in reliable else reliable
        own = own if len(own) else reliable[reliable["space"].isna()]
        cells += [
            {"x": str(r["contrast"]), "y": str(r["contrast"]), "value": known, **nothing}
            for r in rows_of(own.drop_duplicates("contrast"))
            if (known := value(r, "estimate")) is not None and str(r["contrast"]) in names
        ]
        spec = heat_panel(
            records(pd.DataFrame(cells), list(cells[0])), titles=("", ""), value="cosine",
            domain=(-1.0, 1.0), orders=(names, names),
            tips={"p_value:.4f": "p, permuted labels", "null_mean:.3f": "null mean",
                  "null_sd:.3f": "null sd", "disattenuated:.3f": "disattenuated"},
        )  # fmt: skip
        panels.append(page.panel(f"{view.label}, {space.replace('_', ' ')}", spec))
    return panels


def _curves(page: Page, view: RunView, rows: pd.DataFrame) -> list[str]:
    """Return the raw cosine of every pair of contrasts by layer."""
    raw = rows[(rows["space"] == "raw") & rows["estimate"].notna()].sort_values("layer")
    panels = []
    for (a, b), of in raw.groupby(["contrast", "other"], sort=False):
        series = f"{a} and {b}"
        layers = sorted({int(x) for x in of["layer"]})
        curve, limits = [], []
        for row in rows_of(of):
            at = {"series": series, "layer": int(row["layer"])}
            curve.append(
                {
                    **at,
                    "estimate": value(row, "estimate"),
                    "low": value(row, "ci_low"),
                    "high": value(row, "ci_high"),
                    "p_value": value(row, "p_value"),
                }
            )
            mean, sd = value(row, "null_mean"), value(row, "null_sd")
            if mean is not None and sd is not None:
                limits += [{**at, "end": end, "limit": mean + sign * 1.96 * sd}
                           for end, sign in (("low", -1), ("high", 1))]  # fmt: skip
        spec = curve_panel(
            records(pd.DataFrame(curve), list(curve[0])), series=[series],
            x=layer_axis(layers, view.n_layers), title="cosine", domain=(-1.05, 1.05),
            limits=[r for end in ("low", "high") for r in limits if r["end"] == end],
            tips={"p_value:.4f": "p, permuted labels"},
        )  # fmt: skip
        panels.append(page.panel(f"{view.label}: {series}", spec))
    return panels


def _ranks(page: Page, views: Sequence[RunView], rows: pd.DataFrame) -> str:
    """Return the effective rank by relative depth, all models in one panel."""
    labels = [v.label for v in views]
    curve = [
        {"series": view.label, "depth": value(r, "depth"), "layer": int(r["layer"]),
         "estimate": value(r, "estimate"), "low": value(r, "ci_low"), "high": value(r, "ci_high")}
        for view in views
        for r in rows_of(_rank_rows(rows, view))
    ]  # fmt: skip
    if not curve:
        return ""
    spec = curve_panel(
        records(pd.DataFrame(curve), list(curve[0])), series=labels, x=depth_axis(),
        title="effective rank", tips={"layer": "layer"},
    )  # fmt: skip
    caption = (
        "How to read: over how many directions the activations spread, (tr Σ)² / tr Σ², by "
        "relative depth. A rank near 1 is one direction that carries nearly all variance; it need "
        "not be the concept's."
    )
    items = [("line+circle", colour_of(labels, name), name) for name in labels]
    panel = page.panel("effective rank", spec)
    return "<h3>Effective rank</h3>" + figure(caption, key(items), grid([panel], width="20rem"))


def _rank_rows(rows: pd.DataFrame, view: RunView) -> pd.DataFrame:
    own = of_view(rows, view)
    return own[(own["metric"] == "effective_rank") & own["estimate"].notna()].sort_values("layer")


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    def space(row: Mapping[str, Any]) -> str:
        return str(row["space"]).replace("_", " ")

    def field(heading: str, name: str, digits: int = 3) -> Column:
        return Column(heading, lambda r: decimal(value(r, name), digits), "number")

    columns = [
        Column("model", lambda r: r["label"]),
        Column("direction", lambda r: string(r["contrast"]) or "–"),
        Column("other", lambda r: string(r["other"]) or "–"),
        Column("coordinates", space),
        field("layer", "layer", 0),
        field("cosine", "estimate"),
        Column("95 % interval", lambda r: interval(value(r, "ci_low"), value(r, "ci_high")),
               "number"),
        field("null mean", "null_mean"),
        field("null sd", "null_sd"),
        field("p", "p_value", 4),
        field("by construction", "construction", 2),
        field("reliability", "reliability"),
        field("other's", "reliability_other"),
        field("disattenuated", "disattenuated"),
    ]  # fmt: skip
    filters = [Filter("model", lambda r: r["label"]), Filter("coordinates", space)]
    box = filterable_table(columns, list(rows), label="Cosines", filters=filters)
    return details("The cosines as a table", box)


def _lead(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the raw cosine of the first two directions in each model, with its null."""
    parts = []
    for row in rows:
        known = value(row, "estimate")
        if row["space"] != "raw" or known is None:
            continue
        text = f"{decimal(known, 2)} in {row['label']}"
        p = value(row, "p_value")
        draws = value(row, "n_draws")
        if p is not None:
            text += f" ({p_text(p, int(draws) if draws is not None else None)})"
        parts.append((f"{row['contrast']} and {row['other']}", text))
    if not parts:
        return "No two directions were compared."
    pair = parts[0][0]
    return f"Raw cosine of {pair}: " + "; ".join(text for name, text in parts if name == pair) + "."
