"""Directions as weighted sums of texts, so that what two of them share can be seen.

A difference of means is Σᵢ wᵢ xᵢ with weights that say which texts it was built from. Its
permutations, halves and bootstrap draws are other weights over the same texts: with the Gram
matrix of the texts every cosine, null and reliability is one matrix product, however wide the
model is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..schemas import ContrastSpec, GeometrySpec, InvalidInputError, TextSelector
from .auroc import Floats

__all__ = [
    "Contrast",
    "bootstrap_weights",
    "check_shared",
    "construction_cosine",
    "default_contrasts",
    "deleted_weights",
    "half_weights",
    "make_contrast",
    "permuted_weights",
    "select_contrasts",
]

COORDS = ("arm", "category", "scenario", "generator", "subset", "split", "variant")
EXACT = 1e-9


@dataclass(frozen=True)
class Contrast:
    """A difference of means with the ids and the signs of its texts.

    ``weights`` has dims (text,) over all texts of the analysis: 1/n₊ on the positive texts,
    −1/n₋ on the negative ones, 0 elsewhere. ``units`` (text,) is what is resampled together: the
    pair where all texts are ``paired``, else the text itself.
    """

    name: str
    texts: NDArray[np.str_]
    weights: Floats
    units: NDArray[np.str_]
    paired: bool

    @property
    def members(self) -> NDArray[np.int64]:
        """Rows of the texts that take part."""
        return np.flatnonzero(self.weights)

    @property
    def signed_texts(self) -> dict[str, int]:
        """Ids of the texts that take part, with the sign of each."""
        return {str(self.texts[row]): int(np.sign(self.weights[row])) for row in self.members}

    def of_counts(self, counts: Floats) -> Floats:
        """Return the weights when text i is counted ``counts[..., i]`` times; NaN for no text."""
        result = np.zeros_like(counts)
        for sign in (1.0, -1.0):
            mine = np.where(np.sign(self.weights) == sign, counts, 0.0)
            total = mine.sum(axis=-1, keepdims=True)
            result += sign * np.divide(mine, total, out=np.full_like(mine, np.nan), where=total > 0)
        return result


def make_contrast(
    name: str,
    positive: NDArray[np.int64],
    negative: NDArray[np.int64],
    *,
    texts: NDArray[np.str_],
    pairs: NDArray[np.str_] | None = None,
) -> Contrast:
    """Return the contrast of the rows ``positive`` against the rows ``negative``.

    Parameters
    ----------
    name
        What it is called in tables.
    positive, negative
        Rows of ``texts``, two or more each.
    texts
        Ids of all texts of the analysis, dims (text,).
    pairs
        Pair ids, dims (text,), empty for none. Where every pair among the chosen texts has one
        text on each side, pairs are what is flipped, halved and resampled.

    Raises
    ------
    InvalidInputError
        If a side has fewer than two texts, or a text stands on both sides.
    """
    if min(positive.size, negative.size) < 2:
        msg = (
            f"contrast {name!r} has {positive.size} positive and {negative.size} negative texts; "
            "it needs two or more of each"
        )
        raise InvalidInputError(msg)
    both = np.intersect1d(positive, negative)
    if both.size:
        msg = f"contrast {name!r} has text {str(texts[both[0]])!r} on both sides"
        raise InvalidInputError(msg)
    weights = np.zeros(texts.size)
    weights[positive] = 1 / positive.size
    weights[negative] = -1 / negative.size
    sides = [] if pairs is None else [sorted(pairs[side].tolist()) for side in (positive, negative)]
    paired = (
        bool(sides)
        and sides[0] == sides[1]
        and len(set(sides[0])) == positive.size
        and "" not in sides[0]
    )
    units = np.asarray(pairs if paired else texts).astype(str)
    return Contrast(name, texts, weights, units, paired)


def construction_cosine(first: Contrast, second: Contrast) -> float:
    """Return the cosine that independent noise in the texts alone would give two contrasts.

    With noise of equal size in every text E[vₐ·v_b] = σ²d Σᵢ wₐᵢ w_bᵢ: 0 where no text is shared,
    ½ for two arms against one neutral arm of the same size, −1 for the same arms reversed
    (SCIENCE §4).
    """
    norms = np.linalg.norm(first.weights) * np.linalg.norm(second.weights)
    return float(first.weights @ second.weights / norms)


def check_shared(first: Contrast, second: Contrast, *, shared: str) -> tuple[float, int]:
    """Return :func:`construction_cosine` and how many texts two contrasts have in common.

    Raises
    ------
    InvalidInputError
        If they have texts in common and ``shared`` is ``refuse``.
    """
    common = np.intersect1d(first.members, second.members)
    built = construction_cosine(first, second)
    if common.size and shared == "refuse":
        if abs(built) > 1 - EXACT:
            why = f"they are the same arms, so that their cosine is {built:+.0f} by construction"
        else:
            why = (
                f"noise in those texts enters both, so that their cosine would be {built:+.2f} "
                "even if the two concepts had nothing to do with each other"
            )
        msg = (
            f"contrasts {first.name!r} and {second.name!r} have {common.size} texts in common, "
            f"such as {str(first.texts[common[0]])!r}: {why}. Give each its own texts (half = 1 "
            "and half = 2 of a neutral arm, or a 2 x 2 design), or set shared = 'flag' to see "
            "the cosine beside that number"
        )
        raise InvalidInputError(msg)
    return built, int(common.size)


def permuted_weights(
    contrasts: Sequence[Contrast], *, n_draws: int, rng: np.random.Generator
) -> list[Floats]:
    """Return weights of ``contrasts`` under permuted labels, each dims (draw, text).

    A paired contrast flips whole pairs, another permutes its labels. Two contrasts with texts in
    common are permuted together, as rows, so that what they share by construction stays.
    """
    if len(contrasts) == 2 and np.intersect1d(contrasts[0].members, contrasts[1].members).size:
        union = np.union1d(contrasts[0].members, contrasts[1].members)
        order = rng.permuted(np.tile(union, (n_draws, 1)), axis=1)
        result = []
        for contrast in contrasts:
            draws = np.zeros((n_draws, contrast.weights.size))
            draws[:, union] = contrast.weights[order]
            result.append(draws)
        return result
    return [_permuted(contrast, n_draws=n_draws, rng=rng) for contrast in contrasts]


def _permuted(contrast: Contrast, *, n_draws: int, rng: np.random.Generator) -> Floats:
    members = contrast.members
    draws = np.zeros((n_draws, contrast.weights.size))
    if contrast.paired:
        _, unit = np.unique(contrast.units[members], return_inverse=True)
        signs = rng.choice([-1.0, 1.0], size=(n_draws, int(unit.max()) + 1))
        draws[:, members] = contrast.weights[members] * signs[:, unit]
    else:
        draws[:, members] = rng.permuted(np.tile(contrast.weights[members], (n_draws, 1)), axis=1)
    return draws


def half_weights(
    contrast: Contrast, *, n_draws: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Return weights of two disjoint halves of a contrast, each dims (draw, text).

    Halves of its pairs, or of each side's texts where it is not paired.
    """
    first = np.zeros((n_draws, contrast.weights.size))
    for members, unit in _strata(contrast):
        n_units = int(unit.max()) + 1
        rank = rng.permuted(np.tile(np.arange(n_units), (n_draws, 1)), axis=1)
        first[:, members] = (rank < (n_units + 1) // 2)[:, unit]
    inside = (contrast.weights != 0).astype(np.float64)
    return contrast.of_counts(first), contrast.of_counts(inside - first)


def bootstrap_weights(contrast: Contrast, *, n_draws: int, rng: np.random.Generator) -> Floats:
    """Return weights of bootstrap samples of the pairs (or of each side's texts)."""
    counts = np.zeros((n_draws, contrast.weights.size))
    for members, unit in _strata(contrast):
        n_units = int(unit.max()) + 1
        drawn = rng.multinomial(n_units, np.full(n_units, 1 / n_units), size=n_draws)
        counts[:, members] = drawn[:, unit]
    return contrast.of_counts(counts)


def _strata(contrast: Contrast) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return (rows, number of their unit) of what is resampled independently."""
    members = contrast.members
    sides = (
        [members]
        if contrast.paired
        else [np.flatnonzero(contrast.weights > 0), np.flatnonzero(contrast.weights < 0)]
    )
    return [(rows, np.unique(contrast.units[rows], return_inverse=True)[1]) for rows in sides]


def deleted_weights(first: Contrast, second: Contrast) -> tuple[Floats, Floats]:
    """Return the weights of two contrasts with one unit left out in turn, dims (unit, text)."""
    members = np.union1d(first.members, second.members)
    owner = first.units.astype(object).copy()
    owner[second.members] = second.units[second.members]
    owner[first.members] = first.units[first.members]
    names, unit = np.unique(owner[members].astype(str), return_inverse=True)
    kept = np.ones((names.size, first.weights.size))
    kept[unit, members] = 0.0
    return first.of_counts(kept), second.of_counts(kept)


def default_contrasts(ds: xr.Dataset) -> tuple[ContrastSpec, ...]:
    """Return the contrasts of a run that a spec does not name, on the train split if there is one.

    With four neutral texts or more: the positive and the negative arm, each against its own half
    of them. Otherwise the concept alone.
    """
    arm, split, variant = (
        np.asarray(ds[n].values).astype(str) for n in ("arm", "split", "variant")
    )
    in_train = bool(((split == "train") & (arm == "positive")).any())
    where = {"split": "train"} if in_train else {}
    texts = {name: TextSelector.parse({"arm": name, **where}) for name in ("positive", "negative")}
    neutral = (arm == "neutral") & (variant == "original") & ((split == "train") | (not in_train))
    if neutral.sum() < 4:
        return (ContrastSpec(name="concept", **texts),)
    halves = [TextSelector.parse({"arm": "neutral", "half": half, **where}) for half in (1, 2)]
    return (
        ContrastSpec(name="positive-neutral", positive=texts["positive"], negative=halves[0]),
        ContrastSpec(name="negative-neutral", positive=texts["negative"], negative=halves[1]),
    )


def select_contrasts(ds: xr.Dataset, spec: GeometrySpec) -> list[Contrast]:
    """Return the contrasts of ``spec`` on the texts of ``ds``.

    Raises
    ------
    InvalidInputError
        If a side selects fewer than two texts, or two contrasts share texts and that is refused.
    """
    missing = [name for name in ("text", "pair", *COORDS) if name not in ds.variables]
    if missing:
        msg = f"the dataset lacks the coordinates {missing}; open it with actlake.open_run"
        raise InvalidInputError(msg)
    texts, pairs = (np.asarray(ds[name].values).astype(str) for name in ("text", "pair"))
    coords = {name: np.asarray(ds[name].values).astype(str) for name in COORDS}
    contrasts = [
        make_contrast(
            wanted.name,
            _rows(coords, texts, wanted.positive, seed=spec.seed),
            _rows(coords, texts, wanted.negative, seed=spec.seed),
            texts=texts,
            pairs=pairs,
        )
        for wanted in spec.contrasts or default_contrasts(ds)
    ]
    for at, second in enumerate(contrasts):
        for first in contrasts[:at]:
            check_shared(first, second, shared=spec.shared)
    return contrasts


def _rows(
    coords: dict[str, NDArray[np.str_]],
    texts: NDArray[np.str_],
    selector: TextSelector,
    *,
    seed: int,
) -> NDArray[np.int64]:
    chosen = np.ones(texts.size, dtype=bool)
    for name in COORDS:
        value = getattr(selector, name)
        if value is not None:
            chosen &= coords[name] == value
    rows = np.flatnonzero(chosen)
    if selector.half is None:
        return rows
    # By id and not by place: every run of a corpus has the same halves.
    ordered = rows[np.argsort(texts[rows])]
    shuffled = np.random.default_rng(seed).permutation(ordered)
    return np.sort(shuffled[selector.half - 1 :: 2])
