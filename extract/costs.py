"""What a run will take before it is begun: memory, time, money."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..schemas import ExtractSpec, InvalidInputError
from ..store.token_stream import CHUNKS_IN_FLIGHT
from .engine import Engine
from .engines import open_engine
from .loading import pick_device
from .pipeline import TOKEN_BATCHES
from .planning import PreparedRun

__all__ = [
    "Memory",
    "Speed",
    "check_memory",
    "estimate_run",
    "fit_batches",
    "measure_speed",
    "memory_needed",
    "probe_speed",
]

_BLOCKS_IN_FLIGHT = 4  # filled, queued, stored, and the copies that its encoding makes
# Of token arrays: the chunks that are begun, those that are full, and what encoding makes of one.
_CHUNKS_IN_FLIGHT = 2 + CHUNKS_IN_FLIGHT + 1
_CPU_TOKENS = 16384
_VLLM_TOKENS = 8192
_FEWEST_TOKENS = 256  # of a batch, even where memory is short
_MARGIN = 0.1  # of free memory
_STREAMS_ALIVE = 12  # residual-sized tensors of one block's forward: q, k, v, MLP of 4x, norms


@dataclass(frozen=True)
class Memory:
    """Bytes needed, and bytes that are free (None where nobody can say)."""

    needed: int
    free: int | None

    @property
    def fits(self) -> bool:
        """Whether what is needed is there, as far as one can say."""
        return self.free is None or self.needed <= self.free


@dataclass(frozen=True)
class Speed:
    """What a short probe measured, and what it means for the whole run."""

    tokens_per_second: float
    seconds: float

    def cost(self, price_per_hour: float) -> float:
        """Return the price of the whole run, in the unit of ``price_per_hour``."""
        return self.seconds / 3600 * price_per_hour

    def facts(self, price_per_hour: float | None = None) -> dict[str, float]:
        """Return speed, time and, where a price is named, cost, as a dry run prints them."""
        value = {
            "tokens_per_second": round(self.tokens_per_second, 1),
            "estimated_seconds": round(self.seconds, 1),
        }
        if price_per_hour is not None:
            value["estimated_cost"] = round(self.cost(price_per_hour), 2)
        return value


def memory_needed(
    prepared: PreparedRun, device: torch.device, *, is_spread: bool = False
) -> dict[str, Memory]:
    """Return what a run needs on the host and on the device, beside what is free there.

    An estimate: weights, one block's intermediate tensors for the largest batch with its
    attention scores, and on the host pooled row-blocks in flight. Of token arrays the batches and
    the chunks in flight, however large a block is. On a CPU all of it is the host's.
    """
    plan = prepared.plan
    itemsize = getattr(torch, plan.model.dtype).itemsize
    longest = max(row.n_tokens for row in prepared.rows)
    tokens = max(plan.batch_tokens, longest)
    hidden = plan.model.hidden_size
    # Only eager attention holds its scores; heads are about 64 wide.
    eager = plan.model.attn_implementation == "eager"
    scores = tokens * longest * (hidden // 64 or 1) if eager else 0
    weights = plan.model.n_parameters * itemsize
    model = weights + itemsize * (_STREAMS_ALIVE * tokens * hidden + 2 * scores)
    values = {True: 0, False: 0}  # of one token, of one text
    for spec in plan.arrays:
        values[spec.is_tokens] += math.prod(spec.shape[1:])
    kept = values[True]
    blocks = min(_BLOCKS_IN_FLIGHT, plan.n_blocks + 1) * 4 * plan.rows_per_block * values[False]
    # Tokens of a batch in the model's type: the one being run, and those on their way.
    model += itemsize * 2 * tokens * kept
    blocks += itemsize * TOKEN_BATCHES * tokens * kept
    if plan.token_axis is not None:
        blocks += _CHUNKS_IN_FLIGHT * 4 * plan.token_axis.rows_per_chunk * kept
    if is_spread:  # over all devices, then the host; what is left goes to the disk
        return {"host": Memory(blocks, _free_host())}
    if device.type == "cuda":
        return {
            "host": Memory(blocks, _free_host()),
            "device": Memory(model, torch.cuda.mem_get_info(device)[0]),
        }
    return {"host": Memory(model + blocks, _free_host())}


def check_memory(prepared: PreparedRun, needed: dict[str, Memory]) -> None:
    """Raise InvalidInputError where a run cannot fit, naming what would make it smaller."""
    short = [f"{place}: {_gb(m.needed)} needed, {_gb(m.free or 0)} free"
             for place, m in needed.items() if not m.fits]  # fmt: skip
    if short:
        plan = prepared.plan
        options = [f"a smaller --batch-tokens (now {plan.batch_tokens})"]
        if plan.n_blocks == 1 or plan.rows_per_block > 1:
            options.append(f"a smaller --chunk-size (now {plan.rows_per_block} rows)")
        if plan.token_axis is not None:
            options.append(f"fewer token layers (now {len(plan.token_axis.layers)})")
        if plan.model.dtype == "float32":
            options.append("--dtype bfloat16")
        if "device" in needed and not needed["device"].fits:
            options.append("--device-map auto")
        msg = (
            f"{plan.model.name} does not fit ({'; '.join(short)}); try {', '.join(options)}, or a "
            "device with more memory"
        )
        raise InvalidInputError(msg)


def fit_batches(prepared: PreparedRun, device: torch.device) -> PreparedRun:
    """Return the plan with the largest batches, halved until the run fits into free memory.

    A share is left to whatever else takes memory meanwhile. A CPU is as fast with batches of the
    default size, and vLLM with those of its own.
    """
    plan = prepared.plan
    tokens = plan.batch_tokens
    if plan.engine == "vllm":
        tokens = min(tokens, _VLLM_TOKENS)
    elif device.type != "cuda":
        tokens = min(tokens, _CPU_TOKENS)
    while True:
        found = replace(prepared, plan=plan.model_copy(update={"batch_tokens": tokens}))
        needed = memory_needed(found, device).values()
        if tokens <= _FEWEST_TOKENS or all(
            m.free is None or m.needed <= (1 - _MARGIN) * m.free for m in needed
        ):
            return found
        tokens //= 2


def measure_speed(prepared: PreparedRun, engine: Engine, *, max_seconds: float = 20.0) -> Speed:
    """Run batches spread over the whole run for a while; store nothing.

    The first batch warms up and is not counted. Padding counts as it will in the run. An engine
    that makes its own batches is given few texts first and then twice as many each time, up to
    as many as in the run, so that a slow machine is not kept for longer than asked for.

    Parameters
    ----------
    engine
        The plan's own, ready to run.
    """
    total = sum(row.n_tokens for row in prepared.rows)
    work = (_run_batch(prepared, engine, batch) for batch in _probe_batches(prepared))
    return probe_speed(work, n_tokens=total, max_seconds=max_seconds)


def probe_speed(work: Iterator[int], *, n_tokens: int, max_seconds: float) -> Speed:
    """Return the speed of work that is run as it is asked for, and what that means for all of it.

    Parameters
    ----------
    work
        Yields the tokens of a piece when it is done; the first warms up and is not counted, and
        there is at least one more.
    n_tokens
        Of all the work.
    """
    next(work)
    done, began = 0, time.monotonic()
    for tokens in work:
        done += tokens
        if time.monotonic() - began > max_seconds:
            break
    speed = done / (time.monotonic() - began)
    return Speed(tokens_per_second=speed, seconds=n_tokens / speed)


def estimate_run(
    prepared: PreparedRun,
    *,
    model: str,
    extract: ExtractSpec,
    probe_seconds: float | None = None,
    price_per_hour: float | None = None,
) -> dict[str, Any]:
    """Return the plan's summary with memory, and with time and price where a probe is asked for.

    Parameters
    ----------
    model, extract
        What the plan was made from; a probe loads the weights.
    probe_seconds
        How long to probe; None loads nothing and says nothing of time.
    price_per_hour
        Of the machine, in any currency.

    Raises
    ------
    InvalidInputError
        If the run cannot fit into memory.
    """
    needed = memory_needed(
        prepared, pick_device(extract.device), is_spread=extract.device_map is not None
    )
    check_memory(prepared, needed)
    value = prepared.summary()
    for place, memory in needed.items():
        value[f"{place}_bytes_needed"] = memory.needed
        value[f"{place}_bytes_free"] = memory.free
    if probe_seconds is None:
        return value
    revision = prepared.plan.model.revision
    with open_engine(prepared, model=model, revision=revision, extract=extract) as engine:
        speed = measure_speed(prepared, engine, max_seconds=probe_seconds)
    return value | speed.facts(price_per_hour)


def _run_batch(prepared: PreparedRun, engine: Engine, batch: list[int]) -> int:
    """Run a batch, wait for its results, and return its tokens."""
    rows = [prepared.rows[i] for i in batch]
    for array in engine.forward(rows).values():
        array.cpu()
    return sum(row.n_tokens for row in rows)


def _probe_batches(prepared: PreparedRun) -> Iterator[list[int]]:
    """Yield a batch to warm up, then batches from all over.

    Rows are sorted by length, so the first are not typical. At least one comes after the first.
    """
    plan = prepared.plan
    rng = np.random.default_rng(0)
    if plan.engine != "vllm":
        batches = [batch for block in range(plan.n_blocks) for batch in prepared.batches(block)]
        yield batches[0]
        for index in rng.permutation(len(batches)):
            yield batches[index]
        return
    rows = [int(row) for row in rng.permutation(len(prepared.rows))]
    most = max(len(batch) for block in range(plan.n_blocks) for batch in prepared.batches(block))
    yield rows[: min(4, most)]
    start, size = 0, 4
    while start < len(rows):
        yield rows[start : start + size]
        start, size = start + size, min(2 * size, most)


def _free_host() -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError):
        return None


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB"
