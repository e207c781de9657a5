"""The contrasts of a study: pairs of its corpus under personas that a tokenizer finds equal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from .schemas import (
    Contrast,
    InvalidInputError,
    MatchedPersonas,
    Pair,
    StudyContrasts,
    StudyTexts,
    Text,
)

if TYPE_CHECKING:
    from .extract import LoadedModel
    from .steer import AlignedCase

__all__ = ["choose_contrasts", "choose_prompts", "spread_pairs"]


def spread_pairs(
    pairs: Sequence[Pair], *, split: str | None, subsets: Sequence[str] | None = None
) -> list[Pair]:
    """Return the pairs that have a prompt, scenario after scenario in turn.

    Raises
    ------
    InvalidInputError
        If no pair is of that split and those subsets.
    """
    chosen = [
        pair
        for pair in pairs
        if pair.positive.prompt
        and (split is None or pair.positive.split == split)
        and (subsets is None or pair.positive.subset in subsets)
    ]
    if not chosen:
        known = sorted({(str(p.positive.split), str(p.positive.subset)) for p in pairs})
        msg = (
            f"no pair with a prompt is of split {split!r} and subsets {subsets or 'any'}; the "
            f"corpus has (split, subset) {known}"
        )
        raise InvalidInputError(msg)
    queues: dict[str, list[Pair]] = {}
    for pair in sorted(chosen, key=lambda p: p.id):
        queues.setdefault(pair.positive.scenario or pair.id, []).append(pair)
    rounds = zip_longest(*queues.values())
    return [pair for found in rounds for pair in found if pair is not None]


def choose_prompts(pairs: Sequence[Pair], wanted: StudyTexts) -> list[Text]:
    """Return one text per system prompt and prompt, spread over scenarios.

    Raises
    ------
    InvalidInputError
        If no pair is of the split and subsets.
    """
    found = spread_pairs(pairs, split=wanted.split, subsets=wanted.subsets)
    asked: dict[tuple[str | None, str | None], Text] = {}
    for pair in found:
        asked.setdefault((pair.positive.system, pair.positive.prompt), pair.positive)
    return list(asked.values())[: wanted.n_prompts]


def choose_contrasts(
    loaded: LoadedModel, pairs: Sequence[Pair], *, spec: StudyContrasts
) -> list[AlignedCase]:
    """Return up to ``spec.n`` contrasts as tokens, spread over scenarios and personas.

    Raises
    ------
    InvalidInputError
        If no persona's two prompts have as many tokens as each other under the model's
        tokenizer, or no pair is of the split and subsets.
    """
    out: list[AlignedCase] = []
    for number, pair in enumerate(spread_pairs(pairs, split=spec.split, subsets=spec.subsets)):
        if len(out) == spec.n:
            break
        out.extend(_first_equal(loaded, pair, _from(spec.personas, number)))
    if not out:
        wanted = [(p.source, p.base) for p in spec.personas[:3]]
        msg = (
            f"{loaded.info.name}: no persona's prompts have equal numbers of tokens, the first are "
            f"{wanted}; write the two with the same words in another order"
        )
        raise InvalidInputError(msg)
    return out


def _from(personas: Sequence[MatchedPersonas], start: int) -> list[MatchedPersonas]:
    start %= len(personas)
    return [*personas[start:], *personas[:start]]


def _first_equal(
    loaded: LoadedModel, pair: Pair, personas: Sequence[MatchedPersonas]
) -> Iterator[AlignedCase]:
    from .steer import align_contrasts

    for persona in personas:
        contrast = Contrast(
            id=pair.id,
            scenario=pair.positive.scenario or "none",
            prompt=pair.positive.prompt or "",
            source=persona.source,
            base=persona.base,
            same_class=persona.same_class,
            positive=pair.positive.response,
            negative=pair.negative.response,
        )
        try:
            (case,) = align_contrasts(loaded, [contrast])
        except InvalidInputError:
            continue  # of other lengths under this tokenizer
        yield case
        return
