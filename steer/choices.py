"""Forced choice between two answers, asked in both orders."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..schemas import IncompleteError, JudgeSpec
from .endpoint import Endpoint, RejectedError

__all__ = ["Ask", "ChoiceItem", "ChoiceResult", "endpoint_ask", "force_choices", "question_of"]

LABELS = ("A", "B")
Ask: TypeAlias = Callable[[str], Mapping[str, float]]
_QUESTION = (
    "{prompt}\n\nWhich of the two would you do?\n\nA: {first}\nB: {second}\n\n"
    "Reply with the letter A or B and nothing else."
)
_N_TOP = 20  # the most that the protocol allows


@dataclass(frozen=True)
class ChoiceItem:
    """A prompt with the answer of the positive and that of the negative arm.

    ``system`` is read where a loaded model chooses (:func:`~actlake.steer.model_choices`).
    """

    prompt: str
    positive: str
    negative: str
    system: str | None = None


@dataclass(frozen=True)
class ChoiceResult:
    """How far the positive answer is preferred, in nats.

    ``log_odds`` is the mean over both orders of log P(positive) - log P(negative), from which a
    preference for a letter cancels; ``order_bias`` is that preference for what stands first.
    Both are None, with a ``reason``, where either order gave no figure for a letter.
    """

    log_odds: float | None
    order_bias: float | None
    reason: str | None = None


def force_choices(items: Sequence[ChoiceItem], ask: Ask) -> list[ChoiceResult]:
    """Return the preference between the two answers of every item.

    ``ask`` is given a question and returns the log-probabilities of the letters A and B as the
    next token: a model that is loaded here (steered or not), or :func:`endpoint_ask`.
    """
    results = []
    for item in items:
        forward, reason = _difference(ask, question_of(item))
        backward, other = _difference(ask, question_of(item, swapped=True))
        if forward is None or backward is None:
            results.append(ChoiceResult(None, None, reason or other))
        else:
            results.append(ChoiceResult((forward - backward) / 2, (forward + backward) / 2))
    return results


def question_of(item: ChoiceItem, *, swapped: bool = False) -> str:
    """Return what is asked: the positive answer stands at A, swapped at B."""
    first, second = (item.positive, item.negative)[:: -1 if swapped else 1]
    return _QUESTION.format(prompt=item.prompt, first=first, second=second)


def _difference(ask: Ask, question: str) -> tuple[float | None, str | None]:
    """Return log P(A) - log P(B), or why there is none."""
    found = ask(question)
    missing = [label for label in LABELS if not math.isfinite(found.get(label, math.nan))]
    if missing:
        return None, f"no log-probability of {' and '.join(missing)}"
    return found["A"] - found["B"], None


def endpoint_ask(spec: JudgeSpec) -> Ask:
    """Return an ``ask`` that reads the letters' log-probabilities from a server.

    A letter that is not among the server's most likely tokens has no figure.

    Raises
    ------
    IncompleteError
        When called, if the server does not answer.
    """
    endpoint = Endpoint(spec.model_copy(update={"max_tokens": 1}))

    def ask(question: str) -> dict[str, float]:
        messages = [{"role": "user", "content": question}]
        try:
            reply, _ = endpoint.ask(messages, logprobs=True, top_logprobs=_N_TOP)
        except RejectedError as err:
            msg = f"{spec.endpoint} gives no log-probabilities ({err}); use a rubric judge with it"
            raise IncompleteError(msg) from err
        return _letters(reply)

    return ask


def _letters(reply: dict[str, Any]) -> dict[str, float]:
    """Return the log-probability of each letter: tokens `` A`` and ``A`` count together."""
    try:
        top = reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        pairs = [(str(item["token"]).strip(), float(item["logprob"])) for item in top]
    except (KeyError, IndexError, TypeError, ValueError):
        return {}
    out = {}
    for label in LABELS:
        mass = sum(math.exp(min(0.0, p)) for token, p in pairs if token == label)
        if mass > 0:
            out[label] = math.log(mass)
    return out
