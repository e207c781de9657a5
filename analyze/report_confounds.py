"""The report's section on confounds: surface features, control concepts, deconfounded probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from .report_charts import Records, auroc_domain
from .report_filters import Filter, filterable_table
from .report_marks import colour_of, interval_panel
from .report_numbers import (
    CEILING_SENTENCE,
    RunView,
    decimal,
    interval,
    number,
    rows_of,
    sort_subsets,
    string,
    subset_numbers,
)
from .report_page import Column, Page, esc, figure, grid, key, notes, reason_list
from .report_select import at_layer, label_of, listed, of_view, table_of, value

__all__ = ["add_confounds"]

_NAMES = {
    "surface_logistic": "all surface features",
    "length": "length",
    "word_length": "word length",
    "markdown": "markdown",
    "first_person": "first person",
    "readability": "readability",
}
_CONCEPTS = {"arm": "the concept", "random_label": "random label", "length": "length"}
_SERIES = ("text alone", "probe")
_STEPS = ("as it is", "confounds regressed out")
_METRICS = {"auroc_raw": _STEPS[0], "auroc_residualised": _STEPS[1]}


def add_confounds(page: Page, views: Sequence[RunView], tables: Mapping[str, pd.DataFrame]) -> None:
    """Add what could explain the probe's AUROC beside the concept."""
    rows = table_of(tables, "confounds", ("analysis", "metric", "method", "subset", "estimate"))
    if rows is None or not views:
        return
    reasons = [
        f"{label_of(views, r['run'])}, {_NAMES.get(str(r['method']), str(r['method']))}"
        f"{', ' + str(r['concept']) if string(r.get('concept')) else ''}: {string(r['reason'])}"
        for r in rows_of(rows[rows["estimate"].isna() & rows["metric"].str.startswith("auroc")])
    ]
    body = _surface(page, views, rows) + _controls(page, views, rows)
    body += _residual(page, views, rows)
    body += notes(
        controls=(
            "surface features need no model; a random label per scenario is what memory of the "
            "scenario alone reads; the probe is set against each on the same texts and folds."
        ),
        caveat=(
            "regressing out removes what is linear in the named confounds, and no other; a probe "
            "above the surface features may still read words, for which the bag of words stands."
        ),
    )
    judged = [row for view in views for row in _judged(view)]
    body += "<h3>Verdicts in words</h3>" + _table(judged) + reason_list(reasons)
    page.add("confounds", "Confounds", body, lead=_lead(views, rows, judged))


def _item(label: str, series: str, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "label": label, "series": series, "estimate": value(row, "estimate"),
        "low": value(row, "ci_low"), "high": value(row, "ci_high"),
        "control": None, "control_low": None, "control_high": None,
    }  # fmt: skip


def _key(series: Sequence[str]) -> str:
    shapes = ("circle", "triangle-up", "cross")
    return key([(shapes[i % 3], colour_of(series, s), s) for i, s in enumerate(series)])


def _domain(panels: Sequence[Records]) -> tuple[float, float]:
    return auroc_domain([r[n] for rows in panels for r in rows for n in ("estimate", "low")])


