"""Layer results become tables: estimates, the null, scores and directions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ..schemas import ResultRow
from .assembly import NULL, WORDS, Assembly
from .auroc import Floats
from .evaluate import HeldOut, measure
from .nulls import max_over_layers, null_band, null_p_value
from .selection import inner_folds, most_selected_layer, nested_rows, selection_row
from .table import plain_strings, relative_depth

__all__ = ["direction_dataset", "null_frame", "probe_rows", "score_frame"]


WITHOUT_LAYER = "no activations are read: there is no layer"
_COSINES = ("split_half", "spearman_brown", "bootstrap", "bootstrap_low")
_SCALARS = ("norm", "bias", "separation", "c", "penalty", *_COSINES)


def probe_rows(assembly: Assembly) -> Iterator[ResultRow]:
    """Yield every row of the probe table, the bag of words first."""
    for held in assembly.sets:
        for estimate in measure(held.words, held):
            yield ResultRow(method=WORDS, **assembly.fields("bow", held), **estimate)
    for pool in assembly.pools:
        maxima = _null_maxima(assembly, [pool])
        for method in assembly.job.spec.methods:
            for layer in assembly.layers:
                yield from _layer_rows(assembly, maxima, pool=pool, layer=layer, method=method)
            yield from nested_rows(assembly, maxima, pools=[pool], method=method)
            selected = selection_row(assembly, pool=pool, method=method)
            if selected is not None:
                yield selected
    if len(assembly.pools) > 1:
        maxima = _null_maxima(assembly, assembly.pools)
        for method in assembly.job.spec.methods:
            yield from nested_rows(assembly, maxima, pools=assembly.pools, method=method)


def _null_maxima(assembly: Assembly, pools: Sequence[str]) -> list[Floats]:
    """Return the draws' largest AUROC over ``pools`` and all layers, per held-out set."""
    cells = [(pool, layer) for pool in pools for layer in assembly.layers]
    return [
        max_over_layers([assembly.results[cell].null[k] for cell in cells])
        for k in range(len(assembly.sets))
    ]


def _layer_rows(
    assembly: Assembly, maxima: Sequence[Floats], *, pool: str, layer: int, method: str
) -> Iterator[ResultRow]:
    """Yield the rows of one probe on one layer."""
    result = assembly.results[pool, layer]
    for k, held in enumerate(assembly.sets):
        fields = {
            **assembly.fields("probe", held),
            "site": assembly.site,
            "pool": pool,
            "layer": layer,
            "depth": relative_depth(layer, assembly.ds),
            "method": method,
            "tuned": inner_folds(
                assembly.job, method=method, chosen=[], in_cv=assembly.in_cv(held)
            ),
        }
        for estimate in result.methods[method].estimates[k]:
            null: dict[str, Any] = {}
            if estimate["metric"] == "auroc":
                null = {
                    "null": NULL,
                    "n_draws": maxima[k].size,
                    "p_value": null_p_value(estimate["estimate"], result.null[k]),
                    "p_value_max": null_p_value(estimate["estimate"], maxima[k]),
                }
            yield ResultRow(**fields, **estimate, **null)


def null_frame(assembly: Assembly) -> pd.DataFrame:
    """Return the band of the isotropic null per pool, layer and subset."""
    rows = []
    for (pool, layer), result in assembly.results.items():
        for k, held in enumerate(assembly.job.held):
            sd = result.sd_formula[k]
            rows.append(
                {
                    **assembly.provenance,
                    **held.counts,
                    "cv": held.cv,
                    "groups": assembly.job.folds.groups,
                    "null": NULL,
                    "site": assembly.site,
                    "pool": pool,
                    "layer": layer,
                    "depth": relative_depth(layer, assembly.ds),
                    "subset": held.subset,
                    **null_band(result.null[k]),
                    "sd_formula": sd,
                    "reason": None if sd is not None else "no within-class variance",
                    "seed": assembly.job.random.seed,
                }
            )
    columns = [
        "run", "model", "site", "pool", "layer", "depth", "subset", "n_draws", "mean", "sd",
        "sd_formula", "q025", "q50", "q975", "max", "max_folded", "share_above_95",
        "share_above_95_folded", "reason", "null", "cv", "groups", "n_texts", "n_pairs",
        "n_scenarios", "n_generators", "token_mask", "template_digest", "dtype", "dataset_digest",
        "split_digest", "seed", "code_version", "store_url", "content_digest",
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=columns)
    return plain_strings(frame.astype({"sd_formula": "float64", "depth": "float64"}))


