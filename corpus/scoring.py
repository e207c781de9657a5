"""Rubric scores: imported from a file, or given by a judge that can be plugged in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ..schemas import InvalidInputError, RubricScore, Scenario, Text
from .lines import read_lines, write_lines

__all__ = ["Judge", "read_scores", "score_texts", "write_scores"]


class Judge(Protocol):
    """Whatever scores a text by a rubric: a model, a person at a terminal, a rule."""

    name: str

    def score(self, text: Text, scenario: Scenario) -> int | None:
        """Return 0, 1 or 2, or None where the judge gave no readable answer."""


def score_texts(
    texts: Sequence[Text], scenarios: Mapping[str, Scenario], judge: Judge
) -> list[RubricScore]:
    """Return the judge's score of every text of a pair; the judge is not told the arm.

    Raises
    ------
    InvalidInputError
        If a text's scenario has no rubric, or the judge returns another number.
    """
    found = []
    for text in texts:
        if text.pair is None:
            continue
        scenario = scenarios.get(text.scenario)
        if scenario is None or scenario.rubric is None:
            msg = f"text {text.id!r}: scenario {text.scenario!r} has no rubric to score by"
            raise InvalidInputError(msg)
        blind = text.model_copy(update={"id": "text", "arm": "neutral", "pair": None})
        score = judge.score(blind, scenario)
        found.append(
            RubricScore.parse(
                {"text": text.id, "score": score, "judge": judge.name}, where=f"judge {judge.name}"
            )
        )
    return found


def read_scores(path: str | Path) -> dict[str, RubricScore]:
    """Return the scores of a JSONL file by text id; the last one of a text counts.

    Raises
    ------
    InvalidInputError
        If a line is broken or a score is not 0, 1, 2 or null.
    """

    def parse(data: object, where: str) -> RubricScore:
        return RubricScore.parse(data, where=where)

    return {score.text: score for score in read_lines(path, parse, noun="score")[0]}


def write_scores(scores: Iterable[RubricScore], path: str | Path) -> None:
    """Write scores as JSONL, null where the judge's answer could not be read."""
    write_lines((score.model_dump(mode="json") for score in scores), path)
