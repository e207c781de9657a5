"""Paired comparisons of probes, pools, layers or models on the texts that they share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd

from ..schemas import InvalidInputError, NotFoundError
from .auroc import Floats, auroc, auroc_difference
from .bootstrap import bootstrap_auroc, draw_pair_weights, percentile_interval
from .table import plain_strings

__all__ = ["compare_probes", "compare_scores"]

Axis = Literal["method", "layer", "pool", "run"]
KEYS = ("run", "site", "pool", "layer", "method", "cv")
NEEDED = ("text", "pair", "scenario", "label", "score")


def compare_scores(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return AUROC(first) − AUROC(second) on their common texts, with two paired intervals.

    ``ci_low`` and ``ci_high`` are paired DeLong's (boundary intervals where an AUROC is 0 or 1);
    ``bootstrap_low`` and ``bootstrap_high`` resample pairs within scenarios, the same draws for
    both. Where either AUROC is 0 or 1 the bootstrap has no width to show and is left out, with
    the reason.

    Parameters
    ----------
    first, second
        Held-out scores of a :class:`ProbeResult`: columns text, pair, scenario, label, score.
    n_bootstrap
        Draws; 0 leaves the bootstrap out.
    seed
        Of the bootstrap.

    Raises
    ------
    InvalidInputError
        If a column is missing, a text stands twice, fewer than two complete pairs are common, or
        the two disagree on a label.
    """
    merged = _common(first, second)
    positive = merged[merged["label"] == 1].sort_values("pair")
    negative = merged[merged["label"] == 0].sort_values("pair")
    scores = [
        np.stack([part[name].to_numpy(dtype=np.float64) for part in (positive, negative)])
        for name in ("score", "score_second")
    ]
    labels = np.repeat([True, False], len(positive))
    areas = [auroc(of.ravel(), labels) for of in scores]
    difference = auroc_difference(scores[0].ravel(), scores[1].ravel(), labels)
    low, high, reason = _bootstrap(
        scores, positive["scenario"].to_numpy(dtype=str), areas, n_bootstrap=n_bootstrap, seed=seed
    )
    return {
        "auroc_first": areas[0],
        "auroc_second": areas[1],
        "delta": difference.estimate,
        "ci_low": difference.low,
        "ci_high": difference.high,
        "ci_method": difference.method,
        "bootstrap_low": low,
        "bootstrap_high": high,
        "reason": reason,
        "n_texts": 2 * len(positive),
        "n_pairs": len(positive),
        "n_bootstrap": n_bootstrap,
        "seed": seed,
    }


def compare_probes(
    scores: pd.DataFrame,
    *,
    between: Axis,
    reference: object = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the paired comparisons along one axis, everything else being the same.

    Parameters
    ----------
    scores
        Held-out scores of one or several :class:`ProbeResult` (concatenated for models).
    between
        ``method``, ``layer``, ``pool`` or ``run`` (a run is a model).
    reference
        Compare the others with this one, which comes first; None compares every two.
    n_bootstrap, seed
        As for :func:`compare_scores`.

    Returns
    -------
    One row per comparison: what is the same (run, site, pool, layer, method, cv), ``first``,
    ``second`` and the fields of :func:`compare_scores`.

    Raises
    ------
    InvalidInputError
        If there is nothing to compare, or as :func:`compare_scores`.
    NotFoundError
        If the reference is not there.
    """
    missing = [name for name in (*KEYS, *NEEDED) if name not in scores.columns]
    if missing:
        msg = f"the scores lack the columns {missing}; pass them as probe_run returned them"
        raise InvalidInputError(msg)
    probes = scores[scores["layer"].notna()]
    rows = list(
        _comparisons(
            probes, between=between, reference=reference, n_bootstrap=n_bootstrap, seed=seed
        )
    )
    if not rows:
        values = probes[between].drop_duplicates().tolist()
        if reference is not None and reference not in values:
            msg = f"no {between} {reference!r} to compare with: the scores have {values}"
            raise NotFoundError(msg)
        msg = f"nothing to compare between {between}s: the scores have {values}"
        raise InvalidInputError(msg)
    floats = ("delta", "ci_low", "ci_high", "bootstrap_low", "bootstrap_high")
    return plain_strings(pd.DataFrame(rows).astype(dict.fromkeys(floats, "float64")))


def _comparisons(
    probes: pd.DataFrame, *, between: str, reference: object, n_bootstrap: int, seed: int
) -> Iterator[dict[str, Any]]:
    fixed = [name for name in KEYS if name != between]
    for values, group in probes.groupby(fixed, dropna=False, sort=False):
        parts = dict(iter(group.groupby(between, sort=False)))
        names = list(parts)
        if reference is None:
            pairs: Sequence[tuple[Any, Any]] = list(combinations(names, 2))
        elif reference in names:
            pairs = [(reference, name) for name in names if name != reference]
        else:
            continue
        for one, other in pairs:
            yield {
                "between": between,
                **dict(zip(fixed, values, strict=True)),
                "first": str(one),
                "second": str(other),
                **compare_scores(parts[one], parts[other], n_bootstrap=n_bootstrap, seed=seed),
            }


def _common(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Return the complete pairs that both have scores of, one row per text."""
    for frame in (first, second):
        missing = [name for name in NEEDED if name not in frame.columns]
        if missing:
            msg = f"the scores lack the columns {missing}; pass them as probe_run returned them"
            raise InvalidInputError(msg)
        twice = frame["text"][frame["text"].duplicated()]
        if len(twice):
            msg = (
                f"text {twice.iloc[0]!r} has several scores: choose one pool, layer, method and cv"
            )
            raise InvalidInputError(msg)
    other = second[["text", "label", "score"]]
    merged = first.merge(other, on="text", suffixes=("", "_second"))
    if (merged["label"] != merged["label_second"]).any():
        name = merged["text"][merged["label"] != merged["label_second"]].iloc[0]
        msg = f"the two disagree on the label of text {name!r}: they are of unlike corpora"
        raise InvalidInputError(msg)
    whole = merged.groupby("pair")["label"].transform("nunique") == 2
    merged = merged[whole]
    if merged["pair"].nunique() < 2:
        msg = (
            f"{len(first)} and {len(second)} scored texts have {merged['pair'].nunique()} complete "
            "pairs in common, expected two or more; compare runs over the same corpus"
        )
        raise InvalidInputError(msg)
    return merged


def _bootstrap(
    scores: Sequence[Floats],
    scenario: np.ndarray[Any, np.dtype[np.str_]],
    areas: Sequence[float],
    *,
    n_bootstrap: int,
    seed: int,
) -> tuple[float | None, float | None, str | None]:
    """Return the percentile interval of the difference, or why there is none."""
    if n_bootstrap == 0:
        return None, None, "n_bootstrap is 0"
    if {*areas} & {0.0, 1.0}:
        return None, None, "an AUROC of 0 or 1 does not vary under the bootstrap: see ci_low"
    weights = draw_pair_weights(scenario, n_draws=n_bootstrap, seed=seed)
    draws = bootstrap_auroc(scores[0], weights) - bootstrap_auroc(scores[1], weights)
    interval = percentile_interval(draws)
    return interval.low, interval.high, interval.reason
