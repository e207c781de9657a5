"""Patching beside steering of the same size: what a direction does, told apart from how far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..extract import LoadedModel
from ..schemas import InvalidInputError, MatchedRow, MatchedSpec
from .aligned import AlignedCase
from .conditions import Progress, run_conditions, weigh_conditions
from .costs import PatchCost
from .patched_runs import CleanRuns, Patch
from .resampling import draw_weights, interval_of_mean, p_of_null
from .writes import (
    NamedWrite,
    chosen_layers,
    layered_vectors,
    name_vector,
    random_units,
    write_along,
    write_full,
)

__all__ = ["MatchedResult", "compare_with_steering", "weigh_comparison"]


@dataclass(frozen=True)
class MatchedResult:
    """Effects of patches and of steering of their size: ``rows``, and per pair ``samples``.

    ``samples`` has columns layer, what, index, pair, scenario, base, outcome, effect (outcome
    less base) and change_norm (root mean square per token).
    """

    rows: pd.DataFrame
    samples: pd.DataFrame


def _plan(
    loaded: LoadedModel, cases: Sequence[AlignedCase], direction: np.ndarray, spec: MatchedSpec
) -> tuple[list[tuple[int, str, int]], list[Patch]]:
    vectors = layered_vectors(direction, loaded=loaded, name="the direction")
    if not cases or vectors is None:
        msg = "there is no contrast, or no direction, to compare by; expected both"
        raise InvalidInputError(msg)
    random = random_units(spec.n_random, loaded.info.hidden_size, seed=spec.seed)
    cells: list[tuple[int, str, int]] = []
    patches: list[Patch] = []
    for layer in chosen_layers(spec.layers, n_layers=loaded.info.n_layers):
        own = vectors[layer]
        write = (
            write_full("source", layer)
            if spec.arm == "full"
            else write_along("base", "source", layer, own)
        )
        cells.append((layer, "patch", 0))
        patches.append(Patch("base", layer, spec.position, write))
        for what, index, along in [
            ("steer", 0, own),
            *(("random", i, r) for i, r in enumerate(random)),
        ]:
            cells.append((layer, what, index))
            patches.append(
                Patch(
                    "base",
                    layer,
                    spec.steer_position,
                    _write_step(layer, own, along=along, spec=spec),
                )
            )
    return cells, patches


def weigh_comparison(
    loaded: LoadedModel,
    cases: Sequence[AlignedCase],
    direction: np.ndarray,
    *,
    spec: MatchedSpec,
    batch_tokens: int = 16384,
    folder: Path | None = None,
) -> PatchCost:
    """Return what :func:`compare_with_steering` would run, without running it."""
    _, patches = _plan(loaded, cases, direction, spec)
    return weigh_conditions(loaded, cases, patches, batch_tokens=batch_tokens, folder=folder)


def compare_with_steering(
    loaded: LoadedModel,
    cases: Sequence[AlignedCase],
    direction: np.ndarray,
    *,
    spec: MatchedSpec,
    batch_tokens: int = 16384,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> MatchedResult:
    """Return the effect of patching the base run beside that of steering it as far.

    For each contrast and layer the patch of ``spec.arm`` moves every token of ``spec.position``
    by so much. Its root mean square over these tokens, with the sign of the mean change along the
    direction, is the strength of the steering at ``spec.steer_position``, along the direction
    and along random ones. That patching fails where steering works can only be said of pushes of
    one size. ``steer - patch`` has a paired interval.

    At one token a swapped coordinate *is* a step along the direction: there both are the same.

    Parameters
    ----------
    direction
        Unit vectors, (hidden,) or (layer, hidden) over all layers.
    folder, progress
        Where outcomes are kept as they come, and whom to tell; see
        :func:`~actlake.steer.conditions.run_conditions`.

    Raises
    ------
    InvalidInputError
        If there is no contrast, a layer does not exist, or the direction does not fit.
    """
    cells, patches = _plan(loaded, cases, direction, spec)
    found = run_conditions(
        loaded, cases, patches, batch_tokens=batch_tokens, folder=folder, progress=progress
    )
    clean, patched = found.differences(outcome=spec.outcome)
    base, change = clean["base"], found.change
    effects = patched - base
    samples = pd.DataFrame.from_records(
        [
            {
                "layer": layer, "what": what, "index": index, "pair": case.contrast.id,
                "scenario": case.contrast.scenario, "base": base[i],
                "outcome": base[i] + effects[k, i], "effect": effects[k, i],
                "change_norm": change[k, i],
            }
            for k, (layer, what, index) in enumerate(cells)
            for i, case in enumerate(cases)
        ]
    )  # fmt: skip
    return MatchedResult(
        _rows(cells, effects, change, loaded=loaded, spec=spec, cases=cases), samples
    )


def _write_step(
    layer: int, vector: torch.Tensor, *, along: torch.Tensor, spec: MatchedSpec
) -> NamedWrite:
    """Add to every touched token a step along ``along``, of the size of the patch."""

    def write(clean: CleanRuns, c: int, _mask: np.ndarray) -> torch.Tensor:
        state = clean.states("base", c, layer)
        patched = torch.from_numpy(clean.case.columns(spec.position, c)).to(state.device)
        moved = (clean.states("source", c, layer) - state)[patched]
        coordinate = moved @ vector.to(state.device)
        sizes = coordinate.square() if spec.arm == "coordinate" else moved.square().sum(dim=-1)
        alpha = sizes.mean().sqrt().copysign(coordinate.mean())
        return state + alpha * along.to(state.device)

    names = (name_vector(vector), name_vector(along))
    return NamedWrite(("step", layer, *names, str(spec.position), spec.arm), write)


def _rows(
    cells: Sequence[tuple[int, str, int]],
    effects: np.ndarray,
    change: np.ndarray,
    *,
    loaded: LoadedModel,
    spec: MatchedSpec,
    cases: Sequence[AlignedCase],
) -> pd.DataFrame:
    weights = draw_weights(len(cases), n_draws=spec.n_bootstrap, seed=spec.seed)
    at = {cell: k for k, cell in enumerate(cells)}
    lines: list[tuple[int, str, int, np.ndarray, float | None]] = [
        (*cell, effects[k], float(np.sqrt((change[k] ** 2).mean()))) for cell, k in at.items()
    ]
    layers = list(dict.fromkeys(layer for layer, _, _ in cells))
    for layer in layers:
        difference = effects[at[layer, "steer", 0]] - effects[at[layer, "patch", 0]]
        lines.append((layer, "steer - patch", 0, difference, None))
    records = []
    for layer, what, index, values, size in lines:
        low, high = interval_of_mean(values, weights)
        null = np.array(
            [effects[k].mean() for (at_layer, w, _), k in at.items()
             if at_layer == layer and w == "random"]
        )  # fmt: skip
        tested = what in {"patch", "steer"} and null.size > 0
        records.append(
            MatchedRow.model_validate(
                {
                    "analysis": "matched",
                    "metric": "effect",
                    "estimate": float(values.mean()),
                    "ci_low": low,
                    "ci_high": high,
                    "ci_method": "percentile bootstrap over pairs",
                    "null": "steering as far along random directions" if tested else None,
                    "n_draws": len(null) if tested else None,
                    "p_value": p_of_null(float(values.mean()), null) if tested else None,
                    "model": loaded.info.name,
                    "site": "resid_post",
                    "layer": layer,
                    "depth": (layer + 1) / loaded.info.n_layers,
                    "n_pairs": len(cases),
                    "n_scenarios": len({case.contrast.scenario for case in cases}),
                    "groups": "pair",
                    "token_mask": f"patched at {spec.position}, steered at {spec.steer_position}",
                    "dtype": loaded.info.dtype,
                    "seed": spec.seed,
                    "what": what,
                    "arm": spec.arm,
                    "position": str(spec.position if what == "patch" else spec.steer_position),
                    "index": index,
                    "change_norm": size,
                }
            ).model_dump()
        )
    return pd.DataFrame.from_records(records)
