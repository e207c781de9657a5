"""The store against the limits of the machine: the disk, the wire, the codec, the other tools.

Every figure is a ratio within one run, against the same bytes moved by the plainest means.
QUICK=1 uses a small run; the full mode writes more than 1 GB.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import struct
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs import Blosc
from zarr.codecs import BloscCodec, Crc32cCodec

from actlake.schemas import RunPlan
from actlake.store import create_store, open_run
from actlake.store.blocks import block_chunks
from actlake.store.codec import PLAIN, encode_chunk

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.harness import compare, emit
from benchmarks.store_runs import (
    NAME,
    REPEATS,
    encoded,
    make_blocks,
    make_plan,
    new_writer,
    scratch,
    touch_memory,
    write_all,
)
from benchmarks.store_wire import bench_s3

# -- writing to a disk


def write_synced(path: Path, data: memoryview) -> None:
    """Write one file that outlives a power cut, as the store's objects do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def plain_writes(folder: Path, objects: dict[str, memoryview], *, threads: int) -> None:
    """Write the objects as files, synced like the store's."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda item: write_synced(folder / item[0], item[1]), objects.items()))


def all_chunks(plan: RunPlan, blocks: list[dict[str, np.ndarray]]) -> list[tuple[str, np.ndarray]]:
    return [item for b, arrays in enumerate(blocks) for item in block_chunks(plan, b, arrays)]


def codecs_alone(plan: RunPlan, blocks: list[dict[str, np.ndarray]]) -> None:
    """Encode every chunk on all cores and drop the bytes."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(
            lambda item: len(encode_chunk(item[1], codec=plan.codec)), all_chunks(plan, blocks)
        ):
            pass


def least_work(folder: Path, plan: RunPlan, blocks: list[dict[str, np.ndarray]]) -> None:
    """Do what no writer of this format can leave out: encode, hash, write and sync each chunk."""

    def write(item: tuple[str, np.ndarray]) -> None:
        data = encode_chunk(item[1], codec=plan.codec)
        hashlib.sha256(data).hexdigest()
        write_synced(folder / item[0], data)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, all_chunks(plan, blocks)))


def zarr_writes(
    folder: Path, plan: RunPlan, blocks: list[dict[str, np.ndarray]], *, synced: bool
) -> None:
    """Write the same array with zarr-python and the same codecs."""
    codec = BloscCodec(cname="zstd", clevel=1, shuffle="shuffle")
    path = folder / uuid.uuid4().hex
    array = zarr.create_array(
        str(path),
        shape=plan.arrays[0].shape,
        chunks=(plan.rows_per_block, 1, plan.arrays[0].shape[2]),
        dtype="float32",
        compressors=[codec, Crc32cCodec()],
    )
    for block, arrays in enumerate(blocks):
        array[plan.block_rows(block)] = arrays[NAME]
    if synced:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(sync_file, [file for file in path.rglob("*") if file.is_file()]))


def sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def bench_writes(figures: dict[str, Any]) -> None:
    plan, plain = make_plan(), make_plan(codec=PLAIN)
    blocks = make_blocks(plan)
    size = sum(arrays[NAME].nbytes for arrays in blocks)
    print(f"{size / 1e9:.2f} GB in {plan.n_blocks} blocks of {plan.rows_per_block} rows")
    with scratch() as folder:
        writers: list[Any] = []

        def fresh(of: RunPlan) -> None:
            """Make room and a new run, untimed: creating a run is not what is measured."""
            for old in folder.iterdir():
                shutil.rmtree(old)
            os.sync()
            touch_memory(2 * size)
            writers[:] = [new_writer(folder / "store", of)]

        def write() -> None:
            write_all(writers[0], blocks)

        objects = encoded(plain, blocks)
        for threads, name in ((4, "write_local_vs_raw"), (1, "write_local_vs_raw_one_thread")):
            raw = partial(plain_writes, folder / "raw", objects, threads=threads)
            figures[name] = compare(name, write, raw, repeats=REPEATS, before=partial(fresh, plain))
        figures["write_local_limit"] = compare(
            "write_local_limit",
            partial(least_work, folder / "least", plain, blocks),
            partial(plain_writes, folder / "raw", objects, threads=4),
            repeats=REPEATS,
            before=partial(fresh, plain),
        )
        del objects
        least = partial(least_work, folder / "least", plan, blocks)
        codecs = partial(codecs_alone, plan, blocks)
        by_zarr = partial(zarr_writes, folder, plan, blocks)
        for name, ours, baseline in (
            ("write_default_vs_codec", write, codecs),
            ("write_default_limit", least, codecs),
            ("write_default_vs_zarr", write, partial(by_zarr, synced=True)),
            ("write_default_vs_zarr_unsynced", write, partial(by_zarr, synced=False)),
        ):
            figures[name] = compare(
                name, ours, baseline, repeats=REPEATS, before=partial(fresh, plan)
            )
        bench_local_reads(figures, folder=folder, plan=plan, blocks=blocks, fresh=fresh)
    figures["crc_cost"] = crc_cost(blocks[0][NAME][:, :1])


