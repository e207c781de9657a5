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
from actlake.store import plan_token_axis

LENGTHS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3]  # tokens per text
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


def with_tokens(
    plan: RunPlan, lengths=None, *, layers=(2, 4), rows: int | None = 5, sites=("resid_post",)
) -> RunPlan:
    """Return the plan with token arrays beside the pooled ones; ``lengths`` are tokens per text."""
    lengths = LENGTHS[: plan.n_texts] if lengths is None else lengths
    hidden = plan.model.hidden_size
    axis = plan_token_axis(
        lengths, layers=layers, hidden=hidden, rows_per_block=plan.rows_per_block, rows=rows
    )
    specs = [
        ArraySpec(
            name=f"{site}_tokens",
            dims=("token", "token_layer", "hidden"),
            shape=(axis.n_rows, len(layers), hidden),
            attrs={"site": site, "pool": "tokens"},
        )
        for site in sites
    ]
    update = {"token_axis": axis, "n_tokens": sum(lengths), "arrays": (*plan.arrays, *specs)}
    return plan.model_copy(update=update)


def make_coords(plan: RunPlan, lengths=None) -> dict[str, np.ndarray]:
    n = plan.n_texts
    counts = np.diff(make_tokens(plan, lengths)["token_offset"])
    return {
        "text": np.array([f"text-é{i:04d}" for i in range(n)]),
        "arm": np.array(["positive" if i % 2 else "negative" for i in range(n)]),
        "label": np.array([i % 2 for i in range(n)], dtype=np.int8),
        "pair": np.array([f"p{i // 2}" if i else "" for i in range(n)]),
        "n_tokens": counts.astype(np.int32),
    }


def make_tokens(plan: RunPlan, lengths=None) -> dict[str, np.ndarray]:
    if lengths is None:
        lengths = LENGTHS[: plan.n_texts] if plan.token_axis else [3] * plan.n_texts
    return {
        "token_id": np.arange(plan.n_tokens, dtype=np.int32),
        "token_offset": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    }


def make_values(plan: RunPlan) -> dict[str, np.ndarray]:
    """Return all rows of every array, without padding: bf16-like values that name their place."""
    values = {}
    for index, spec in enumerate(plan.arrays):
        rng = np.random.default_rng(index)
        shape = (plan.n_tokens if spec.is_tokens else plan.n_texts, *spec.shape[1:])
        full = rng.standard_normal(shape).astype(np.float32)
        full += 1000 * np.arange(shape[1]).reshape(1, -1, *[1] * (len(shape) - 2))
        full = full if len(shape) == 3 else np.abs(full)  # norms
        bits = full.view(np.uint32) & np.uint32(0xFFFF0000)
        values[spec.name] = bits.view(np.float32)
    return values


def block_values(plan: RunPlan, block: int) -> dict[str, np.ndarray]:
    values, rows = make_values(plan), plan.block_rows(block)
    tokens = plan.token_axis.tokens(block) if plan.token_axis else rows
    return {
        spec.name: values[spec.name][tokens if spec.is_tokens else rows] for spec in plan.arrays
    }


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