def score_frame(assembly: Assembly) -> pd.DataFrame:
    """Return held-out scores, one row per text, pool, layer and method.

    Scores of the bag of words have no site, pool and layer. ``fold`` names what was held out.
    """
    job, table = assembly.job, assembly.job.table
    frames = []

    def add(scores: Floats, held: HeldOut, **where: object) -> None:
        if held.cv == job.folds.scheme:
            fold = np.array([of.name for of in job.folds.folds])[held.fold]
        else:
            fold = np.full(held.pairs.size, "test")
        frames.append(
            pd.DataFrame(
                {
                    "run": assembly.provenance["run"],
                    "model": assembly.provenance["model"],
                    "site": None if where["layer"] is None else assembly.site,
                    **where,
                    "cv": held.cv,
                    "fold": np.tile(fold, 2),
                    "text": table.texts[:, held.pairs].ravel(),
                    "pair": np.tile(table.pair[held.pairs], 2),
                    "scenario": np.tile(table.scenario[held.pairs], 2),
                    "label": held.labels.astype(np.int8),
                    "score": scores.ravel(),
                    "reason": WITHOUT_LAYER if where["layer"] is None else None,
                }
            ).astype({"site": object, "pool": object, "layer": "Int64", "reason": object})
        )

    whole = [job.held[0], *job.held_test[:1]]
    for held in whole:
        add(held.words, held, pool=None, layer=None, method=WORDS)
    for (pool, layer), result in assembly.results.items():
        for method, fit in result.methods.items():
            for held, scores in zip(whole, (fit.scores, fit.test_scores), strict=False):
                add(scores[:, held.pairs], held, pool=pool, layer=layer, method=method)
    return plain_strings(pd.concat(frames, ignore_index=True))


def direction_dataset(assembly: Assembly) -> xr.Dataset:
    """Return the directions fitted on the train split, with where they came from.

    Variables with dims (method, pool, layer): ``norm`` of the raw weight, ``bias`` of the raw
    decision value norm·(vector·x) + bias, ``separation`` of the class means along the unit
    vector, ``c`` of the logistic probe and ``penalty`` (ridge's in units of the mean scatter per
    text, LDA's shrinkage), NaN for the others; the cosines of a Reliability, NaN where there are
    too few training pairs, no draws were asked for, or there is no direction; ``vector`` (method,
    pool, layer, hidden); ``selected_layer`` (method, pool): the layer most outer folds selected,
    −1 for none.
    """
    methods, pools, layers = list(assembly.job.spec.methods), assembly.pools, assembly.layers

    def gather(name: str) -> Floats:
        def one(method: str, pool: str, layer: int) -> object:
            result = assembly.results[pool, layer].methods[method]
            probe = result.fitted.probe
            fitted = result.fitted
            c = np.nan if fitted.c is None else fitted.c
            firm = result.reliability
            return {
                **{x: np.nan if firm is None else getattr(firm, x) for x in _COSINES},
                "vector": probe.unit,
                "norm": probe.norm,
                "bias": probe.bias,
                "separation": result.separation,
                "c": c,
                "penalty": np.nan if fitted.penalty is None else fitted.penalty,
            }[name]

        return np.array(
            [[[one(m, p, at) for at in layers] for p in pools] for m in methods], dtype=np.float64
        )

    dims = ("method", "pool", "layer")
    selected = np.array(
        [
            [most_selected_layer(assembly, pool=pool, method=method) for pool in pools]
            for method in methods
        ],
        dtype=np.int32,
    )
    attrs = {key: value for key, value in assembly.provenance.items() if value is not None}
    return xr.Dataset(
        {
            "vector": ((*dims, "hidden"), gather("vector")),
            **{name: (dims, gather(name)) for name in _SCALARS},
            "selected_layer": (("method", "pool"), selected),
        },
        coords={
            "method": np.array(methods, dtype=object),
            "pool": np.array(pools, dtype=object),
            "layer": np.array(layers, dtype=np.int32),
        },
        attrs={
            **attrs,
            "encoding-type": "actlake-directions",
            "encoding-version": "1",
            "site": assembly.site,
            "fitted_on": assembly.job.split.name,
            "n_reliability": assembly.job.spec.n_reliability,
            "n_pairs": int(assembly.job.split.train.size),
            "seed": assembly.job.spec.seed,
            "cv": assembly.job.folds.scheme,
            **assembly.job.table.counts,
        },
    )
