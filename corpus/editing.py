"""Taking words out of a text or putting others in, in one pass, with the seams mended."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..schemas import WordEdit
from .words import WORD

__all__ = ["Edited", "edit_words", "match_case"]

_STRONG = re.compile(r"[.!?\n]")
_QUOTE = re.compile('["\u201c\u201d()]')
# Sounds that their first letter does not show.
_CONSONANT_SOUND = re.compile(r"(?:uni(?!n|m)|us[eu]|ut[ei]|eu|one\b|once\b|ubiq)", re.IGNORECASE)
_VOWEL_SOUND = re.compile(r"(?:hour|honest|hono[u]?r|heir)", re.IGNORECASE)


@dataclass(frozen=True)
class Edited:
    """A text after its edits, and the edits in the order of the text."""

    text: str
    edits: tuple[WordEdit, ...]


@dataclass
class _Word:
    """A word of a text on its way: ``now`` None where it is taken out."""

    start: int
    end: int
    before: str
    now: str | None
    why: Literal["keyword", "random", "article", "capital"] | None = None


def match_case(word: str, like: str) -> str:
    """Return ``word`` in the case of ``like``: lower, Capitalised or UPPER."""
    if len(like) > 1 and like.isupper():
        return word.upper()
    return word[0].upper() + word[1:] if like[:1].isupper() else word


def edit_words(
    text: str, changes: Mapping[int, str | None], *, why: Literal["keyword", "random"]
) -> Edited:
    """Return ``text`` with words replaced or taken out, all at once.

    A replacement takes the case of the word it stands for; where a word is gone, the
    punctuation around it is joined, an article before it agrees with what follows, and a
    sentence still begins with a capital. What was put in is not looked at again.

    Parameters
    ----------
    text
        The text.
    changes
        By the number of a word in the text, from 0: its replacement, None to take it out.
    why
        What the log says of these edits.
    """
    matches = list(WORD.finditer(text))
    found = [_Word(m.start(), m.end(), m[0], m[0]) for m in matches]
    edges = [0, *(edge for m in matches for edge in m.span()), len(text)]
    gaps = [text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
    for index, new in changes.items():
        word = found[index]
        word.now = None if new is None else match_case(new, word.before)
        word.why = why
    _mend_capitals(found, gaps)
    _mend_articles(found, gaps)
    parts = [gaps[0]]
    for word, gap in zip(found, gaps[1:], strict=True):
        if word.now is None:
            parts[-1] = _joined(parts[-1], gap, opens=len(parts) == 1)
        else:
            parts += [word.now, gap]
    edits = tuple(
        WordEdit(start=w.start, end=w.end, before=w.before, after=w.now or "", why=w.why)
        for w in found
        if w.why is not None
    )
    return Edited("".join(parts), edits)


def _joined(left: str, right: str, *, opens: bool) -> str:
    """Return what stands between two words when the word between two gaps is gone."""
    if opens:  # the first word of the text: only an opening quotation mark stays
        return left if not right.strip() else left + right.lstrip(" ,;:-\u2013\u2014")
    if _QUOTE.search(left) or _QUOTE.search(right):
        return re.sub(r"\s+", " ", left + right)
    if _STRONG.search(left):
        return left
    return right if right.strip() or not right else left


def _mend_capitals(found: list[_Word], gaps: list[str]) -> None:
    """Begin a sentence with a capital where its first words are gone."""
    for index, word in enumerate(found):
        first = index == 0 or _STRONG.search(gaps[index])
        if not first or word.now is not None or not word.before[:1].isupper():
            continue
        for number in range(index + 1, len(found)):
            if _STRONG.search(gaps[number]):
                break  # the sentence is empty
            follower = found[number]
            if follower.now is None:
                continue
            if follower.now[:1].islower():
                follower.now = follower.now[0].upper() + follower.now[1:]
                follower.why = follower.why or "capital"
            break


def _mend_articles(found: list[_Word], gaps: list[str]) -> None:
    """Let ``a`` and ``an`` agree with a word that was not theirs before."""
    for index, word in enumerate(found[:-1]):
        if word.now is None or word.now.lower() not in {"a", "an"}:
            continue
        following = index + 1
        while following < len(found) and found[following].now is None:
            following += 1
        if following == len(found) or any(g.strip() for g in gaps[index + 1 : following + 1]):
            continue
        now = found[following].now or ""
        if following == index + 1 and found[following].why is None:
            continue
        vowel = now[:1].lower() in "aeiou" and not _CONSONANT_SOUND.match(now)
        article = match_case("an" if vowel or _VOWEL_SOUND.match(now) else "a", word.now)
        if article != word.now:
            word.now, word.why = article, "article"
