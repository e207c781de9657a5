"""Confounds of a run: surface features, control concepts and deconfounded probes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr

from ..schemas import BagOfWordsSpec, ConfoundSpec, ProbeSpec, ResultRow, Text
from .auroc import Floats, auroc, auroc_difference, auroc_interval
from .controls import ControlLabels, concept_scores, control_labels, mean_auroc
from .design import Design, make_design
from .evaluate import HeldOut, compare_with_words, held_out_sets, measure
from .parts import Activations, run_part
from .residual import Confounds, residual_scores
from .splits import Fold
from .surface import SURFACE_FEATURES, feature_scores, surface_features, surface_scores
from .table import rows_frame
from .words import bag_of_words_scores

__all__ = [
    "ConfoundLayer",
    "ConfoundPart",
    "ConfoundResult",
    "confound_part",
    "confound_run",
    "confound_tables",
]

METHOD = "diff_means"


@dataclass(frozen=True)
class ConfoundResult:
    """``rows`` have the fields of ResultRow: analyses surface, control and residual."""

    rows: pd.DataFrame


@dataclass(frozen=True)
class ConfoundLayer:
    """One layer: scores before and after residualising, and every control concept's scores."""

    raw: Floats
    residual: Floats
    n_empty: int
    controls: dict[str, Floats]


@dataclass(frozen=True)
class ConfoundPart:
    """The control concepts and the deconfounded probe of a layer."""

    records: ClassVar[tuple[type, ...]] = (ConfoundLayer,)

    folds: tuple[Fold, ...]
    fold_of_pair: np.ndarray[Any, np.dtype[np.int64]]
    controls: tuple[ControlLabels, ...]
    confounds: Confounds

    def fit(self, layer: Activations) -> ConfoundLayer:
        """Return the held-out scores of one layer."""
        points = layer.space.points
        arms = layer.table.labels[:, None]
        residual, n_empty = residual_scores(points, self.confounds, self.folds)
        return ConfoundLayer(
            raw=concept_scores(points, arms, self.fold_of_pair).reshape(2, -1),
            residual=residual,
            n_empty=n_empty,
            controls={
                of.concept: concept_scores(points, of.labels, of.fold_of_pair)
                for of in self.controls
                if of.reason is None
            },
        )


