"""Choosing the layer to steer by what steering it does, on pairs that are not reported."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..extract import LoadedModel
from ..schemas import CaptureSpec, Direction, InvalidInputError, Pair
from .costs import PatchCost, weigh_rows
from .scoring import Condition, ScoreEngine, log_prob_differences
from .sweep import check_direction, pair_rows, with_random

__all__ = ["compare_layers", "weigh_layers"]

N_RANDOM = 8


def compare_layers(
    loaded: LoadedModel,
    directions: Sequence[Direction],
    pairs: Sequence[Pair],
    *,
    positions: str,
    capture: CaptureSpec,
    n_random: int = N_RANDOM,
    seed: int = 0,
    batch_tokens: int = 16384,
    engine: ScoreEngine | None = None,
) -> pd.DataFrame:
    """Return the effect of one class separation at each layer beside its placebo, best first.

    An AUROC that is 1 at most layers cannot choose between them; a raw effect favours layers
    where any push of that size does much, and its ratio to random directions' is noise where
    both are small. The effect is half the change of the log-prob difference between +1 and -1
    class separations, a mean over pairs in nats per token; the placebo is the root mean square
    of the same for random directions of the same norm; the margin is effect - 2 placebo. Columns
    layer, effect, placebo, margin (the order), n_pairs.

    Parameters
    ----------
    directions
        One per layer; their norms are the class separations.
    pairs
        Pairs that the reported sweep does not use.
    n_random
        Random directions per layer, at least one.
    engine
        What runs the model; None is the model in this process.

    Raises
    ------
    InvalidInputError
        If there is no direction or no pair, or a direction does not fit the model.
    """
    if not directions or not pairs or n_random < 1:
        msg = (
            f"got {len(directions)} directions, {len(pairs)} pairs and {n_random} random "
            "directions, expected some of each"
        )
        raise InvalidInputError(msg)
    rows = pair_rows(loaded, pairs, capture=capture)
    records = []
    for direction in directions:
        check_direction(loaded, direction)
        vectors = with_random(direction, n_random=n_random, seed=seed)
        difference = log_prob_differences(
            loaded,
            rows,
            directions=vectors,
            alphas=[direction.norm, -direction.norm],
            layer=direction.layer,
            positions=positions,
            batch_tokens=batch_tokens,
            engine=engine,
        )
        effects = (difference[:, 0] - difference[:, 1]).mean(axis=-1) / 2
        placebo = float(np.sqrt(np.mean(effects[1:] ** 2)))
        records.append(
            {
                "layer": direction.layer,
                "effect": float(effects[0]),
                "placebo": placebo,
                "margin": float(effects[0]) - 2 * placebo,
                "n_pairs": len(pairs),
            }
        )
    table = pd.DataFrame.from_records(records)
    return table.sort_values(["margin", "layer"], ascending=[False, True], ignore_index=True)


def weigh_layers(
    loaded: LoadedModel,
    n_layers: int,
    pairs: Sequence[Pair],
    *,
    capture: CaptureSpec,
    n_random: int = N_RANDOM,
    batch_tokens: int = 16384,
    engine: ScoreEngine | None = None,
) -> PatchCost:
    """Return what :func:`compare_layers` of so many layers would run; no weights are needed."""
    rows = pair_rows(loaded, pairs, capture=capture)
    conditions = [
        Condition(row, d, alpha)
        for d in range(1 + n_random)
        for alpha in (1.0, -1.0)
        for row in range(len(rows))
    ]
    one = weigh_rows(loaded, rows, conditions, batch_tokens=batch_tokens, engine=engine)
    return sum([one] * n_layers, PatchCost())
