"""Synthetic runs written to a real store."""

from __future__ import annotations

from typing import Any

import xarray as xr

from actlake.schemas import (
    ArraySpec,
    CaptureSpec,
    EnvironmentInfo,
    ModelInfo,
    RunPlan,
    TokenizerInfo,
    digest_json,
)

ARRAY = "resid_post_mean_response"


def write_run(store: Any, ds: xr.Dataset, *, name: str, rows: int, corpus: str = "made-up") -> None:
    """Write a synthetic run as the run ``name``, ``rows`` texts to a block, and seal it.

    Where the store has such a run, the texts are appended to it.
    """
    create = store.append_run if name in store.run_ids() else store.create_run
    values = ds[ARRAY].values
    n_texts, n_layers, hidden = values.shape
    plan = RunPlan(
        run=name,
        corpus=corpus,
        corpus_digest=digest_json(corpus),
        model=ModelInfo(
            name=f"made/{name}", architecture="None", n_layers=n_layers, hidden_size=hidden,
            n_parameters=1, dtype="float32", attn_implementation="eager",
        ),
        tokenizer=TokenizerInfo(digest=digest_json("tokenizer"), vocab_size=9),
        capture=CaptureSpec(pools=("mean_response",)),
        layers=tuple(range(n_layers)),
        n_texts=n_texts,
        n_tokens=n_texts,
        rows_digest=digest_json(ds["text"].values.tolist()),
        rows_per_block=rows,
        batch_tokens=10,
        arrays=(ArraySpec(name=ARRAY, dims=("text", "layer", "hidden"), shape=values.shape),),
    )  # fmt: skip
    writer = create(
        plan,
        coords={c: ds[c].values for c in ds.coords if c != "layer"},
        environment=EnvironmentInfo(actlake="0", python="3", platform="test"),
    )
    for block in range(plan.n_blocks):
        writer.write_block(block, {ARRAY: values[plan.block_rows(block)]})
    writer.seal()
