"""Sampling in vLLM with the noise that the transformers engine samples with.

Imported by vLLM alone, in its worker processes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from .vllm_worker import NOISE

__all__ = ["RowNoise", "RowNoiseProcessor"]


class RowNoise:
    """The noise of one row, token by token, whatever batches and preemption do to it."""

    def __init__(self, key: list[int], temperature: float) -> None:
        self.temperature = temperature
        self._key = key
        self._generator = np.random.default_rng(key)
        self._drawn = 0  # tokens
        self._last: np.ndarray = np.zeros(0, dtype=np.float32)

    def __call__(self, output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
        """Return scores whose greatest is a draw from softmax(logits / temperature)."""
        noise = torch.from_numpy(self.at(len(output_ids), logits.shape[-1]))
        return logits / self.temperature - noise.to(logits.device).log()

    def at(self, n: int, size: int) -> np.ndarray:
        """Return the exponential noise of token ``n`` (from 0), (token id,) float32."""
        if n < self._drawn - 1:
            self._generator, self._drawn = np.random.default_rng(self._key), 0
        while self._drawn <= n:
            self._last = self._generator.standard_exponential(size, dtype=np.float32)
            self._drawn += 1
        return self._last


class RowNoiseProcessor(AdapterLogitsProcessor):  # type: ignore[misc]  # vLLM is not there to check
    """Turns vLLM's greedy choice into a draw, for requests that carry noise."""

    def is_argmax_invariant(self) -> bool:
        """Return False: changing the choice is what it is for."""
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> RowNoise | None:
        """Return the noise of a new request."""
        found: list[Any] | None = (params.extra_args or {}).get(NOISE)
        return RowNoise([int(word) for word in found[1:]], float(found[0])) if found else None
