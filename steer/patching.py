"""Activation patching: which layer and position carry what a system prompt changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..extract import LoadedModel
from ..schemas import PATCH_ARMS, InvalidInputError, PatchArm, PatchMode, PatchRow, PatchSpec, Place
from .aligned import AlignedCase
from .clusters import wilson
from .conditions import Progress, States, run_conditions, weigh_conditions
from .costs import PatchCost
from .patched_runs import Patch, Write
from .resampling import draw_weights, interval_of_mean, interval_of_ratio, p_of_null
from .writes import (
    chosen_layers,
    layered_vectors,
    random_units,
    write_along,
    write_full,
    write_other_layer,
    write_sized,
)

__all__ = ["PatchResult", "sweep_patches", "weigh_sweep"]

_SMALL = 0.01  # nats: below it two runs do not differ in anything worth recovering
_RUNS: dict[PatchMode, tuple[str, str]] = {  # (patched, donor)
    "denoise": ("base", "source"),
    "noise": ("source", "base"),
}


@dataclass(frozen=True)
class PatchResult:
    """A sweep: ``rows`` per cell and arm, ``samples`` per pair as well.

    ``samples`` has columns mode, layer, position, arm, index, pair, scenario, base, source and
    patched (the outcome of each run, positive minus negative) and change_norm.
    """

    rows: pd.DataFrame
    samples: pd.DataFrame


@dataclass(frozen=True)
class Cell:
    """One arm at one layer and position."""

    mode: PatchMode
    layer: int
    position: Place
    arm: PatchArm
    index: int = 0


@dataclass(frozen=True)
class _Plan:
    """What a sweep writes: the cells and their patches, alike for every contrast."""

    cells: list[Cell]
    patches: list[Patch]


def _plan(
    spec: PatchSpec,
    *,
    n_layers: int,
    vectors: torch.Tensor | None,
    shuffled: torch.Tensor | None,
    random: torch.Tensor,
    roles: set[str],
) -> _Plan:
    arms = _choose_arms(spec, vectors=vectors, shuffled=shuffled, roles=roles, n_layers=n_layers)
    cells, patches = [], []
    for mode in spec.modes:
        into, donor = _RUNS[mode]
        for layer in chosen_layers(spec.layers, n_layers=n_layers):
            writes = _writes(
                into, donor, layer, n_layers=n_layers, vectors=vectors, shuffled=shuffled
            )
            for position in spec.positions:
                for arm in arms:
                    if arm == "same_class" and mode == "noise":
                        continue  # the other wording is one of the base's disposition
                    if arm == "random" and vectors is not None:
                        for index, along in enumerate(random):
                            cells.append(Cell(mode, layer, position, arm, index))
                            write = write_sized(into, donor, layer, vectors[layer], along=along)
                            patches.append(Patch(into, layer, position, write))
                        continue
                    cells.append(Cell(mode, layer, position, arm))
                    patches.append(Patch(into, layer, position, writes[arm]()))
    return _Plan(cells, patches)


def _writes(
    into: str,
    donor: str,
    layer: int,
    *,
    n_layers: int,
    vectors: torch.Tensor | None,
    shuffled: torch.Tensor | None,
) -> dict[PatchArm, Callable[[], Write]]:
    other = (layer + n_layers // 2) % n_layers
    writes: dict[PatchArm, Callable[[], Write]] = {
        "full": lambda: write_full(donor, layer),
        "same_class": lambda: write_full("same_class", layer),
        "wrong_layer": lambda: write_other_layer(into, donor, layer, other),
    }
    if vectors is not None:
        own = vectors[layer]
        writes["coordinate"] = lambda: write_along(into, donor, layer, own)
        writes["complement"] = lambda: write_along(
            into, donor, layer, own, operator="swap_complement"
        )
    if shuffled is not None:
        null = shuffled[layer]
        writes["shuffled"] = lambda: write_along(into, donor, layer, null)
    return writes


def _choose_arms(
    spec: PatchSpec,
    *,
    vectors: torch.Tensor | None,
    shuffled: torch.Tensor | None,
    roles: set[str],
    n_layers: int,
) -> list[PatchArm]:
    lacking: dict[PatchArm, str] = {}
    if vectors is None:
        lacking |= dict.fromkeys(("coordinate", "complement", "random"), "a direction")
    if shuffled is None:
        lacking["shuffled"] = "a direction from shuffled labels"
    if "same_class" not in roles:
        lacking["same_class"] = "a same_class prompt in every contrast"
    if n_layers < 2:
        lacking["wrong_layer"] = "a second layer"
    if spec.arms is None:
        return [arm for arm in PATCH_ARMS if arm not in lacking]
    for arm in spec.arms:
        if arm in lacking:
            msg = f"the arm {arm!r} needs {lacking[arm]}; give it, or leave the arm out"
            raise InvalidInputError(msg)
    return list(spec.arms)


def _prepare(
    loaded: LoadedModel,
    cases: Sequence[AlignedCase],
    spec: PatchSpec,
    direction: np.ndarray | None,
    shuffled: np.ndarray | None,
) -> _Plan:
    if not cases:
        msg = "there is no contrast to patch; expected at least one"
        raise InvalidInputError(msg)
    return _plan(
        spec,
        n_layers=loaded.info.n_layers,
        vectors=layered_vectors(direction, loaded=loaded, name="the direction"),
        shuffled=layered_vectors(shuffled, loaded=loaded, name="the shuffled direction"),
        random=random_units(spec.n_random, loaded.info.hidden_size, seed=spec.seed),
        roles=set.intersection(*(set(case.prompts) for case in cases)),
    )


def weigh_sweep(
    loaded: LoadedModel,
    cases: Sequence[AlignedCase],
    *,
    spec: PatchSpec,
    direction: np.ndarray | None = None,
    shuffled: np.ndarray | None = None,
    batch_tokens: int = 16384,
    states: States | None = None,
    folder: Path | None = None,
) -> PatchCost:
    """Return what :func:`sweep_patches` would run, without running it."""
    plan = _prepare(loaded, cases, spec, direction, shuffled)
    return weigh_conditions(
        loaded, cases, plan.patches, batch_tokens=batch_tokens, states=states, folder=folder
    )


def sweep_patches(
    loaded: LoadedModel,
    cases: Sequence[AlignedCase],
    *,
    spec: PatchSpec,
    direction: np.ndarray | None = None,
    shuffled: np.ndarray | None = None,
    batch_tokens: int = 16384,
    states: States | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> PatchResult:
    """Return what patches recover at every layer and position, beside their placebos.

    Arms: ``full`` (all of the donor's residual), ``coordinate`` (its part along the direction),
    ``complement`` (the rest), ``random`` (a step along a random direction, token by token as long
    as the coordinate's), ``shuffled`` (the coordinate along a direction from shuffled labels),
    ``wrong_layer`` (the runs' difference half the depth away, at the size of this layer's) and
    ``same_class`` (a run of another wording of the base's disposition).

    The coordinate's ``p_value`` is that of its effect among the random directions' in its cell,
    ``p_value_max`` among their largest over all cells of the mode.

    Parameters
    ----------
    cases
        See :func:`~actlake.steer.align_contrasts`.
    direction, shuffled
        Unit vectors, (hidden,) or (layer, hidden) over all layers.
    states
        Per contrast id, states to use in place of captured ones; see
        :func:`~actlake.steer.patched_runs.run_patches`.
    folder, progress
        Where outcomes are kept as they come, and whom to tell; see
        :func:`~actlake.steer.conditions.run_conditions`.

    Raises
    ------
    InvalidInputError
        If a layer, position or arm is not to be had, a vector does not fit the model, or the
        folder holds outcomes of another model.
    """
    plan = _prepare(loaded, cases, spec, direction, shuffled)
    found = run_conditions(
        loaded,
        cases,
        plan.patches,
        batch_tokens=batch_tokens,
        states=states,
        folder=folder,
        progress=progress,
    )
    clean, patched = found.differences(outcome=spec.outcome)
    base, source, change = clean["base"], clean["source"], found.change
    samples = _samples(plan.cells, cases, base, source, patched, change)
    rows = _rows(plan.cells, base, source, patched, change, loaded=loaded, spec=spec, cases=cases)
    return PatchResult(rows, samples)


def _samples(
    cells: Sequence[Cell],
    cases: Sequence[AlignedCase],
    base: np.ndarray,
    source: np.ndarray,
    patched: np.ndarray,
    change: np.ndarray,
) -> pd.DataFrame:
    return pd.DataFrame.from_records(
        [
            {
                "mode": cell.mode,
                "layer": cell.layer,
                "position": str(cell.position),
                "arm": cell.arm,
                "index": cell.index,
                "pair": case.contrast.id,
                "scenario": case.contrast.scenario,
                "base": base[i],
                "source": source[i],
                "patched": patched[k, i],
                "change_norm": change[k, i],
            }
            for k, cell in enumerate(cells)
            for i, case in enumerate(cases)
        ]
    )


def _rows(
    cells: Sequence[Cell],
    base: np.ndarray,
    source: np.ndarray,
    patched: np.ndarray,
    change: np.ndarray,
    *,
    loaded: LoadedModel,
    spec: PatchSpec,
    cases: Sequence[AlignedCase],
) -> pd.DataFrame:
    weights = draw_weights(len(cases), n_draws=spec.n_bootstrap, seed=spec.seed)
    total = source - base
    total_low, total_high = interval_of_mean(total, weights)
    small = total_low <= 0 <= total_high or abs(total.mean()) < _SMALL
    zero = total.mean() == 0
    unlike = np.sign(base) != np.sign(source)
    nulls = _nulls(cells, base, source, patched)
    records = []
    for k, cell in enumerate(cells):
        donor, clean = (source, base) if cell.mode == "denoise" else (base, source)
        above = patched[k] - base
        effect = patched[k] - clean
        low, high = interval_of_ratio(above, total, weights)
        effect_low, effect_high = interval_of_mean(effect, weights)
        hits = int((np.sign(patched[k]) == np.sign(donor))[unlike].sum())
        n_unlike = int(unlike.sum())
        found = wilson(hits / n_unlike, n_unlike, level=0.95) if n_unlike else (None, None)
        null = nulls.get((cell.mode, cell.layer, cell.position))
        tested = cell.arm == "coordinate" and null is not None
        highest = nulls.get((cell.mode,))
        records.append(
            PatchRow(
                analysis="patch",
                metric="recovered" if cell.mode == "denoise" else "retained",
                estimate=None if zero else float(above.mean() / total.mean()),
                reason="the two runs do not differ" if zero else None,
                model=loaded.info.name,
                site="resid_post",
                layer=cell.layer,
                depth=(cell.layer + 1) / loaded.info.n_layers,
                ci_low=low if np.isfinite(low) else None,
                ci_high=high if np.isfinite(high) else None,
                ci_method="percentile bootstrap of a ratio of means over pairs",
                null="norm-matched random directions" if tested else None,
                n_draws=len(null) if tested and null is not None else None,
                p_value=p_of_null(effect.mean(), null) if tested and null is not None else None,
                p_value_max=p_of_null(effect.mean(), highest)
                if tested and highest is not None
                else None,
                n_pairs=len(cases),
                n_scenarios=len({case.contrast.scenario for case in cases}),
                groups="pair",
                token_mask=f"patched at {cell.position}, without BOS",
                dtype=loaded.info.dtype,
                seed=spec.seed,
                mode=cell.mode,
                position=str(cell.position),
                arm=cell.arm,
                index=cell.index,
                effect=float(effect.mean()),
                effect_ci_low=effect_low,
                effect_ci_high=effect_high,
                total=float(total.mean()),
                total_ci_low=total_low,
                total_ci_high=total_high,
                small_total=bool(small),
                change_norm=float(change[k].mean()),
                interchange=hits / n_unlike if n_unlike else None,
                interchange_low=found[0],
                interchange_high=found[1],
                n_interchange=n_unlike,
            ).model_dump()
        )
    return pd.DataFrame.from_records(records)


def _nulls(
    cells: Sequence[Cell], base: np.ndarray, source: np.ndarray, patched: np.ndarray
) -> dict[tuple[object, ...], np.ndarray]:
    """Return the random directions' effects by cell, and by mode their largest over cells."""
    found: dict[tuple[object, ...], list[float]] = {}
    for k, cell in enumerate(cells):
        if cell.arm == "random":
            clean = base if cell.mode == "denoise" else source
            effect = float((patched[k] - clean).mean())
            found.setdefault((cell.mode, cell.layer, cell.position), []).append(effect)
    out: dict[tuple[object, ...], np.ndarray] = {key: np.array(v) for key, v in found.items()}
    for mode in {key[0] for key in out}:
        stacked = np.stack([np.abs(v) for key, v in out.items() if key[0] == mode])
        out[mode,] = stacked.max(axis=0)
    return out
