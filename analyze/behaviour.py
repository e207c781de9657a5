"""Probe scores against what raters or a rubric said of the same texts (SCIENCE §10)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import binomtest, rankdata

from ..schemas import CorrelationRow, CorrelationSpec, InvalidInputError, NotFoundError, near_names
from .auroc import Floats
from .tidy import record_frame

__all__ = ["correlate_scores", "fisher_interval", "read_ratings", "weighted_ranks"]

CELL = ["run", "model", "site", "pool", "method", "layer", "cv"]
MIN_TEXTS = 4  # below, Fisher's z has no standard error
SHOWN = 3


def read_ratings(table: pd.DataFrame | str | Path, *, id_column: str = "text") -> pd.DataFrame:
    """Return a table of ratings: a data frame as it is, a .csv or a .parquet file read.

    Raises
    ------
    NotFoundError
        If there is no such file.
    InvalidInputError
        If it is neither CSV nor Parquet, or cannot be read.
    """
    if isinstance(table, pd.DataFrame):
        return table
    path = Path(table)
    if not path.is_file():
        msg = f"no table at {path}; name a .csv or .parquet file"
        raise NotFoundError(msg)
    suffix = path.suffix.lower()
    try:
        if suffix == ".csv":
            return pd.read_csv(path, dtype={id_column: str})  # an id 007 is not the number 7
        if suffix == ".parquet":
            return pd.read_parquet(path)
    except (ValueError, OSError) as err:
        msg = f"{path.name} cannot be read as {suffix}: {err}"
        raise InvalidInputError(msg) from err
    msg = f"{path.name}: ratings are read from .csv or .parquet, got {suffix or 'no suffix'}"
    raise InvalidInputError(msg)


def fisher_interval(
    estimate: float, n: int, *, spearman: bool = False, n_removed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of a correlation on Fisher's z scale.

    The standard error is 1/√(n − 3); for Spearman's √((1 + r²/2)/(n − 3)) (Bonett & Wright 2000,
    doi 10.1007/BF02294183). ``n_removed`` further means were taken off.
    """
    variance = (1 + estimate**2 / 2 if spearman else 1.0) / (n - 3 - n_removed)
    half = float(ndtri(0.975)) * np.sqrt(variance)
    z = np.arctanh(np.clip(estimate, -1 + 1e-15, 1 - 1e-15))
    return float(np.tanh(z - half)), float(np.tanh(z + half))


def weighted_ranks(values: Floats, weights: Floats) -> Floats:
    """Return the midranks of ``values`` (text,) when text i is there ``weights[b, i]`` times.

    Dims (draw, text): for every draw what ``rankdata`` gives the repeated values.
    """
    order = np.argsort(values, kind="stable")
    _, tie = np.unique(values[order], return_inverse=True)
    starts = np.searchsorted(tie, np.arange(tie[-1] + 1))
    group = np.add.reduceat(weights[:, order], starts, axis=1)
    middle = np.cumsum(group, axis=1) - group + (group + 1) / 2
    result = np.empty_like(weights)
    result[:, order] = middle[:, tie]
    return result


