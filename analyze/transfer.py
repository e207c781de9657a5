"""A probe of one layer of one model on a layer of another, with every control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..schemas import MapMethod, TransferSpec
from .auroc import Floats, auroc, auroc_columns, auroc_interval, boundary_interval, mover_interval
from .bootstrap import PairWeights, bootstrap_auroc, percentile_interval
from .geometry_run import finite_rows
from .maps import (
    AffineMap,
    AnchorMaps,
    carry_probe,
    carry_vector,
    random_orthogonal_map,
)
from .nulls import null_p_value
from .probes import LinearProbe, fit_diff_means
from .schedule import one_blas_thread
from .splits import Fold, PairTable

__all__ = ["Fields", "TransferJob", "transfer_layer"]

Fields = dict[str, Any]  # of a TransferRow
NULL = "random source directions through the same map"
GRIDS = {"ridge": "ridge_grid", "cca": "cca_grid"}


@dataclass(frozen=True)
class TransferJob:
    """What every pair of layers of two runs shares.

    ``pairs`` index the pairs that are scored; ``weights`` are their bootstrap draws, ``words``
    their bag-of-words scores, dims (arm, pair), or None.
    """

    table: PairTable
    folds: tuple[Fold, ...]
    pairs: NDArray[np.int64]
    anchors: NDArray[np.int64]
    groups: NDArray[np.str_]
    texts: NDArray[np.str_]
    weights: PairWeights
    words: Floats | None
    spec: TransferSpec


def transfer_layer(
    source: NDArray[Any], target: NDArray[Any], job: TransferJob, *, where: tuple[str, str]
) -> list[Fields]:
    """Return the rows of one pair of layers.

    ``source`` and ``target`` have dims (text, hidden), the same texts row by row; the widths may
    differ. Probes are differences of means fitted on the training pairs of every fold in the
    source, carried to the target as covectors, and read on the target's held-out pairs. Where
    the anchors of a layer are all equal there is no map, and the rows say so.
    """
    for values, name in zip((source, target), where, strict=True):
        anchors = finite_rows(values, job.anchors, texts=job.texts, where=name)
        if not np.ptp(anchors, axis=0).any():
            reason = f"{name}: the anchors have equal activations, so there is nothing to map"
            nothing: Fields = {"metric": "auroc", "estimate": None, "reason": reason}
            return [nothing | {"map": method} for method in job.spec.maps]
    with one_blas_thread():
        return _Layer(source, target, job, where=where).rows()


class _Layer:
    """One pair of layers: its probes, its anchors and what they give."""

    def __init__(
        self,
        source: NDArray[Any],
        target: NDArray[Any],
        job: TransferJob,
        *,
        where: tuple[str, str],
    ) -> None:
        self.job, self.spec = job, job.spec
        pairs, anchors = [], []
        for values, name in zip((source, target), where, strict=True):
            paired = finite_rows(values, job.table.rows.ravel(), texts=job.texts, where=name)
            pairs.append(paired.reshape(2, job.table.n_pairs, -1))
            anchors.append(finite_rows(values, job.anchors, texts=job.texts, where=name))
        self.source, self.target = pairs
        self.probes = [fit_diff_means(self.source[:, fold.train]) for fold in job.folds]
        self.native = [fit_diff_means(self.target[:, fold.train]) for fold in job.folds]
        # A probe is carried by the map back, a vector by the map there.
        shared = {
            "groups": job.groups,
            "n_folds": self.spec.n_folds,
            "n_components": self.spec.n_components,
        }
        self.back = AnchorMaps(anchors[1], anchors[0], seed=self.spec.seed, **shared)  # type: ignore[arg-type]
        self.there = AnchorMaps(anchors[0], anchors[1], seed=self.spec.seed, **shared)  # type: ignore[arg-type]
        self.ceiling = self._scores(self.native)
        self.labels = np.repeat([True, False], job.pairs.size)

    def _scores(self, probes: Sequence[LinearProbe]) -> Floats:
        """Return held-out scores on the target of one probe per fold, dims (arm, pair)."""
        scores = np.full(self.target.shape[:2], np.nan)
        for fold, probe in zip(self.job.folds, probes, strict=True):
            scores[:, fold.test] = probe.score(self.target[:, fold.test])
        return scores[:, self.job.pairs]

    def _carried(self, back: AffineMap) -> Floats:
        return self._scores([carry_probe(back, probe) for probe in self.probes])

    def rows(self) -> list[Fields]:
        """Return all rows: the ceiling and the floor, then every map with its controls."""
        rows = [self._row(self.ceiling, map_="none", control="target_trained")]
        if self.job.words is not None:
            rows.append(self._row(self.job.words, map_="none", control="bag_of_words"))
        rows += self._without_anchors()
        for method in self.spec.maps:
            rows += self._map_rows(method)
        return rows

    def _row(self, scores: Floats, *, map_: str, control: str | None, **more: object) -> Fields:
        """Return the AUROC of held-out scores beside the ceiling and the bag of words."""
        area = auroc(scores.ravel(), self.labels)
        interval = self._interval(scores, area)
        row: Fields = {
            "metric": "auroc",
            "map": map_,
            "control": control,
            "estimate": area,
            "ci_low": interval.low,
            "ci_high": interval.high,
            "ci_method": interval.method or None,
            "boundary": interval.boundary,
            **more,
        }
        if control != "target_trained":
            best, low, high = self._difference(scores, self.ceiling)
            row |= {
                "ceiling_estimate": best,
                "ceiling_delta": area - best,
                "ceiling_delta_ci_low": low,
                "ceiling_delta_ci_high": high,
            }
        if self.job.words is not None and control != "bag_of_words":
            words, low, high = self._difference(scores, self.job.words)
            row |= {
                "bow_estimate": words,
                "bow_delta": area - words,
                "bow_delta_ci_low": low,
                "bow_delta_ci_high": high,
            }
        return row

    def _interval(self, scores: Floats, area: float) -> Any:  # noqa: ANN401
        """Return the bootstrap interval over pairs, or the boundary's at 0 and 1."""
        n = self.job.pairs.size
        if area in {0.0, 1.0}:
            return boundary_interval(area, n, n)
        if self.job.weights.shape[0] == 0:
            return auroc_interval(scores.ravel(), self.labels)
        return percentile_interval(bootstrap_auroc(scores, self.job.weights))

    def _difference(
        self, scores: Floats, other: Floats
    ) -> tuple[float, float | None, float | None]:
        """Return the other AUROC and the interval of the paired difference."""
        mine, theirs = (auroc(s.ravel(), self.labels) for s in (scores, other))
        if {mine, theirs} & {0.0, 1.0} or self.job.weights.shape[0] == 0:
            sides = [(a, self._interval(s, a)) for a, s in ((mine, scores), (theirs, other))]
            return theirs, *mover_interval(sides[0], sides[1])
        draws = bootstrap_auroc(scores, self.job.weights) - bootstrap_auroc(other, self.job.weights)
        interval = percentile_interval(draws)
        return theirs, interval.low, interval.high

    def _without_anchors(self) -> list[Fields]:
        """Return the controls that no correspondence of anchors enters."""
        source, target = self.back.target, self.back.source
        nothing = np.zeros((source.mean.size, 1)), np.zeros((1, target.mean.size))
        constant = AffineMap(*nothing, target.mean, source.mean)
        rows = [self._row(self._carried(constant), map_="mean", control="mean_only", map_r2=0.0)]
        if source.mean.size == target.mean.size:
            same = np.eye(source.mean.size)
            shift = AffineMap(same, same, target.mean, source.mean)
            scores = self._carried(shift)
            rows.append(self._row(scores, map_="identity", control="mean_shift"))
        rng = np.random.default_rng(self.spec.seed)
        areas = [
            auroc(
                self._carried(
                    random_orthogonal_map(
                        target, source, n_components=self.spec.n_components, rng=rng
                    )
                ).ravel(),
                self.labels,
            )
            for _ in range(self.spec.n_permuted)
        ]
        rows.append(_drawn(np.array(areas), map_="orthogonal", control="random_orthogonal"))
        return rows

    def _map_rows(self, method: MapMethod) -> list[Fields]:
        """Return the rows of one kind of map."""
        spec, rng = self.spec, np.random.default_rng(self.spec.seed)
        grid = getattr(spec, GRIDS[method]) if method in GRIDS else (0.0,)
        penalty = self.back.choose_penalty(method, grid)
        r2 = self.back.held_out_r2(method, grid)
        fitted = self.back.fit(method, penalty=penalty)
        scores = self._carried(fitted)
        random = self._random_sources(fitted, rng)
        more = {
            "map_r2": r2,
            "null": NULL,
            "n_draws": random.size,
            "p_value": null_p_value(auroc(scores.ravel(), self.labels), random),
        }
        if method != "procrustes":
            more["tuned"] = f"penalty {penalty:g} by grouped folds of the anchors"
        rows = [
            self._row(scores, map_=method, control=None, **more),
            _drawn(random, map_=method, control="random_source", map_r2=r2),
        ]
        permuted = [
            (
                auroc(
                    self._carried(self.back.fit(method, penalty=penalty, rng=rng)).ravel(),
                    self.labels,
                ),
                self.back.permuted_r2(method, penalty=penalty, rng=rng),
            )
            for _ in range(spec.n_permuted)
        ]
        areas, errors = (np.array(column) for column in zip(*permuted, strict=True))
        rows.append(
            _drawn(areas, map_=method, control="permuted_anchors", map_r2=float(errors.mean()))
        )
        return rows + self._vector_rows(method, grid, fitted, rng=rng)

    def _random_sources(self, back: AffineMap, rng: np.random.Generator) -> Floats:
        """Return the AUROCs of isotropic directions of the source through the map."""
        directions = rng.standard_normal((self.source.shape[2], self.spec.n_random))
        carried = back.right.T @ (back.left.T @ directions)
        scores = self.target[:, self.job.pairs] @ carried
        return auroc_columns(scores.reshape(self.labels.size, -1), self.labels)

    def _vector_rows(
        self, method: MapMethod, grid: Sequence[float], back: AffineMap, *, rng: np.random.Generator
    ) -> list[Fields]:
        """Return what becomes of the steering vector: its cosine with the target's own."""
        train = self.job.folds[0].train if len(self.job.folds) == 1 else slice(None)
        of_source, of_target = (fit_diff_means(x[:, train]) for x in (self.source, self.target))
        penalty = self.there.choose_penalty(method, grid)
        fitted = self.there.fit(method, penalty=penalty)
        vector = carry_vector(fitted, of_source.weight)
        permuted = [
            _cosine(
                carry_vector(self.there.fit(method, penalty=penalty, rng=rng), of_source.weight),
                of_target.weight,
            )
            for _ in range(self.spec.n_permuted)
        ]
        null = np.array([value for value in permuted if value is not None])
        cosine = _cosine(vector, of_target.weight)
        row: Fields = {
            "metric": "vector_cosine",
            "map": method,
            "estimate": cosine,
            "reason": None if cosine is not None else "a direction has no length",
            "map_r2": self.there.held_out_r2(method, grid),
        }
        if cosine is not None and null.size:
            reached = int((np.abs(null) >= abs(cosine) - 1e-12).sum())
            row |= {
                "null": "permuted anchors",
                "n_draws": null.size,
                "p_value": (1 + reached) / (1 + null.size),
            }
        covector = carry_probe(back, of_source).weight
        agreement = _cosine(vector, covector)
        return [
            row,
            {
                "metric": "vector_covector_cosine",
                "map": method,
                "estimate": agreement,
                "reason": None if agreement is not None else "a direction has no length",
            },
        ]


def _cosine(a: Floats, b: Floats) -> float | None:
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length > 0 else None


def _drawn(areas: Floats, *, map_: str, control: str, **more: object) -> Fields:
    """Return the row of a control that is drawn many times: mean and quantiles of its AUROC."""
    low, high = np.quantile(areas, [0.025, 0.975])
    return {
        "metric": "auroc",
        "map": map_,
        "control": control,
        "estimate": float(areas.mean()),
        "ci_low": float(low),
        "ci_high": float(high),
        "ci_method": "mean and quantiles of the draws",
        "n_draws": areas.size,
        **more,
    }
