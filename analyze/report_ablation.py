"""The report's section on lexical ablation: what is left without some words, beside random ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from .report_charts import RANDOM_COLOUR
from .report_filters import Filter, Item, filterable, filterable_table
from .report_marks import colour_of, interval_panel
from .report_numbers import (
    RunView,
    decimal,
    interval,
    rows_of,
    sort_subsets,
    string,
)
from .report_page import Column, Page, details, figure, key, notes, reason_list, table
from .report_select import at_layer, label_of, listed, span, table_of, value

__all__ = ["add_ablation"]

_ARMS = {
    "keywords_removed": "keywords removed",
    "keywords_replaced": "keywords replaced",
    "keywords_inserted": "other class's keywords put in",
    "data_driven": "learned words removed",
}
_RANDOM = ("random_words_removed", "random_like_data_driven")
_WAYS = {"repooled": "re-pooled", "reextracted": "re-extracted"}
_FINDINGS = {
    "shortcut": "a lexical shortcut",
    "partly_lexical": "partly lexical",
    "not_lexical": "not lexical",
    "undecided": "undecided",
    "no_signal": "without a signal to begin with",
}
_METRICS = {"auroc": "AUROC", "d_prime": "d′"}
_SERIES = ("probe", "bag of words")
_N_WORDS = 40  # learned words that are listed


def add_ablation(page: Page, views: Sequence[RunView], tables: Mapping[str, pd.DataFrame]) -> None:
    """Add the forest plots of AUROC lost by arm, the verdicts and the learned words."""
    rows = table_of(
        tables, "ablation", ("way", "arm", "subset", "metric", "readout", "layer", "estimate")
    )
    if rows is None:
        return
    verdicts = table_of(tables, "ablation_verdicts", ("way", "subset", "finding", "verdict"))
    runs = [v for v in views if v.run in set(rows["run"])]
    reasons = [
        f"{label_of(views, r['run'])}, {_WAYS.get(str(r['way']), str(r['way']))}, "
        f"{_arm(r)}: {string(r.get('reason'))}"
        for r in rows_of(rows[rows["estimate"].isna()])
    ]
    body = _forest(page, runs, rows, verdicts)
    body += notes(
        controls=(
            "the grey bar is the same loss when as many random content words of like frequency "
            "are left out of the same texts (the middle 95 % of the draws, with their mean); the "
            "black marks are the bag of words refitted to the same texts."
        ),
        caveat=(
            "in re-pooled texts the tokens that are left have attended to the words before, so "
            "that a small loss there is no evidence against a shortcut; re-extracted texts went "
            "through the model without the words. A keyword list is a guess, and learned words "
            "are those of this corpus."
        ),
    )
    judged = [] if verdicts is None else rows_of(verdicts)
    if judged:
        body += "<h3>Verdicts in words</h3>" + _verdict_table(views, judged)
    body += _numbers(views, rows) + _words(views, tables) + reason_list(reasons)
    page.add("ablation", "Is it the words?", body, lead=_lead(views, judged))


def _arm(row: Mapping[str, Any]) -> str:
    """Return the name of an arm with its lexicon or its number of learned words."""
    name = _ARMS.get(str(row["arm"]), str(row["arm"]).replace("_", " "))
    lexicon, k = string(row.get("lexicon")), value(row, "k")
    more = f"k = {k:.0f}" if k is not None else lexicon
    return f"{name} ({more})" if more else name


def _chosen(
    rows: pd.DataFrame, view: RunView, verdicts: pd.DataFrame | None
) -> dict[tuple[str, str], pd.DataFrame]:
    """Return the refitted AUROC rows by way and subset, at the layer that the verdict is about."""
    own = rows[(rows["run"] == view.run) & (rows["metric"] == "auroc")]
    own = own[(own["readout"] == "refit") & own["estimate"].notna() & own["layer"].notna()]
    own = own[~own["arm"].isin(_RANDOM)]
    found = {}
    for way in (w for w in _WAYS if w in set(own["way"])):
        of_way = own[own["way"] == way]
        pools = list(dict.fromkeys(of_way["pool"].dropna())) if "pool" in of_way else []
        if pools:
            pool = view.pool if view.pool in pools else pools[0]
            of_way = of_way[of_way["pool"] == pool]
        for subset in sort_subsets(of_way["subset"]):
            here = of_way[of_way["subset"] == subset]
            layer = None
            if verdicts is not None and "layer" in verdicts:
                keep = (verdicts["run"] == view.run) & (verdicts["way"] == way)
                layers = verdicts[keep & (verdicts["subset"] == subset)]["layer"].dropna()
                layer = int(layers.iloc[0]) if len(layers) else None
            at = here[here["layer"] == layer] if layer is not None else at_layer(here, view)
            found[way, subset] = at if len(at) else at_layer(here, view)
    return found


def _lines(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a line per arm: the change of AUROC, of random words, of the bag of words."""
    lines = []
    order = list(_ARMS)
    found = sorted(
        rows_of(rows),
        key=lambda r: (
            order.index(str(r["arm"])) if str(r["arm"]) in order else len(order),
            -(string(r.get("lexicon")) or "").count("+"),
            value(r, "k") or 0.0,
        ),
    )
    for row in found:
        before = value(row, "before_estimate")
        delta = value(row, "delta")
        if before is None or delta is None:
            continue
        controls = [value(row, n) for n in ("random_mean", "random_low", "random_high")]
        beside = [None if c is None else round(c - before, 4) for c in controls]
        shared = {"label": _arm(row), "before": round(before, 4),
                  "p_value": value(row, "p_value"), "n_draws": value(row, "n_draws")}  # fmt: skip
        lines.append(
            {
                **shared, "series": _SERIES[0], "estimate": delta,
                "low": value(row, "delta_ci_low"), "high": value(row, "delta_ci_high"),
                "control": beside[0], "control_low": beside[1], "control_high": beside[2],
            }
        )  # fmt: skip
        was, now = value(row, "bow_before"), value(row, "bow_estimate")
        if was is not None and now is not None:
            lines.append(
                {
                    **shared, "series": _SERIES[1], "estimate": round(now - was, 4), "low": None,
                    "high": None, "control": None, "control_low": None, "control_high": None,
                }
            )  # fmt: skip
    return lines


