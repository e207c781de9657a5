"""The probe job of one layer: everything that is computed from one (text, hidden) matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..schemas import InvalidInputError, ProbeSpec, RandomSpec
from .auroc import Floats
from .evaluate import Estimate, HeldOut, compare_with_words, measure
from .nulls import isotropic_aurocs, isotropic_directions, separation_sd
from .probes import FoldFit, fit_fold
from .schedule import one_blas_thread
from .splits import Fold, Folds, PairTable

__all__ = ["LayerJob", "LayerResult", "MethodResult", "fit_layer", "paired_activations"]


@dataclass(frozen=True)
class LayerJob:
    """What every layer of a run shares: pairs, folds, held-out sets and specs."""

    table: PairTable
    folds: Folds
    split: Fold
    held: tuple[HeldOut, ...]  # of the cross-validation
    held_test: tuple[HeldOut, ...]  # of the train-to-test split; empty without test pairs
    spec: ProbeSpec
    random: RandomSpec


@dataclass(frozen=True)
class MethodResult:
    """One probe method on one layer.

    ``scores`` are out-of-fold, ``test_scores`` of the probe fitted on split=train, both with
    dims (arm, pair), NaN where a pair was not held out. ``inner`` has dims (fold, 2): inner
    AUROC and d′ of every outer fold; ``inner_split`` the same for the train split.
    """

    scores: Floats
    test_scores: Floats
    inner: Floats
    inner_split: Floats
    fitted: FoldFit
    separation: float
    estimates: tuple[list[Estimate], ...]  # per held-out set, of the CV, then of the test split


@dataclass(frozen=True)
class LayerResult:
    """All results of one (pool, layer)."""

    pool: str
    layer: int
    methods: dict[str, MethodResult]
    null: Floats  # dims (held-out set, draw)
    sd_formula: tuple[float | None, ...]


def paired_activations(values: NDArray[Any], table: PairTable, *, where: str) -> Floats:
    """Return the activations of the pairs, dims (arm, pair, hidden), float64.

    Raises
    ------
    InvalidInputError
        If a row has NaN or infinite values; the texts are named.
    """
    x = np.asarray(values)[table.rows].astype(np.float64)
    broken = ~np.isfinite(x).all(axis=-1)
    if broken.any():
        names = table.texts[broken].tolist()
        msg = (
            f"{where}: {len(names)} of {broken.size} rows have NaN or infinite values, the first "
            f"are {names[:3]}; expected finite activations. Resume the run if it is not sealed, "
            "verify it, or leave out the texts that store.finite_texts says are not finite"
        )
        raise InvalidInputError(msg)
    return x


def fit_layer(values: NDArray[Any], job: LayerJob, *, pool: str, layer: int) -> LayerResult:
    """Return probes, held-out estimates and the isotropic null of one layer.

    ``values`` has dims (text, hidden), all rows of the run. Runs with one BLAS thread: layers
    are what is parallel.
    """
    with one_blas_thread():
        x = paired_activations(values, job.table, where=f"pool {pool}, layer {layer}")
        held = (*job.held, *job.held_test)
        directions = isotropic_directions(
            job.random.n_directions, x.shape[-1], seed=job.random.seed
        )
        return LayerResult(
            pool=pool,
            layer=layer,
            methods={method: _fit_method(x, job, method=method) for method in job.spec.methods},
            null=isotropic_aurocs(x, directions, members=[of.pairs for of in held]),
            sd_formula=tuple(separation_sd(x[:, of.pairs]) for of in held),
        )


def _fit_method(x: Floats, job: LayerJob, *, method: str) -> MethodResult:
    """Cross-validate one method, and fit it on the train split."""
    c_grid = job.spec.c_grid
    scores = np.full(x.shape[:2], np.nan)
    inner = []
    for fold in job.folds.folds:
        fit = fit_fold(x, fold, method=method, c_grid=c_grid)
        scores[:, fold.test] = fit.probe.score(x[:, fold.test])
        inner.append((fit.inner_auroc, fit.inner_d_prime))
    fitted = fit_fold(x, job.split, method=method, c_grid=c_grid)
    test_scores = np.full(x.shape[:2], np.nan)
    test_scores[:, job.split.test] = fitted.probe.score(x[:, job.split.test])
    means = x[:, job.split.train].mean(axis=1)
    return MethodResult(
        scores=scores,
        test_scores=test_scores,
        inner=np.array(inner),
        inner_split=np.array([(fitted.inner_auroc, fitted.inner_d_prime)]),
        fitted=fitted,
        separation=float((means[0] - means[1]) @ fitted.probe.unit),
        estimates=tuple(
            _judge(values, of)
            for values, sets in ((scores, job.held), (test_scores, job.held_test))
            for of in sets
        ),
    )


def _judge(scores: Floats, held: HeldOut) -> list[Estimate]:
    """Return all estimates of one held-out set."""
    mine = scores[:, held.pairs]
    return compare_with_words(measure(mine, held), mine, held)
