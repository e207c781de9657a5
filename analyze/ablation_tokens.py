"""The response tokens of the pairs, and which of them every arm leaves out of the pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..schemas import AblationRow, InvalidInputError
from .ablation_conditions import Condition, Conditions
from .ablation_rows import Arm, missing_row
from .design import Design
from .lexical_words import WordTable, ragged
from .repooling import Masks, TokenTable, pack_masks

__all__ = ["POOL", "TokenWords", "repooled_arms", "token_words"]

Ints: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool_]

POOL = "mean_response"
_COORDS = ("token_text", "token_response", "token_start", "token_stop")


@dataclass(frozen=True)
class TokenWords:
    """Response tokens, and the words that each holds a character of: pairs of (token, word)."""

    tokens: TokenTable
    token: Ints
    word: Ints

    def of(self, words: Flags) -> Flags:
        """Return the tokens that hold a character of some ``words`` (word,), dims (token,)."""
        flags = np.zeros(self.tokens.rows.size, dtype=bool)
        flags[self.token[words[self.word]]] = True
        return flags


def token_words(ds: xr.Dataset, design: Design, table: WordTable) -> TokenWords:
    """Return the response tokens of the pairs with their words.

    Raises
    ------
    InvalidInputError
        If the run does not say which characters its tokens hold, or a text's do not.
    """
    lacking = [name for name in _COORDS if name not in ds.variables]
    if lacking:
        msg = (
            f"run {ds.attrs.get('run', '?')!r} does not say which characters of the response its "
            f"tokens hold (no {', '.join(lacking)}): it was extracted before actlake kept them, "
            "or written by another program; name the model whose tokenizer made them "
            "(--tokenizer, or extract.add_token_characters), extract it again with `actlake "
            "extract MODEL --tokens all`, or compare re-extracted variants"
        )
        raise InvalidInputError(msg)
    text, response, start, stop = (np.asarray(ds[name].values) for name in _COORDS)
    place = np.full(ds.sizes["text"], -1, dtype=np.int64)
    place[design.table.rows.ravel()] = np.arange(design.table.rows.size)
    of_text = np.where(text < 0, -1, place[np.maximum(text, 0)])
    rows = np.flatnonzero(response & (of_text >= 0))
    with_characters = of_text[rows[start[rows] >= 0]]
    without = np.setdiff1d(np.arange(design.table.rows.size), with_characters)
    if without.size:
        msg = (
            f"{without.size} texts have no token that holds a character of their response, the "
            f"first is {design.table.texts.ravel()[without[0]]!r}; texts that bring token ids "
            "along cannot be ablated by words"
        )
        raise InvalidInputError(msg)
    tokens = TokenTable(rows, of_text[rows], np.tile(design.folds.fold_of_pair, 2))
    # One line of characters for all texts, so that one search finds the words of all tokens.
    longest = 1 + max(map(len, design.responses))
    first = np.searchsorted(
        table.text * longest + table.stop, tokens.text * longest + start[rows], side="right"
    )
    last = np.searchsorted(
        table.text * longest + table.start, tokens.text * longest + stop[rows], side="left"
    )
    return TokenWords(tokens, *ragged(first.astype(np.int64), last.astype(np.int64)))


def repooled_arms(
    design: Design, conditions: Conditions, held: TokenWords
) -> tuple[list[Arm], Masks, list[AblationRow]]:
    """Return the arms with their masks, and the rows of those that leave no token of a text."""
    found = conditions.found
    empty = {
        at: name for at in range(1, len(found)) if (name := _emptied(design, conditions, held, at))
    }
    kept = [at for at in range(len(found)) if at not in empty]
    plain = [at for at in kept if found[at].kinds is None]
    order = plain + [at for at in kept if found[at].kinds is not None]
    masks = pack_masks(
        lambda column, fold: held.of(conditions.gone(order[column], fold)),
        held.tokens,
        n_plain=len(plain),
        n_by_fold=len(order) - len(plain),
    )
    column = {at: k for k, at in enumerate(order)}
    arms, rows = [], []
    for at, of in enumerate(found):
        if at == 0 or of.matches is not None:
            continue
        fields: dict[str, Any] = {"arm": of.arm, "lexicon": of.lexicon, "k": of.k}
        if at in empty:
            reason = f"it leaves no token of text {empty[at]!r}"
            rows.append(missing_row(design, way="repooled", reason=reason, pool=POOL, **fields))
            continue
        draws = [k for k in kept if found[k].matches == at]
        random = {"arm": "random_words_removed", "tuned": None}
        if of.kinds is not None:
            fields["tuned"] = "words in the training folds; k by the held-out bag of words"
            random["arm"] = "random_like_data_driven"
        arms.append(
            Arm(
                fields | _shares(conditions, held, [at]),
                column[at],
                np.array([column[k] for k in draws], dtype=np.int64),
                np.arange(design.table.n_pairs),
                words=_both(found[0], of),
                words_random=tuple(w for k in draws if (w := found[k].words) is not None),
                random_fields=random | _shares(conditions, held, draws),
            )
        )
    return arms, masks, rows


def _emptied(design: Design, conditions: Conditions, held: TokenWords, at: int) -> str | None:
    """Return a text of which a condition leaves no token, or None."""
    tokens = held.tokens
    by_fold = conditions.found[at].kinds is not None
    for fold in range(tokens.n_folds) if by_fold else (-1,):
        keep = ~held.of(conditions.gone(at, fold))
        left = np.bincount(tokens.text[keep], minlength=tokens.n_texts)
        if not left.all():
            return str(design.table.texts.ravel()[int(np.argmin(left))])
    return None


def _shares(conditions: Conditions, held: TokenWords, places: Sequence[int]) -> dict[str, Any]:
    """Return how much some conditions take out of a text, their mean, as each text is read."""
    if not places:
        return {}
    table = conditions.table
    words = np.mean([conditions.gone(at).sum() for at in places])
    return {
        "words_removed": float(words / table.n_texts),
        "words_share": float(words / table.n_words),
        "tokens_share": float(np.mean([held.of(conditions.gone(at)).mean() for at in places])),
        "n_short": conditions.found[places[0]].n_short,
    }


def _both(original: Condition, of: Condition) -> Any:  # noqa: ANN401
    """Return the bag of words before and after, None where one is not there."""
    return None if original.words is None or of.words is None else (original.words, of.words)
