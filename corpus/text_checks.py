"""What one text alone can be rejected for: format, coherence, refusal."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from ..schemas import Reason, Text, ValidateSpec, near_names
from .refusals import find_refusal
from .words import FIRST_PERSON, SECOND_PERSON, ngrams, sentences, words

__all__ = ["check_text", "point_of_view"]

_MARKDOWN = {
    "a heading": re.compile(r"^\s{0,3}#{1,6}\s", re.MULTILINE),
    "a bullet": re.compile(r"^\s*[-*+•]\s+\S", re.MULTILINE),
    "a numbered list": re.compile(r"^\s*\d{1,2}[.)]\s+\S", re.MULTILINE),
    "emphasis": re.compile(r"\*{1,3}\S[^*\n]*\*|(?<!\w)_{1,2}\w[^_\n]*_(?!\w)"),
    "code": re.compile(r"`"),
    "a link": re.compile(r"\[[^\]\n]+\]\([^)\n]+\)"),
    "a table": re.compile(r"^\s*\|.*\|\s*$", re.MULTILINE),
    "a quotation mark of markdown": re.compile(r"^\s*>\s", re.MULTILINE),
    "an HTML tag": re.compile(r"</?[a-zA-Z][^<>\n]*>"),
    "a speaker's label": re.compile(
        r"^\s*(?:assistant|user|system|human|ai|response|answer)\s*:", re.I | re.M
    ),
}
_SLOT = re.compile(
    r"\{[\w ]*\}|\[(?:insert|name|your|placeholder)[^\]]*\]|<\|[\w ]+\|>", re.IGNORECASE
)
_QUOTED = re.compile(r"[\"“][^\"”]*[\"”]")
_REPEATED_NGRAM = 4
_MOST_REPEATS = 2
_LEAST_LETTERS = 0.6


def point_of_view(text: str) -> str:
    """Return the person that ``text`` is told in; what is quoted does not count."""
    found = set(words(_QUOTED.sub(" ", text)))
    if found & FIRST_PERSON:
        return "first person"
    return "second person" if found & SECOND_PERSON else "third person"


def check_text(text: Text, spec: ValidateSpec) -> list[Reason]:
    """Return the reasons to reject a text that it has by itself."""
    reasons = []
    bare = text.arm == "neutral" and text.category == "none"
    if text.category not in spec.categories and not bare:
        near = near_names(text.category, list(spec.categories))
        message = f"unknown category {text.category!r}{near}; known: {', '.join(spec.categories)}"
        reasons.append(Reason(check="category", message=message))
    refusal = find_refusal(text.response)
    if refusal is not None:
        reasons.append(Reason(check="refusal", message=f"{text.id} refuses: {refusal!r}"))
    reasons += [
        Reason(check="format", message=f"{text.id} holds {name}: {match[0].strip()[:40]!r}")
        for name, pattern in _MARKDOWN.items()
        if (match := pattern.search(text.response))
    ]
    fault = _incoherence(text.response, spec)
    if fault is not None:
        reasons.append(Reason(check="coherence", message=f"{text.id} {fault}"))
    return reasons


def _incoherence(response: str, spec: ValidateSpec) -> str | None:
    """Return what makes a response no whole text of words, or None."""
    found = words(response)
    low, high = spec.words
    if not low <= len(found) <= high:
        return f"has {len(found)} words, expected {low} to {high}"
    if "\ufffd" in response or any(
        unicodedata.category(c) == "Cc" and c not in "\n\t" for c in response
    ):
        return "holds control or replacement characters"
    slot = _SLOT.search(response)
    if slot is not None:
        return f"holds an unfilled slot: {slot[0]!r}"
    if response.rstrip().rstrip("\"'”\u2019)")[-1:] not in {".", "!", "?", "…"}:
        return f"ends in the middle of a sentence: {response.rstrip()[-30:]!r}"
    letters = sum(c.isalpha() or c.isspace() for c in response) / len(response)
    if letters < _LEAST_LETTERS:
        return f"is {letters:.0%} letters"
    said = Counter(sentence.lower() for sentence in sentences(response))
    twice = next((sentence for sentence, n in said.items() if n > 1), None)
    if twice is not None:
        return f"says a sentence twice: {twice[:60]!r}"
    runs = Counter(ngrams(found, _REPEATED_NGRAM))
    run = next((gram for gram, n in runs.items() if n > _MOST_REPEATS), None)
    return f"repeats {' '.join(run)!r} {runs[run]} times" if run else None
