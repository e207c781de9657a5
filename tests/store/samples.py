"""A small run with known values, for the tests of the store."""

from __future__ import annotations

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

ENVIRONMENT = EnvironmentInfo(actlake="0", python="3", platform="test")
POOLS = ("mean_response", "last_prompt")


def make_plan(
    run: str = "tiny", *, n_texts: int = 10, n_layers: int = 3, hidden: int = 8, rows: int = 4
) -> RunPlan:
    layers = tuple(range(0, 2 * n_layers, 2))  # every second block: index and layer differ
    pooled = [
        ArraySpec(
            name=f"resid_post_{pool}",
            dims=("text", "layer", "hidden"),
            shape=(n_texts, n_layers, hidden),
        )
        for pool in POOLS
    ]
    norm = ArraySpec(name="resid_post_norm", dims=("text", "layer"), shape=(n_texts, n_layers))
    return RunPlan(
        run=run,
        corpus="demo",
        corpus_digest=digest_json("corpus"),
        model=ModelInfo(
            name="organism",
            content_digest=digest_json("model"),
            architecture="LlamaForCausalLM",
            n_layers=2 * n_layers,
            hidden_size=hidden,
            n_parameters=10,
            dtype="float32",
            attn_implementation="eager",
        ),
        tokenizer=TokenizerInfo(
            digest=digest_json("tokenizer"),
            chat_template_digest=digest_json("template"),
            vocab_size=50,
        ),
        capture=CaptureSpec(layers=layers, pools=POOLS),
        layers=layers,
        n_texts=n_texts,
        n_tokens=3 * n_texts,
        rows_digest=digest_json("rows"),
        rows_per_block=rows,
        batch_tokens=100,
        arrays=(*pooled, norm),
    )


def make_coords(plan: RunPlan) -> dict[str, np.ndarray]:
    n = plan.n_texts
    return {
        "text": np.array([f"text-é{i:04d}" for i in range(n)]),
        "arm": np.array(["positive" if i % 2 else "negative" for i in range(n)]),
        "label": np.array([i % 2 for i in range(n)], dtype=np.int8),
        "pair": np.array([f"p{i // 2}" if i else "" for i in range(n)]),
        "n_tokens": np.full(n, 3, dtype=np.int32),
    }


def make_tokens(plan: RunPlan) -> dict[str, np.ndarray]:
    return {
        "token_id": np.arange(plan.n_tokens, dtype=np.int32),
        "token_offset": np.arange(plan.n_texts + 1, dtype=np.int64) * 3,
    }


def make_values(plan: RunPlan) -> dict[str, np.ndarray]:
    """Return all rows of every array: bf16-like values that name their place."""
    values = {}
    for index, spec in enumerate(plan.arrays):
        rng = np.random.default_rng(index)
        full = rng.standard_normal(spec.shape).astype(np.float32)
        full += 1000 * np.arange(spec.shape[1]).reshape(1, -1, *[1] * (len(spec.shape) - 2))
        full = full if len(spec.shape) == 3 else np.abs(full)  # norms
        bits = full.view(np.uint32) & np.uint32(0xFFFF0000)
        values[spec.name] = bits.view(np.float32)
    return values


def block_values(plan: RunPlan, block: int) -> dict[str, np.ndarray]:
    return {name: full[plan.block_rows(block)] for name, full in make_values(plan).items()}


def write_run(store, plan: RunPlan, *, blocks=None, seal: bool = True, coords=None):
    """Write a run (or some blocks of it) and return its writer."""
    writer = store.create_run(
        plan,
        coords=coords or make_coords(plan),
        environment=ENVIRONMENT,
        token_data=make_tokens(plan),
    )
    for block in range(plan.n_blocks) if blocks is None else blocks:
        writer.write_block(block, block_values(plan, block))
    if seal:
        writer.seal()
    return writer
