"""What a run will take before it is begun: memory, time, money."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..schemas import ExtractSpec, InvalidInputError
from ..store import block_bytes
from .engine import Engine, TransformersEngine
from .loading import LoadedModel, load_model, pick_device
from .pipeline import TOKEN_BATCHES
from .planning import PreparedRun

__all__ = ["Memory", "Speed", "check_memory", "estimate_run", "measure_speed", "memory_needed"]

_BLOCKS_IN_FLIGHT = 4  # filled, queued, stored, and the copies that its encoding makes
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


def memory_needed(
    prepared: PreparedRun, device: torch.device, *, is_spread: bool = False
) -> dict[str, Memory]:
    """Return what a run needs on the host and on the device, beside what is free there.

    An estimate: weights, one block's intermediate tensors for the largest batch with its
    attention scores, tokens of batches, and row-blocks in flight on the host. On a CPU all of it
    is the host's.
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
    blocks = min(_BLOCKS_IN_FLIGHT, plan.n_blocks + 1) * block_bytes(plan)
    # Token arrays of a batch in the model's type: the one being run, and those on their way.
    kept = sum(math.prod(spec.shape[1:]) for spec in plan.arrays if spec.is_tokens)
    model += itemsize * 2 * tokens * kept
    blocks += (itemsize * (TOKEN_BATCHES + 1) + 4) * tokens * kept
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


def measure_speed(
    prepared: PreparedRun, loaded: LoadedModel, *, max_seconds: float = 20.0
) -> Speed:
    """Run batches spread over the whole run for a while; store nothing.

    The first batch warms up and is not counted. Padding counts as it will in the run.
    """
    plan = prepared.plan
    engine = TransformersEngine(
        loaded,
        sites=plan.capture.sites,
        layers=plan.layers,
        pools=plan.capture.pools,
        tokens=prepared.token_layers,
    )
    total = sum(row.n_tokens for row in prepared.rows)
    batches = [batch for block in range(plan.n_blocks) for batch in prepared.batches(block)]
    with engine.ready():
        _run_batch(prepared, engine, batches[0])
        done, began = 0, time.monotonic()
        for batch in _spread(batches):
            done += _run_batch(prepared, engine, batch)
            if time.monotonic() - began > max_seconds:
                break
        speed = done / (time.monotonic() - began)
    return Speed(tokens_per_second=speed, seconds=total / speed)


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
    plan = prepared.plan
    if plan.engine != "transformers":
        msg = (
            f"the probe runs the transformers engine, the plan is for {plan.engine}: leave out "
            "--probe and --price-per-hour"
        )
        raise InvalidInputError(msg)
    loaded = load_model(
        model,
        revision=plan.model.revision,
        dtype=plan.capture.dtype,
        device=extract.device,
        attn_implementation=extract.attn_implementation,
        device_map=extract.device_map,
    )
    speed = measure_speed(prepared, loaded, max_seconds=probe_seconds)
    value["tokens_per_second"] = round(speed.tokens_per_second, 1)
    value["estimated_seconds"] = round(speed.seconds, 1)
    if price_per_hour is not None:
        value["estimated_cost"] = round(speed.cost(price_per_hour), 2)
    return value


def _run_batch(prepared: PreparedRun, engine: Engine, batch: list[int]) -> int:
    """Run a batch, wait for its results, and return its tokens."""
    rows = [prepared.rows[i] for i in batch]
    for array in engine.forward(rows).values():
        array.cpu()
    return sum(row.n_tokens for row in rows)


def _spread(batches: list[list[int]]) -> Iterator[list[int]]:
    """Yield batches from all over: rows are sorted by length, so the first are not typical."""
    rng = np.random.default_rng(0)
    for index in rng.permutation(len(batches)):
        yield batches[index]


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
