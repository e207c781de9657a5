"""Causal mediation: how much of a system prompt's effect passes through a state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..extract import LoadedModel
from ..schemas import InvalidInputError, MediateSpec, MediationRow
from .aligned import AlignedCase
from .conditions import Progress, run_conditions, weigh_conditions
from .costs import PatchCost
from .patched_runs import Patch
from .resampling import draw_weights, interval_of_mean, interval_of_ratio, p_of_null
from .writes import (
    chosen_layers,
    layered_vectors,
    random_units,
    write_along,
    write_full,
    write_sized,
)

__all__ = ["MediationResult", "decompose_effects", "mediate", "weigh_mediation"]

_WAYS = ("forward", "reverse")
_PATCHED = ("base", "source")  # whose mediator is replaced by the other run's


@dataclass(frozen=True)
class MediationResult:
    """Effects per layer and mediator in ``rows``; outcomes per pair in ``samples``.

    ``samples`` has columns layer, mediator, index, pair, scenario, and the outcomes base, source,
    base_with_source and source_with_base (positive minus negative, the mediator taken from the
    other run).
    """

    rows: pd.DataFrame
    samples: pd.DataFrame


@dataclass(frozen=True)
class _Mediator:
    layer: int
    kind: str
    index: int = 0


def decompose_effects(
    null: np.ndarray,
    full: np.ndarray,
    *,
    null_with_full: np.ndarray,
    full_with_null: np.ndarray,
    scale: str = "log_odds",
) -> dict[str, np.ndarray]:
    """Return TE, NDE, NIE and their interaction TE - NDE - NIE per pair (pair,).

    With z the mediator: TE = y(set) - y(null), NDE = y(set, z = z_null) - y(null),
    NIE = y(null, z = z_set) - y(null) (Pearl; Vig et al. 2004.12265, §3). On the ratio scale
    y is the odds of the completions and every effect is divided by y(null), as Vig et al. do.
    """
    if scale == "ratio":
        unit = np.exp(null)
        null, full = unit / unit, np.exp(full) / unit
        null_with_full, full_with_null = (
            np.exp(null_with_full) / unit,
            np.exp(full_with_null) / unit,
        )
    total, direct, indirect = full - null, full_with_null - null, null_with_full - null
    return {
        "TE": total,
        "NDE": direct,
        "NIE": indirect,
        "interaction": total - direct - indirect,
    }


def _plan(
    loaded: LoadedModel, spec: MediateSpec, direction: np.ndarray | None
) -> tuple[list[_Mediator], list[Patch]]:
    vectors = layered_vectors(direction, loaded=loaded, name="the direction")
    if "coordinate" in spec.mediators and vectors is None:
        msg = "the mediator 'coordinate' needs a direction; give one, or mediate by 'full' alone"
        raise InvalidInputError(msg)
    random = random_units(spec.n_random, loaded.info.hidden_size, seed=spec.seed)
    mediators, patches = [], []
    for layer in chosen_layers(spec.layers, n_layers=loaded.info.n_layers):
        for kind in spec.mediators:
            mediators.append(_Mediator(layer, kind))
            for into, donor in (_PATCHED, _PATCHED[::-1]):
                write = write_full(donor, layer)
                if kind == "coordinate" and vectors is not None:
                    write = write_along(into, donor, layer, vectors[layer])
                patches.append(Patch(into, layer, spec.position, write))
        if "coordinate" not in spec.mediators or vectors is None:
            continue
        for index, along in enumerate(random):
            mediators.append(_Mediator(layer, "random", index))
            for into, donor in (_PATCHED, _PATCHED[::-1]):
                write = write_sized(into, donor, layer, vectors[layer], along=along)
                patches.append(Patch(into, layer, spec.position, write))
    return mediators, patches


def weigh_mediation(
    loaded: LoadedModel,
    cases: Sequence[AlignedCase],
    *,
    spec: MediateSpec,
    direction: np.ndarray | None = None,
    batch_tokens: int = 16384,
    folder: Path | None = None,
) -> PatchCost:
    """Return what :func:`mediate` would run, without running it."""
    _, patches = _plan(loaded, spec, direction)
    return weigh_conditions(loaded, cases, patches, batch_tokens=batch_tokens, folder=folder)


def mediate(
    loaded: LoadedModel,
    cases: Sequence[AlignedCase],
    *,
    spec: MediateSpec,
    direction: np.ndarray | None = None,
    batch_tokens: int = 16384,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> MediationResult:
    """Return the total, direct and indirect effects through a mediator, layer by layer.

    ``forward`` takes the base run for the null and the source run for the set, ``reverse`` the
    other way round. The proportion mediated is mean(NIE) / mean(TE), and is missing where the
    interval of TE holds 0. Intervals resample pairs. The coordinate's NIE is compared with
    steps along random directions of the same size: ``p_value`` in its layer, ``p_value_max``
    with each random direction's largest over the layers.

    Parameters
    ----------
    direction
        Unit vectors, (hidden,) or (layer, hidden) over all layers, for the coordinate.
    folder, progress
        Where outcomes are kept as they come, and whom to tell; see
        :func:`~actlake.steer.conditions.run_conditions`.

    Raises
    ------
    InvalidInputError
        If there is no contrast, the coordinate has no direction, or a layer does not exist.
    """
    if not cases:
        msg = "there is no contrast to mediate; expected at least one"
        raise InvalidInputError(msg)
    mediators, patches = _plan(loaded, spec, direction)
    outcomes = run_conditions(
        loaded, cases, patches, batch_tokens=batch_tokens, folder=folder, progress=progress
    )
    clean, both = outcomes.differences(outcome=spec.outcome)
    base, source = clean["base"], clean["source"]
    patched = both.reshape(len(mediators), 2, len(cases))
    samples = pd.DataFrame.from_records(
        [
            {
                "layer": m.layer,
                "mediator": m.kind,
                "index": m.index,
                "pair": case.contrast.id,
                "scenario": case.contrast.scenario,
                "base": base[i],
                "source": source[i],
                "base_with_source": patched[k, 0, i],
                "source_with_base": patched[k, 1, i],
            }
            for k, m in enumerate(mediators)
            for i, case in enumerate(cases)
        ]
    )
    effects = {
        (way, m): decompose_effects(
            null,
            full,
            null_with_full=patched[k, at],
            full_with_null=patched[k, 1 - at],
            scale=spec.scale,
        )
        for k, m in enumerate(mediators)
        for at, (way, null, full) in enumerate(
            [("forward", base, source), ("reverse", source, base)]
        )
    }
    rows = [
        row.model_dump()
        for (way, m), found in effects.items()
        for row in _rows(way, m, found, effects, loaded=loaded, spec=spec, cases=cases)
    ]
    return MediationResult(pd.DataFrame.from_records(rows), samples)


def _rows(
    way: str,
    mediator: _Mediator,
    found: dict[str, np.ndarray],
    effects: dict[tuple[str, _Mediator], dict[str, np.ndarray]],
    *,
    loaded: LoadedModel,
    spec: MediateSpec,
    cases: Sequence[AlignedCase],
) -> list[MediationRow]:
    weights = draw_weights(len(cases), n_draws=spec.n_bootstrap, seed=spec.seed)
    common = {
        "analysis": "mediate",
        "model": loaded.info.name,
        "site": "resid_post",
        "layer": mediator.layer,
        "depth": (mediator.layer + 1) / loaded.info.n_layers,
        "n_pairs": len(cases),
        "n_scenarios": len({case.contrast.scenario for case in cases}),
        "groups": "pair",
        "token_mask": f"mediator at {spec.position}, without BOS",
        "dtype": loaded.info.dtype,
        "seed": spec.seed,
        "way": way,
        "mediator": mediator.kind,
        "position": str(spec.position),
        "index": mediator.index,
        "scale": spec.scale,
    }
    rows = []
    for name, values in found.items():
        low, high = interval_of_mean(values, weights)
        null = _null(way, mediator, effects) if name == "NIE" else {}
        rows.append(
            MediationRow.model_validate(
                {
                    **common,
                    **null,
                    "metric": name,
                    "estimate": float(values.mean()),
                    "ci_low": low,
                    "ci_high": high,
                    "ci_method": "percentile bootstrap over pairs",
                }
            )
        )
    total, indirect = found["TE"], found["NIE"]
    low, high = interval_of_mean(total, weights)
    share: dict[str, object] = {
        "estimate": None,
        "reason": f"the interval of TE, {low:.3g} to {high:.3g}, holds 0",
    }
    if not low <= 0 <= high:
        ratio_low, ratio_high = interval_of_ratio(indirect, total, weights)
        share = {
            "estimate": float(indirect.mean() / total.mean()),
            "ci_low": ratio_low,
            "ci_high": ratio_high,
            "ci_method": "percentile bootstrap of a ratio of means over pairs",
        }
    rows.append(MediationRow.model_validate({**common, **share, "metric": "proportion"}))
    return rows


def _null(
    way: str,
    mediator: _Mediator,
    effects: dict[tuple[str, _Mediator], dict[str, np.ndarray]],
) -> dict[str, object]:
    """Return the p-values of the coordinate's NIE among random directions'."""
    draws = {
        (m.layer, m.index): float(found["NIE"].mean())
        for (other, m), found in effects.items()
        if other == way and m.kind == "random"
    }
    if mediator.kind != "coordinate" or not draws:
        return {}
    indices = sorted({index for _, index in draws})
    layers = sorted({layer for layer, _ in draws})
    table = np.array([[abs(draws[layer, index]) for layer in layers] for index in indices])
    observed = float(effects[way, mediator]["NIE"].mean())
    return {
        "null": "norm-matched random directions",
        "n_draws": len(indices),
        "p_value": p_of_null(observed, table[:, layers.index(mediator.layer)]),
        "p_value_max": p_of_null(observed, table.max(axis=1)),
    }
