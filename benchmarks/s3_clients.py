"""The two S3 clients behind the store's seam, on the two servers of the tests.

PUT, create-only PUT and GET of large objects and of small ones, from 16 threads, and GETs from
one event loop as zarr makes them. Rounds of the two clients alternate, so that a busy machine
slows both; the ratio of each round's throughputs is taken, and their median is reported: above 1
obstore is faster. The default client is in ``store/clients.py``, the numbers in
docs/s3-clients.md. QUICK=1 for less than a minute.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from actlake.store.backend import Backend
from actlake.store.clients import open_backend, s3_client
from actlake.store.location import parse_location
from tests.servers import S3Server, moto_server, rclone_server

QUICK = bool(os.environ.get("QUICK"))
ROUNDS = 2 if QUICK else 6
CONCURRENCY = 16
SIZES = {"8MiB": (8 * 2**20, 16 if QUICK else 24), "16MiB": (16 * 2**20, 8 if QUICK else 16)}
SMALL = {"4KiB": (4096, 64 if QUICK else 300)}
CLIENTS = ("obstore", "s3fs")


def main() -> None:
    ratios: dict[str, float] = {}
    rates: dict[str, float] = {}
    for name, server in (("rclone", rclone_server), ("moto", moto_server)):
        with server() as running:
            for label, (size, count) in {**SIZES, **SMALL}.items():
                found = compare(running, size=size, count=count)
                for what, by_client in found.items():
                    key = f"{name}_{what}_{label}"
                    pairs = zip(by_client["obstore"], by_client["s3fs"], strict=True)
                    ratios[key] = round(statistics.median(a / b for a, b in pairs), 2)
                    for client, values in by_client.items():
                        rate = statistics.median(values) * (size / 1e6 if size > 2**20 else 1)
                        rates[f"{key}_{client}"] = round(rate, 1)
                    print(
                        f"{key:28s} obstore {rates[f'{key}_obstore']:8.1f}  "
                        f"s3fs {rates[f'{key}_s3fs']:8.1f} {'MB/s' if size > 2**20 else '1/s':5s}"
                        f" obstore/s3fs {ratios[key]:.2f}",
                        flush=True,
                    )
    print(json.dumps({"benchmark": "s3_clients", "quick": QUICK, "obstore_vs_s3fs": ratios,
                      "rates": rates}))  # fmt: skip


def compare(server: S3Server, *, size: int, count: int) -> dict[str, dict[str, list[float]]]:
    """Return objects per second by operation, client and round."""
    rng = np.random.default_rng(0)
    payloads = [rng.bytes(size) for _ in range(4)]
    found: dict[str, dict[str, list[float]]] = {
        what: {client: [] for client in CLIENTS}
        for what in ("put", "create", "get", "get_async")
    }  # fmt: skip
    backends = {client: connect(server, client) for client in CLIENTS}
    for index in range(ROUNDS + 1):  # the first warms connections and caches
        for client in CLIENTS[:: 1 if index % 2 else -1]:
            once = measure(backends[client], payloads, count=count)
            for what, seconds in once.items():
                if index:
                    found[what][client].append(count / seconds)
    return found


def connect(server: S3Server, client: str) -> Backend:
    options: dict[str, Any] = {**server.options(), "client": client}
    url = f"{server.url}/{uuid.uuid4().hex}"
    location = parse_location(url, storage_options=options)
    if s3_client(location) != client:  # it falls back silently: never measure one against itself
        message = f"asked for {client}, got {s3_client(location)}: something in the environment"
        raise RuntimeError(message)
    return open_backend(location)


def measure(backend: Backend, payloads: list[bytes], *, count: int) -> dict[str, float]:
    """Return the seconds that ``count`` operations of each kind take."""
    size = len(payloads[0])
    seconds = {}
    folder = uuid.uuid4().hex
    with ThreadPoolExecutor(CONCURRENCY) as pool:

        def timed(work: Callable[[int], object]) -> float:
            start = time.perf_counter()
            list(pool.map(work, range(count)))
            return time.perf_counter() - start

        seconds["put"] = timed(lambda i: backend.put(f"{folder}/p/{i}", payloads[i % 4]))
        seconds["create"] = timed(lambda i: backend.create(f"{folder}/c/{i}", payloads[i % 4]))
        seconds["get"] = timed(lambda i: backend.get(f"{folder}/p/{i}", max_bytes=size))
        start = time.perf_counter()
        asyncio.run(get_all(backend, [f"{folder}/p/{i}" for i in range(count)], size))
        seconds["get_async"] = time.perf_counter() - start
        timed(lambda i: backend.delete(f"{folder}/p/{i}"))
        timed(lambda i: backend.delete(f"{folder}/c/{i}"))
    return seconds


async def get_all(backend: Backend, keys: list[str], size: int) -> None:
    limit = asyncio.Semaphore(CONCURRENCY)

    async def one(key: str) -> None:
        async with limit:
            data = await backend.get_async(key, max_bytes=size)
        if data is None or len(data) != size:
            raise RuntimeError(key)

    await asyncio.gather(*(one(key) for key in keys))


if __name__ == "__main__":
    main()