def confound_run(
    ds: xr.Dataset,
    texts: Sequence[Text],
    *,
    spec: ConfoundSpec,
    probe: ProbeSpec,
    bow: BagOfWordsSpec,
    site: str | None = None,
    scheduler: str | None = None,
) -> ConfoundResult:
    """Return what could explain a probe's AUROC beside the concept, for every layer and pool.

    Rows of analysis ``surface`` are of text features alone (no activations); of ``control`` the
    same difference-of-means probe on other labels of the same texts, where the row of the concept
    ``arm`` carries the selectivity; of ``residual`` the probe before (``auroc_raw``) and after
    (``auroc_residualised``) length, markdown, first person, generator and scenario were regressed
    out of activations and labels inside the training folds, with their paired difference.

    Parameters
    ----------
    ds
        An opened run.
    texts
        The corpus of the run.
    spec
        Control concepts, and what is regressed out.
    probe
        Pools and folds.
    bow
        The bag of words that stands beside every AUROC.
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
    part = confound_part(design, spec=spec)
    layers = run_part(
        ds, part, design.table, site=design.site, pools=design.pools, scheduler=scheduler
    )
    return confound_tables(design, layers, part, bow=bow)


def confound_part(design: Design, *, spec: ConfoundSpec) -> ConfoundPart:
    """Return what every layer computes."""
    table, features = design.table, surface_features(design.responses)
    columns = [SURFACE_FEATURES.index(n) for n in spec.residualise if n in SURFACE_FEATURES]
    categories = {"generator": table.generator, "scenario": table.scenario}
    return ConfoundPart(
        folds=design.folds.folds,
        fold_of_pair=design.folds.fold_of_pair,
        controls=tuple(control_labels(design, features, spec=spec)),
        confounds=Confounds(
            features[:, columns],
            [np.tile(values, 2) for n, values in categories.items() if n in spec.residualise],
        ),
    )


def confound_tables(
    design: Design,
    layers: Mapping[tuple[str, int], ConfoundLayer],
    part: ConfoundPart,
    *,
    bow: BagOfWordsSpec,
) -> ConfoundResult:
    """Return the rows of all layers, those of the texts alone first."""
    features = surface_features(design.responses)
    folds = design.folds
    surface = surface_scores(features, folds.folds)
    held = held_out_sets(
        design.table,
        folds.held_out,
        cv=folds.scheme,
        fold=folds.fold_of_pair,
        words=bag_of_words_scores(design.responses, folds.folds, spec=bow),
        surface=surface,
        n_bootstrap=0,
        seed=design.seed,
    )
    named = {"surface_logistic": surface} | {
        name: feature_scores(features[:, k], folds.folds) for k, name in enumerate(SURFACE_FEATURES)
    }
    rows = list(_surface_rows(design, held, named))
    for (pool, layer), found in layers.items():
        place = design.place(pool, layer)
        rows.extend(_control_rows(design, found, part, place))
        rows.extend(_residual_rows(design, found, held, place))
    return ConfoundResult(rows_frame(rows))


def _surface_rows(
    design: Design, sets: Sequence[HeldOut], named: dict[str, Floats]
) -> Iterator[ResultRow]:
    """Yield the metrics of the surface features, together and one by one."""
    provenance = design.provenance()
    for held in sets:
        for method, scores in named.items():
            mine = scores[:, held.pairs]
            for estimate in compare_with_words(measure(mine, held), mine, held):
                yield ResultRow(
                    **provenance,
                    **design.counts(held.subset),
                    analysis="surface",
                    method=method,
                    **estimate,
                )


def _control_rows(
    design: Design, found: ConfoundLayer, part: ConfoundPart, place: dict[str, Any]
) -> Iterator[ResultRow]:
    """Yield the AUROC of every control concept on one layer, and the concept's selectivity."""
    shared: dict[str, Any] = {
        **design.provenance(), **design.counts("all"), **place,
        "analysis": "control", "metric": "auroc", "method": METHOD,
    }  # fmt: skip
    arms = design.table.labels
    estimates: dict[str, float | None] = {}
    for of in part.controls:
        fields = {**shared, "concept": of.concept, "cv": of.cv}
        scores = found.controls.get(of.concept)
        area = None if scores is None else mean_auroc(scores, of.labels)
        estimates[of.concept] = area
        if scores is None or area is None:
            reason = of.reason or "no fold has both values of the label"
            yield ResultRow(**fields, estimate=None, reason=reason)
            continue
        fields["verdict"] = f"agrees with the arm on {_agreement(of.labels, arms):.0%} of texts"
        if of.labels.shape[1] > 1:
            method = f"mean over {of.labels.shape[1]} labels: no interval"
            yield ResultRow(**fields, estimate=area, ci_method=method)
        else:
            known = np.isfinite(scores[:, 0])
            interval = auroc_interval(scores[known, 0], of.labels[known, 0])
            yield ResultRow(
                **fields,
                estimate=area,
                ci_low=interval.low,
                ci_high=interval.high,
                ci_method=interval.method,
                boundary=interval.boundary,
                reason=interval.reason,
            )
    pairs = design.subsets["all"]
    scores, labels = found.raw[:, pairs].ravel(), np.repeat([True, False], pairs.size)
    area, interval = auroc(scores, labels), auroc_interval(scores, labels)
    control = estimates.get("random_label")
    yield ResultRow(
        **shared,
        concept="arm",
        estimate=area,
        ci_low=interval.low,
        ci_high=interval.high,
        ci_method=interval.method,
        boundary=interval.boundary,
        reason=interval.reason,
        control_estimate=control,
        selectivity=None if control is None else area - control,
    )


def _agreement(labels: np.ndarray[Any, np.dtype[np.bool_]], arms: Any) -> float:  # noqa: ANN401
    """Return the largest share of texts on which a label, or its opposite, is the arm."""
    shares = (labels == np.asarray(arms)[:, None]).mean(axis=0)
    return float(np.maximum(shares, 1 - shares).max())


def _residual_rows(
    design: Design, found: ConfoundLayer, sets: Sequence[HeldOut], place: dict[str, Any]
) -> Iterator[ResultRow]:
    """Yield the AUROC before and after residualising, and their paired difference."""
    n_folds = len(design.folds.folds)
    for held in sets:
        shared = {
            **design.provenance(), **design.counts(held.subset), **place,
            "analysis": "residual", "method": METHOD,
        }  # fmt: skip
        before, after = found.raw[:, held.pairs], found.residual[:, held.pairs]
        for metric, scores in (("auroc_raw", before), ("auroc_residualised", after)):
            estimate = measure(scores, held)[0] | {"metric": metric}
            if found.n_empty and metric == "auroc_residualised":
                estimate["reason"] = (
                    f"in {found.n_empty} of {n_folds} folds the confounds predict the training "
                    "labels exactly: nothing is left to probe"
                )
            yield ResultRow(**shared, **compare_with_words([estimate], scores, held)[0])
        change = auroc_difference(after.ravel(), before.ravel(), held.labels)
        yield ResultRow(
            **shared,
            metric="auroc_change",
            estimate=change.estimate,
            ci_low=change.low,
            ci_high=change.high,
            ci_method=change.method,
        )
