"""Alpha sweeps: what directions do to the choice between two completions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd

from ..extract import LoadedModel, TokenRow, render_texts
from ..schemas import (
    CaptureSpec,
    Direction,
    InvalidInputError,
    Pair,
    Split,
    SteeringRow,
    SteerSpec,
)
from .costs import PatchCost, Trial
from .scoring import ScoreEngine, angle_degrees
from .sweep_arms import SweepPlan, check_direction, plan_sweep, with_random
from .sweep_runs import measure_sweep, weigh_conditions

__all__ = [
    "SweepResult",
    "check_direction",
    "choose_pairs",
    "pair_rows",
    "sweep_direction",
    "weigh_direction",
    "with_random",
]

METRIC = "logprob_difference_shift"
Directions: TypeAlias = Direction | Sequence[Direction]
Norms: TypeAlias = float | Sequence[float]


@dataclass(frozen=True)
class SweepResult:
    """A sweep: ``rows`` per direction and alpha, ``samples`` per prompt as well.

    ``samples`` has columns direction, direction_index, layers, the strength in four units, pair,
    scenario, category, difference (nats per token, positive minus negative completion) and shift
    (against alpha 0 of the same prompt and direction).
    """

    rows: pd.DataFrame
    samples: pd.DataFrame


def choose_pairs(
    pairs: Sequence[Pair], *, spec: SteerSpec, split: Split | None = "test"
) -> list[Pair]:
    """Return up to ``spec.n_prompts`` pairs of a split, spread evenly over their scenarios.

    None, or a split that no pair has, takes all pairs.

    Raises
    ------
    InvalidInputError
        If no pair lies in the subsets that the spec names.
    """
    chosen = [p for p in pairs if spec.subsets is None or p.positive.subset in spec.subsets]
    if not chosen:
        known = sorted({p.positive.subset for p in pairs})
        msg = f"no pair in subsets {list(spec.subsets or ())}; the corpus has {known}"
        raise InvalidInputError(msg)
    held_out = [p for p in chosen if p.positive.split == split] or chosen
    queues: dict[str, list[Pair]] = {}
    for pair in sorted(held_out, key=lambda p: p.id):
        queues.setdefault(pair.positive.scenario, []).append(pair)
    out: list[Pair] = []
    while queues and len(out) < spec.n_prompts:
        for scenario in sorted(queues):
            out.append(queues[scenario].pop(0))
            if not queues[scenario]:
                del queues[scenario]
            if len(out) == spec.n_prompts:
                break
    return out


def sweep_direction(
    loaded: LoadedModel,
    direction: Directions,
    pairs: Sequence[Pair],
    *,
    spec: SteerSpec,
    capture: CaptureSpec,
    mean_norm: Norms,
    placebos: Sequence[Direction] = (),
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    batch_tokens: int = 16384,
    engine: ScoreEngine | None = None,
) -> SweepResult:
    """Return the effect of a direction on the log-prob difference, beside its placebos.

    For each prompt the paired completions are scored under teacher forcing; the outcome is the
    mean log-probability per token of the positive completion minus that of the negative one, as
    a shift against alpha 0. Placebos are unit vectors at the same raw strengths: ``spec.n_random``
    isotropic ones, and those given. The intervals are percentile bootstraps over scenarios.

    Parameters
    ----------
    direction
        What is added; its ``norm`` is the class separation. Directions of several layers are
        added at once, each at its layer and with the strength in its own units.
    pairs
        The prompts with their two completions.
    mean_norm
        Mean residual norm at the direction's layer, without special tokens; one per direction.
    placebos
        Directions of the same layers; their ``method`` names them, a number at its end (as in
        ``shuffled-3``) counts them.
    folder
        Where conditions are kept as they are measured; the same call goes on from there, and one
        with more strengths, directions or pairs measures those.
    progress
        Called with the conditions (direction, strength, pair) done and in all.
    engine
        What runs the model, such as :class:`VllmSteering`; None is the model in this process.

    Raises
    ------
    InvalidInputError
        If a direction is of another model, site or width, the layer does not exist, or the
        folder holds conditions of another model or positions.
    """
    plan = plan_sweep(loaded.info, direction, spec=spec, mean_norm=mean_norm, placebos=placebos)
    rows = pair_rows(loaded, pairs, capture=capture)
    difference = measure_sweep(
        loaded,
        rows,
        plan,
        positions=spec.positions,
        batch_tokens=batch_tokens,
        folder=folder,
        progress=progress,
        engine=engine,
    )
    shift = difference - difference[:, [plan.alphas.index(0.0)], :]
    angles = _angles(loaded, rows, plan, positions=spec.positions, engine=engine)
    units = _units_table(plan, angles)
    samples = _samples_table(pairs, units, difference, shift)
    return SweepResult(_rows_table(pairs, plan, units, spec=spec, shift=shift), samples)


def weigh_direction(
    loaded: LoadedModel,
    direction: Directions,
    pairs: Sequence[Pair],
    *,
    spec: SteerSpec,
    capture: CaptureSpec,
    mean_norm: Norms,
    placebos: Sequence[Direction] = (),
    folder: Path | None = None,
    batch_tokens: int = 16384,
    engine: ScoreEngine | None = None,
) -> PatchCost:
    """Return what :func:`sweep_direction` would run: passes, rows, tokens; no weights are needed.

    Conditions that ``folder`` holds are left out; the passes that measure the angles (one per
    prompt and layer) are counted.
    """
    plan = plan_sweep(loaded.info, direction, spec=spec, mean_norm=mean_norm, placebos=placebos)
    rows = pair_rows(loaded, pairs, capture=capture)
    cost = weigh_conditions(
        loaded, rows, plan, positions=spec.positions, folder=folder, batch_tokens=batch_tokens,
        engine=engine,
    )  # fmt: skip
    n_layers, tokens = len(plan.layers), sum(row.n_tokens for row in rows[::2])

    def measure_angles(rng: np.random.Generator, size: int) -> int:
        start = 2 * int(rng.integers(max(1, len(pairs) - size + 1)))
        chosen = rows[start : start + 2 * size]
        _angles(loaded, chosen, plan, positions=spec.positions, engine=engine)
        return n_layers * sum(row.n_tokens for row in chosen[::2])

    trial = Trial(n_layers * tokens, measure_angles)
    n_rows = n_layers * len(pairs)
    return cost + PatchCost(n_rows, n_rows, n_layers * tokens, trials=(trial,))


def pair_rows(
    loaded: LoadedModel, pairs: Sequence[Pair], *, capture: CaptureSpec
) -> list[TokenRow]:
    """Return the tokens of the pairs' texts, positive and negative by turns."""
    texts = [t for pair in pairs for t in (pair.positive, pair.negative)]
    return render_texts(texts, loaded.tokenizer, spec=capture, max_positions=loaded.max_positions)


