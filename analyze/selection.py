"""The layer (and pool) that a probe is read at, chosen inside the training folds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np

from ..schemas import ResultRow
from .assembly import NULL, Assembly
from .auroc import Floats, auroc, auroc_interval
from .evaluate import HeldOut, compare_with_words
from .layer import LayerJob
from .nulls import null_p_value
from .probes import INNER_TUNED
from .table import relative_depth

__all__ = ["inner_folds", "most_selected_layer", "nested_rows", "select_cells", "selection_row"]

Cell: TypeAlias = tuple[str, int]  # pool and layer


def inner_folds(job: LayerJob, *, method: str, chosen: Sequence[str], in_cv: bool) -> str | None:
    """Return what was tuned where, in words; None if nothing was.

    ``chosen`` names what the inner folds choose beside the penalty of a probe.
    """
    folds = job.folds.folds if in_cv else (job.split,)
    own = {"logistic": ["C"], "ridge": ["lambda"]}.get(method, [])
    what = " and ".join([*chosen, *own])
    if not what:
        return None
    if method in INNER_TUNED:
        n_inner = max(int(fold.inner_tune.max()) + 1 for fold in folds)
        where = f"{n_inner} inner folds over scenarios"
    else:
        n_train = max(np.unique(job.table.scenario[fold.train]).size for fold in folds)
        whole = n_train <= job.spec.max_folds
        where = f"inner {'leave-one-scenario-out folds' if whole else 'group folds on scenario'}"
    by_pair = any(fold.inner_unit == "pair" for fold in folds)
    note = " (over pairs, where one scenario is left)" if by_pair else ""
    return f"{what} inside {where}{note}"


def select_cells(
    assembly: Assembly, *, pools: Sequence[str], method: str, in_cv: bool = True
) -> list[Cell] | None:
    """Return the pool and layer that each outer fold selects by its own inner folds.

    The best inner AUROC, ties by inner d′, then the first. With ``in_cv`` false, of the train
    split alone. None where there were no inner folds.
    """
    cells = [(pool, layer) for pool in pools for layer in assembly.layers]
    fits = [assembly.results[cell].methods[method] for cell in cells]
    inner = np.stack([fit.inner if in_cv else fit.inner_split for fit in fits])
    if not np.isfinite(inner).all():
        return None
    # lexsort orders by its last key first, and is stable.
    best = np.lexsort((-inner[..., 1], -inner[..., 0]), axis=0)[0]
    return [cells[at] for at in best]


def most_selected_layer(assembly: Assembly, *, pool: str, method: str) -> int:
    """Return the layer that most outer folds chose, the lowest at a tie, −1 if none could."""
    chosen = select_cells(assembly, pools=[pool], method=method)
    votes = Counter(layer for _, layer in chosen or [("", -1)])
    return min(votes, key=lambda layer: (-votes[layer], layer))


def nested_rows(
    assembly: Assembly, maxima: Sequence[Floats], *, pools: Sequence[str], method: str
) -> Iterator[ResultRow]:
    """Yield the rows whose layer every outer fold chose inside its own training scenarios.

    With several ``pools`` the pool is chosen as well, and the row has none of its own.
    ``maxima`` are the draws' largest AUROCs over the same pools and layers, per held-out set.
    """
    names = ["layer"] if len(pools) == 1 else ["pool", "layer"]
    scores = {
        in_cv: _nested_scores(assembly, pools=pools, method=method, in_cv=in_cv)
        for in_cv in (True, False)
    }
    for held, draws in zip(assembly.sets, maxima, strict=True):
        in_cv = assembly.in_cv(held)
        fields = {
            **assembly.fields("probe", held),
            "metric": "auroc_nested",
            "site": assembly.site,
            "pool": pools[0] if len(pools) == 1 else None,
            "method": method,
            "tuned": inner_folds(assembly.job, method=method, chosen=names, in_cv=in_cv),
        }
        values = scores[in_cv]
        if values is None:
            reason = "no inner folds: the training pairs are a single group"
            yield ResultRow(estimate=None, reason=reason, **fields)
        else:
            yield ResultRow(**{**fields, **_nested_estimate(values[:, held.pairs], held, draws)})


def _nested_scores(
    assembly: Assembly, *, pools: Sequence[str], method: str, in_cv: bool
) -> Floats | None:
    """Return held-out scores, dims (arm, pair), each from the layer that its fold selected."""
    cells = select_cells(assembly, pools=pools, method=method, in_cv=in_cv)
    if cells is None:
        return None
    if not in_cv:
        return assembly.results[cells[0]].methods[method].test_scores
    scores = np.full((2, assembly.job.table.n_pairs), np.nan)
    for fold, cell in zip(assembly.job.folds.folds, cells, strict=True):
        scores[:, fold.test] = assembly.results[cell].methods[method].scores[:, fold.test]
    return scores


def _nested_estimate(scores: Floats, held: HeldOut, draws: Floats) -> dict[str, object]:
    """Return the fields of one nested AUROC with its null and the bag of words."""
    area = auroc(scores.ravel(), held.labels)
    interval = auroc_interval(scores.ravel(), held.labels)
    row = {
        "metric": "auroc_nested",
        "estimate": area,
        "ci_low": interval.low,
        "ci_high": interval.high,
        "ci_method": interval.method,
        "boundary": interval.boundary,
        "reason": interval.reason,
        "null": NULL,
        "n_draws": draws.size,
        "p_value_max": null_p_value(area, draws),
    }
    return compare_with_words([row], scores, held)[0]


def selection_row(assembly: Assembly, *, pool: str, method: str) -> ResultRow | None:
    """Return the row that names the layer most outer folds selected, if they could."""
    layer = most_selected_layer(assembly, pool=pool, method=method)
    if layer < 0:
        return None
    fields = {
        **assembly.fields("probe", assembly.job.held[0]),
        "metric": "selected_layer",
        "site": assembly.site,
        "pool": pool,
        "method": method,
        "tuned": inner_folds(assembly.job, method=method, chosen=["layer"], in_cv=True),
    }
    depth = relative_depth(layer, assembly.ds)
    return ResultRow(estimate=float(layer), layer=layer, depth=depth, **fields)
