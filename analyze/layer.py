"""The probes of one layer: everything that is computed from one (text, hidden) matrix."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ..schemas import ProbeMethod, ProbeSpec, RandomSpec, Reliability
from .auroc import Floats
from .evaluate import Estimate, HeldOut, compare_with_words, measure, recall_at_fpr
from .halves import reliabilities
from .nulls import drawn_aurocs, isotropic_directions, random_scores, separation_sd
from .parts import Activations
from .probes import FoldFit, LinearProbe, Tuning, fit_fold
from .rowspace import PairSpace
from .splits import Fold, Folds, PairTable

__all__ = ["LayerJob", "LayerResult", "MethodResult", "ProbePart"]


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
    AUROC and d′ of every outer fold; ``inner_split`` the same for the train split. ``neutral``
    (fold, neutral text) are the neutral texts' scores by the probe of every fold, and
    ``neutral_split`` (neutral text,) by the one of the train split.
    """

    scores: Floats
    test_scores: Floats
    inner: Floats
    inner_split: Floats
    neutral: Floats
    neutral_split: Floats
    fitted: FoldFit
    separation: float
    reliability: Reliability | None
    estimates: tuple[list[Estimate], ...]  # per held-out set, of the CV, then of the test split


@dataclass(frozen=True)
class LayerResult:
    """All results of one (pool, layer)."""

    pool: str
    layer: int
    methods: dict[str, MethodResult]
    null: Floats  # dims (held-out set, draw)
    sd_formula: tuple[float | None, ...]


@dataclass(frozen=True)
class ProbePart:
    """The probes and the isotropic null of a layer, as one part of what is read from it."""

    records: ClassVar[tuple[type, ...]] = (
        LayerResult, MethodResult, FoldFit, LinearProbe, Reliability,
    )  # fmt: skip

    job: LayerJob

    def fit(self, layer: Activations) -> LayerResult:
        """Return probes, held-out estimates and the isotropic null of one layer."""
        job, x, space = self.job, layer.pairs, layer.space
        held = (*job.held, *job.held_test)
        directions = isotropic_directions(
            job.random.n_directions, x.shape[-1], seed=job.random.seed
        )
        methods = {method: _fit_method(layer, job, method=method) for method in job.spec.methods}
        drawn = random_scores(layer.values, job.table.rows, directions)
        return LayerResult(
            pool=layer.pool,
            layer=layer.layer,
            methods=_with_reliability(methods, x, space, job),
            null=drawn_aurocs(drawn, members=[of.pairs for of in held]),
            sd_formula=tuple(separation_sd(x[:, of.pairs]) for of in held),
        )


def _fit_method(layer: Activations, job: LayerJob, *, method: ProbeMethod) -> MethodResult:
    """Cross-validate one method, and fit it on the train split.

    Features are standardised for the logistic probe alone; the others need no more than the
    coordinates of the row space.
    """
    x, space, neutral = layer.pairs, layer.space, layer.neutral
    raw = method == "logistic"
    points, controls = (x, neutral) if raw else (space.points, space.coordinates(neutral))
    options: dict[str, Any] = {
        "tuning": _tuning(job.spec),
        "hidden": space.hidden,
        "scatter_of": layer.scatter,
    }
    scores = np.full(x.shape[:2], np.nan)
    inner, controlled = [], []
    for fold in job.folds.folds:
        fit = fit_fold(points, fold, method=method, **options)
        scores[:, fold.test] = fit.probe.score(points[:, fold.test])
        inner.append((fit.inner_auroc, fit.inner_d_prime))
        controlled.append(fit.probe.score(controls))
    fitted = fit_fold(points, job.split, method=method, **options)
    test_scores = np.full(x.shape[:2], np.nan)
    test_scores[:, job.split.test] = fitted.probe.score(points[:, job.split.test])
    neutral_split = fitted.probe.score(controls)
    if not raw:
        fitted = replace(fitted, probe=space.lift(fitted.probe))
    means = x[:, job.split.train].mean(axis=1)
    by_fold = np.stack(controlled)
    return MethodResult(
        scores=scores,
        test_scores=test_scores,
        inner=np.array(inner),
        inner_split=np.array([(fitted.inner_auroc, fitted.inner_d_prime)]),
        neutral=by_fold,
        neutral_split=neutral_split,
        fitted=fitted,
        separation=float((means[0] - means[1]) @ fitted.probe.unit),
        reliability=None,
        estimates=(
            *(_judge(scores, of, by_fold) for of in job.held),
            *(_judge(test_scores, of, neutral_split[None]) for of in job.held_test),
        ),
    )


def _with_reliability(
    methods: dict[ProbeMethod, MethodResult], x: Floats, space: PairSpace, job: LayerJob
) -> dict[str, MethodResult]:
    """Return the results with the reliability of the directions fitted on the train split."""
    spec, train = job.spec, job.split.train
    fitted: dict[ProbeMethod, tuple[Floats, float | None]] = {}
    for method, of in methods.items():
        weight = of.fitted.probe.weight
        inside = weight if method == "logistic" or space.basis is None else weight @ space.basis
        fitted[method] = (inside, of.fitted.c if method == "logistic" else of.fitted.penalty)
    found = reliabilities(
        space.points[:, train],
        x[:, train],
        scenario=job.table.scenario[train],
        fitted=fitted,
        hidden=space.hidden,
        tuning=_tuning(spec),
        n_draws=spec.n_reliability,
        seed=spec.seed,
    )
    return {name: replace(of, reliability=found[name]) for name, of in methods.items()}


def _tuning(spec: ProbeSpec) -> Tuning:
    return Tuning(spec.c_grid, spec.lambda_grid, spec.shrinkage)


def _judge(scores: Floats, held: HeldOut, neutral: Floats) -> list[Estimate]:
    """Return all estimates of one held-out set; ``neutral`` has dims (fold, neutral text)."""
    mine = scores[:, held.pairs]
    estimates = compare_with_words(measure(mine, held), mine, held)
    if neutral.shape[1]:
        estimates.append(recall_at_fpr(mine, neutral, held))
    return estimates
