"""The plan's hypotheses, each judged from a study's tables: supported, not, or why one cannot tell.

Nothing here computes a statistic: a verdict compares intervals and corrected p-values that the
analyses wrote, and says which. Where intervals allow both answers the verdict is that one cannot
tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .hypothesis_judges import JUDGES, Answer, StudyTables

__all__ = [
    "HYPOTHESES",
    "Hypothesis",
    "HypothesisVerdict",
    "StudyTables",
    "combine_verdicts",
    "judge_hypotheses",
]


@dataclass(frozen=True)
class Hypothesis:
    """A hypothesis of the plan: its statement, and what follows if it is supported."""

    id: str
    statement: str
    reading: str


@dataclass(frozen=True)
class HypothesisVerdict:
    """The answer to one hypothesis in one model (``run`` None: over all models)."""

    hypothesis: Hypothesis
    run: str | None
    answer: Answer
    because: str


HYPOTHESES = (
    Hypothesis(
        "H1", "The AUROC is perfect on every model.",
        "Then the data separate by style, and the artefact is the likelier account.",
    ),
    Hypothesis(
        "H2", "Patching fails where steering works.",
        "Then the probe reads an auxiliary feature, not the mechanism.",
    ),
    Hypothesis(
        "H3", "The AUROC drops when keywords are removed, by more than with random words.",
        "Then a lexical shortcut is confirmed.",
    ),
    Hypothesis(
        "H4", "The layer that the probe is read at mediates the most.",
        "Then reading and causing meet in one place.",
    ),
    Hypothesis(
        "H5", "The claimed strength is really needed.",
        "If not, smaller strengths do with more samples.",
    ),
    Hypothesis(
        "H6", "Steering fails where helping costs the task nothing.",
        "Then the direction weakens task focus rather than adding empathy.",
    ),
    Hypothesis(
        "H7", "Steering away raises task focus without cruelty.",
        "Then the opposite of the concept is focus, not harm.",
    ),
    Hypothesis(
        "H8", "Some random direction exceeds AUROC .95.",
        "Then a high AUROC is no evidence for this direction by itself.",
    ),
    Hypothesis(
        "H9", "The concept's direction is the opposite of the task's.",
        "Then what was found is the attenuation of the task.",
    ),
)  # fmt: skip


def judge_hypotheses(
    tables: StudyTables, *, runs: Sequence[str], hypotheses: Sequence[Hypothesis] = HYPOTHESES
) -> list[HypothesisVerdict]:
    """Return the verdicts in the order of the hypotheses, one per run, H1 over all runs."""
    out = []
    for hypothesis in hypotheses:
        judge = JUDGES[hypothesis.id]
        for run, answer, because in judge(tables, runs):
            out.append(HypothesisVerdict(hypothesis, run, answer, because))
    return out


def combine_verdicts(verdicts: Sequence[HypothesisVerdict]) -> HypothesisVerdict:
    """Return the answer to one hypothesis over all models: the one that every model gives.

    Where the models differ, or some cannot tell, no answer holds for all of them.
    """
    first = verdicts[0]
    if len(verdicts) == 1:
        return HypothesisVerdict(first.hypothesis, None, first.answer, first.because)
    answers = [verdict.answer for verdict in verdicts]
    counted = [(answer, answers.count(answer)) for answer in dict.fromkeys(answers)]
    n = len(answers)
    if len(counted) == 1:
        because = f"{first.answer} in all {n} models"
        return HypothesisVerdict(first.hypothesis, None, first.answer, because)
    because = ", ".join(f"{answer} in {k} of {n} models" for answer, k in counted)
    return HypothesisVerdict(first.hypothesis, None, "cannot tell", because)
