"""What runs inside vLLM's worker processes: hooks on the blocks, pooled where they fire.

vLLM mixes in :class:`CaptureExtension` (``worker_extension_cls``), and the engine calls its
methods by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from ..schemas import InvalidInputError
from .flat_pooling import FlatRows, Step
from .sites import find_taps
from .vllm_batch import (
    Failures,
    WorkerHooks,
    check_runner,
    label_pieces,
    query_starts,
    read_inputs,
)
from .vllm_calls import answered, end_with, unpack_arrays
from .vllm_proof import Proof, hook_stream

__all__ = ["CaptureExtension"]


class CaptureExtension:
    """Methods that vLLM's worker gains, on every rank.

    vLLM refuses names that its worker has already, hence the prefix.
    """

    # Of vLLM's worker, which this class is mixed into.
    model_runner: Any
    rank: int
    parallel_config: Any

    actlake_capture: _Capture | None = None

    @answered
    def actlake_attach(self, user: int) -> bytes:
        """Put hooks on all candidate sites for one trial pass; returns JSON: ``n_layers``.

        ``user`` is the process that the engine works for, and ends with.
        """
        end_with(user)
        check_runner(self.model_runner, self.parallel_config)
        capture = _Capture(self.model_runner)
        capture.attach_proof()
        self.actlake_capture = capture
        return json.dumps({"n_layers": len(capture.blocks)}).encode()

    @answered
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

    @answered
    def actlake_begin(self, request: bytes) -> bytes:
        """Expect the rows whose ids and masks ``request`` holds; forget those before."""
        self._actlake().begin(unpack_arrays(request))
        return b""

    @answered
    def actlake_end(self) -> bytes:
        """Check that every token of every row was captured once; returns JSON counts."""
        return json.dumps(self._actlake().end()).encode()

    @answered
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

    @answered
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


class _Capture(WorkerHooks):
    """The hooks of one worker and the rows they fill."""

    def __init__(self, runner: Any) -> None:  # noqa: ANN401
        super().__init__(runner)
        self._n_sites = self._n_layers = 0
        self._rows: FlatRows | None = None
        self._step: Step | None = None
        self._proof: Proof | None = None

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

    def begin(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Expect these rows in the forward passes to come."""
        n_places = self._n_sites * self._n_layers
        self._rows = FlatRows.expected(arrays, places=n_places, hidden=self._hidden)
        self._step = None
        self._failures = Failures()

    def end(self) -> dict[str, int]:
        """Raise what went wrong since ``begin``, or return counts."""
        self._failures.check()
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
        if self._failures.first is not None:  # this run is lost: nothing more is captured
            return
        with self._failures.kept():
            starts = query_starts()
            if starts is None:  # a dummy pass of vLLM's own: no requests
                return
            step = self._expected().step(label_pieces(self._runner), device=self._device)
            ids, positions = read_inputs(self._runner, self._model, args, kwargs)
            step.expect(ids, positions, starts)
            self._step = step

    def _record(self, place: int, hidden: torch.Tensor) -> None:
        if self._step is not None:
            with self._failures.kept():
                self._step.record(place, hidden)

    def _end_step(self, _module: nn.Module, _args: object, _output: object) -> None:
        step, self._step = self._step, None
        if step is not None:
            with self._failures.kept():
                self._expected().add(step)
