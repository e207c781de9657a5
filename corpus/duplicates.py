"""Texts that are nearly other texts: by MinHash for many, exactly where it matters."""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np

from .words import ngrams, words

__all__ = ["DuplicateIndex", "NearDuplicate", "find_near_duplicates", "highest_jaccard", "shingles"]

_BLOCK = 512


@dataclass(frozen=True)
class NearDuplicate:
    """Two texts by their indices, the earlier first, and the Jaccard of their shingles."""

    first: int
    second: int
    jaccard: float


def shingles(text: str, n: int) -> frozenset[str]:
    """Return the word ``n``-grams of ``text``; a shorter text is one shingle."""
    found = words(text)
    return frozenset(" ".join(g) for g in ngrams(found, n)) or frozenset({" ".join(found)})


def _jaccard(a: AbstractSet[Hashable], b: AbstractSet[Hashable]) -> float:
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared) if shared else 0.0


def _hash(shingle: bytes) -> int:
    return zlib.crc32(shingle)


def _lsh(threshold: float, n_permutations: int) -> Any:  # noqa: ANN401  # datasketch has no types
    """Return an index of signatures, with banding below the threshold, so that few are missed."""
    from datasketch import MinHashLSH

    return MinHashLSH(threshold=max(threshold - 0.15, 0.05), num_perm=n_permutations)


class DuplicateIndex:
    """Texts that were accepted, against which the next one is held."""

    def __init__(self, *, threshold: float, shingle: int = 3, n_permutations: int = 128) -> None:
        from datasketch import MinHash

        self._threshold, self._shingle = threshold, shingle
        self._empty: Any = MinHash(num_perm=n_permutations, hashfunc=_hash)
        self._index = _lsh(threshold, n_permutations)
        self._sets: list[frozenset[str]] = []

    def _signature(self, found: frozenset[str]) -> object:
        signature = self._empty.copy()
        signature.update_batch([s.encode() for s in found])
        return signature

    def holds(self, text: str) -> bool:
        """Return whether a text that was added is nearly this one."""
        found = shingles(text, self._shingle)
        near = self._index.query(self._signature(found))
        return any(_jaccard(found, self._sets[i]) >= self._threshold for i in near)

    def add(self, text: str) -> None:
        """Remember a text."""
        found = shingles(text, self._shingle)
        self._index.insert(len(self._sets), self._signature(found), check_duplication=False)
        self._sets.append(found)


def find_near_duplicates(
    texts: Sequence[str],
    *,
    threshold: float,
    shingle: int = 3,
    n_permutations: int = 128,
    seed: int = 1,
) -> list[NearDuplicate]:
    """Return the pairs of texts whose Jaccard is ``threshold`` or more, in order.

    Candidates come from MinHash and locality-sensitive hashing (datasketch) with the banding
    tuned below the threshold, so that few are missed; each is then computed exactly, so that
    none is wrong.

    Parameters
    ----------
    texts
        The texts to compare with one another.
    threshold
        Jaccard similarity of word ``shingle``-grams, above 0 to 1.
    shingle
        Words of a shingle.
    n_permutations
        Hash functions of a signature.
    seed
        Of the hash functions.
    """
    from datasketch import MinHash

    sets = [shingles(text, shingle) for text in texts]
    signatures = MinHash.bulk(
        ([s.encode() for s in found] for found in sets),
        num_perm=n_permutations,
        seed=seed,
        hashfunc=_hash,
    )
    index = _lsh(threshold, n_permutations)
    found: list[NearDuplicate] = []
    for second, signature in enumerate(signatures):
        for first in index.query(signature):
            value = _jaccard(sets[first], sets[second])
            if value >= threshold:
                found.append(NearDuplicate(first, second, value))
        index.insert(second, signature, check_duplication=False)
    return sorted(found, key=lambda d: (d.second, d.first))


def highest_jaccard(texts: Sequence[str], *, n: int = 5) -> NearDuplicate | None:
    """Return the two texts that share most word ``n``-grams, None where no two share any.

    Exact, by products of blocks of a sparse matrix, so that a run of words that all texts have
    costs time but no memory.
    """
    from scipy.sparse import csr_array

    number: dict[tuple[str, ...], int] = {}
    rows = [{number.setdefault(g, len(number)) for g in ngrams(words(t), n)} for t in texts]
    sizes = np.array([len(row) for row in rows], dtype=np.int64)
    columns = np.array([column for row in rows for column in sorted(row)], dtype=np.int64)
    edges = np.concatenate([[0], np.cumsum(sizes)])
    held = csr_array(
        (np.ones(columns.size, dtype=np.int32), columns, edges), shape=(len(rows), len(number))
    )
    best: NearDuplicate | None = None
    for start in range(0, len(rows), _BLOCK):
        stop = min(start + _BLOCK, len(rows))
        shared = (held[start:stop] @ held.T).toarray()
        shared[np.arange(len(rows)) <= np.arange(start, stop)[:, None]] = 0  # each pair once
        union = sizes[start:stop, None] + sizes - shared
        values = shared / np.maximum(union, 1)
        at = int(values.argmax()) if values.size else 0
        if values.size and values.flat[at] > (best.jaccard if best else 0.0):
            first, second = divmod(at, len(rows))
            best = NearDuplicate(start + first, second, float(values.flat[at]))
    return best
