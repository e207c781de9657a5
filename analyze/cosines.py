"""Cosines between directions: nulls, reliabilities, and what they are without noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy.special import ndtri

from ..schemas import InvalidInputError
from .auroc import Floats
from .contrasts import (
    Contrast,
    bootstrap_weights,
    check_shared,
    deleted_weights,
    half_weights,
    permuted_weights,
)
from .inner_products import Space

__all__ = [
    "NO_DIRECTION",
    "Fields",
    "contrast_cosines",
    "contrast_reliabilities",
    "disattenuate",
    "spearman_brown",
    "vector_cosines",
]

Fields = dict[str, Any]  # of a GeometryRow
JACKKNIFE = "jackknife over pairs or texts, Fisher scale"
NO_DIRECTION = "the class means are equal: there is no direction"
TINY = 1e-20  # of the mean squared length of a text: a shorter direction is rounding


def spearman_brown(cosine: float) -> float:
    """Return the reliability of a whole from the agreement of its halves, 2r/(1 + r)."""
    return 2 * cosine / (1 + cosine)


def disattenuate(cosine: float, first: float | None, second: float | None) -> tuple[Any, Any]:
    """Return (cosine/√(r₁r₂), None), or (None, why not) (Spearman 1904).

    Above 1 the reliabilities are too small to divide by; the number is kept as it is.
    """
    if first is None or second is None:
        return None, "a reliability is missing"
    if min(first, second) <= 0:
        return None, f"a reliability is not positive ({first:.3g}, {second:.3g})"
    return cosine / np.sqrt(first * second), None


def _lengths(weights: Floats, gram: Floats) -> Floats:
    squared = np.einsum("bt,bt->b", weights @ gram, weights)
    result: Floats = np.sqrt(squared.clip(min=0))
    return result


def _cosines(first: Floats, second: Floats, gram: Floats) -> Floats:
    """Return the cosines of weighted sums, draw by draw; NaN where one has no length."""
    floor = np.sqrt(TINY * max(float(np.trace(gram)) / len(gram), 0.0))
    a, b = _lengths(first, gram), _lengths(second, gram)
    inner = np.einsum("bt,bt->b", first @ gram, second)
    there = (a > floor) & (b > floor)
    result: Floats = np.divide(inner, a * b, out=np.full(inner.size, np.nan), where=there)
    return result.clip(-1, 1)


def _mean_or_none(values: Floats) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None


def contrast_reliabilities(
    contrasts: Sequence[Contrast],
    space: Space,
    *,
    n_splits: int,
    n_bootstrap: int,
    seed: int,
) -> tuple[dict[str, float | None], list[Fields]]:
    """Return the reliability of each contrast and its rows.

    ``split_half_cosine`` is the mean cosine of the directions of two disjoint halves over
    ``n_splits`` random halvings; ``reliability`` its Spearman-Brown value, that of the whole;
    ``bootstrap_cosine`` the mean cosine of a bootstrap direction with the direction.
    """
    found: dict[str, float | None] = {}
    rows: list[Fields] = []
    for contrast in contrasts:
        rng = np.random.default_rng(seed)
        halves = half_weights(contrast, n_draws=n_splits, rng=rng)
        half = _mean_or_none(_cosines(*halves, space.gram))
        whole = None if half is None or half <= -1 else spearman_brown(half)
        drawn = bootstrap_weights(contrast, n_draws=n_bootstrap, rng=rng)
        again = _cosines(drawn, np.broadcast_to(contrast.weights, drawn.shape), space.gram)
        found[contrast.name] = whole
        spread = (
            np.quantile(again[np.isfinite(again)], [0.025, 0.975])
            if np.isfinite(again).any()
            else None
        )
        for metric, value, draws in (
            ("split_half_cosine", half, n_splits),
            ("reliability", whole, n_splits),
            ("bootstrap_cosine", _mean_or_none(again), n_bootstrap),
        ):
            row: Fields = {
                "metric": metric,
                "contrast": contrast.name,
                "space": space.name,
                "estimate": value,
                "reason": None if value is not None else NO_DIRECTION,
                "n_draws": draws,
                "n_texts": contrast.members.size,
            }
            if metric == "bootstrap_cosine" and spread is not None:
                row |= {
                    "ci_low": float(spread[0]),
                    "ci_high": float(spread[1]),
                    "ci_method": "quantiles of the bootstrap cosines",
                }
            rows.append(row)
    return found, rows


def contrast_cosines(
    contrasts: Sequence[Contrast],
    space: Space,
    *,
    reliabilities: Mapping[str, float | None],
    n_permutations: int,
    shared: str,
    seed: int,
) -> Iterator[Fields]:
    """Yield the rows of the cosines between every two contrasts in one coordinate system.

    The null permutes the labels of both contrasts; p is two-sided about the cosine that the
    construction alone gives, (1 + b)/(1 + B). The coordinates are held fixed throughout.

    Raises
    ------
    InvalidInputError
        If two contrasts share texts and ``shared`` is ``refuse``.
    """
    for first, second in combinations(contrasts, 2):
        built, n_shared = check_shared(first, second, shared=shared)
        mine = first.weights[None], second.weights[None]
        cosine = float(_cosines(*mine, space.gram)[0])
        head: Fields = {
            "metric": "cosine",
            "contrast": first.name,
            "other": second.name,
            "space": space.name,
            "construction": built,
            "n_shared": n_shared,
            "isotropic_sd": space.hidden**-0.5,
            "reliability": reliabilities.get(first.name),
            "reliability_other": reliabilities.get(second.name),
            "n_texts": np.union1d(first.members, second.members).size,
        }
        if not np.isfinite(cosine):
            yield head | {"estimate": None, "reason": NO_DIRECTION}
            continue
        rng = np.random.default_rng(seed)
        of_first, of_second = permuted_weights([first, second], n_draws=n_permutations, rng=rng)
        null = _cosines(of_first, of_second, space.gram)
        null = null[np.isfinite(null)]
        reached = int((np.abs(null - built) >= abs(cosine - built) - 1e-12).sum())
        value, why = disattenuate(cosine, head["reliability"], head["reliability_other"])
        if n_shared:
            value, why = None, "the contrasts share texts, and their noise with them"
        yield (
            head
            | _jackknife(first, second, space.gram, cosine=cosine)
            | {
                "estimate": cosine,
                "null": "permuted labels",
                "n_draws": null.size,
                "null_mean": float(null.mean()) if null.size else None,
                "null_sd": float(null.std(ddof=1)) if null.size > 1 else None,
                "p_value": (1 + reached) / (1 + null.size),
                "disattenuated": value,
                "disattenuated_reason": why,
                "verdict": _verdict(built, n_shared, space),
            }
        )


def _verdict(built: float, n_shared: int, space: Space) -> str | None:
    note = [space.note] if space.note else []
    if n_shared:
        note.append(
            f"trap: {n_shared} texts stand in both contrasts, which alone gives {built:+.2f}"
        )
    return "; ".join(note) or None


def _jackknife(first: Contrast, second: Contrast, gram: Floats, *, cosine: float) -> Fields:
    """Return the interval of a cosine from leaving out one unit in turn (Efron & Stein 1981).

    Not the bootstrap: a sample with repeated texts has noisier directions, whose cosines are
    smaller.
    """
    left_out = _cosines(*deleted_weights(first, second), gram)
    finite = np.isfinite(left_out) & (np.abs(left_out) < 1)
    if abs(cosine) >= 1 or finite.sum() < max(3, left_out.size // 2):
        return {"ci_method": "none: leaving out one unit in turn leaves no direction"}
    z = np.arctanh(left_out[finite])
    n = z.size
    half = float(ndtri(0.975)) * np.sqrt((n - 1) / n * ((z - z.mean()) ** 2).sum())
    low, high = np.tanh(np.arctanh(cosine) + np.array([-half, half]))
    return {"ci_low": float(low), "ci_high": float(high), "ci_method": JACKKNIFE}


def vector_cosines(vectors: Mapping[str, Floats]) -> Iterator[Fields]:
    """Yield the cosines between finished directions, whose texts are not known.

    ``vectors`` are of one layer, each (hidden,). There is no reliability, no null but the
    isotropic one (sd 1/√d), and no telling whether they were built from the same texts.

    Raises
    ------
    InvalidInputError
        If their widths differ, or one has no length.
    """
    widths = {name: np.asarray(v).shape for name, v in vectors.items()}
    if len(set(widths.values())) > 1:
        msg = f"directions of unlike widths cannot be compared: {widths}; map one to the other"
        raise InvalidInputError(msg)
    units = {}
    for name, vector in vectors.items():
        length = float(np.linalg.norm(vector))
        if not length > 0:
            msg = f"direction {name!r} has length {length}; expected a vector that is not zero"
            raise InvalidInputError(msg)
        units[name] = np.asarray(vector, dtype=np.float64) / length
    for (first, a), (second, b) in combinations(units.items(), 2):
        cosine, hidden = float(a @ b), a.size
        yield {
            "metric": "cosine",
            "contrast": first,
            "other": second,
            "space": "raw",
            "estimate": cosine,
            "isotropic_sd": hidden**-0.5,
            "ci_method": "none: the texts of the directions are not known",
            "null": "isotropic",
            "disattenuated_reason": "the texts of the directions are not known",
            "verdict": "not checked for texts in common",
        }
