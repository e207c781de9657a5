"""The conditions of a re-pooled ablation: which words each takes out, and their bag of words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..corpus.lexica import bundled_lexica, check_lexica
from ..corpus.log_odds import rank_words
from ..schemas import AblationSpec, InvalidInputError, Lexicon, Text
from .auroc import Floats, auroc
from .design import Design
from .lexical_words import WordTable, draw_matched, without_words, word_table
from .words import bag_of_words_scores

__all__ = [
    "Condition",
    "Conditions",
    "check_hits",
    "choose_lexica",
    "joined_name",
    "make_conditions",
]

Ints: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True)
class Condition:
    """Words that are taken out of both classes.

    ``gone`` are the flags of the words, packed, dims (byte,), or ``kinds`` those of the
    vocabulary by fold, dims (fold, kind), where every fold has a lexicon of its own. ``matches``
    is the place of the condition that a draw of random words is matched to, None for an arm.
    """

    arm: str
    lexicon: str | None = None
    k: int | None = None
    gone: NDArray[np.uint8] | None = None
    kinds: Flags | None = None
    matches: int | None = None
    n_short: int | None = None
    words: Floats | None = None  # scores of the bag of words, dims (arm, pair)


@dataclass(frozen=True)
class Conditions:
    """The words of the pairs and all conditions, the originals first.

    ``learned`` are the words of every fold's own lexicon, the first to go first; ``chosen`` is
    how many of them bring the held-out bag of words down to the target, None where none do.
    """

    table: WordTable
    fold: Ints  # of every text
    found: list[Condition]
    learned: list[list[str]] = field(default_factory=list)
    chosen: int | None = None

    def gone(self, at: int, fold: int = -1) -> Flags:
        """Return the words that a condition takes out, dims (word,).

        Of a condition by fold those of ``fold``'s lexicon, or with −1 in every text those of the
        lexicon that the text itself had no part in.
        """
        of = self.found[at]
        if of.gone is not None:
            flags: Flags = np.unpackbits(of.gone, count=self.table.n_words).astype(bool)
            return flags
        if of.kinds is None:
            return np.zeros(self.table.n_words, dtype=bool)
        folds = fold if fold >= 0 else self.fold[self.table.text]
        found: Flags = of.kinds[folds, self.table.kind]
        return found


def choose_lexica(lexica: Sequence[Lexicon] | None) -> Sequence[Lexicon]:
    """Return the lexica, the bundled ones where none are given, checked against each other."""
    chosen = bundled_lexica() if lexica is None else lexica
    if not chosen:
        msg = "an ablation needs a lexicon: name one, or leave it to the bundled ones"
        raise InvalidInputError(msg)
    check_lexica(chosen)
    return chosen


def joined_name(lexica: Sequence[Lexicon]) -> str:
    """Return what rows call the keywords of all lexica together."""
    return "+".join(lexicon.name for lexicon in lexica)


def check_hits(table: WordTable, lexica: Sequence[Lexicon]) -> None:
    """Raise InvalidInputError where a lexicon has no word of the responses."""
    for lexicon in lexica:
        if not table.kinds(lexicon.keywords).any():
            shown = ", ".join(sorted(lexicon.keywords)[:5])
            msg = (
                f"lexicon {lexicon.name!r} ({shown}, …) hits no word of {table.n_texts} "
                f"responses, which have {len(table.vocabulary)} different words; give a lexicon "
                "of this corpus (--lexicon), or leave this one out"
            )
            raise InvalidInputError(msg)


def make_conditions(
    design: Design,
    texts: Sequence[Text],
    *,
    lexica: Sequence[Lexicon],
    spec: AblationSpec,
) -> Conditions:
    """Return the conditions that can be re-pooled, with the bag of words refitted under each.

    The keywords of all lexica together, those of each alone, random words matched to all of
    them; and the data-driven lexicon, whose words are ranked by the log-odds of each fold's
    training texts, in growing doses until the held-out bag of words is at its target.

    Raises
    ------
    InvalidInputError
        If a lexicon hits no word.
    """
    table = word_table(design.responses)
    check_hits(table, lexica)
    fold = np.tile(design.folds.fold_of_pair, 2)
    made = Conditions(table, fold, [Condition("original", words=_bow(design, table, None, spec))])
    if {"keywords_removed", "random_words_removed"} & {*spec.arms}:
        _add_keywords(made, design, lexica=lexica, spec=spec)
    if not {"data_driven", "random_like_data_driven"} & {*spec.arms}:
        return made
    by_id = {text.id: text for text in texts}
    pairs = [[by_id[name] for name in arm] for arm in design.table.texts.tolist()]
    learned = [rank_words([arm[k] for arm in pairs for k in of.train]) for of in design.folds.folds]
    code = {word: k for k, word in enumerate(table.vocabulary)}
    rank = np.full((len(learned), len(code)), np.iinfo(np.int64).max)
    for number, ranked in enumerate(learned):
        rank[number, [code[word] for word in ranked]] = np.arange(len(ranked))
    chosen = _add_doses(made, design, rank=rank, spec=spec)
    return Conditions(table, fold, made.found, learned, chosen)


def _add_keywords(
    made: Conditions, design: Design, *, lexica: Sequence[Lexicon], spec: AblationSpec
) -> None:
    """Add the keywords, of all lexica and of each, and the random words that match all."""
    table = made.table
    names = joined_name(lexica)
    sets = {names: frozenset[str]().union(*(lexicon.keywords for lexicon in lexica))}
    sets |= {lexicon.name: lexicon.keywords for lexicon in lexica}
    for name, keywords in sets.items():
        at, gone = len(made.found), table.among(keywords)
        words = _bow(design, table, gone, spec)
        made.found.append(Condition("keywords_removed", name, gone=np.packbits(gone), words=words))
        if "random_words_removed" not in spec.arms:
            continue
        every = name == names
        _add_draws(
            made, design, at=at, n_draws=spec.n_draws if every else spec.n_dose_draws,
            n_bow=spec.n_bow_draws if every else 0, spec=spec,
        )  # fmt: skip


def _add_draws(
    made: Conditions, design: Design, *, at: int, n_draws: int, n_bow: int, spec: AblationSpec
) -> None:
    """Add random words matched to condition ``at``."""
    of = made.found[at]
    drawn, short = draw_matched(
        made.table, made.gone(at), n_draws=n_draws, seed=[spec.seed, of.k or at]
    )
    for number, gone in enumerate(drawn):
        words = _bow(design, made.table, gone, spec) if number < n_bow else None
        made.found.append(
            Condition(
                "random_words_removed", of.lexicon, k=of.k, gone=np.packbits(gone),
                matches=at, n_short=short, words=words,
            )
        )  # fmt: skip


def _add_doses(made: Conditions, design: Design, *, rank: Ints, spec: AblationSpec) -> int | None:
    """Add growing doses of every fold's own lexicon; return the first that is enough."""
    k, most = int(spec.k_first), min(int(spec.k_max), int(rank.shape[1]))
    while True:
        k = min(k, most)
        kinds = rank < k
        if _empties(made.table, kinds):
            return None
        at = len(made.found)
        words = _bow_by_fold(design, made.table, kinds, spec)
        made.found.append(Condition("data_driven", "learned", k=k, kinds=kinds, words=words))
        if "random_like_data_driven" in spec.arms:
            _add_draws(made, design, at=at, n_draws=spec.n_dose_draws, n_bow=0, spec=spec)
        held = design.subsets["all"]
        labels = np.repeat([True, False], held.size)
        if auroc(words[:, held].ravel(), labels) <= spec.bow_target:
            return k
        if k >= most:
            return None
        k *= 2


def _empties(table: WordTable, kinds: Flags) -> bool:
    """Return whether a fold's lexicon takes every word of some text."""
    n_words = np.diff(table.edges)
    return any((table.per_text(of[table.kind]) >= n_words).any() for of in kinds)


def _bow(design: Design, table: WordTable, gone: Flags | None, spec: AblationSpec) -> Floats:
    """Return the bag of words' held-out scores, refitted to the responses without some words."""
    responses = design.responses
    left = responses if gone is None else without_words(responses, table, gone)
    return bag_of_words_scores(left, design.folds.folds, spec=spec.bow)


def _bow_by_fold(design: Design, table: WordTable, kinds: Flags, spec: AblationSpec) -> Floats:
    """Return the same where every fold leaves out words of its own."""
    scores = np.full((2, design.table.n_pairs), np.nan)
    for fold, of in zip(design.folds.folds, kinds, strict=True):
        left = without_words(design.responses, table, of[table.kind])
        scores[:, fold.test] = bag_of_words_scores(left, [fold], spec=spec.bow)[:, fold.test]
    return scores
