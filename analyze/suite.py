"""The probes of a run, one Dask task per layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from ..schemas import BagOfWordsSpec, ProbeSpec, RandomSpec, Text
from .assembly import Assembly
from .design import Design, dataset_digest, make_design
from .evaluate import held_out_sets
from .frames import direction_dataset, null_frame, probe_rows, score_frame
from .layer import LayerJob, LayerResult, ProbePart
from .parts import run_part
from .results import ProbeResult
from .splits import split_fold
from .surface import surface_features, surface_scores
from .table import dataset_provenance, rows_frame
from .words import bag_of_words_scores

__all__ = ["SPLIT_CV", "probe_part", "probe_run", "probe_tables"]

SPLIT_CV = "train→test split"


def probe_run(
    ds: xr.Dataset,
    texts: Sequence[Text],
    *,
    spec: ProbeSpec,
    random: RandomSpec,
    bow: BagOfWordsSpec,
    site: str | None = None,
    scheduler: str | None = None,
) -> ProbeResult:
    """Return probes of every layer and pool of a run, under nested cross-validation.

    The outer folds leave out one scenario, or one generator (``spec.groups``). Every layer is one
    Dask task that reads the chunks of that layer alone. All complete pairs of original texts take
    part. The directions, and the rows with cv ``train→test split``, come from the pairs with
    split=train.

    Parameters
    ----------
    ds
        An opened run: pooled arrays with dims (text, layer, hidden) and the text coordinates.
    texts
        The corpus of the run, for the bag of words.
    spec
        Methods, pools, folds, grid of C, bootstrap draws.
    random
        Isotropic directions of the null.
    bow
        The bag of words.
    site
        None takes ``resid_post``, or the run's first site.
    scheduler
        ``threads``, ``processes``, ``synchronous``, the address of a Dask cluster, or None for
        Dask's own configuration.

    Raises
    ------
    InvalidInputError
        If there are fewer than two scenarios, one class, no complete pair, or rows with NaN.
    NotFoundError
        If a site, a pool or a text of the corpus is missing.
    """
    design = make_design(ds, texts, spec=spec, site=site)
    part = probe_part(design, spec=spec, random=random, bow=bow)
    layers = run_part(
        ds, part, design.table, site=design.site, pools=design.pools, scheduler=scheduler
    )
    return probe_tables(design, layers, part)


def probe_part(
    design: Design, *, spec: ProbeSpec, random: RandomSpec, bow: BagOfWordsSpec
) -> ProbePart:
    """Return what every layer computes, the texts' own scores on the same folds with it."""
    table, folds = design.table, design.folds
    split = split_fold(table, max_folds=spec.max_folds, seed=spec.seed)
    features = surface_features(design.responses)
    held, held_test = (
        held_out_sets(
            table,
            pairs,
            cv=cv,
            fold=fold,
            words=bag_of_words_scores(design.responses, of, spec=bow),
            surface=surface_scores(features, of),
            n_bootstrap=spec.n_bootstrap,
            seed=spec.seed,
        )
        for pairs, cv, fold, of in (
            (folds.held_out, folds.scheme, folds.fold_of_pair, folds.folds),
            (split.test, SPLIT_CV, np.zeros_like(folds.fold_of_pair), (split,)),
        )
    )
    return ProbePart(LayerJob(table, folds, split, held, held_test, spec, random))


def probe_tables(
    design: Design, layers: Mapping[tuple[str, int], LayerResult], part: ProbePart
) -> ProbeResult:
    """Return the tables and directions of all layers."""
    assembly = Assembly(
        ds=design.ds,
        site=design.site,
        job=part.job,
        results=layers,
        provenance=dataset_provenance(design.ds)
        | {
            "dataset_digest": dataset_digest(design.table, design.responses),
            "split_digest": design.folds.digest,
        },
    )
    return ProbeResult(
        rows=rows_frame(probe_rows(assembly)),
        null=null_frame(assembly),
        scores=score_frame(assembly),
        directions=direction_dataset(assembly),
    )
