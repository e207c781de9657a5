"""Alpha sweeps: what a direction does to the choice between two completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
from .scoring import angle_degrees, log_prob_differences

__all__ = ["SweepResult", "check_direction", "choose_pairs", "sweep_direction", "with_random"]

_METRIC = "logprob_difference_shift"


@dataclass(frozen=True)
class SweepResult:
    """A sweep: ``rows`` per direction and alpha, ``samples`` per prompt as well.

    ``samples`` has columns direction, direction_index, alpha_raw, alpha_separation, pair,
    scenario, difference (nats per token, positive minus negative completion) and shift (against
    alpha 0 of the same prompt and direction).
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
    direction: Direction,
    pairs: Sequence[Pair],
    *,
    spec: SteerSpec,
    capture: CaptureSpec,
    mean_norm: float,
    batch_tokens: int = 16384,
) -> SweepResult:
    """Return the effect of a direction on the log-prob difference, beside random directions.

    For each prompt the paired completions are scored under teacher forcing; the outcome is the
    mean log-probability per token of the positive completion minus that of the negative one, as
    a shift against alpha 0. Random directions are unit vectors at the same raw strengths. The
    intervals are percentile bootstraps over scenarios.

    Parameters
    ----------
    direction
        What is added; its ``norm`` is the class separation.
    pairs
        The prompts with their two completions.
    mean_norm
        Mean residual norm at the direction's layer, without special tokens.

    Raises
    ------
    InvalidInputError
        If the direction is of another model, site or width, or the layer does not exist.
    """
    check_direction(loaded, direction)
    texts = [t for pair in pairs for t in (pair.positive, pair.negative)]
    rows = render_texts(texts, loaded.tokenizer, spec=capture, max_positions=loaded.max_positions)
    scale = {"raw": 1.0, "separation": direction.norm, "norm": mean_norm}[spec.unit]
    given = sorted({*spec.alphas, 0.0})
    alphas = [alpha * scale for alpha in given]
    vectors = with_random(direction, n_random=spec.n_random, seed=spec.seed)
    difference = log_prob_differences(
        loaded,
        rows,
        directions=vectors,
        alphas=alphas,
        layer=direction.layer,
        positions=spec.positions,
        batch_tokens=batch_tokens,
    )
    shift = difference - difference[:, [alphas.index(0.0)], :]
    angles = angle_degrees(
        loaded,
        _prompt_rows(rows),
        directions=vectors,
        alphas=alphas,
        layer=direction.layer,
        positions=spec.positions,
    )
    samples = _samples_table(pairs, alphas, direction, difference, shift)
    table = _rows_table(
        pairs, alphas, direction, spec=spec, shift=shift, angles=angles, mean_norm=mean_norm
    )
    return SweepResult(table, samples)


def check_direction(loaded: LoadedModel, direction: Direction) -> None:
    """Raise InvalidInputError where a direction is not one of this model's residual stream."""
    info = loaded.info
    if direction.site != "resid_post":
        msg = f"the direction was read at {direction.site}, steering writes resid_post"
        raise InvalidInputError(msg)
    if len(direction.vector) != info.hidden_size:
        msg = (
            f"the direction is {len(direction.vector)} wide, {info.name} is {info.hidden_size}: "
            f"it comes from {direction.model}"
        )
        raise InvalidInputError(msg)
    if direction.model != info.name:
        msg = f"the direction comes from {direction.model}, the model loaded is {info.name}"
        raise InvalidInputError(msg)


def with_random(direction: Direction, *, n_random: int, seed: int) -> np.ndarray:
    """Return the direction and ``n_random`` isotropic unit vectors, (1 + n_random, hidden)."""
    rng = np.random.default_rng(seed)
    draws = rng.standard_normal((n_random, len(direction.vector)))
    draws /= np.linalg.norm(draws, axis=1, keepdims=True)
    return np.vstack([np.asarray(direction.vector)[None], draws])


def _prompt_rows(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """Return one row per pair: the angle is a property of the place, not of the completion."""
    return list(rows[::2])


def _names(n_directions: int, method: str) -> list[tuple[str, int]]:
    return [(method, 0)] + [("random", i) for i in range(n_directions - 1)]


def _samples_table(
    pairs: Sequence[Pair],
    alphas: Sequence[float],
    direction: Direction,
    difference: np.ndarray,
    shift: np.ndarray,
) -> pd.DataFrame:
    records = [
        {
            "direction": name,
            "direction_index": index,
            "alpha_raw": alpha,
            "alpha_separation": alpha / direction.norm,
            "pair": pair.id,
            "scenario": pair.positive.scenario,
            "difference": difference[d, a, p],
            "shift": shift[d, a, p],
        }
        for d, (name, index) in enumerate(_names(len(difference), direction.method))
        for a, alpha in enumerate(alphas)
        for p, pair in enumerate(pairs)
    ]
    return pd.DataFrame.from_records(records)


def _rows_table(
    pairs: Sequence[Pair],
    alphas: Sequence[float],
    direction: Direction,
    *,
    spec: SteerSpec,
    shift: np.ndarray,
    angles: np.ndarray,
    mean_norm: float,
) -> pd.DataFrame:
    scenarios = np.array([pair.positive.scenario for pair in pairs])
    low, high = _bootstrap_over(scenarios, shift, seed=spec.seed)
    records = [
        SteeringRow(
            analysis="steer",
            metric=_METRIC,
            estimate=float(shift[d, a].mean()),
            run=direction.run,
            model=direction.model,
            site=direction.site,
            pool=direction.pool,
            layer=direction.layer,
            method=direction.method if name == direction.method else "isotropic",
            ci_low=float(low[d, a]),
            ci_high=float(high[d, a]),
            ci_method="percentile bootstrap over scenarios",
            direction=name,
            direction_index=index,
            prompt_set="all" if spec.subsets is None else "+".join(spec.subsets),
            alpha_raw=alpha,
            alpha_separation=alpha / direction.norm,
            alpha_norm=alpha / mean_norm,
            alpha_angle=float(angles[d, a]),
            n_pairs=len(pairs),
            n_scenarios=len(set(scenarios)),
            groups="scenario",
            token_mask=f"steered at {spec.positions}, without BOS",
            seed=spec.seed,
            content_digest=direction.content_digest,
        ).model_dump()
        for d, (name, index) in enumerate(_names(len(shift), direction.method))
        for a, alpha in enumerate(alphas)
    ]
    return pd.DataFrame.from_records(records)


def _bootstrap_over(
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