def _surface(page: Page, views: Sequence[RunView], rows: pd.DataFrame) -> str:
    """Return what the texts' surface separates, beside the bag of words and the probes."""
    surface = rows[(rows["analysis"] == "surface") & (rows["metric"] == "auroc")]
    surface = surface[surface["estimate"].notna()]
    if surface.empty:
        return '<p class="absent">The surface features were not scored.</p>'
    # The texts are the same for every model: the first run that has a feature speaks for all.
    surface = surface.drop_duplicates(["subset", "method"])
    panels: dict[str, Records] = {}
    for subset in sort_subsets(surface["subset"]):
        own = {str(r["method"]): r for r in rows_of(surface[surface["subset"] == subset])}
        lines = [_item(name, _SERIES[0], own[m]) for m, name in _NAMES.items() if m in own]
        quoted = [(v, n) for v in views for n in subset_numbers(v, v.method) if n.subset == subset]
        bow = next((n for _, n in quoted if n.bow is not None), None)
        if bow is not None:
            of = {"estimate": bow.bow, "ci_low": bow.bow_low, "ci_high": bow.bow_high}
            lines.append(_item("bag of words", _SERIES[0], of))
        for view, n in quoted:
            of = {"estimate": n.estimate, "ci_low": n.ci_low, "ci_high": n.ci_high}
            lines.append(_item(f"probe, {view.label}", _SERIES[1], of))
        panels[subset] = [line for line in lines if line["estimate"] is not None]
    domain = _domain(list(panels.values()))
    drawn = [
        page.panel(
            subset,
            interval_panel(
                lines, series=_SERIES, title="AUROC", domain=domain, reference=0.5, label_limit=150
            ),
        )
        for subset, lines in panels.items()
    ]
    caption = (
        "How to read: how far the surface of the texts alone separates the two arms (held-out "
        "logistic regression on all surface features, then each by itself), beside the bag of "
        "words and the nested probes. Bars are 95 % intervals; the dotted line is chance."
    )
    return "<h3>Surface features</h3>" + figure(caption, _key(_SERIES), grid(drawn, width="20rem"))


def _controls(page: Page, views: Sequence[RunView], rows: pd.DataFrame) -> str:
    """Return what the same probe reads when it is trained on other labels of the same texts."""
    control = rows[(rows["analysis"] == "control") & rows["estimate"].notna()]
    if control.empty:
        return ""
    found = {v.label: rows_of(at_layer(of_view(control, v), v)) for v in views}
    lines = {
        label: [
            _item(_CONCEPTS.get(str(r["concept"]), str(r["concept"])),
                  _SERIES[1] if r["concept"] == "arm" else "other label", r)
            for r in sorted(of, key=lambda r: str(r["concept"]) != "arm")
        ]
        for label, of in found.items()
    }  # fmt: skip
    series = (_SERIES[1], "other label")
    domain = _domain(list(lines.values()))
    panels = [
        page.panel(
            label,
            interval_panel(of, series=series, title="AUROC", domain=domain, reference=0.5)
            if of
            else None,
            absent="No control concept was read here.",
        )
        for label, of in lines.items()
    ]
    caption = (
        "How to read: the same difference-of-means probe at the quoted layer, trained on other "
        "labels of the same texts. Selectivity is the concept's AUROC less that of a random label "
        "(Hewitt & Liang 2019); a label that agrees with the arm on many texts is no control."
    )
    selective = [
        f"{label} {decimal(s)}"
        for label, of in found.items()
        for r in of
        if r["concept"] == "arm" and (s := value(r, "selectivity")) is not None
    ]
    said = f"<p>Selectivity: {esc('; '.join(selective))}.</p>" if selective else ""
    return (
        "<h3>Control concepts</h3>"
        + figure(caption, _key(series), grid(panels, width="17rem"))
        + said
    )


def _residual(page: Page, views: Sequence[RunView], rows: pd.DataFrame) -> str:
    """Return the probe before and after confounds were regressed out."""
    residual = rows[(rows["analysis"] == "residual") & rows["metric"].isin(list(_METRICS))]
    residual = residual[residual["estimate"].notna()]
    if residual.empty:
        return ""
    lines = {}
    for view in views:
        here = at_layer(of_view(residual, view), view)
        order = sort_subsets(here["subset"])
        of = sorted(rows_of(here), key=lambda r: (order.index(str(r["subset"])), str(r["metric"])))
        lines[view.label] = [
            _item(str(r["subset"]), _METRICS[str(r["metric"])], r)
            for r in of
        ]  # fmt: skip
    domain = _domain(list(lines.values()))
    panels = [
        page.panel(
            label,
            interval_panel(of, series=_STEPS, title="AUROC", domain=domain, reference=0.5)
            if of
            else None,
            absent="Nothing was regressed out here.",
        )
        for label, of in lines.items()
    ]
    caption = (
        "How to read: the probe at the quoted layer before and after length, markdown, first "
        "person, generator and scenario were regressed out of activations and labels inside the "
        "training folds. What falls was carried by them."
    )
    return "<h3>Deconfounded probes</h3>" + figure(
        caption, _key(_STEPS), grid(panels, width="17rem")
    )


