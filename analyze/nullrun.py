"""The null distributions of a run: is there signal, and does a probe beat an arbitrary readout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from ..schemas import NullKind, NullSpec, ProbeMethod, ProbeSpec, ResultRow, Text
from .auroc import Floats, auroc_interval
from .design import Design, make_design
from .flips import LINEAR_METHODS, draw_flips, flip_scores
from .logistic_flips import logistic_flip_scores
from .nulls import (
    covariance_matched_scores,
    drawn_aurocs,
    isotropic_directions,
    max_over_layers,
    null_band,
    null_p_value,
    random_scores,
    signal_p_value,
)
from .parts import Activations, run_part
from .probes import Tuning
from .splits import Fold
from .table import OVER_LAYERS, plain_strings, rows_frame

__all__ = ["NullLayer", "NullPart", "NullResult", "null_part", "null_run", "null_tables"]

REFIT: NullKind = "label_flip_refit"
BAND_COLUMNS = (
    "run", "model", "site", "pool", "layer", "depth", "method", "subset", "cv", "null",
    "n_draws", "mean", "sd", "q025", "q50", "q975", "max", "max_folded", "share_above_95",
    "share_above_95_folded", "reason", "n_texts", "n_pairs", "n_scenarios", "n_generators",
    "groups", "token_mask", "template_digest", "dtype", "dataset_digest", "split_digest", "seed",
    "code_version", "store_url", "content_digest",
)  # fmt: skip

Draws: TypeAlias = dict[tuple[NullKind, str | None], Floats]


@dataclass(frozen=True)
class NullResult:
    """``rows`` have the fields of ResultRow, one per null; ``bands`` describe every null."""

    rows: pd.DataFrame
    bands: pd.DataFrame


@dataclass(frozen=True)
class NullLayer:
    """One layer: held-out scores by method, and the draws by null (and method), (subset, draw)."""

    scores: dict[str, Floats]
    observed: dict[str, Floats]
    draws: Draws


@dataclass(frozen=True)
class NullPart:
    """All nulls of a layer."""

    records: ClassVar[tuple[type, ...]] = (NullLayer,)

    folds: tuple[Fold, ...]
    members: tuple[NDArray[np.int64], ...]
    methods: tuple[ProbeMethod, ...]
    tuning: Tuning
    spec: NullSpec
    n_logistic: int = 0

    def fit(self, layer: Activations) -> NullLayer:
        """Return observed AUROCs and draws; the same draws in every layer of a width."""
        spec, space, table = self.spec, layer.space, layer.table
        refit = REFIT in spec.kinds
        signs = draw_flips(table.n_pairs, n_draws=spec.n_draws if refit else 0, seed=spec.seed)
        scores = flip_scores(
            space.points,
            self.folds,
            signs,
            methods=self.methods,
            tuning=self.tuning,
            hidden=space.hidden,
            scatter_of=layer.scatter,
        )
        if self.n_logistic and refit:
            few = signs[:, : 1 + self.n_logistic]
            scores["logistic"] = logistic_flip_scores(
                layer.pairs, self.folds, few, c_grid=self.tuning.c_grid
            )
        draws: Draws = {}
        observed = {}
        for method, of in scores.items():
            areas = drawn_aurocs(of, members=self.members)
            observed[str(method)] = areas[:, 0]
            if refit:
                draws[REFIT, method] = areas[:, 1:]
        if "isotropic" in spec.kinds:
            directions = isotropic_directions(spec.n_draws, space.hidden, seed=spec.seed)
            drawn = random_scores(layer.values, table.rows, directions)
            draws["isotropic", None] = drawn_aurocs(drawn, members=self.members)
        if "covariance_matched" in spec.kinds:
            matched = covariance_matched_scores(space.points, n_draws=spec.n_draws, seed=spec.seed)
            draws["covariance_matched", None] = drawn_aurocs(matched, members=self.members)
        kept = {str(method): of[..., 0] for method, of in scores.items()}
        return NullLayer(kept, observed, draws)


def null_run(
    ds: xr.Dataset,
    texts: Sequence[Text],
    *,
    spec: NullSpec,
    probe: ProbeSpec,
    site: str | None = None,
    scheduler: str | None = None,
) -> NullResult:
    """Return the nulls of every layer and pool of a run, beside the probes' held-out AUROC.

    Every row names its null. ``p_value`` is (1 + b)/(1 + B); ``p_value_max`` compares with the
    largest of the same draw over the layers of the pool (Westfall & Young), which is the one to
    read when a layer was picked. The logistic probe has no closed form to refit by: it has the
    ``logistic_draws`` that were asked for, and with none its row says so; ridge is its counterpart.

    Parameters
    ----------
    ds
        An opened run.
    texts
        The corpus of the run.
    spec
        Which nulls, how many draws.
    probe
        Methods, pools, folds and grids.
    site
        None takes ``resid_post``, or the run's first site.
    scheduler
        As for :func:`probe_run`.

    Raises
    ------
    InvalidInputError
        If there are fewer than two scenarios, one class, no complete pair, or rows with NaN.
    NotFoundError
        If a site, a pool or a text of the corpus is missing.
    """
    design = make_design(ds, texts, spec=probe, site=site)
    part = null_part(design, spec=spec, probe=probe)
    layers = run_part(
        ds, part, design.table, site=design.site, pools=design.pools, scheduler=scheduler
    )
    return null_tables(design, layers, spec, probe=probe)


def null_part(design: Design, *, spec: NullSpec, probe: ProbeSpec) -> NullPart:
    """Return what every layer computes."""
    return NullPart(
        folds=design.folds.folds,
        members=design.members,
        methods=tuple(m for m in LINEAR_METHODS if m in probe.methods),
        tuning=Tuning(probe.c_grid, probe.lambda_grid, probe.shrinkage),
        spec=spec,
        n_logistic=spec.logistic_draws if "logistic" in probe.methods else 0,
    )


def null_tables(
    design: Design,
    layers: Mapping[tuple[str, int], NullLayer],
    spec: NullSpec,
    *,
    probe: ProbeSpec,
) -> NullResult:
    """Return the rows and bands of all layers."""
    rows = [row for pool in design.pools for row in _rows(design, layers, spec, pool=pool)]
    refitted = next(iter(layers.values())).observed
    rows += [_not_refitted(design, method) for method in probe.methods
             if method not in refitted and REFIT in spec.kinds]  # fmt: skip
    bands = [band for pool in design.pools for band in _bands(design, layers, pool=pool)]
    frame = pd.DataFrame(bands, columns=list(BAND_COLUMNS))
    typed = frame.astype({"layer": "Int64", "depth": "float64"})
    return NullResult(rows_frame(rows), plain_strings(typed))


def _draws(layer: NullLayer, kind: NullKind, method: str) -> Floats:
    """Return the draws that a method is compared with: its own refits, or the readouts."""
    return layer.draws[kind, method if kind == REFIT else None]


def _maximum(layers: Sequence[Floats], kind: NullKind) -> Floats:
    """Return each draw's largest AUROC over layers; random readouts have no sign."""
    if kind == REFIT:
        result: Floats = np.stack(layers).max(axis=0)
        return result
    return max_over_layers(layers)


