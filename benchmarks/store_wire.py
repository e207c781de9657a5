"""The store over the wire: a real S3 server, beside its client's bare PUTs and GETs."""

from __future__ import annotations

import asyncio
import math
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from actlake.store import create_store, open_run
from actlake.store.codec import BLOSC, PLAIN
from actlake.store.reader import READ_CONCURRENCY

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.harness import compare, seconds
from benchmarks.latency_proxy import LatencyProxy
from benchmarks.store_runs import (
    N_TEXTS,
    NAME,
    REPEATS,
    encoded,
    make_blocks,
    make_plan,
    new_writer,
    touch_memory,
    write_all,
)
from tests.servers import rclone_server

S3_PUTS = 16  # at a time, as the writer has it


def bench_s3(figures: dict[str, Any]) -> None:
    """Write and read through a real S3 server, beside its client's bare PUTs and GETs."""
    with rclone_server() as server:
        for codec, suffix in ((PLAIN, ""), (BLOSC, "_default_codec")):
            bench_wire(figures, server, codec=codec, suffix=suffix)
        figures.update(latency(server))


def bench_wire(figures: dict[str, Any], server: Any, *, codec: str, suffix: str) -> None:
    """Measure one codec against the same objects without it."""
    plan = make_plan(codec=codec, n_texts=N_TEXTS // 2)
    blocks = make_blocks(plan)
    objects = encoded(plan, blocks)
    prefix = f"{server.url}/{uuid.uuid4().hex}"
    fresh = [new_writer(f"{prefix}/{i}", plan, server.options()) for i in range(REPEATS)]
    written: list[Any] = []
    backend = fresh[0].store.backend

    def write() -> None:
        written.append(fresh.pop())
        write_all(written[-1], blocks)

    def put() -> None:
        with ThreadPoolExecutor(S3_PUTS) as pool:
            list(pool.map(lambda item: backend.put(f"plain/{item[0]}", item[1]), objects.items()))

    size = sum(len(data) for data in objects.values())
    name = f"write_s3_vs_put{suffix}"
    figures[name] = compare(
        name, write, put, repeats=REPEATS, before=lambda: touch_memory(2 * size)
    )
    store = written[-1].store
    written[-1].seal()
    keys = [f"plain/{key}" for key in objects if key.startswith(NAME)]

    async def get_all() -> None:
        gate = asyncio.Semaphore(READ_CONCURRENCY)

        async def get(key: str) -> None:
            async with gate:
                await backend.get_async(key, max_bytes=2**31)

        await asyncio.gather(*(get(key) for key in keys))

    name = f"read_s3_vs_get{suffix}"
    figures[name] = compare(
        name,
        lambda: read_all(store),
        lambda: asyncio.run(get_all()),
        repeats=REPEATS,
        before=lambda: touch_memory(2 * size),
    )


def read_all(store: Any) -> np.ndarray:
    """Return the whole array, opened anew: xarray would remember the values."""
    return open_run(store, "bench", chunks=None)[NAME].values


def latency(server: Any) -> dict[str, float]:
    """Read one layer of 160 objects behind 60 ms, against waves of as many GETs as run at once."""
    delay, n_objects = 0.06, 160
    plan = make_plan(n_texts=16 * n_objects, n_layers=2, hidden=256, rows=16)
    url = f"{server.url}/{uuid.uuid4().hex}"
    writer = new_writer(url, plan, server.options())
    write_all(writer, make_blocks(plan))
    writer.seal()
    with LatencyProxy(server.endpoint, seconds=delay) as endpoint:
        options = {**server.options(), "endpoint_url": endpoint}
        store = create_store(url, storage_options=options)
        array = open_run(store, "bench", chunks="job")[NAME].sel(layer=1)
        took = min(seconds(array.compute) for _ in range(3))
    ideal = math.ceil(n_objects / READ_CONCURRENCY) * delay
    print(f"latency60ms: {took:.3f} s, ideal {ideal:.3f} s")
    return {"latency60ms_vs_ideal": round(took / ideal, 2)}