def correlate_scores(
    scores: pd.DataFrame,
    ratings: pd.DataFrame | str | Path,
    *,
    spec: CorrelationSpec,
    scenarios: dict[str, str] | None = None,
) -> pd.DataFrame:
    """Return how held-out probe scores agree with ratings, per run, pool, method and layer.

    ``pearson`` and ``spearman`` have Fisher intervals and a bootstrap that resamples whole
    scenarios; ``pearson_within_arms`` takes the mean of each arm off both, since two things that
    differ between the arms correlate across them whatever they are; ``accuracy`` and
    ``balanced_accuracy`` state their rule.

    Parameters
    ----------
    scores
        Columns ``text`` and ``score``; ``label`` for the arms, and what names a probe (run,
        pool, layer ...), as in :class:`ProbeResult`.
    ratings
        A table, or a .csv or .parquet file, with one row per text: see ``spec`` for its columns.
    spec
        Names of columns, the range of ratings, the rule of the accuracy.
    scenarios
        Scenario of every text id; None takes a column ``scenario`` of either table.

    Raises
    ------
    InvalidInputError
        If a column is missing, a text is rated twice, no scored text is rated, or no rating
        is a number.
    """
    table = read_ratings(ratings, id_column=spec.id_column)
    _check_columns(scores, ["text", "score"], what="the scores")
    _check_columns(table, [spec.id_column, spec.rating_column], what="the ratings")
    ids = table[spec.id_column].astype(str)
    twice = ids[ids.duplicated()].unique().tolist()
    if twice:
        msg = (
            f"{len(twice)} texts are rated twice, such as {twice[:SHOWN]}; give one rating per "
            "text, for instance the mean of the raters"
        )
        raise InvalidInputError(msg)
    values = pd.to_numeric(table[spec.rating_column], errors="coerce").astype("float64")
    values = values.where((values >= spec.lowest) & (values <= spec.highest))
    rated = pd.Series(values.to_numpy(), index=ids)
    known = scores.text.astype(str)
    if not known.isin(rated.index).any():
        msg = (
            f"none of the {known.nunique()} scored texts is in the {len(rated)} ratings: their "
            f"ids look like {known.head(SHOWN).tolist()} and {ids.head(SHOWN).tolist()}; name the "
            "column of the text ids"
        )
        raise InvalidInputError(msg)
    given = table[spec.rating_column][ids.isin(known)].dropna()
    if len(given) and pd.to_numeric(given, errors="coerce").isna().all():
        msg = (
            f"no rating of a scored text is a number: the column {spec.rating_column!r} has "
            f"{given.unique().tolist()[:SHOWN]}, expected numbers from {spec.lowest:g} to "
            f"{spec.highest:g}"
        )
        raise InvalidInputError(msg)
    where = _scenarios(scores, table, ids, scenarios)
    cells = [name for name in CELL if name in scores.columns]
    groups = scores.groupby(cells, dropna=False, sort=False) if cells else [((), scores)]
    rows = [
        CorrelationRow(**{**head, **fields})
        for key, group in groups
        for head in [_head(cells, key, spec)]
        for fields in _cell(group, rated, where, spec)
    ]
    return record_frame(rows, CorrelationRow)


def _check_columns(table: pd.DataFrame, names: list[str], *, what: str) -> None:
    for name in names:
        if name not in table.columns:
            known = [str(column) for column in table.columns]
            msg = f"{what} have no column {name!r}{near_names(name, known)}; they have {known}"
            raise InvalidInputError(msg)


def _scenarios(
    scores: pd.DataFrame, table: pd.DataFrame, ids: pd.Series, given: dict[str, str] | None
) -> dict[str, str]:
    if given is not None:
        return given
    if "scenario" in table.columns:
        return dict(zip(ids, table["scenario"].astype(str), strict=True))
    if "scenario" in scores.columns:
        return dict(zip(scores.text.astype(str), scores["scenario"].astype(str), strict=True))
    return {}


def _head(cells: list[str], key: Any, spec: CorrelationSpec) -> dict[str, Any]:  # noqa: ANN401
    values = key if isinstance(key, tuple) else (key,)
    named = {
        name: None if pd.isna(value) else int(value) if name == "layer" else str(value)
        for name, value in zip(cells, values, strict=True)
    }
    return {"analysis": "behaviour", **named, "seed": spec.seed}


