"""Scoring a table of texts that were made anywhere: rules, and a judge where one is named."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..schemas import (
    InvalidInputError,
    Judgement,
    JudgeSpec,
    Prevalence,
    RaterAgreement,
    Scenario,
    ScoreSpec,
    ScoreSummary,
)
from .judges import PROMPT_DIGEST, Question, judge_texts
from .prevalence import correct_prevalence, rater_agreement
from .tables import require_columns
from .text_scores import build_scores, score_text

__all__ = ["ScoredTable", "calibrate", "score_table"]

POSITIVE = 2  # the rubric's score of an answer that is wholly of the positive arm
JUDGE_COLUMNS = ("judge_score", "judge_missing")


@dataclass(frozen=True)
class ScoredTable:
    """The table with a column per figure, and the summary of them."""

    table: pd.DataFrame
    summary: ScoreSummary


def score_table(
    table: pd.DataFrame,
    *,
    spec: ScoreSpec,
    judge: JudgeSpec | None = None,
    scenarios: Mapping[str, Scenario] | None = None,
    kept: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ScoredTable:
    """Return a table of texts with their scores.

    Parameters
    ----------
    table
        Column ``text``; ``prompt`` and ``scenario`` for a judge; ``human_score`` (0, 1, 2, or
        empty) where people rated texts too, from which the judge is calibrated; anything else is
        passed through and no score sees it.
    spec
        The rules.
    judge, scenarios, kept
        The judge, the rubrics by scenario, and the file its judgements are kept in: all or none.
    progress
        Called with the judgements done and in all.

    Raises
    ------
    InvalidInputError
        If ``text`` is missing or holds no text, a score's column is already there, or a judge
        lacks its scenarios or its file.
    IncompleteError
        If the judge's server stops answering; the same call goes on.
    """
    require_columns(table, ["text"])
    texts = _texts(table)
    scores = build_scores(spec)
    figures = pd.DataFrame(
        [score_text(text, scores, spec=spec) for text in texts], index=table.index
    )
    judged: list[Judgement | None] = []
    if judge is not None:
        if scenarios is None or kept is None:
            msg = "a judge needs the scenarios with their rubrics and a file for its judgements"
            raise InvalidInputError(msg)
        judged = _judge(
            table, texts, judge=judge, scenarios=scenarios, kept=kept, progress=progress
        )
        figures["judge_score"] = [math.nan if j is None or j.score is None else j.score
                                  for j in judged]  # fmt: skip
        figures["judge_missing"] = ["no rubric" if j is None else j.reason or "" for j in judged]
    taken = [name for name in figures.columns if name in table.columns]
    if taken:
        msg = f"the table already has a column {taken[0]!r}; rename it, the score would take it"
        raise InvalidInputError(msg)
    scored = pd.concat([table, figures], axis=1)
    return ScoredTable(scored, _summary(scored, figures, judged, spec=spec, judge=judge))


def _texts(table: pd.DataFrame) -> list[str]:
    texts = []
    for i, value in enumerate(table["text"]):
        if isinstance(value, str):
            texts.append(value)
        elif value is None or (isinstance(value, float) and math.isnan(value)) or value is pd.NA:
            texts.append("")  # an empty cell of a CSV: the model said nothing
        else:
            msg = f"row {i}: column 'text' holds {value!r}, expected text"
            raise InvalidInputError(msg)
    return texts


def _judge(
    table: pd.DataFrame,
    texts: list[str],
    *,
    judge: JudgeSpec,
    scenarios: Mapping[str, Scenario],
    kept: str | Path,
    progress: Callable[[int, int], None] | None,
) -> list[Judgement | None]:
    require_columns(table, ["scenario"])
    names = table["scenario"].astype(str).tolist()
    unknown = sorted({name for name in names if name not in scenarios})
    if unknown:
        msg = (
            f"{len(unknown)} scenarios of the table are not in the scenario file, such as "
            f"{unknown[0]!r}; it has {sorted(scenarios)[:5]}"
        )
        raise InvalidInputError(msg)
    prompts = table["prompt"].tolist() if "prompt" in table.columns else [None] * len(texts)
    asked: dict[int, Question] = {}
    for i, (text, name, prompt) in enumerate(zip(texts, names, prompts, strict=True)):
        if scenarios[name].rubric is not None:
            given = prompt if isinstance(prompt, str) else None
            asked[i] = Question.of(text, prompt=given, scenario=scenarios[name])
    found = judge_texts(list(asked.values()), spec=judge, kept=kept, progress=progress)
    by_row = dict(zip(asked, found, strict=True))
    return [by_row.get(i) for i in range(len(texts))]


def calibrate(scored: pd.DataFrame) -> tuple[Prevalence | None, RaterAgreement | None]:
    """Return the judge's corrected share of score 2, and its agreement with people.

    From columns ``judge_score`` and ``human_score``; None where either is missing. The share is
    of all judged texts; the texts that people rated are the calibration set.
    """
    if not {"judge_score", "human_score"} <= set(scored.columns):
        return None, None
    judge = pd.to_numeric(scored["judge_score"], errors="coerce").to_numpy(dtype=np.float64)
    human = pd.to_numeric(scored["human_score"], errors="coerce").to_numpy(dtype=np.float64)
    odd = np.isfinite(human) & ~np.isin(human, (0, 1, 2))
    if odd.any():
        msg = f"column 'human_score' holds {human[odd][0]:g}, expected 0, 1, 2 or nothing"
        raise InvalidInputError(msg)
    both = np.isfinite(judge) & np.isfinite(human)
    agreement = rater_agreement(np.stack([judge, human])) if both.any() else None
    called, positive = judge == POSITIVE, human == POSITIVE
    n_positive, n_negative = int((both & positive).sum()), int((both & ~positive).sum())
    if not n_positive or not n_negative:
        return None, agreement
    prevalence = correct_prevalence(
        int(called.sum()),
        int(np.isfinite(judge).sum()),
        true_called=int((both & positive & called).sum()),
        n_positive=n_positive,
        false_called=int((both & ~positive & called).sum()),
        n_negative=n_negative,
    )
    return prevalence, agreement


def _summary(
    scored: pd.DataFrame,
    figures: pd.DataFrame,
    judged: list[Judgement | None],
    *,
    spec: ScoreSpec,
    judge: JudgeSpec | None,
) -> ScoreSummary:
    numbers = figures.drop(columns="judge_missing", errors="ignore").apply(
        pd.to_numeric, errors="coerce"
    )
    means = {name: float(numbers[name].mean()) for name in numbers.columns}
    answers = [j for j in judged if j is not None]
    prevalence, agreement = calibrate(scored)
    values: dict[str, Any] = {
        "n_texts": len(scored),
        "scores": tuple(figures.columns),
        "means": {name: value if math.isfinite(value) else None for name, value in means.items()},
        "n_missing": {name: int(numbers[name].isna().sum()) for name in numbers.columns},
        "spec": spec,
        "prevalence": prevalence,
        "agreement": agreement,
    }
    if judge is not None:
        values |= {
            "judge": judge.model,
            "judge_versions": tuple(sorted({j.version for j in answers if j.version})),
            "judge_prompt_digest": PROMPT_DIGEST,
            "judge_constrain": tuple(sorted({j.constrain for j in answers})),
            "n_judged": sum(j.score is not None for j in answers),
            "n_unreadable": sum(j.reason == "unreadable" for j in answers),
            "n_rejected": sum(j.reason == "rejected" for j in answers),
            "n_without_rubric": sum(j is None for j in judged),
        }
    return ScoreSummary.model_validate(values)
