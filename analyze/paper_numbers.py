"""A paper's tables: the key numbers of every model and subset, and the plan's hypotheses."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from .hypothesis_tables import judge_study, study_tables
from .paper_latex import table_float
from .paper_parts import LeftOut, PaperPart, PaperTables, count
from .report_numbers import decimal, interval, number, p_text, subset_numbers

__all__ = ["hypotheses", "key_numbers"]

_READINGS = {
    "ceiling": "at the ceiling of words",
    "beyond": "beyond words",
    "level": "not beyond words",
    "below": "below words",
    "unknown": "",
}


def key_numbers(tables: PaperTables) -> PaperPart | LeftOut:
    """Return the nested AUROC of every model and subset beside the bag of words."""
    found = [
        {
            "model": view.label,
            "run": view.run,
            "pool": view.pool,
            "method": n.method,
            "subset": n.subset,
            "nested": n.nested,
            "auroc": n.estimate,
            "ci_low": n.ci_low,
            "ci_high": n.ci_high,
            "bow": n.bow,
            "delta": n.delta,
            "delta_ci_low": n.delta_low,
            "delta_ci_high": n.delta_high,
            "p_value_max": number(n.row.get("p_value_max")),
            "reading": n.reading,
            "verdict": n.verdict or n.reason,
            "n_pairs": n.n_pairs,
            "n_scenarios": n.n_scenarios,
        }
        for view in tables.views
        for method in view.methods
        for n in subset_numbers(view, method)
    ]
    if not found:
        return LeftOut("no probe was run")
    rows = pd.DataFrame(found)
    fixed = not bool(rows["nested"].all())
    caption = (
        "AUROC of the probes on held-out scenarios, the layer chosen inside the training folds "
        + ("(the middle layer where that was not done) " if fixed else "")
        + "beside a bag of words on the same texts and folds. $p$ compares with the largest of "
        "the same random directions over all layers. Brackets hold 95\\,\\% intervals; "
        f"{count(rows['n_pairs'], 'pair')} in {count(rows['n_scenarios'], 'scenario')}."
    )
    return PaperPart(rows, caption, tabular=lambda text: _key_table(rows, caption=text))


def _key_table(rows: pd.DataFrame, *, caption: str) -> str:
    header = ("model", "subset", "method", "AUROC", "95 % interval", "bag of words", "difference",
              "its interval", "p", "reading")  # fmt: skip
    lines: list[list[str]] = []
    before: list[str] = []
    for row in rows.to_dict("records"):
        p = number(row["p_value_max"])
        place = [str(row["model"]), str(row["subset"]), str(row["method"])]
        lines.append(
            [
                *_without_repeats(place, before),
                decimal(number(row["auroc"])),
                interval(number(row["ci_low"]), number(row["ci_high"])) or "–",
                decimal(number(row["bow"])),
                decimal(number(row["delta"])),
                interval(number(row["delta_ci_low"]), number(row["delta_ci_high"])) or "–",
                "–" if p is None else p_text(p, None).removeprefix("p = "),
                _READINGS[str(row["reading"])],
            ]
        )
        before = place
    return table_float(
        header, lines, align="lllrlrrlrl", caption=caption, label="key-numbers"
    )  # fmt: skip


def _without_repeats(place: Sequence[str], before: Sequence[str]) -> list[str]:
    """Return the first cells of a row, empty where they repeat those of the row above."""
    same = 0
    while same < len(before) and place[same] == before[same]:
        same += 1
    same = min(same, len(place) - 1)
    return [""] * same + list(place[same:])


def hypotheses(tables: PaperTables) -> PaperPart | LeftOut:
    """Return the plan's hypotheses with their answer in every model."""
    runs = list(dict.fromkeys(view.run for view in tables.views))
    if not runs:
        return LeftOut("no run was probed")
    results = tables.results
    null = pd.DataFrame() if results.null is None else results.null
    found = study_tables(results.rows, null, results.tables, views=tables.views)
    verdicts = judge_study(found, runs, results.study)
    rows = pd.DataFrame(
        [
            {
                "hypothesis": verdict.hypothesis.id,
                "statement": verdict.hypothesis.statement,
                "run": verdict.run or "all",
                "model": tables.label(verdict.run) if verdict.run else "all models",
                "answer": verdict.answer,
                "because": verdict.because,
            }
            for verdict in verdicts
        ]
    )
    caption = (
        "The hypotheses of the plan. An answer compares intervals and corrected $p$-values with "
        "what the hypothesis says; where they allow both, one cannot tell."
    )
    return PaperPart(rows, caption, tabular=lambda text: _hypothesis_table(rows, caption=text))


def _hypothesis_table(rows: pd.DataFrame, *, caption: str) -> str:
    lines = []
    before = ""
    for row in rows.to_dict("records"):
        first = row["hypothesis"] != before
        before = row["hypothesis"]
        statement = [row["hypothesis"], row["statement"]] if first else ["", ""]
        lines.append([*statement, row["model"], row["answer"], row["because"]])
    return table_float(
        ("", "hypothesis", "model", "answer", "because"),
        [[str(cell) for cell in line] for line in lines],
        align="@{}lp{3cm}p{2.2cm}p{1.9cm}p{7.6cm}@{}",
        caption=caption,
        label="hypotheses",
    )