def _forest(
    page: Page, views: Sequence[RunView], rows: pd.DataFrame, verdicts: pd.DataFrame | None
) -> str:
    panels = []
    for view in views:
        for (way, subset), of in _chosen(rows, view, verdicts).items():
            if lines := _lines(of):
                layer = f"layer {int(of['layer'].iloc[0])}"
                panels.append((view.label, way, subset, layer, lines))
    if not panels:
        return '<p class="absent">No arm was estimated.</p>'
    ends = [r[n] for *_, of in panels for r in of
            for n in ("estimate", "low", "high", "control_low", "control_high")]  # fmt: skip
    domain = span([*ends, 0.0], margin=0.04)
    items = []
    for label, way, subset, layer, lines in panels:
        spec = interval_panel(
            lines, series=_SERIES, title="change of AUROC", domain=domain, reference=0.0,
            tips={"before:.3f": "AUROC before", "p_value:.4f": "p among draws",
                  "n_draws": "draws"},
        )  # fmt: skip
        heading = f"{label}, {subset}, {_WAYS[way]} ({layer})"
        body = f'<div class="grid">{page.panel(heading, spec)}</div>'
        items.append(Item(body, {"model": label, "subset": subset, "texts": _WAYS[way]}))
    caption = (
        "How to read: what the probe's AUROC loses when words are taken out of both classes and "
        "the probe is refitted, with the 95 % interval of the change on the same texts. A mark "
        "left of the grey bar lost more than as many random words cost: the words carried it. "
        "The layer is the one where the untouched texts are read best in d′."
    )
    legend = key(
        [
            ("circle", colour_of(_SERIES, "probe"), "probe, change of AUROC"),
            ("triangle-up", colour_of(_SERIES, "bag of words"), "bag of words, change of AUROC"),
            ("band", RANDOM_COLOUR, "as many random words, 2.5–97.5 %"),
        ]
    )
    boxes = filterable(
        items, label="Ablation", filters=["model", "subset", "texts"], search=False, width="24rem"
    )
    return figure(caption, legend, boxes)


