"""The engines by name: what each takes of a plan, and how it is begun."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from ..schemas import CaptureSpec, ExtractSpec, InvalidInputError
from .compiling import check_compiled_sites, prove_compiled
from .engine import Engine, TransformersEngine
from .loading import LoadedModel, load_model
from .planning import PreparedRun
from .vllm_engine import VllmEngine
from .vllm_host import require_vllm

__all__ = ["check_engine", "load_for_plan", "open_engine"]


def check_engine(extract: ExtractSpec) -> None:
    """Raise MissingDependencyError where the engine of ``extract`` is not installed."""
    if extract.engine == "vllm":
        require_vllm()


def load_for_plan(
    model: str, *, revision: str | None, capture: CaptureSpec, extract: ExtractSpec
) -> LoadedModel:
    """Return a model's config and tokenizer, and its identity as the engine will run it."""
    if extract.compile:
        check_compiled_sites(capture.sites)
    loaded = load_model(
        model,
        revision=revision,
        dtype=capture.dtype,
        device=extract.device,
        attn_implementation=extract.attn_implementation,
        weights=False,
    )
    if extract.engine == "vllm":
        # Which kernels it takes depends on the machine, as it does not for transformers.
        return replace(loaded, info=loaded.info.model_copy(update={"attn_implementation": "vllm"}))
    return loaded


@contextmanager
def open_engine(
    prepared: PreparedRun, *, model: str, revision: str | None, extract: ExtractSpec
) -> Iterator[Engine]:
    """Load a plan's model into the plan's engine, for as long as the context lasts.

    Raises
    ------
    InvalidInputError
        If the weights are not those of the plan, or the engine cannot run or capture them.
    MissingDependencyError
        If the engine is not installed.
    """
    plan = prepared.plan
    capture = plan.capture
    if plan.engine == "vllm":
        engine = VllmEngine(
            load_for_plan(model, revision=revision, capture=capture, extract=extract),
            sites=capture.sites,
            layers=plan.layers,
            pools=capture.pools,
            longest=max(row.n_tokens for row in prepared.rows),
            batch_tokens=plan.batch_tokens,
            tensor_parallel=extract.tensor_parallel,
            seed=extract.seed,
        )
        with engine.ready():
            yield engine
        return
    loaded = load_model(
        model,
        revision=revision,
        dtype=capture.dtype,
        device=extract.device,
        attn_implementation=extract.attn_implementation,
        device_map=extract.device_map,
    )
    if loaded.info != plan.model:
        msg = (
            f"{loaded.info.name}: the weights loaded as {loaded.info}, but the plan was made "
            f"for {plan.model}; name dtype and attn_implementation explicitly"
        )
        raise InvalidInputError(msg)
    torch.manual_seed(extract.seed)
    engine_here = TransformersEngine(
        loaded,
        sites=capture.sites,
        layers=plan.layers,
        pools=capture.pools,
        tokens=prepared.token_layers,
    )
    with engine_here.ready() as running:
        if extract.compile:
            prove_compiled(running, loaded.backbone, prepared)
        yield running
