"""Runs that the store is measured with: plans, blocks of made-up values, writers."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from actlake.schemas import (
    ArraySpec,
    CaptureSpec,
    EnvironmentInfo,
    ModelInfo,
    RunPlan,
    TokenizerInfo,
    digest_json,
)
from actlake.store import create_store, rows_per_block
from actlake.store.blocks import block_chunks
from actlake.store.codec import BLOSC, encode_chunk

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.harness import QUICK

N_LAYERS, HIDDEN = (8, 1024) if QUICK else (33, 4096)
N_TEXTS = 2048  # 33 x 4096 wide: 1.1 GB
REPEATS = 3 if QUICK else 5
NAME = "resid_post_mean_response"
ENVIRONMENT = EnvironmentInfo(actlake="bench", python="3", platform="bench")


def make_plan(*, codec: str = BLOSC, n_texts: int = N_TEXTS, **shape: int) -> RunPlan:
    """Return the plan of one pooled array and its norms, bf16 values in float32."""
    n_layers, hidden = shape.get("n_layers", N_LAYERS), shape.get("hidden", HIDDEN)
    digest = digest_json("bench")
    dims = (n_texts, n_layers, hidden)
    return RunPlan(
        run="bench",
        corpus="bench",
        corpus_digest=digest,
        model=ModelInfo(
            name="bench", content_digest=digest, architecture="None", n_layers=n_layers,
            hidden_size=hidden, n_parameters=0, dtype="bfloat16", attn_implementation="sdpa",
        ),
        tokenizer=TokenizerInfo(digest=digest, vocab_size=1),
        capture=CaptureSpec(pools=("mean_response",)),
        layers=tuple(range(n_layers)),
        n_texts=n_texts,
        n_tokens=n_texts,
        rows_digest=digest,
        rows_per_block=shape.get("rows") or rows_per_block(n_texts, hidden),
        batch_tokens=1,
        arrays=(
            ArraySpec(name=NAME, dims=("text", "layer", "hidden"), shape=dims),
            ArraySpec(name="resid_post_norm", dims=("text", "layer"), shape=dims[:2]),
        ),
        codec=codec,
    )  # fmt: skip


def make_blocks(plan: RunPlan) -> list[dict[str, np.ndarray]]:
    """Return the blocks of a plan: normal values as a bf16 model gives them, all different."""
    rng = np.random.default_rng(0)
    blocks = []
    for block in range(plan.n_blocks):
        rows = plan.block_rows(block)
        n = rows.stop - rows.start
        values = rng.standard_normal((n, *plan.arrays[0].shape[1:]), dtype=np.float32)
        values.view(np.uint32)[...] &= np.uint32(0xFFFF0000)
        blocks.append({NAME: values, "resid_post_norm": np.abs(values[..., 0])})
    return blocks


def new_writer(url: str | Path, plan: RunPlan, options: dict[str, Any] | None = None) -> Any:
    """Return a writer of a new run in a new store."""
    store = create_store(url, storage_options=options)
    coords = {"text": np.array([f"t{i}" for i in range(plan.n_texts)])}
    return store.create_run(plan, coords=coords, environment=ENVIRONMENT)


def write_all(writer: Any, blocks: list[dict[str, np.ndarray]]) -> None:
    for block, arrays in enumerate(blocks):
        writer.write_block(block, arrays)


def encoded(plan: RunPlan, blocks: list[dict[str, np.ndarray]]) -> dict[str, memoryview]:
    """Return the objects of all blocks, as the store writes them."""
    return {
        key: encode_chunk(values, codec=plan.codec)
        for block, arrays in enumerate(blocks)
        for key, values in block_chunks(plan, block, arrays)
    }


def touch_memory(n_bytes: int) -> None:
    """Have the kernel own as much memory as a measurement needs.

    A virtual machine gives free pages back to its host, and whoever writes next pays for
    getting them again: several times the cost of the write itself.
    """
    np.ones(n_bytes // 8)


@contextmanager
def scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="actlake-bench-", dir=os.environ.get("BENCH_DIR")))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
