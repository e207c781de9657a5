"""A model as judge: it is shown a rubric and a text, and answers with a number."""

from __future__ import annotations

import re

from ..schemas import Scenario, Text
from .clients import ChatRequest, Client

__all__ = ["ModelJudge", "parse_score"]

_SYSTEM = (
    "You score an answer by a rubric. Read the situation, the rubric and the answer, and reply "
    "with one digit, 0, 1 or 2, and nothing else."
)
_ANSWER = re.compile(r"^\W*(?:score\W*)?([012])\W*$", re.IGNORECASE)


class ModelJudge:
    """A judge for ``score_texts``; an answer that is not one digit is missing, not zero."""

    def __init__(self, client: Client, *, seed: int = 0) -> None:
        self._client, self._seed = client, seed
        self.name = client.engine.model

    def score(self, text: Text, scenario: Scenario) -> int | None:
        """Return 0, 1 or 2, None where the answer cannot be read."""
        rubric = "\n".join(f"{k}: {v}" for k, v in sorted((scenario.rubric or {}).items()))
        asked = f"Situation: {text.prompt or scenario.title}\n\nRubric:\n{rubric}"
        messages = (
            {"role": "system", "content": _SYSTEM},
            {"role": "user", "content": f"{asked}\n\nAnswer: {text.response}\n\nScore:"},
        )
        request = ChatRequest(
            messages=messages, seed=self._seed, temperature=0.0, top_p=1.0, max_new_tokens=8
        )
        ((_, answer),) = self._client.complete([request])
        return parse_score(answer.text)


def parse_score(answer: str) -> int | None:
    """Return the score that an answer is, None where it is anything but one of 0, 1 and 2."""
    match = _ANSWER.match(answer)
    return None if match is None else int(match[1])