def _angles(
    loaded: LoadedModel,
    rows: Sequence[TokenRow],
    plan: SweepPlan,
    *,
    positions: str,
    engine: ScoreEngine | None,
) -> np.ndarray:
    """Return the angles at each layer by itself, as a mean over the layers, (direction, alpha).

    One row per pair: the angle is a property of the place, not of the completion.
    """
    found = [
        angle_degrees(
            loaded,
            list(rows[::2]),
            directions=plan.units[:, k],
            alphas=[alpha * plan.ratios[k] for alpha in plan.alphas],
            layer=layer,
            positions=positions,
            engine=engine,
        )
        for k, layer in enumerate(plan.layers)
    ]
    return np.asarray(np.mean(found, axis=0))


def _units_table(plan: SweepPlan, angles: np.ndarray) -> pd.DataFrame:
    """Return one line per direction and alpha, in that order, with the strength in four units."""
    return pd.DataFrame(
        [
            {
                "direction": name,
                "direction_index": index,
                "layers": plan.place,
                **plan.in_units(alpha),
                "alpha_angle": float(angles[d, a]),
            }
            for d, (name, index) in enumerate(plan.names)
            for a, alpha in enumerate(plan.alphas)
        ]
    )


def _samples_table(
    pairs: Sequence[Pair], units: pd.DataFrame, difference: np.ndarray, shift: np.ndarray
) -> pd.DataFrame:
    of_pair = pd.DataFrame(
        {
            "pair": [pair.id for pair in pairs],
            "scenario": [pair.positive.scenario for pair in pairs],
            "category": [pair.positive.category for pair in pairs],
        }
    )
    table = units.merge(of_pair, how="cross")
    return table.assign(difference=difference.ravel(), shift=shift.ravel())


def _rows_table(
    pairs: Sequence[Pair],
    plan: SweepPlan,
    units: pd.DataFrame,
    *,
    spec: SteerSpec,
    shift: np.ndarray,
) -> pd.DataFrame:
    scenarios = np.array([pair.positive.scenario for pair in pairs])
    low, high = bootstrap_over(scenarios, shift, seed=spec.seed)
    first = plan.directions[0]
    records = [
        SteeringRow(
            analysis="steer",
            metric=METRIC,
            estimate=float(shift[d, a].mean()),
            run=first.run,
            model=first.model,
            site=first.site,
            pool=first.pool,
            layer=first.layer if len(plan.layers) == 1 else None,
            method="isotropic" if condition["direction"] == "random" else condition["direction"],
            ci_low=float(low[d, a]),
            ci_high=float(high[d, a]),
            ci_method="percentile bootstrap over scenarios",
            prompt_set=prompt_set(spec),
            n_pairs=len(pairs),
            n_scenarios=len(set(scenarios)),
            groups="scenario",
            token_mask=f"steered at {spec.positions}, without BOS",
            seed=spec.seed,
            content_digest=first.content_digest,
            **{str(name): value for name, value in condition.items()},
        ).model_dump()
        for condition, (d, a) in zip(
            units.to_dict("records"), np.ndindex(*shift.shape[:2]), strict=True
        )
    ]
    return pd.DataFrame.from_records(records)


def prompt_set(spec: SteerSpec) -> str:
    """Return what a row calls the prompts of a spec."""
    return "all" if spec.subsets is None else "+".join(spec.subsets)


def bootstrap_over(
    groups: np.ndarray, values: np.ndarray, *, seed: int, n_draws: int = 1000
) -> tuple[np.ndarray, np.ndarray]:
    """Return the 2.5 % and 97.5 % quantiles of the mean over the last axis, resampling groups."""
    names, member = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=n_draws)
    weights = draws[:, member].astype(float)  # (draw, pair)
    weights /= weights.sum(axis=1, keepdims=True)
    means = np.einsum("dap,bp->bda", values, weights)
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return low, high
