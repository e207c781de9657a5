"""Reading, checking and pairing of texts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..schemas import (
    ArmNames,
    CorpusInfo,
    InvalidInputError,
    Pair,
    Text,
    texts_digest,
)
from .lines import others, read_lines, write_lines

__all__ = [
    "check_texts",
    "corpus_info",
    "mark_spans",
    "pair_texts",
    "read_jsonl",
    "texts_digest",
    "write_jsonl",
]


def read_jsonl(path: str | Path, *, arms: ArmNames | None = None) -> list[Text]:
    """Return the texts of a JSONL file, one JSON object per line, blank lines ignored.

    Parameters
    ----------
    path
        A UTF-8 file. Its keys are those of :class:`~actlake.schemas.Text`: ``response`` with
        ``prompt`` and ``system``, or ``messages``, or ``token_ids``; ``arm`` takes the study's
        own names too.
    arms
        The study's names for the arms.

    Raises
    ------
    NotFoundError
        If there is no such file.
    InvalidInputError
        If a line is broken: file, line number and reason, and how many other lines are bad; or
        if the texts do not fit together (see :func:`check_texts`).
    """
    names = arms or ArmNames()

    def parse(data: object, where: str) -> Text:
        return Text.parse(_with_arm(data, names, where=where), where=where)

    texts, lines = read_lines(path, parse, noun="text")
    check_texts(texts, where=str(path), lines=lines)
    return texts


def _with_arm(data: object, arms: ArmNames, *, where: str) -> object:
    """Return ``data`` with the study's own name of its arm replaced by ours."""
    if not isinstance(data, Mapping) or not isinstance(data.get("arm"), str):
        return data
    arm = arms.arm_of(data["arm"])
    if arm is None:
        msg = (
            f"{where}: arm {data['arm']!r} is not in the spec; expected "
            f"{arms.positive!r} (positive), {arms.negative!r} (negative) or "
            f"{arms.neutral!r} (neutral)"
        )
        raise InvalidInputError(msg)
    return {**data, "arm": arm}


def check_texts(
    texts: Sequence[Text], *, where: str = "texts", lines: Sequence[int] | None = None
) -> None:
    """Check that texts form a corpus: at least one, unique ids, complete pairs.

    Raises
    ------
    InvalidInputError
        Naming the first text at fault, its line where ``lines`` are given, and how many others
        there are.
    """
    if not texts:
        msg = f"{where}: no texts"
        raise InvalidInputError(msg)

    def place(index: int) -> str:
        return f"{where}:{lines[index]}" if lines is not None else where

    first: dict[str, int] = {}
    twice = []
    for index, text in enumerate(texts):
        if text.id in first:
            twice.append((index, text.id))
        first.setdefault(text.id, index)
    if twice:
        index, name = twice[0]
        at = f" (first at line {lines[first[name]]})" if lines is not None else ""
        msg = f"{place(index)}: duplicate id {name!r}{at}"
        raise InvalidInputError(msg + others(len(twice) - 1, "text", "duplicated too"))
    faults = _pair_faults(texts)
    if faults:
        index, reason = faults[0]
        raise InvalidInputError(
            f"{place(index)}: {reason}" + others(len(faults) - 1, "pair", "also wrong")
        )


def _pair_faults(texts: Sequence[Text]) -> list[tuple[int, str]]:
    """Return (index of a text, reason) for every pair that is not one text of each arm."""
    faults: list[tuple[int, str]] = []
    members: dict[tuple[str, str], list[int]] = {}
    for index, text in enumerate(texts):
        if text.arm == "neutral":
            continue
        if text.pair is None:
            faults.append((index, f"text {text.id!r} has arm {text.arm!r} but no pair"))
            continue
        members.setdefault((text.pair, text.variant), []).append(index)
    for (pair, variant), indices in members.items():
        got = [texts[i].arm for i in indices]
        note = "" if variant == "original" else f" (variant {variant!r})"
        if len(got) == 1:
            other = "negative" if got[0] == "positive" else "positive"
            faults.append(
                (indices[0], f"pair {pair!r}{note} has one arm: {got[0]}, but no {other} text")
            )
        elif sorted(got) != ["negative", "positive"]:
            faults.append(
                (
                    indices[0],
                    f"pair {pair!r}{note} has arms {got}, expected one positive and one negative",
                )
            )
        else:
            try:
                _make_pair(pair, [texts[i] for i in indices])
            except InvalidInputError as err:
                faults.append((indices[0], str(err)))
    return faults


def _make_pair(pair: str, members: Iterable[Text]) -> Pair:
    """Return the pair of two texts of both arms."""
    by_arm = {text.arm: text for text in members}
    return Pair.parse({"id": pair, "positive": by_arm["positive"], "negative": by_arm["negative"]})


def pair_texts(texts: Sequence[Text], *, variant: str = "original") -> list[Pair]:
    """Return the pairs of ``variant`` in order of their first text; neutral texts are left out.

    Raises
    ------
    InvalidInputError
        If a pair is incomplete or its arms do not match.
    """
    chosen = [text for text in texts if text.variant == variant]
    faults = _pair_faults(chosen)
    if faults:
        raise InvalidInputError(faults[0][1] + others(len(faults) - 1, "pair", "also wrong"))
    members: dict[str, list[Text]] = {}
    for text in chosen:
        if text.pair is not None:
            members.setdefault(text.pair, []).append(text)
    return [_make_pair(pair, group) for pair, group in members.items()]


def corpus_info(
    corpus_id: str,
    texts: Sequence[Text],
    *,
    arms: ArmNames | None = None,
    title: str = "",
    licence: str = "unknown",
    provenance: str = "",
) -> CorpusInfo:
    """Return the record that describes ``texts`` as the corpus ``corpus_id``."""
    paired = [t for t in texts if t.pair is not None]
    return CorpusInfo.parse(
        {
            "id": corpus_id,
            "title": title,
            "arms": (arms or ArmNames()).model_dump(),
            "n_texts": len(texts),
            "n_pairs": len({t.pair for t in paired}),
            "n_scenarios": len({t.scenario for t in paired}),
            "texts_digest": texts_digest(texts),
            "licence": licence,
            "provenance": provenance,
        }
    )


def mark_spans(texts: Iterable[Text], *, name: str, pattern: str | re.Pattern[str]) -> list[Text]:
    """Return the texts with every match of ``pattern`` in a response as their spans ``name``.

    Texts without a match, or whose matches are empty, stay as they are.

    Raises
    ------
    InvalidInputError
        If ``name`` cannot name spans or ``pattern`` is no regular expression.
    """
    try:
        found = re.compile(pattern)
    except re.error as err:
        msg = f"{pattern!r} is no regular expression: {err}"
        raise InvalidInputError(msg) from err
    marked = []
    for text in texts:
        spans = [m.span() for m in found.finditer(text.response) if m.end() > m.start()]
        row = text.to_dict()
        row["spans"] = {**(row.get("spans") or {}), name: spans}
        marked.append(Text.parse(row, where=f"text {text.id!r}") if spans else text)
    return marked


def write_jsonl(texts: Iterable[Text], path: str | Path) -> None:
    """Write texts as JSONL, one compact object per line, keys that hold None left out."""
    write_lines((text.model_dump(mode="json", exclude_none=True) for text in texts), path)
