"""A made-up run of tokens, of any size, in a local store."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from actlake.analyze.streaming import spread_over_tokens
from actlake.schemas import (
    ArraySpec,
    CaptureSpec,
    EnvironmentInfo,
    ModelInfo,
    RunPlan,
    Text,
    TokenizerInfo,
    digest_json,
)
from actlake.store import create_store, open_run, plan_token_axis, rows_within_bytes, text_coords

RUN, ARRAY = "tokens", "resid_post_tokens"
N_TEXTS = 400
KEYWORD = 1  # the token id of keywords, of which every tenth token is one
BLOCK_BYTES = 512 * 2**20  # of a writer, and so that little of its last chunks is padding
TEST_OF = 4  # every fourth pair is held out


def write_token_run(folder: Path, *, gigabytes: float, hidden: int, n_layers: int) -> None:
    """Write a run whose texts have a label, and keywords that carry half of it.

    float32 noise, which does not shrink: the store is as large as what is read from it. A run
    that is there already is completed.
    """
    mean_length = gigabytes * 1e9 / (N_TEXTS * n_layers * hidden * 4)
    rng = np.random.default_rng(0)
    lengths = (mean_length * rng.uniform(0.5, 1.5, N_TEXTS)).astype(int).clip(20).tolist()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    n_tokens, layers = int(offsets[-1]), tuple(range(n_layers))
    rows = rows_within_bytes(lengths, token_bytes=4 * n_layers * hidden, block_bytes=BLOCK_BYTES)
    axis = plan_token_axis(lengths, layers=layers, hidden=hidden, rows_per_block=rows)
    digest = digest_json("bench")
    plan = RunPlan(
        run=RUN, corpus="bench", corpus_digest=digest,
        model=ModelInfo(
            name="bench", content_digest=digest, architecture="None", n_layers=n_layers,
            hidden_size=hidden, n_parameters=0, dtype="float32", attn_implementation="sdpa",
        ),
        tokenizer=TokenizerInfo(digest=digest, vocab_size=2),
        capture=CaptureSpec(), layers=layers, n_texts=N_TEXTS, n_tokens=n_tokens,
        rows_digest=digest, rows_per_block=rows, batch_tokens=1, codec="crc32c",
        token_axis=axis,
        arrays=(
            ArraySpec(
                name=ARRAY, dims=("token", "token_layer", "hidden"),
                shape=(axis.n_rows, n_layers, hidden),
                attrs={"site": "resid_post", "pool": "tokens"},
            ),
        ),
    )  # fmt: skip
    texts = [
        Text(
            id=f"t{k:04d}", response="made up", arm="positive" if k % 2 else "negative",
            pair=f"p{k // 2:04d}", scenario=f"s{k // 20:02d}", generator="g",
        )
        for k in range(N_TEXTS)
    ]  # fmt: skip
    ids = _ids(n_tokens)
    writer = create_store(folder).create_run(
        plan,
        coords=text_coords(texts) | {"n_tokens": np.array(lengths, dtype=np.int32)},
        environment=EnvironmentInfo(actlake="bench", python="3", platform="bench"),
        token_data={"token_id": ids, "token_offset": offsets},
    )
    label = np.repeat(np.arange(N_TEXTS), lengths) % 2
    shift = 0.2 * label * (1 + (ids == KEYWORD))
    for block in range(plan.n_blocks):
        moved = shift[axis.tokens(block)]
        writer.write_block(block, {ARRAY: _noise(moved, block, n_layers=n_layers, hidden=hidden)})
    writer.seal()


def _noise(moved: np.ndarray, block: int, *, n_layers: int, hidden: int) -> np.ndarray:
    """Return noise of falling variance with its first coordinate ``moved``, all cores at work."""
    values = np.empty((moved.size, n_layers, hidden), dtype=np.float32)

    def fill(layer: int) -> None:
        rng = np.random.default_rng((block, layer))
        noise = rng.standard_normal((moved.size, hidden), dtype=np.float32)
        noise *= np.linspace(2, 0.5, hidden, dtype=np.float32)
        noise[:, 0] += moved
        values[:, layer] = noise

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, range(n_layers)))
    return values


def _ids(n_tokens: int) -> np.ndarray:
    """Return token ids: every tenth token is the keyword."""
    ids: np.ndarray = (np.arange(n_tokens) % 10 == 0).astype(np.int32)
    return ids


def open_token_run(folder: Path) -> tuple[xr.DataArray, dict[str, Any]]:
    """Return the lazy array, and the parts, cells and targets of its tokens.

    Cells are text × whether the token is a keyword; the held-out texts are in no part.
    """
    ds = open_run(folder, RUN)
    text = ds["token_text"].values.astype(np.int64)
    label, train = np.arange(N_TEXTS) % 2, ~held_out(np.arange(N_TEXTS))
    return ds[ARRAY], {
        "parts": spread_over_tokens(np.where(train, 0, -1), text),
        "cells": text * 2 + (ds["token_id"].values == KEYWORD),
        "targets": spread_over_tokens(label.astype(float), text)[:, None],
    }


def held_out(texts: np.ndarray) -> np.ndarray:
    """Return which texts the probes are not fitted on: whole pairs."""
    result: np.ndarray = texts // 2 % TEST_OF == TEST_OF - 1
    return result
