"""The lexical arms of a study: each text again with other words, or without (SCIENCE §3)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from random import Random

from ..schemas import (
    Arm,
    InvalidInputError,
    Lexicon,
    SweepPoint,
    Text,
    VariantLog,
    VariantSpec,
    WordEdit,
)
from .editing import Edited, edit_words
from .lexica import bundled_lexica, check_lexica
from .log_odds import sweep_words
from .separability import bag_of_words_auroc
from .texts import check_texts, pair_texts
from .words import sentences, stop_words, words

__all__ = ["Variants", "make_variants"]

_INSERTED = (
    "A sign nearby reads: {words}.",
    "On the board behind me somebody wrote {words}.",
    "The radio in the corner says something about {words}.",
    "A poster on the wall lists {words}.",
)


# Fields that describe the wording of the original, which a variant no longer has.
_OF_THE_WORDING = ("token_ids", "response_start", "spans")


@dataclass
class Variants:
    """The variants of a corpus, what was changed in each, and the bag of words after it."""

    texts: list[Text] = field(default_factory=list)
    log: list[VariantLog] = field(default_factory=list)
    bow: dict[str, float] = field(default_factory=dict)  # by variant, "original" included
    sweep: list[SweepPoint] = field(default_factory=list)
    removed: tuple[str, ...] = ()  # the words that the data-driven arm takes out
    reached: bool = True  # whether those bring the bag of words down to its target


def make_variants(
    texts: Sequence[Text],
    *,
    spec: VariantSpec | None = None,
    lexica: Sequence[Lexicon] | None = None,
) -> Variants:
    """Return the lexical arms of the pairs of ``texts``, linked to them by ``parent``.

    Both classes are changed in the same way: the keywords of all lexica leave both. The bag of
    words is refitted to every variant, scenarios held out.

    Parameters
    ----------
    texts
        A corpus; its variants, if any, and its neutral texts are left out.
    spec
        The arms, their draws, the seed.
    lexica
        One lexicon per arm; the bundled empathy and task lexica if None.

    Raises
    ------
    InvalidInputError
        If the texts are no pairs, have variants of these names already, lie in fewer than two
        scenarios, a lexicon is at odds with another, or nothing would be left of a text.
    """
    spec = spec or VariantSpec()
    lexica = bundled_lexica() if lexica is None else lexica
    check_lexica(lexica)
    check_texts(texts)
    originals = [t for t in texts if t.variant == "original" and t.pair is not None]
    if not originals:
        msg = "the corpus has no pairs, so there is nothing to vary"
        raise InvalidInputError(msg)
    made = Variants()
    made.bow["original"] = _bow(originals, spec)
    keywords = frozenset[str]().union(*(lexicon.keywords for lexicon in lexica))
    frequency = Counter(word for text in originals for word in words(text.response))
    if {"data_driven", "random_like_data_driven"} & set(spec.arms):
        made.removed, made.sweep, made.reached = sweep_words(originals, spec=spec)
    learned = frozenset(made.removed)
    for arm in spec.arms:
        if arm == "keywords_removed":
            _add(
                made, arm, originals, [(_remove(t.response, keywords), 0) for t in originals], spec
            )
        elif arm == "keywords_replaced":
            table = {k: v for lexicon in lexica for k, v in lexicon.table.items()}
            edited = [_replace(t.response, table, keywords) for t in originals]
            _add(made, arm, originals, edited, spec)
        elif arm in {"random_words_removed", "random_like_data_driven"}:
            matched = keywords if arm == "random_words_removed" else learned
            for draw in range(spec.n_draws):
                edited = [
                    _remove_random(t, matched, frequency, Random(f"{spec.seed} {draw} {t.id}"))
                    for t in originals
                ]
                _add(made, f"{arm}-{draw:03d}", originals, edited, spec)
        elif arm == "data_driven":
            _add(made, arm, originals, [(_remove(t.response, learned), 0) for t in originals], spec)
        else:
            _add(made, arm, originals, _insert(originals, lexica, seed=spec.seed), spec)
    taken = {t.id for t in texts} & {t.id for t in made.texts}
    if taken:
        msg = f"the corpus has variants already, the first is {min(taken)!r}; vary the originals"
        raise InvalidInputError(msg)
    return made


def _bow(texts: Sequence[Text], spec: VariantSpec) -> float:
    pairs = pair_texts(texts, variant=texts[0].variant)
    return round(bag_of_words_auroc(pairs, max_folds=spec.max_folds, seed=spec.seed), 4)


def _add(
    made: Variants,
    variant: str,
    originals: Sequence[Text],
    edited: Iterable[tuple[Edited, int]],
    spec: VariantSpec,
) -> None:
    """Add one variant of every text, its log and its bag of words."""
    added = []
    for text, (new, short_by) in zip(originals, edited, strict=True):
        if not words(new.text):
            msg = (
                f"{variant} leaves nothing of text {text.id!r}: {text.response[:60]!r}; leave the "
                "pair out, or take fewer words"
            )
            raise InvalidInputError(msg)
        name = f"{text.id}@{variant}"
        changes: dict[str, str | None] = dict.fromkeys(_OF_THE_WORDING)
        changes |= {"id": name, "response": new.text, "variant": variant, "parent": text.id}
        added.append(text.model_copy(update=changes))
        made.log.append(
            VariantLog(
                text=name, parent=text.id, variant=variant, edits=new.edits, short_by=short_by
            )
        )
    made.texts += added
    made.bow[variant] = _bow(added, spec)


def _remove(response: str, gone: AbstractSet[str]) -> Edited:
    found = words(response)
    return edit_words(response, {i: None for i, w in enumerate(found) if w in gone}, why="keyword")


def _replace(
    response: str, table: Mapping[str, str], keywords: AbstractSet[str]
) -> tuple[Edited, int]:
    """Return the text with its keywords replaced, and how many have no replacement."""
    found = words(response)
    changes: dict[int, str | None] = {i: table[w] for i, w in enumerate(found) if w in table}
    return edit_words(response, changes, why="keyword"), sum(
        w in keywords and w not in table for w in found
    )


def _remove_random(
    text: Text, keywords: AbstractSet[str], frequency: Mapping[str, int], rng: Random
) -> tuple[Edited, int]:
    """Return the text without as many content words as it has of ``keywords``, of like frequency.

    For each keyword in turn, a content word that is none is drawn with a probability that falls
    with the distance of their log frequencies in the corpus.
    """
    found = words(text.response)
    stop = stop_words()
    wanted = [w for w in found if w in keywords]
    free = [i for i, w in enumerate(found) if w not in keywords and w not in stop]
    chosen: list[int] = []
    for keyword in wanted:
        if not free:
            break
        target = math.log(frequency[keyword])
        weights = [math.exp(-2 * abs(math.log(frequency[found[i]]) - target)) for i in free]
        index = rng.choices(range(len(free)), weights)[0]
        chosen.append(free.pop(index))
    edited = edit_words(text.response, dict.fromkeys(chosen), why="random")
    return edited, len(wanted) - len(chosen)


def _insert(
    originals: Sequence[Text], lexica: Sequence[Lexicon], *, seed: int
) -> list[tuple[Edited, int]]:
    """Return every text with a sentence that holds keywords of the other arm.

    As many as the other text of its pair has of its own, and at least one: the crossed arm
    gives each class the words of the other.
    """
    by_arm: dict[Arm, Lexicon] = {lexicon.arm: lexicon for lexicon in lexica}
    missing = {"positive", "negative"} - set(by_arm)
    if missing:
        msg = f"keywords_inserted needs a lexicon for each arm, none is {min(missing)}"
        raise InvalidInputError(msg)
    partner = {(t.pair, t.arm): t for t in originals}
    out = []
    for text in originals:
        rng = Random(f"{seed} insert {text.id}")
        other: Arm = "negative" if text.arm == "positive" else "positive"
        lexicon = by_arm[other]
        own = [w for w in words(partner[text.pair, other].response) if w in lexicon.keywords]
        chosen = list(dict.fromkeys(own)) or [rng.choice(lexicon.entry).forms[0]]
        rng.shuffle(chosen)
        listed = ", ".join(chosen[:-1]) + " and " * (len(chosen) > 1) + chosen[-1]
        added = rng.choice(_INSERTED).format(words=listed)
        parts = sentences(text.response)
        at = text.response.rfind(parts[-1]) if len(parts) > 1 else len(text.response)
        new = f"{text.response[:at].rstrip()} {added} {text.response[at:]}".rstrip()
        edit = WordEdit(start=at, end=at, before="", after=added, why="inserted")
        out.append((Edited(new, (edit,)), 0))
    return out