def crc_cost(values: np.ndarray) -> float:
    """Return the time of codec and checksum over the codec alone."""
    blosc = Blosc(cname="zstd", clevel=1, shuffle=Blosc.SHUFFLE, typesize=4)
    raw = np.ascontiguousarray(values).view(np.uint8).reshape(-1)

    def compress(*, check: bool) -> None:
        for _ in range(8):
            packed = blosc.encode(raw)
            if check:
                struct.pack("<I", google_crc32c.value(packed))

    return round(
        1 / compare("crc_cost", lambda: compress(check=True), lambda: compress(check=False),
                    repeats=2 * REPEATS + 1), 3,
    )  # fmt: skip


# -- reading


class Counter:
    """Counts what a store's backend is asked for."""

    def __init__(self, backend: Any) -> None:
        self.gets, self.n_bytes = 0, 0
        original = backend.get_async

        async def get_async(key: str, *, max_bytes: int) -> bytes | None:
            data = await original(key, max_bytes=max_bytes)
            self.gets += 1
            self.n_bytes += len(data or b"")
            return data  # type: ignore[no-any-return]

        backend.get_async = get_async


def bench_local_reads(
    figures: dict[str, Any], *, folder: Path, plan: RunPlan, blocks: Any, fresh: Any
) -> None:
    """One layer of the run: what is asked for, and against a folder of ``.pt`` batches."""
    import torch

    fresh(plan)
    store = create_store(folder / "store")
    writer = new_writer(folder / "store", plan)
    write_all(writer, blocks)
    seal = writer.seal()
    layer = plan.layers[len(plan.layers) // 2]
    counter = Counter(store.backend)
    array = open_run(store, "bench")[NAME].sel(layer=layer)
    counter.gets, counter.n_bytes = 0, 0
    array.compute()
    keys = {f"{NAME}/c/{block}/{layer}/0" for block in range(plan.n_blocks)}
    stored = sum(info.n_bytes for info in seal.objects if info.key in keys)
    figures["read_layer_gets"] = counter.gets
    figures["read_layer_gets_expected"] = math.ceil(plan.n_texts / plan.rows_per_block)
    figures["read_layer_bytes_vs_layer"] = round(counter.n_bytes / stored, 4)
    batches = folder / "pt"
    batches.mkdir()
    for dtype in (torch.float32, torch.bfloat16):
        rows = 128
        for block, arrays in enumerate(blocks):
            for start in range(0, len(arrays[NAME]), rows):
                part = torch.from_numpy(arrays[NAME][start : start + rows]).to(dtype).clone()
                torch.save(part, batches / f"{block}-{start}.pt")

        def load() -> None:
            files = sorted(batches.iterdir())
            torch.cat([torch.load(f)[:, layer].float() for f in files])

        name = "read_layer_vs_pt_folder" + ("" if dtype == torch.float32 else "_bf16")
        figures[name] = compare(
            name,
            lambda: open_run(store, "bench")[NAME].sel(layer=layer).compute(),
            load,
            repeats=REPEATS,
        )


# -- memory

_MEMORY = """
import resource, sys
sys.path.insert(0, {root!r})
import benchmarks.store_runs as bench
from threading import Thread
plan = bench.make_plan()
folder = sys.argv[1]
writer = bench.new_writer(folder, plan)
n_bytes = None
import numpy as np
def make(block):
    rows = plan.block_rows(block)
    shape = (rows.stop - rows.start, *plan.arrays[0].shape[1:])
    values = np.empty(shape, dtype=np.float32)
    rng = np.random.default_rng(block)
    for row in values:
        row[...] = rng.standard_normal(row.shape, dtype=np.float32)
    values.view(np.uint32)[...] &= np.uint32(0xFFFF0000)
    return {{bench.NAME: values, "resid_post_norm": np.abs(values[..., 0])}}
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for block in range(plan.n_blocks):
    arrays = make(block)
    n_bytes = n_bytes or arrays[bench.NAME].nbytes
    writer.write_block(block, arrays)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((peak - base) * 1024 / n_bytes)
"""


def writer_memory() -> float:
    """Return the memory of a writer over its baseline, in row-blocks, the caller's included."""
    root = str(Path(__file__).resolve().parent.parent)
    with scratch() as folder:
        done = subprocess.run(
            [sys.executable, "-c", _MEMORY.format(root=root), str(folder)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    return round(float(done.stdout.split()[-1]), 2)


def main() -> None:
    """Run everything; print the figures."""
    figures: dict[str, Any] = {}
    figures["writer_rss_blocks"] = writer_memory()
    bench_writes(figures)
    bench_s3(figures)
    emit(figures)


if __name__ == "__main__":
    main()
