"""Reading vLLM's own batch in a worker: which tokens of which request a forward pass runs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..schemas import InvalidInputError
from .blocks import find_blocks
from .flat_pooling import Piece
from .vllm_calls import locate

__all__ = [
    "ROW",
    "Failures",
    "WorkerHooks",
    "check_runner",
    "label_pieces",
    "query_starts",
    "read_inputs",
]

ROW = "actlake_row"  # the key of a request's row, in its sampling parameters


def check_runner(runner: Any, parallel: Any) -> None:  # vLLM's own  # noqa: ANN401
    """Raise InvalidInputError where vLLM runs a model in a way that hooks cannot follow."""
    if parallel.pipeline_parallel_size > 1:
        msg = "pipeline parallelism spreads the blocks over processes; use tensor parallelism"
        raise InvalidInputError(msg)
    if not hasattr(runner, "input_batch") or not hasattr(runner, "query_start_loc"):
        msg = (
            f"vLLM runs {type(runner).__module__}.{type(runner).__name__}, whose rows cannot "
            "be labelled; set VLLM_USE_V2_MODEL_RUNNER=0"
        )
        raise InvalidInputError(msg)
    _check_head_sizes(runner)


def _check_head_sizes(runner: Any) -> None:  # noqa: ANN401
    """Raise InvalidInputError where vLLM's attention cannot run the model's head size.

    Some of its backends find out in the first forward pass only, which ends the engine.
    """
    layers = runner.compilation_config.static_forward_context.values()
    for layer in layers:
        if not hasattr(layer, "head_size") or not hasattr(layer, "attn_backend"):
            continue
        sizes = layer.attn_backend.get_supported_head_sizes()
        if sizes and layer.head_size not in sizes:
            msg = (
                f"vLLM's attention {layer.attn_backend.get_name()} has no head size "
                f"{layer.head_size}, which this model has; it has {sizes}: use the transformers "
                "engine"
            )
            raise InvalidInputError(msg)


def query_starts() -> torch.Tensor | None:
    """Return where each request begins in this forward pass, as vLLM's attention was told."""
    from vllm.forward_context import get_forward_context

    found = get_forward_context().attn_metadata
    if not found:
        return None
    if not isinstance(found, dict):
        msg = "vLLM splits batches into micro-batches; leave that option out"
        raise InvalidInputError(msg)
    for metadata in found.values():
        starts = getattr(metadata, "query_start_loc", None)
        if isinstance(starts, torch.Tensor):
            return starts
    kinds = sorted({type(metadata).__name__ for metadata in found.values()})
    msg = f"vLLM's attention ({', '.join(kinds)}) does not say where requests begin"
    raise InvalidInputError(msg)


def label_pieces(runner: Any) -> list[Piece]:  # noqa: ANN401
    """Return which tokens of which row each stretch of this forward pass is."""
    batch = runner.input_batch
    n = batch.num_reqs
    bounds = runner.query_start_loc.np[: n + 1].tolist()
    computed = batch.num_computed_tokens_cpu[:n].tolist()
    pieces = []
    for i, request in enumerate(batch.req_ids[:n]):
        # The row travels with the request: vLLM makes up its own ids, and its own order.
        extra = runner.requests[request].sampling_params.extra_args or {}
        if ROW not in extra:
            msg = f"request {request} is not ours; the engine must serve nobody else"
            raise InvalidInputError(msg)
        pieces.append(Piece(extra[ROW], computed[i], bounds[i], bounds[i + 1] - bounds[i]))
    return pieces


def read_inputs(
    runner: Any,  # noqa: ANN401
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the token ids and the positions that a forward pass of vLLM's model was given."""
    given = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
    ids = given.get("input_ids")
    # A model that may see images is given embeddings: the runner still has the ids.
    return runner.input_ids.gpu if ids is None else ids, given["positions"]


class WorkerHooks:
    """A model of a vLLM worker, the hooks that are on it, and what they raised."""

    def __init__(self, runner: Any) -> None:  # vLLM's own; not installed everywhere  # noqa: ANN401
        self._runner = runner
        self._model: nn.Module = runner.get_model()
        self.blocks = find_blocks(self._model)
        self._hidden = int(runner.model_config.get_hidden_size())
        self._device = next(self._model.parameters()).device
        self._failures = Failures()
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def detach(self) -> None:
        """Take all hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


class Failures:
    """The first exception of hooks, kept for the next call from outside.

    A hook never raises, for that would end vLLM's engine.
    """

    def __init__(self) -> None:
        self.first: InvalidInputError | None = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep what is raised within."""
        try:
            yield
        except InvalidInputError as err:
            self.first = self.first or err
        except Exception as err:  # carried to the engine  # noqa: BLE001
            self.first = self.first or InvalidInputError(f"a hook failed: {locate(err)}")

    def check(self) -> None:
        """Raise what was kept."""
        if self.first is not None:
            raise self.first
