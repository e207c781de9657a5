"""The tables of a study that its hypotheses are judged from, and why some are not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from .hypotheses import HypothesisVerdict, StudyTables, judge_hypotheses
from .report_numbers import RunView

__all__ = ["judge_study", "study_tables"]

# By hypothesis: the table that answers it, and the sections of the study file that make it.
_SOURCES = {
    "H1": ("probes", ("probe",)),
    "H2": ("matched", ("match", "contrasts")),
    "H3": ("ablation", ("ablation",)),
    "H4": ("mediation", ("mediate", "contrasts")),
    "H5": ("doses", ("doses",)),
    "H6": ("task_free", ("task_free", "texts")),
    "H7": ("negative", ("negative", "texts")),
    "H8": ("null", ("random",)),
    "H9": ("geometry", ("geometry",)),
}
# By table of the judges: its name in the report, and the columns that are looked at.
_ENDS = ("layer", "estimate", "ci_low", "ci_high", "p_value")
_COLUMNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ablation": (
        "ablation",
        (
            "arm", "metric", "subset", "layer", "way", "readout", "lexicon", "delta", "contrast",
            "contrast_ci_low", "contrast_ci_high", "bow_estimate",
        ),
    ),
    "geometry": (
        "geometry",
        ("metric", "space", "contrast", "other", "n_shared", "disattenuated", *_ENDS),
    ),
    "patching": ("patching", ()),
    "matched": ("matched", ("what", *_ENDS)),
    "mediation": ("mediation", ("metric", "way", "mediator", "p_value_max", *_ENDS)),
    "doses": ("doses-verdicts", ("side", "verdict", "reason")),
    "task_free": ("task-free-verdicts", ("direction", "verdict", "reason")),
    "negative": ("negative-verdicts", ("subset", "alpha_raw", "verdict", "reason")),
}  # fmt: skip


def study_tables(
    rows: pd.DataFrame,
    null: pd.DataFrame,
    tables: Mapping[str, pd.DataFrame],
    *,
    views: Sequence[RunView] = (),
) -> StudyTables:
    """Return the tables that hypotheses are judged from, and the layers that ``views`` quote.

    Probes are judged by their folds: rows of the test split are left out.
    """
    found = {name: _filled(tables.get(source), name) for name, (source, _) in _COLUMNS.items()}
    probes = rows[rows["analysis"] == "probe"] if len(rows) else pd.DataFrame()
    layers = {view.run: view.layer for view in views if view.layer is not None}
    return StudyTables(probes=probes, null=null, layers=layers, **found)


def _filled(table: pd.DataFrame | None, name: str) -> pd.DataFrame:
    """Return a table with every column that a judge looks at; one it lacks holds nothing."""
    if table is None or table.empty:
        return pd.DataFrame()
    absent = {c: None for c in _COLUMNS[name][1] if c not in table.columns}
    return table.assign(**absent) if absent else table


def judge_study(
    tables: StudyTables, runs: Sequence[str], study: Mapping[str, Any]
) -> list[HypothesisVerdict]:
    """Return the verdicts of every model; one that was not run says which section is missing."""
    out = []
    for verdict in judge_hypotheses(tables, runs=runs):
        name, sections = _SOURCES[verdict.hypothesis.id]
        table = getattr(tables, name)
        absent = table.empty or (
            verdict.run is not None and verdict.run not in set(table["run"].astype(str))
        )
        if absent:
            reason = _not_run(sections, study, anywhere=not table.empty)
            out.append(replace(verdict, answer="cannot tell", because=reason))
        else:
            out.append(verdict)
    return out


def _not_run(sections: Sequence[str], study: Mapping[str, Any], *, anywhere: bool) -> str:
    """Return why there is no table: the study has no such section, or the stage is not done."""
    missing = [name for name in sections if not study.get(name)]
    if missing:
        names = " and ".join(f"[{name}]" for name in missing)
        word = "section" if len(missing) == 1 else "sections"
        return f"not run: the study file has no {word} {names}"
    where = " for this model" if anywhere else ""
    return (
        f"not run: section [{sections[0]}] is in the study file, but its stage has no results"
        f"{where}; `actlake study run` goes on with it"
    )
