"""The plan's hypotheses on the page: each verdict per model and over all, with its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from .hypotheses import HypothesisVerdict, StudyTables, combine_verdicts, judge_hypotheses
from .report_numbers import RunView
from .report_page import Page, esc
from .report_statements import label_runs

__all__ = ["add_hypotheses", "judge_study", "study_tables"]

_MARKS = {"supported": "✓", "not supported": "✗", "cannot tell": "?"}
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
    rows: pd.DataFrame, null: pd.DataFrame, tables: Mapping[str, pd.DataFrame]
) -> StudyTables:
    """Return the tables that hypotheses are judged from, among those of a report.

    Probes are judged by their folds: rows of the test split are left out.
    """
    found = {name: _filled(tables.get(source), name) for name, (source, _) in _COLUMNS.items()}
    probes = rows[rows["analysis"] == "probe"] if len(rows) else pd.DataFrame()
    return StudyTables(probes=probes, null=null, **found)


def _filled(table: pd.DataFrame | None, name: str) -> pd.DataFrame:
    """Return a table with every column that a judge looks at; one it lacks holds nothing."""
    if table is None or table.empty:
        return pd.DataFrame()
    absent = {c: None for c in _COLUMNS[name][1] if c not in table.columns}
    return table.assign(**absent) if absent else table


def judge_study(
    tables: StudyTables, views: Sequence[RunView], study: Mapping[str, Any]
) -> list[HypothesisVerdict]:
    """Return the verdicts of every model; one that was not run says which section is missing."""
    runs = list(label_runs(views))
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


def add_hypotheses(
    page: Page, views: Sequence[RunView], verdicts: Sequence[HypothesisVerdict]
) -> None:
    """Add the table of hypotheses: the answer over all models, then each model's with its figures.

    Adds nothing where no model was probed.
    """
    if not views:
        return
    page.use(style="report_interventions.css")
    labels = label_runs(views)
    by_name: dict[str, list[HypothesisVerdict]] = {}
    for verdict in verdicts:
        by_name.setdefault(verdict.hypothesis.id, []).append(verdict)
    body = "".join(_row(found, labels) for found in by_name.values())
    head = "".join(f'<th scope="col">{h}</th>' for h in ("hypothesis", "answer", "because"))
    table = (
        '<div class="scroll" role="region" tabindex="0" aria-label="Hypotheses">'
        f'<table class="hypotheses"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )
    note = (
        "Each answer compares intervals and corrected p-values that stand further down; where "
        "they allow both answers it is “cannot tell”. What is read at one layer is read at the "
        "layer that the probe's inner folds chose, so that no answer rests on the best of many. "
        "Over all models the answer is the one that every model gives, else one cannot tell."
    )
    body = f'<p class="note">{esc(note)}</p>{table}'
    page.add("hypotheses", "Hypotheses", body, lead=summary(verdicts))


def summary(verdicts: Sequence[HypothesisVerdict]) -> str:
    """Return which hypotheses hold over all models, which do not, and which stay open."""
    by_name: dict[str, list[HypothesisVerdict]] = {}
    for verdict in verdicts:
        by_name.setdefault(verdict.hypothesis.id, []).append(verdict)
    answers: dict[str, list[str]] = {}
    for name, found in by_name.items():
        answers.setdefault(combine_verdicts(found).answer, []).append(name)
    parts = [
        f"{answer}: {', '.join(answers[answer])}"
        for answer in ("supported", "not supported", "cannot tell")
        if answer in answers
    ]
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else "No hypothesis was judged."


def _row(found: Sequence[HypothesisVerdict], labels: Mapping[str, str]) -> str:
    whole, hypothesis = combine_verdicts(found), found[0].hypothesis
    claim = (
        f'<th scope="row"><span class="id">{esc(hypothesis.id)}</span> '
        f'{esc(hypothesis.statement)}<span class="caveat">{esc(hypothesis.reading)}</span></th>'
    )
    reasons = list(dict.fromkeys(v.because for v in found))
    same = len(reasons) == 1 and len({v.answer for v in found}) == 1
    if same:
        because = f"<p>{esc(_sentence(reasons[0]))}</p>"
    else:
        items = "".join(
            f"<dt>{esc(labels.get(v.run or '', v.run or 'all models'))}: {_badge(v.answer)}</dt>"
            f"<dd>{esc(_sentence(v.because))}</dd>"
            for v in found
        )
        because = f"<p>{esc(_sentence(whole.because))}</p><dl>{items}</dl>"
    return f"<tr>{claim}<td>{_badge(whole.answer)}</td><td>{because}</td></tr>\n"


def _badge(answer: str) -> str:
    kind = answer.replace(" ", "-")
    mark = f'<span aria-hidden="true">{_MARKS[answer]}</span>'
    return f'<span class="badge {kind}">{mark} {answer}</span>'


def _sentence(text: str) -> str:
    # No capital letter: it may begin with the name of a model.
    return text if text.endswith(".") else f"{text}."
