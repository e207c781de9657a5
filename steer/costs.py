"""What interventions cost before they are begun: passes, rows, tokens; time on trial."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..extract import LoadedModel, TokenRow
from ..extract.costs import Speed, probe_speed
from .scoring import Condition, ScoreEngine, condition_batches, score_rows

__all__ = ["PatchCost", "Trial", "describe_cost", "weigh_rows"]

_FEWEST = 8  # conditions of the first piece on trial
_MOST = 256  # of any: as many as are committed together, or some full batches
_SHARE = 0.125  # of the time that a probe may take: what one piece may take


@dataclass(frozen=True)
class Trial:
    """Work of one kind that can be tried: ``n_tokens`` of it are to be run.

    ``run`` runs a random piece of so many conditions, ``most`` at most, and returns its tokens,
    counted as in ``n_tokens``. It needs the weights.
    """

    n_tokens: int
    run: Callable[[np.random.Generator, int], int] = field(repr=False)
    most: int = _MOST


@dataclass(frozen=True)
class PatchCost:
    """What a sweep costs: forward passes, rows of all of them, tokens with padding.

    ``n_conditions`` are run, ``n_kept`` are there already. ``trials`` are what it is made of.
    """

    n_forwards: int = 0
    n_rows: int = 0
    n_tokens: int = 0
    n_conditions: int = 0
    n_kept: int = 0
    trials: tuple[Trial, ...] = field(default=(), repr=False, compare=False)

    def __add__(self, other: PatchCost) -> PatchCost:
        return PatchCost(
            self.n_forwards + other.n_forwards,
            self.n_rows + other.n_rows,
            self.n_tokens + other.n_tokens,
            self.n_conditions + other.n_conditions,
            self.n_kept + other.n_kept,
            self.trials + other.trials,
        )

    def probe(self, *, max_seconds: float) -> Speed:
        """Run pieces of the work for a while and return its speed; keep nothing.

        Pieces are drawn from all of it and grow until one takes a share of the time, so that a
        slow machine is not kept for longer than asked for; those of the last size count. No
        speed and no time where nothing is left to run. It needs the weights.
        """
        work = [trial for trial in self.trials if trial.n_tokens]
        if not work:
            return Speed(tokens_per_second=0.0, seconds=0.0)
        share = np.array([trial.n_tokens for trial in work], dtype=float)
        share /= share.sum()
        rng = np.random.default_rng(0)

        def run(size: int) -> int:
            trial = work[rng.choice(len(work), p=share)]
            return trial.run(rng, min(size, trial.most))

        size, most = _FEWEST, max(trial.most for trial in work)
        while size < most:
            began = time.monotonic()
            run(size)
            if time.monotonic() - began > _SHARE * max_seconds:
                break
            size *= 2

        def pieces() -> Iterator[int]:
            yield run(size)  # to warm up
            done = 0
            while not done or done < self.n_tokens:
                tokens = run(size)
                done += tokens
                yield tokens

        return probe_speed(pieces(), n_tokens=self.n_tokens, max_seconds=max_seconds)


def describe_cost(
    cost: PatchCost, *, probe_seconds: float | None = None, price_per_hour: float | None = None
) -> dict[str, Any]:
    """Return a cost by the names that people read, with time and price where it is probed.

    Parameters
    ----------
    probe_seconds
        How long to probe, which needs the weights; None says nothing of time.
    price_per_hour
        Of the machine, in any currency.
    """
    facts: dict[str, Any] = {
        "forwards": cost.n_forwards,
        "rows": cost.n_rows,
        "tokens": cost.n_tokens,
    }
    if cost.n_conditions or cost.n_kept:
        facts |= {"conditions": cost.n_conditions + cost.n_kept, "done": cost.n_kept}
    if probe_seconds is not None:
        facts |= cost.probe(max_seconds=probe_seconds).facts(price_per_hour)
    return facts


def weigh_rows(
    loaded: LoadedModel,
    rows: Sequence[TokenRow],
    conditions: Sequence[Condition],
    *,
    batch_tokens: int,
    layer: int | Sequence[int] = 0,
    engine: ScoreEngine | None = None,
) -> PatchCost:
    """Return what :func:`~actlake.steer.score_rows` would run; no weights are needed.

    ``engine`` is what runs pieces on trial; None is the model in this process.
    """
    lengths = [rows[condition.row].n_tokens for condition in conditions]
    order = np.argsort(lengths, kind="stable")

    def tokens_of(chosen: Sequence[Condition]) -> tuple[int, int]:
        batches = condition_batches(loaded, rows, chosen, batch_tokens=batch_tokens)
        longest = (max(rows[chosen[i].row].n_tokens for i in batch) for batch in batches)
        return len(batches), sum(len(b) * n for b, n in zip(batches, longest, strict=True))

    def run(rng: np.random.Generator, size: int) -> int:
        start = int(rng.integers(max(1, len(order) - size + 1)))
        # Any direction takes as long as any other.
        chosen = [Condition(conditions[i].row, 0, 1.0) for i in order[start : start + size]]
        n_layers = 1 if isinstance(layer, int) else len(layer)
        vector = np.eye(1, loaded.info.hidden_size, dtype=np.float32)[:, None]
        score_rows(
            loaded,
            rows,
            chosen,
            directions=np.repeat(vector, n_layers, axis=1),
            layer=layer,
            positions="all",
            batch_tokens=batch_tokens,
            engine=engine,
        )
        return tokens_of(chosen)[1]

    n_forwards, n_tokens = tokens_of(conditions)
    return PatchCost(n_forwards, len(conditions), n_tokens, trials=(Trial(n_tokens, run),))
