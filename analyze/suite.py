"""The probes of a run, one Dask task per layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from ..schemas import (
    BagOfWordsSpec,
    ProbeSpec,
    RandomSpec,
    Text,
)
from .arrays import run_pools
from .assembly import Assembly
from .design import dataset_digest, outer_folds
from .evaluate import held_out_sets
from .frames import direction_dataset, null_frame, probe_rows, score_frame
from .layer import LayerJob, ProbePart
from .parts import run_parts
from .results import ProbeResult
from .splits import pair_table, split_fold
from .surface import surface_features, surface_scores
from .table import dataset_provenance, rows_frame
from .words import bag_of_words_scores, pair_responses

__all__ = ["SPLIT_CV", "probe_run"]

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
    chosen, pools = run_pools(ds, site=site, pools=spec.pools)
    table = pair_table(ds)
    folds = outer_folds(table, spec)
    split = split_fold(table, max_folds=spec.max_folds, seed=spec.seed)
    responses = pair_responses(texts, table)
    words = bag_of_words_scores(responses, folds.folds, spec=bow)
    features = surface_features(responses)
    words_test = bag_of_words_scores(responses, [split], spec=bow)
    job = LayerJob(
        table=table,
        folds=folds,
        split=split,
        held=held_out_sets(
            table,
            folds.held_out,
            cv=folds.scheme,
            fold=folds.fold_of_pair,
            words=words,
            surface=surface_scores(features, folds.folds),
            n_bootstrap=spec.n_bootstrap,
            seed=spec.seed,
        ),
        held_test=held_out_sets(
            table,
            split.test,
            cv=SPLIT_CV,
            fold=np.zeros_like(folds.fold_of_pair),
            words=words_test,
            surface=surface_scores(features, [split]),
            n_bootstrap=spec.n_bootstrap,
            seed=spec.seed,
        ),
        spec=spec,
        random=random,
    )
    fitted = run_parts(ds, [ProbePart(job)], table, site=chosen, pools=pools, scheduler=scheduler)
    digest = dataset_digest(table, responses)
    assembly = Assembly(
        ds=ds,
        site=chosen,
        job=job,
        results={cell: results[0] for cell, results in fitted.items()},
        provenance=dataset_provenance(ds)
        | {"dataset_digest": digest, "split_digest": folds.digest},
    )
    return ProbeResult(
        rows=rows_frame(probe_rows(assembly)),
        null=null_frame(assembly),
        scores=score_frame(assembly),
        directions=direction_dataset(assembly),
    )
