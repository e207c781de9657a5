"""What runs inside vLLM's worker processes while it is steered: hooks that write into the stream.

vLLM mixes in :class:`SteerExtension` (``worker_extension_cls``), and the engine calls its methods
by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from ..extract.vllm_batch import (
    Failures,
    WorkerHooks,
    check_runner,
    label_pieces,
    query_starts,
    read_inputs,
)
from ..extract.vllm_calls import answered, end_with, pack_arrays, unpack_arrays
from ..extract.vllm_proof import Proof
from ..schemas import InvalidInputError
from .flat_reads import Reading
from .flat_writes import FlatStep, FlatWrites, Table
from .vllm_writes import attach_write

__all__ = ["NOISE", "SteerExtension"]

NOISE = "actlake_noise"  # the key of a request's [temperature, seed, ...], the seeds as words


class SteerExtension:
    """Methods that vLLM's worker gains, on every rank.

    vLLM refuses names that its worker has already, hence the prefix.
    """

    # Of vLLM's worker, which this class is mixed into.
    model_runner: Any
    parallel_config: Any

    actlake_steering: _Steering | None = None

    @answered
    def actlake_steer_attach(self, user: int) -> bytes:
        """Look at the model; returns JSON: ``n_layers``.

        ``user`` is the process that the engine works for, and ends with.
        """
        end_with(user)
        check_runner(self.model_runner, self.parallel_config)
        self.actlake_steering = _Steering(self.model_runner)
        return json.dumps({"n_layers": len(self.actlake_steering.blocks)}).encode()

    @answered
    def actlake_steer_begin(self, request: bytes, watch: bool) -> bytes:  # noqa: FBT001
        """Write what ``request`` says into the forward passes to come, and into no others.

        With ``watch`` the sites are read too, behind the writes.
        """
        self._actlake_steering().begin(unpack_arrays(request), watch=watch)
        return b""

    @answered
    def actlake_steer_end(self, request: bytes) -> bytes:
        """Take the hooks off; check that every row ran as many tokens as ``request`` says.

        Returns JSON: counts, and of a pass that was watched its ``sites`` and whether the model
        gave something else than in the first of them (``changed``).
        """
        return json.dumps(self._actlake_steering().end(unpack_arrays(request)["n_run"])).encode()

    @answered
    def actlake_steer_read(self) -> bytes:
        """Return what was read since the last begin, as an array ``values``."""
        return pack_arrays({"values": self._actlake_steering().values()})

    def _actlake_steering(self) -> _Steering:
        if self.actlake_steering is None:
            msg = "no model is looked at; attach comes first"
            raise InvalidInputError(msg)
        return self.actlake_steering


class _Steering(WorkerHooks):
    """The hooks of one worker, and the rows that they write into."""

    def __init__(self, runner: Any) -> None:  # noqa: ANN401
        super().__init__(runner)
        self._plan: FlatWrites | None = None
        self._tables: list[Table] = []
        self._reading: Reading | None = None
        self._step: FlatStep | None = None
        self._mismatches: list[torch.Tensor] = []
        self._seen: np.ndarray = np.zeros(0, dtype=np.int64)
        self._counts = {"n_steps": 0, "n_recomputed": 0, "n_writes": 0}
        self._proof: Proof | None = None
        self._clean: torch.Tensor | None = None  # what the model gave in the first trial

    def begin(self, arrays: Mapping[str, np.ndarray], *, watch: bool) -> None:
        """Put hooks on what is written, and on the model around it."""
        self.detach()
        plan = FlatWrites.from_arrays(arrays)
        self._plan, self._step = plan, None
        self._tables = [Table(write, device=self._device) for write in plan.writes]
        self._reading = None if plan.read is None else Reading(plan.read, device=self._device)
        self._mismatches, self._failures = [], Failures()
        self._seen = np.zeros(len(plan.bounds) - 1, dtype=np.int64)
        self._counts = dict.fromkeys(self._counts, 0)
        add = self._handles.append
        add(self._model.register_forward_pre_hook(self._begin_step, with_kwargs=True))
        for layer, site in sorted(plan.places(), key=lambda place: place[1] != "resid_pre"):
            # A block's input is written before it is remembered for the site in its middle.
            write = partial(self._write, (layer, site))
            self._handles += attach_write(
                self.blocks[layer], site, hidden_size=self._hidden, write=write
            )
        if watch:
            self._proof = Proof(self._model, self.blocks, hidden_size=self._hidden)
            self._handles += self._proof.attach()
        add(self._model.register_forward_hook(self._end_step))

    def end(self, n_run: np.ndarray) -> dict[str, Any]:
        """Return counts, and what a watched pass shows."""
        self.detach()
        self._failures.check()
        if self._mismatches and bool(torch.stack(self._mismatches).any()):
            steps = [i for i, wrong in enumerate(self._mismatches) if bool(wrong)]
            msg = f"vLLM ran other tokens than the rows' in forward passes {steps[:5]}"
            raise InvalidInputError(msg)
        # vLLM may run a token more of a row that has ended, while it learns that it has.
        short = np.flatnonzero(self._seen < n_run)
        if len(short):
            row = int(short[0])
            msg = (
                f"{len(short)} of {len(n_run)} rows were not seen whole; row {row}: "
                f"{self._seen[row]} of {n_run[row]} tokens; hooks do not fire in compiled or "
                "graph-captured models"
            )
            raise InvalidInputError(msg)
        proof, self._proof = self._proof, None
        return {**self._counts, **({} if proof is None else self._judge(proof))}

    def values(self) -> np.ndarray:
        """Return what was read, (token, 1 + direction)."""
        if self._reading is None:
            msg = "nothing was to be read"
            raise InvalidInputError(msg)
        return self._reading.values()

    def _judge(self, proof: Proof) -> dict[str, Any]:
        sites, output = proof.sites(), proof.output
        if self._clean is None:
            self._clean = output
        is_same = (
            output is not None and self._clean is not None and torch.equal(output, self._clean)
        )
        return {"sites": sites, "changed": not is_same}

    def _begin_step(self, _module: nn.Module, args: Any, kwargs: Any) -> None:  # noqa: ANN401
        self._step = None
        if self._failures.first is not None or self._plan is None:  # this run is lost
            return
        with self._failures.kept():
            starts = query_starts()
            if starts is None:  # a dummy pass of vLLM's own: no requests
                return
            pieces = label_pieces(self._runner)
            for piece in pieces:
                if piece.start < self._seen[piece.row]:  # preempted, it begins again
                    self._counts["n_recomputed"] += 1
                self._seen[piece.row] = piece.start + piece.count
            step = FlatStep(self._plan, pieces, tables=self._tables, reading=self._reading)
            ids, positions = read_inputs(self._runner, self._model, args, kwargs)
            self._mismatches.append(step.mismatch(ids, positions, starts))
            self._step = step

    def _write(
        self, place: tuple[int, str], stream: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        if self._step is None:
            return None
        with self._failures.kept():
            return self._step.write(place, stream)
        return None

    def _end_step(self, _module: nn.Module, _args: object, _output: object) -> None:
        step, self._step = self._step, None
        if step is not None:
            with self._failures.kept():
                step.check_fired()
                self._counts["n_steps"] += 1
                self._counts["n_writes"] += step.n_writes
