"""What runs inside vLLM's worker processes: hooks on the blocks, pooled where they fire.

vLLM mixes in :class:`CaptureExtension` (``worker_extension_cls``), and the engine calls its
methods by name. Everything crosses as bytes: arrays in numpy's own format, without pickle.
"""

from __future__ import annotations

import inspect
import io
import json
import os
import select
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial, wraps
from typing import Any

import numpy as np
import torch
from torch import nn

from ..schemas import InvalidInputError
from .blocks import find_blocks
from .flat_pooling import FlatRows, Piece, Step
from .sites import find_taps
from .vllm_proof import Proof, hook_stream

__all__ = ["ROW", "CaptureExtension", "pack_arrays", "read_answer", "unpack_arrays"]

ROW = "actlake_row"  # the key of a request's row, in its sampling parameters

_OK, _WRONG = b"\x00", b"\x01"


def pack_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return named arrays as bytes."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **dict[str, Any](arrays))
    return file.getvalue()


def unpack_arrays(data: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of :func:`pack_arrays`."""
    with np.load(io.BytesIO(data), allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def read_answer(answer: bytes) -> bytes:
    """Return what a method of the extension answered; raise InvalidInputError if it failed."""
    if answer[:1] == _OK:
        return answer[1:]
    raise InvalidInputError(answer[1:].decode())


def _answered(method: Callable[..., bytes]) -> Callable[..., bytes]:
    """Turn an exception into an answer: one that leaves a worker ends the whole engine."""

    @wraps(method)
    def call(self: CaptureExtension, *args: object) -> bytes:
        try:
            return _OK + method(self, *args)
        except InvalidInputError as err:
            return _WRONG + str(err).encode()
        except Exception as err:  # carried to the engine  # noqa: BLE001
            return _WRONG + f"vLLM's worker failed: {_located(err)}".encode()

    return call


class CaptureExtension:
    """Methods that vLLM's worker gains, on every rank.

    vLLM refuses names that its worker has already, hence the prefix.
    """

    # Of vLLM's worker, which this class is mixed into.
    model_runner: Any
    rank: int
    parallel_config: Any

    actlake_capture: _Capture | None = None

    @_answered
    def actlake_attach(self, user: int) -> bytes:
        """Put hooks on all candidate sites for one trial pass; returns JSON: ``n_layers``.

        ``user`` is the process that the engine works for, and ends with.
        """
        _end_with(user)
        if self.parallel_config.pipeline_parallel_size > 1:
            msg = "pipeline parallelism spreads the blocks over processes; use tensor parallelism"
            raise InvalidInputError(msg)
        capture = _Capture(self.model_runner)
        capture.attach_proof()
        self.actlake_capture = capture
        return json.dumps({"n_layers": len(capture.blocks)}).encode()

    @_answered
    def actlake_prove(self, request: bytes) -> bytes:
        """Judge the forward pass since ``actlake_attach``; then hook what was asked for.

        ``request`` is JSON with ``sites`` and ``layers``. Returns JSON: the ``sites`` that hold.
        """
        capture = self._actlake()
        wanted = json.loads(request)
        sites = capture.prove()
        if set(wanted["sites"]) <= set(sites):
            capture.attach(tuple(wanted["sites"]), tuple(wanted["layers"]))
        return json.dumps({"sites": sites}).encode()

    @_answered
    def actlake_begin(self, request: bytes) -> bytes:
        """Expect the rows whose ids and masks ``request`` holds; forget those before."""
        self._actlake().begin(unpack_arrays(request))
        return b""

    @_answered
    def actlake_end(self) -> bytes:
        """Check that every token of every row was captured once; returns JSON counts."""
        return json.dumps(self._actlake().end()).encode()

    @_answered
    def actlake_take(self, kind: str, index: int, site: int, start: int, stop: int) -> bytes:
        """Return float32 values (layer, row, hidden) of ``layers[start:stop]``.

        The stream is the same on every rank of tensor parallelism: rank 0 alone returns it, the
        others the float64 norms over hidden that it must have.
        """
        values = self._actlake().taken(kind, index, site=site, layers=slice(start, stop))
        if self.rank == 0:
            return values.tobytes()
        norms: np.ndarray = np.linalg.norm(values.astype(np.float64), axis=-1)
        return norms.tobytes()

    @_answered
    def actlake_detach(self) -> bytes:
        """Take all hooks off."""
        if self.actlake_capture is not None:
            self.actlake_capture.detach()
        return b""

    def _actlake(self) -> _Capture:
        if self.actlake_capture is None:
            msg = "no hooks are on; attach comes first"
            raise InvalidInputError(msg)
        return self.actlake_capture


class _Capture:
    """The hooks of one worker and the rows they fill.

    A hook never raises, for that would end vLLM's engine: the first failure is kept, and
    raised by the next call from outside.
    """

    def __init__(self, runner: Any) -> None:  # vLLM's own; not installed everywhere  # noqa: ANN401
        if not hasattr(runner, "input_batch") or not hasattr(runner, "query_start_loc"):
            msg = (
                f"vLLM runs {type(runner).__module__}.{type(runner).__name__}, whose rows cannot "
                "be labelled; set VLLM_USE_V2_MODEL_RUNNER=0"
            )
            raise InvalidInputError(msg)
        check_head_sizes(runner)
        self._runner = runner
        self._model: nn.Module = runner.get_model()
        self.blocks = find_blocks(self._model)
        self._hidden = int(runner.model_config.get_hidden_size())
        self._device = next(self._model.parameters()).device
        self._n_sites = self._n_layers = 0
        self._rows: FlatRows | None = None
        self._step: Step | None = None
        self._proof: Proof | None = None
        self._failure: InvalidInputError | None = None
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def attach_proof(self) -> None:
        """Put hooks on all candidate sites, and on what reads the last block's output."""
        self._proof = Proof(self._model, self.blocks, hidden_size=self._hidden)
        self._handles = self._proof.attach()

    def prove(self) -> list[str]:
        """Return the sites that hold in the pass since ``attach_proof``; take its hooks off."""
        self.detach()
        proof, self._proof = self._proof, None
        if proof is None:
            msg = "nothing was attached to prove"
            raise InvalidInputError(msg)
        return proof.sites()

    def attach(self, sites: Sequence[str], layers: Sequence[int]) -> None:
        """Put hooks on the sites of the layers, and on the model around them."""
        self.detach()
        self._n_sites, self._n_layers = len(sites), len(layers)
        add = self._handles.append
        add(self._model.register_forward_pre_hook(self._begin_step, with_kwargs=True))
        for s, site in enumerate(sites):
            for i, layer in enumerate(layers):
                tap = find_taps(self.blocks[layer])[site]
                add(hook_stream(tap, self._hidden, partial(self._record, s * len(layers) + i)))
        add(self._model.register_forward_hook(self._end_step))

    def detach(self) -> None:
        """Take all hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def begin(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Expect these rows in the forward passes to come."""
        n_places = self._n_sites * self._n_layers
        self._rows = FlatRows.expected(arrays, places=n_places, hidden=self._hidden)
        self._step = self._failure = None

    def end(self) -> dict[str, int]:
        """Raise what went wrong since ``begin``, or return counts."""
        if self._failure is not None:
            raise self._failure
        rows = self._expected()
        rows.check_whole()
        return {"n_steps": rows.n_steps, "n_recomputed": rows.n_recomputed}

    def taken(self, kind: str, index: int, *, site: int, layers: slice) -> np.ndarray:
        """Return one pool of some layers of one site, (layer, row, hidden)."""
        first = site * self._n_layers
        places = slice(first + layers.start, first + layers.stop)
        return self._expected().taken(kind, index, places)

    def _expected(self) -> FlatRows:
        if self._rows is None:
            msg = "no rows are expected; begin comes first"
            raise InvalidInputError(msg)
        return self._rows

    def _begin_step(self, _module: nn.Module, args: Any, kwargs: Any) -> None:  # noqa: ANN401
        self._step = None
        if self._failure is not None:  # this run is lost: nothing more is captured
            return
        with self._kept():
            starts = _query_starts()
            if starts is None:  # a dummy pass of vLLM's own: no requests
                return
            step = self._expected().step(_label_pieces(self._runner), device=self._device)
            given = inspect.signature(self._model.forward).bind_partial(*args, **kwargs).arguments
            ids = given.get("input_ids")
            # A model that may see images is given embeddings: the runner still has the ids.
            ids = self._runner.input_ids.gpu if ids is None else ids
            step.expect(ids, given["positions"], starts)
            self._step = step

    def _record(self, place: int, hidden: torch.Tensor) -> None:
        if self._step is not None:
            with self._kept():
                self._step.record(place, hidden)

    def _end_step(self, _module: nn.Module, _args: object, _output: object) -> None:
        step, self._step = self._step, None
        if step is not None:
            with self._kept():
                self._expected().add(step)

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Keep the first exception of a hook for the next call from outside."""
        try:
            yield
        except InvalidInputError as err:
            self._failure = self._failure or err
        except Exception as err:  # carried to the engine  # noqa: BLE001
            failure = InvalidInputError(f"a hook failed: {_located(err)}")
            self._failure = self._failure or failure


def check_head_sizes(runner: Any) -> None:  # noqa: ANN401
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


def _query_starts() -> torch.Tensor | None:
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


def _label_pieces(runner: Any) -> list[Piece]:  # noqa: ANN401
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


def _end_with(user: int) -> None:
    """End this process and vLLM's core when the process ``user`` has ended, however it did.

    Without it, an engine whose user was killed waits for requests for ever, and keeps its memory.
    """
    if user == os.getpid() or not hasattr(os, "pidfd_open"):
        return
    handle = os.pidfd_open(user)
    # The parent of a tensor-parallel worker is vLLM's core, else this process is the core. Taken
    # now and held: a number may be another process's by then.
    core = os.pidfd_open(os.getppid()) if os.getppid() != user else None

    def wait() -> None:
        ended = select.poll()
        ended.register(handle, select.POLLIN)
        ended.poll()
        if core is not None:
            with suppress(OSError):
                signal.pidfd_send_signal(core, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="actlake-user", daemon=True).start()


def _located(err: Exception) -> str:
    where = traceback.extract_tb(err.__traceback__)[-1]
    return f"{type(err).__name__}: {err} (in {where.name}, line {where.lineno})"
