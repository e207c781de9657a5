"""Probes of models with unlike numbers of layers, compared by relative depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from ..schemas import InvalidInputError, SimilarityRow
from .auroc import auroc_difference
from .results import ProbeResult
from .tidy import record_frame

__all__ = ["compare_by_depth", "depth_curves"]

KEYS = ["run", "model", "site", "pool", "method", "subset"]
INTERPOLATED = "linear between the intervals of layers"
NO_INTERVAL = "none: a layer there has no interval"
GRID = tuple(round(0.05 * k, 2) for k in range(1, 21))


def depth_curves(rows: pd.DataFrame, *, grid: Sequence[float] = GRID) -> pd.DataFrame:
    """Return the AUROC of every run by relative depth, on one grid of depths.

    Interpolated linearly between layers and never beyond the first or the last; there
    ``estimate`` is NaN and ``reason`` says so. Relative depth is (layer + 1)/n_layers.

    Parameters
    ----------
    rows
        Probe rows of one or several runs (see :class:`ProbeResult`), put below each other.
    grid
        Depths, 0 to 1.
    """
    chosen = rows[(rows.analysis == "probe") & (rows.metric == "auroc") & rows.depth.notna()]
    if chosen.empty:
        msg = "the table has no AUROC by layer: expected the rows of a probe result"
        raise InvalidInputError(msg)
    parts = []
    at = np.asarray(grid, dtype=np.float64)
    for key, group in chosen.groupby(KEYS, dropna=False, sort=False):
        ordered = group.sort_values("depth")
        depth = ordered.depth.to_numpy(np.float64)
        inside = (at >= depth[0] - 1e-9) & (at <= depth[-1] + 1e-9)
        frame = pd.DataFrame(dict(zip(KEYS, key, strict=True)) | {"depth": at})
        for name in ("estimate", "ci_low", "ci_high"):
            values = np.interp(at, depth, ordered[name].to_numpy(np.float64))
            frame[name] = np.where(inside, values, np.nan)
        outside = f"no layer reaches it: depths {depth[0]:.2f} to {depth[-1]:.2f}"
        bare = np.isnan(frame["ci_low"].to_numpy()) & inside
        known = [NO_INTERVAL if none else INTERPOLATED for none in bare]
        frame["ci_method"] = [
            of if there else None for of, there in zip(known, inside, strict=True)
        ]
        frame["reason"] = [None if there else outside for there in inside]
        frame["n_layers_read"] = len(ordered)
        parts.append(frame)
    return pd.concat(parts, ignore_index=True)


def compare_by_depth(results: Mapping[str, ProbeResult]) -> pd.DataFrame:
    """Return AUROC differences of runs at matched depths, paired by text.

    Each layer of the second run is set against the first run's at the nearest relative depth;
    both are judged on the held-out scores of the texts they have in common, by paired DeLong.
    ``estimate`` is the AUROC of ``run`` minus that of ``other_run``.

    Raises
    ------
    InvalidInputError
        If two runs have no pool and method, or no texts, in common.
    """
    rows: list[SimilarityRow] = []
    for first, second in combinations(results, 2):
        a, b = (_cells(results[name]) for name in (first, second))
        shared = [key for key in a if key in b]
        if not shared:
            msg = (
                f"runs {first!r} and {second!r} have no site, pool, method and cross-validation in "
                f"common: {sorted(map(str, a))} and {sorted(map(str, b))}"
            )
            raise InvalidInputError(msg)
        for key in shared:
            rows.extend(_differences((first, a[key]), (second, b[key]), key=key))
    return record_frame(rows, SimilarityRow)


_Layers = dict[int, tuple[float, pd.DataFrame]]  # depth and scores by layer


def _cells(result: ProbeResult) -> dict[tuple[str, str, str, str], _Layers]:
    """Return depth and held-out scores by site, pool, method, CV and layer."""
    rows = result.rows[(result.rows.metric == "auroc") & result.rows.layer.notna()]
    depths = dict(zip(rows.layer.astype(int), rows.depth.astype(float), strict=True))
    cells: dict[tuple[str, str, str, str], _Layers] = {}
    scores = result.scores[result.scores.layer.notna()]
    for (site, pool, method, cv, layer), group in scores.groupby(
        ["site", "pool", "method", "cv", "layer"], sort=False
    ):
        at = cells.setdefault((str(site), str(pool), str(method), str(cv)), {})
        number = int(str(layer))
        at[number] = (depths[number], group.set_index("text"))
    return cells


def _differences(
    first: tuple[str, _Layers], second: tuple[str, _Layers], *, key: tuple[str, str, str, str]
) -> list[SimilarityRow]:
    (name, layers), (other, other_layers) = first, second
    site, pool, method, cv = key
    depths = np.array([depth for depth, _ in layers.values()])
    rows = []
    for other_layer, (other_depth, theirs) in other_layers.items():
        layer = list(layers)[int(np.abs(depths - other_depth).round(9).argmin())]
        depth, mine = layers[layer]
        common = mine.index.intersection(theirs.index)
        if common.empty:
            msg = f"runs {name!r} and {other!r} have no scored texts in common ({pool}, {method})"
            raise InvalidInputError(msg)
        a, b = mine.loc[common], theirs.loc[common]
        if (a.label.to_numpy() != b.label.to_numpy()).any():
            msg = f"runs {name!r} and {other!r} label the same texts differently"
            raise InvalidInputError(msg)
        found = auroc_difference(a.score.to_numpy(), b.score.to_numpy(), a.label.to_numpy())
        rows.append(
            SimilarityRow(
                analysis="depth",
                metric="auroc_delta",
                estimate=found.estimate,
                ci_low=found.low,
                ci_high=found.high,
                ci_method=found.method,
                run=name,
                other_run=other,
                site=site,
                pool=pool,
                method=method,
                cv=cv,
                layer=layer,
                depth=depth,
                other_layer=other_layer,
                other_depth=other_depth,
                n_texts=len(common),
            )
        )
    return rows