def _cell(
    group: pd.DataFrame, rated: pd.Series, where: dict[str, str], spec: CorrelationSpec
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one probe."""
    texts = group.text.astype(str).to_numpy()
    if np.unique(texts).size < texts.size:
        msg = (
            f"text {texts[0]!r} or another has two scores under one run, pool, method, layer and "
            "cross-validation; give one score per text"
        )
        raise InvalidInputError(msg)
    rating = rated.reindex(texts).to_numpy(dtype=np.float64)
    score = group.score.to_numpy(dtype=np.float64)
    there = np.isfinite(rating) & np.isfinite(score)
    arm = group["label"].to_numpy()[there] if "label" in group.columns else None
    unit = np.array([where.get(text, "") for text in texts])[there]
    x, y = score[there], rating[there]
    head = {
        "n_texts": int(there.sum()),
        "n_missing": int((~there).sum()),
        "n_unknown": int((~rated.index.isin(texts)).sum()),
        "groups": "scenario" if (unit != "").any() else None,
        "n_scenarios": int(np.unique(unit[unit != ""]).size),
    }
    weights, method = _cluster_weights(unit, spec)
    for metric in ("pearson", "spearman", "pearson_within_arms"):
        if metric == "pearson_within_arms" and arm is None:
            continue
        yield head | _correlation(x, y, metric=metric, arm=arm, weights=weights, method=method)
    yield from ({**head, **row} for row in _accuracies(x, y, spec))


def _cluster_weights(unit: NDArray[np.str_], spec: CorrelationSpec) -> tuple[Floats | None, str]:
    """Return how often each text is drawn when scenarios are resampled, dims (draw, text)."""
    names, code = np.unique(unit, return_inverse=True)
    if spec.n_bootstrap == 0:
        return None, "none: n_bootstrap is 0"
    if "" in names:
        return None, "none: the scenarios of the texts are not known"
    if names.size < 3:
        return None, f"none: {names.size} scenarios are too few to resample"
    rng = np.random.default_rng(spec.seed)
    drawn = rng.multinomial(names.size, np.full(names.size, 1 / names.size), spec.n_bootstrap)
    return drawn[:, code].astype(np.float64), f"bootstrap of {names.size} scenarios"


def _correlation(
    x: Floats,
    y: Floats,
    *,
    metric: str,
    arm: NDArray[Any] | None,
    weights: Floats | None,
    method: str,
) -> dict[str, Any]:
    """Return the fields of one correlation."""
    n, n_removed = x.size, 0
    if metric == "spearman" and n:
        x, y = rankdata(x), rankdata(y)
    if metric == "pearson_within_arms" and arm is not None and n:
        member = np.equal.outer(np.unique(arm), arm).astype(np.float64)
        n_removed = len(member) - 1
        x, y = (v - member.T @ ((member @ v) / member.sum(axis=1)) for v in (x, y))
    row: dict[str, Any] = {"metric": metric}
    if n - n_removed < MIN_TEXTS:
        return row | {"estimate": None, "reason": f"{n} texts have a score and a rating"}
    for values, what in ((x, "scores"), (y, "ratings")):
        if np.ptp(values) <= 1e-12 * max(np.abs(values).max(), 1e-300):
            return row | {"estimate": None, "reason": f"the {what} do not vary"}
    ones = np.ones((1, n))
    estimate = float(_weighted_pearson(x, y, ones)[0])
    low, high = fisher_interval(estimate, n, spearman=metric == "spearman", n_removed=n_removed)
    row |= {
        "estimate": estimate,
        "ci_low": low,
        "ci_high": high,
        "ci_method": "Fisher z, Bonett-Wright" if metric == "spearman" else "Fisher z",
        "boundary": abs(estimate) > 1 - 1e-12,
        "cluster_ci_method": method,
    }
    if weights is None:
        return row
    if metric == "spearman":
        drawn = _weighted_pearson(weighted_ranks(x, weights), weighted_ranks(y, weights), weights)
    else:
        drawn = _weighted_pearson(x, y, weights)
    finite = drawn[np.isfinite(drawn)]
    if finite.size > 1:
        cluster_low, cluster_high = np.quantile(finite, [0.025, 0.975])
        row |= {"cluster_ci_low": float(cluster_low), "cluster_ci_high": float(cluster_high)}
    return row


def _weighted_pearson(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Return the correlation of ``x`` and ``y`` ((text,) or (draw, text)) of every draw."""
    total = weights.sum(axis=1, keepdims=True)
    a, b = (v - (weights * v).sum(axis=1, keepdims=True) / total for v in (x, y))
    xx, yy, xy = ((weights * v).sum(axis=1) for v in (a * a, b * b, a * b))
    there = (xx > 1e-24) & (yy > 1e-24)
    result: Floats = np.divide(xy, np.sqrt(xx * yy), out=np.full(xx.size, np.nan), where=there)
    return result.clip(-1, 1)


def _accuracies(x: Floats, y: Floats, spec: CorrelationSpec) -> Iterator[dict[str, Any]]:
    """Yield the accuracies of the sign of the score against the two ends of the ratings."""
    positive, negative = y >= spec.positive_from, y <= spec.negative_to
    rule = (
        f"score > {spec.threshold:g} against rating >= {spec.positive_from:g} (positive) or "
        f"<= {spec.negative_to:g} (negative); {int((~positive & ~negative).sum())} texts between "
        "are left out"
    )
    right = np.where(positive, x > spec.threshold, x <= spec.threshold)
    used = positive | negative
    n, n_right = int(used.sum()), int(right[used].sum())
    if n == 0:
        reason = "no rating is at either end"
        yield {"metric": "accuracy", "estimate": None, "reason": reason, "rule": rule}
        return
    interval = binomtest(n_right, n).proportion_ci(method="wilson")
    yield {
        "metric": "accuracy",
        "estimate": n_right / n,
        "ci_low": float(interval.low),
        "ci_high": float(interval.high),
        "ci_method": "Wilson",
        "boundary": n_right in {0, n},
        "rule": rule,
    }
    both = positive.any() and negative.any()
    yield {
        "metric": "balanced_accuracy",
        "estimate": float((right[positive].mean() + right[negative].mean()) / 2) if both else None,
        "reason": None if both else "only one of the two classes was rated",
        "rule": rule,
    }