def _verdict_table(views: Sequence[RunView], rows: Sequence[Mapping[str, Any]]) -> str:
    def way(row: Mapping[str, Any]) -> str:
        return "over all" if row["way"] == "all" else _WAYS.get(str(row["way"]), str(row["way"]))

    columns = [
        Column("model", lambda r: label_of(views, r["run"])),
        Column("subset", lambda r: str(r["subset"])),
        Column("texts", way),
        Column("finding", lambda r: str(r["finding"]).replace("_", " ")),
        Column("verdict", lambda r: string(r["verdict"]) or "–", "long"),
        Column("layer", lambda r: decimal(value(r, "layer"), 0), "number"),
        Column("before", lambda r: decimal(value(r, "before_estimate")), "number"),
        Column("after", lambda r: decimal(value(r, "estimate")), "number"),
        Column("95 % interval", lambda r: interval(value(r, "ci_low"), value(r, "ci_high")),
               "number"),
        Column("random words", lambda r: decimal(value(r, "random_mean")), "number"),
        Column("beyond random", lambda r: decimal(value(r, "contrast")), "number"),
        Column("its interval",
               lambda r: interval(value(r, "contrast_ci_low"), value(r, "contrast_ci_high")),
               "number"),
        Column("bag of words after", lambda r: decimal(value(r, "bow_estimate")), "number"),
        Column("pairs", lambda r: decimal(value(r, "n_pairs"), 0), "number"),
    ]  # fmt: skip
    filters = [
        Filter("model", lambda r: label_of(views, r["run"])),
        Filter("subset", lambda r: str(r["subset"])),
        Filter("texts", way),
        Filter("finding", lambda r: str(r["finding"]).replace("_", " ")),
    ]
    return filterable_table(columns, list(rows), label="Ablation verdicts", filters=filters)


def _numbers(views: Sequence[RunView], rows: pd.DataFrame) -> str:
    """Return every arm's d' and AUROC at the verdicts' layers as a table in a box."""
    known = rows[(rows["readout"] == "refit") & rows["estimate"].notna()]
    found = []
    for view in views:
        own = known[known["run"] == view.run]
        found += rows_of(at_layer(own, view)) if len(own) else []
    found = [r for r in found if r["metric"] in _METRICS]
    columns = [
        Column("model", lambda r: label_of(views, r["run"])),
        Column("texts", lambda r: _WAYS.get(str(r["way"]), str(r["way"]))),
        Column("subset", lambda r: str(r["subset"])),
        Column("arm", _arm),
        Column("metric", lambda r: _METRICS[str(r["metric"])]),
        Column("before", lambda r: decimal(value(r, "before_estimate")), "number"),
        Column("after", lambda r: decimal(value(r, "estimate")), "number"),
        Column("change", lambda r: decimal(value(r, "delta")), "number"),
        Column("its interval",
               lambda r: interval(value(r, "delta_ci_low"), value(r, "delta_ci_high")), "number"),
        Column("random words",
               lambda r: interval(value(r, "random_low"), value(r, "random_high")), "number"),
        Column("words removed", lambda r: decimal(value(r, "words_removed"), 1), "number"),
    ]  # fmt: skip
    filters = [
        Filter("model", lambda r: label_of(views, r["run"])),
        Filter("subset", lambda r: str(r["subset"])),
        Filter("metric", lambda r: _METRICS[str(r["metric"])]),
    ]
    box = filterable_table(columns, found, label="Ablation arms", filters=filters, page_size=50)
    return details("Every arm at the quoted layer as a table", box) if found else ""


def _words(views: Sequence[RunView], tables: Mapping[str, pd.DataFrame]) -> str:
    """Return the words that the training folds learned, most often learned first."""
    words = table_of(tables, "ablation_words", ("fold", "rank", "word"))
    if words is None:
        return ""
    folds = words.groupby("run")["fold"].nunique()
    counted = words.groupby(["run", "word"], sort=False).agg(
        folds=("fold", "nunique"), rank=("rank", "median")
    )
    ordered = counted.reset_index().sort_values(
        ["run", "folds", "rank"], ascending=[True, False, True]
    )
    found = rows_of(ordered.groupby("run", sort=False).head(_N_WORDS))
    columns = [
        Column("model", lambda r: label_of(views, r["run"])),
        Column("word", lambda r: string(r["word"]) or ""),
        Column("folds that learned it", lambda r: f"{int(r['folds'])} of {int(folds[r['run']])}"),
        Column("median rank", lambda r: decimal(value(r, "rank"), 0), "number"),
    ]
    box = table(columns, found, label="Learned words")
    return details(f"The learned words (at most {_N_WORDS} a model)", box)


def _lead(views: Sequence[RunView], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what the verdicts over all ways say, subset by subset."""
    overall = [r for r in rows if r["way"] == "all"]
    if not overall:
        return "No arm could be judged."
    runs = list(dict.fromkeys(r["run"] for r in overall))
    parts = []
    for finding, words in _FINDINGS.items():
        of = [r for r in overall if r["finding"] == finding]
        where = []
        for subset in sort_subsets(r["subset"] for r in of):
            models = [label_of(views, r["run"]) for r in of if r["subset"] == subset]
            where.append(subset if len(models) == len(runs) else f"{subset} ({listed(models)})")
        if where:
            parts.append(f"{words} on {listed(where)}")
    judged = listed([label_of(views, run) for run in runs])
    return f"The contrast is {'; '.join(parts)} ({judged})."
