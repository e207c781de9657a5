"""Refusals: answers in which a model declines instead of answering."""

from __future__ import annotations

import re

__all__ = ["find_refusal"]

_CANNOT = (
    "(?:can(?:no|')t|can not|could(?:n't| not)|won't|will not|am (?:not able|unable) to"
    "|'m (?:not able|unable) to|do(?:n't| not) feel comfortable)"
)
_REQUEST = (
    "(?:help|assist|comply|continue|engage|fulfil+|provide|write|create|generate|produce|answer"
    "|discuss) (?:you )?(?:with |to |in )?(?:that|this|your|such|these|those|any|content"
    "|an? (?:request|response|answer|story|text))"
)
_PATTERNS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\bas an? (?:\w+ )?(?:AI|artificial intelligence|(?:large )?language model|chatbot)\b",
        r"\bI(?: am|'m) (?:just |only )?an? (?:\w+ )?(?:AI|(?:large )?language model|chatbot)\b",
        rf"\bI(?: am|'m) (?:very |so |really )?sorry,? (?:but )?I ?{_CANNOT}",
        rf"\bI(?:'m)? ?(?:apologi[sz]e|regret),? (?:but |that )?I ?{_CANNOT}",
        rf"\bI ?{_CANNOT} {_REQUEST}\b",
        r"\b(?:against|violates?) (?:my|our|the) (?:\w+ )?(?:guidelines|policy|programming)\b",
        r"\bI must (?:respectfully )?decline (?:to|this|that|your)\b",
        r"\bnot (?:something I can|appropriate for me to) (?:help|assist|write|do|provide)",
    )
)


def find_refusal(text: str) -> str | None:
    """Return the words in which ``text`` refuses to answer, or None.

    A person in a story who cannot help somebody does not refuse: what is looked for declines
    the request itself, or says that a model speaks.
    """
    plain = text.replace("\u2019", "'")
    for pattern in _PATTERNS:
        match = pattern.search(plain)
        if match is not None:
            return match[0]
    return None
