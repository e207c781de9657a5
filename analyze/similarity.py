"""How alike two sets of activations of the same texts are: debiased CKA and RSA."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from ..schemas import InvalidInputError
from .auroc import Floats

__all__ = [
    "biased_cka",
    "debiased_cka",
    "distance_ranks",
    "jackknife_interval",
    "rsa",
    "u_centred",
]

MIN_TEXTS = 4  # below, the unbiased estimate of HSIC does not exist


def u_centred(x: Floats) -> Floats:
    """Return the U-centred linear Gram matrix of ``x`` (text, hidden), dims (text, text).

    The diagonal is zero and every row sums to zero, so that ⟨K̃, L̃⟩/(n(n − 3)) is the unbiased
    HSIC of Song et al. 2012 (JMLR 13:1393, eq. 5), in the form of Székely & Rizzo 2014
    (doi 10.1214/14-AOS1255, eq. 3.2).
    """
    n = len(x)
    if n < MIN_TEXTS:
        msg = f"debiased CKA needs {MIN_TEXTS} texts or more, got {n}"
        raise InvalidInputError(msg)
    centred = x - x.mean(axis=0)
    gram = centred @ centred.T
    np.fill_diagonal(gram, 0.0)
    rows = gram.sum(axis=1) / (n - 2)
    result: Floats = gram - rows[:, None] - rows + rows.sum() / (n - 1)
    np.fill_diagonal(result, 0.0)
    return result


def debiased_cka(x: Floats, y: Floats) -> float:
    """Return the debiased linear CKA of ``x`` and ``y``, each (text, hidden) of the same texts.

    Kornblith et al. 2019 (arXiv 1905.00414) with the unbiased HSIC, as Murphy et al. 2024
    (arXiv 2405.01012) have it: about 0, and sometimes below, for independent activations of any
    width, where the biased one rises with hidden/text. NaN where one of the two is constant.
    """
    a, b = _same_texts(x, y)
    k, l_ = u_centred(a), u_centred(b)
    norm = float(np.linalg.norm(k) * np.linalg.norm(l_))
    return float((k * l_).sum()) / norm if norm > 0 else float("nan")


def biased_cka(x: Floats, y: Floats) -> float:
    """Return the linear CKA of Kornblith et al. 2019 (eq. 4), to show what it is not."""
    a, b = (values - values.mean(axis=0) for values in _same_texts(x, y))
    k, l_ = a @ a.T, b @ b.T
    return float((k * l_).sum() / (np.linalg.norm(k) * np.linalg.norm(l_)))


def distance_ranks(x: Floats) -> Floats:
    """Return the standardised ranks of the distances between texts, dims (pair of texts,).

    Euclidean distances, which a rotation, a shift and a change of scale leave in their order.
    """
    centred = x - x.mean(axis=0)
    gram = centred @ centred.T
    squares = np.diag(gram)
    upper = np.triu_indices(len(x), k=1)
    ranks = rankdata((squares[:, None] + squares - 2 * gram)[upper])
    ranks -= ranks.mean()
    length = float(np.linalg.norm(ranks))
    result: Floats = ranks / length if length > 0 else np.full_like(ranks, np.nan)
    return result


def rsa(x: Floats, y: Floats) -> float:
    """Return the Spearman correlation of the distances between texts in ``x`` and in ``y``.

    Representational similarity analysis (Kriegeskorte et al. 2008,
    doi 10.3389/neuro.06.004.2008). NaN where one of the two is constant.
    """
    a, b = _same_texts(x, y)
    return float(distance_ranks(a) @ distance_ranks(b))


def jackknife_interval(
    estimate: NDArray[np.float64], left_out: NDArray[np.float64], *, z: float = 1.959964
) -> tuple[Floats, Floats]:
    """Return the interval ``estimate`` ± z·se, clipped to [−1, 1] (Efron & Stein 1981).

    ``left_out`` has one more dimension in front, (group, ...): the estimates without each group.
    """
    n = len(left_out)
    spread = ((left_out - left_out.mean(axis=0)) ** 2).sum(axis=0)
    half = z * np.sqrt((n - 1) / n * spread)
    return (estimate - half).clip(-1, 1), (estimate + half).clip(-1, 1)


def _same_texts(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b):
        msg = (
            f"expected two arrays (text, hidden) of the same texts, got shapes {a.shape} and "
            f"{b.shape}; open the runs with open_runs"
        )
        raise InvalidInputError(msg)
    return a, b