def _judged(view: RunView) -> list[dict[str, Any]]:
    """Return one row per subset: the probe beside both text baselines, and a verdict."""
    return [
        {
            "label": view.label,
            "n": n,
            "surface": number(n.row.get("surface_estimate")),
            "delta": number(n.row.get("surface_delta")),
            "low": number(n.row.get("surface_delta_ci_low")),
            "high": number(n.row.get("surface_delta_ci_high")),
        }
        for n in subset_numbers(view, view.method)
    ]


def _verdict(row: Mapping[str, Any]) -> str:
    n = row["n"]
    if n.estimate is None:
        return f"not estimated: {n.reason or 'no reason was recorded'}"
    said = {
        "ceiling": CEILING_SENTENCE,
        "beyond": "beyond the words of a bag",
        "level": "nothing that counting words does not show",
        "below": "counting words does better",
        "unknown": "no comparison with a bag of words",
    }[n.reading]
    low, high = row["low"], row["high"]
    if low is None or high is None:
        return f"{said}; no interval of the difference from the surface features"
    where = "above" if low > 0 else "below" if high < 0 else "not distinguishable from"
    return f"{said}; {where} the surface features"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = [
        Column("model", lambda r: r["label"]),
        Column("subset", lambda r: r["n"].subset),
        Column("probe", lambda r: decimal(r["n"].estimate), "number"),
        Column("bag of words", lambda r: decimal(r["n"].bow), "number"),
        Column("difference", lambda r: decimal(r["n"].delta), "number"),
        Column("its interval", lambda r: interval(r["n"].delta_low, r["n"].delta_high), "number"),
        Column("surface", lambda r: decimal(r["surface"]), "number"),
        Column("difference", lambda r: decimal(r["delta"]), "number"),
        Column("its interval", lambda r: interval(r["low"], r["high"]), "number"),
        Column("verdict", _verdict, "long"),
    ]
    filters = [Filter("model", lambda r: r["label"]), Filter("subset", lambda r: r["n"].subset)]
    return filterable_table(columns, list(rows), label="Confound verdicts", filters=filters)


def _lead(views: Sequence[RunView], rows: pd.DataFrame, judged: Sequence[Mapping[str, Any]]) -> str:
    """Return how far the surface goes, what regressing out costs, and where words suffice."""
    parts = []
    alone = rows[(rows["analysis"] == "surface") & (rows["metric"] == "auroc")]
    alone = alone[(alone["method"] == "surface_logistic") & (alone["subset"] == "all")]
    known = rows_of(alone[alone["estimate"].notna()])
    if known:
        ci = interval(value(known[0], "ci_low"), value(known[0], "ci_high"))
        area = decimal(value(known[0], "estimate"))
        parts.append(f"The surface of the texts alone separates the arms with AUROC {area} ({ci}).")
    residual = rows[(rows["analysis"] == "residual") & (rows["subset"] == "all")]
    steps = []
    for view in views:
        here = rows_of(at_layer(of_view(residual, view), view))
        by_metric = {str(r["metric"]): value(r, "estimate") for r in here}
        before, after = by_metric.get("auroc_raw"), by_metric.get("auroc_residualised")
        if before is not None and after is not None:
            steps.append(f"{decimal(before)} to {decimal(after)} ({view.label})")
    if steps:
        parts.append(f"With the confounds regressed out the probe goes from {listed(steps)}.")
    ceiling = list(dict.fromkeys(r["n"].subset for r in judged if r["n"].reading == "ceiling"))
    if ceiling:
        parts.append(f"On {listed(ceiling)} words are at the ceiling.")
    return " ".join(parts)