def _rows(
    design: Design, layers: Mapping[tuple[str, int], NullLayer], spec: NullSpec, *, pool: str
) -> Iterator[ResultRow]:
    """Yield one row per null, method, layer and subset of a pool."""
    provenance = design.provenance()
    of_pool = [layers[pool, layer] for layer in design.layers]
    labels = {name: np.repeat([True, False], p.size) for name, p in design.subsets.items()}
    for method in of_pool[0].observed:
        for k, (subset, pairs) in enumerate(design.subsets.items()):
            for kind in spec.kinds:
                p_value = signal_p_value if kind == REFIT else null_p_value
                maxima = _maximum([_draws(of, kind, method)[k] for of in of_pool], kind)
                for layer, of in zip(design.layers, of_pool, strict=True):
                    area = float(of.observed[method][k])
                    scores = of.scores[method][:, pairs].ravel()
                    interval = auroc_interval(scores, labels[subset])
                    yield ResultRow(
                        **provenance,
                        **design.counts(subset),
                        **design.place(pool, layer),
                        analysis="null",
                        metric="auroc",
                        method=method,
                        estimate=area,
                        ci_low=interval.low,
                        ci_high=interval.high,
                        ci_method=interval.method,
                        boundary=interval.boundary,
                        reason=interval.reason,
                        null=kind,
                        n_draws=_draws(of, kind, method)[k].size,
                        p_value=p_value(area, _draws(of, kind, method)[k]),
                        p_value_max=p_value(area, maxima),
                    )


def _not_refitted(design: Design, method: str) -> ResultRow:
    """Return the row that says why a method has no refits."""
    return ResultRow(
        **design.provenance(),
        **design.counts("all"),
        analysis="null",
        metric="auroc",
        site=design.site,
        method=method,
        null=REFIT,
        estimate=None,
        reason=(
            f"{method} has no closed form to refit for every draw, and no refits were asked for "
            "(logistic_draws is 0); ridge is its counterpart"
        ),
    )


def _bands(
    design: Design, layers: Mapping[tuple[str, int], NullLayer], *, pool: str
) -> Iterator[dict[str, Any]]:
    """Yield the description of every null of a pool: per layer, and over all layers."""
    provenance = design.provenance()
    of_pool = [layers[pool, layer] for layer in design.layers]
    for kind, method in of_pool[0].draws:
        for k, subset in enumerate(design.subsets):
            which = {**provenance, "method": method, **design.counts(subset)}
            stacked = [of.draws[kind, method][k] for of in of_pool]
            for layer, draws in zip(design.layers, stacked, strict=True):
                yield {**which, **design.place(pool, layer), "null": kind, **null_band(draws)}
            yield {
                **which,
                **design.place(pool, design.layers[0]),
                "layer": None,
                "depth": None,
                "reason": OVER_LAYERS,
                "null": f"max_over_layers ({kind})",
                **null_band(_maximum(stacked, kind)),
            }
