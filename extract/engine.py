"""Engines: what turns token rows into pooled activations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch

from .blocks import find_blocks
from .capture import PooledCapture, PoolMasks
from .loading import LoadedModel
from .rendering import TokenRow
from .sites import check_sites

__all__ = ["Engine", "TransformersEngine"]


class Engine(Protocol):
    """One method: run a batch of rows and return its arrays."""

    def forward(self, rows: Sequence[TokenRow]) -> dict[str, torch.Tensor]:
        """Return ``<site>_<pool>`` (batch, layer, hidden) and ``<site>_norm`` (batch, layer)."""
        ...


class TransformersEngine:
    """Runs any transformers decoder whose blocks are a ``ModuleList``."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        sites: Sequence[str],
        layers: Sequence[int],
        pools: Sequence[str],
    ) -> None:
        self._network = loaded.backbone
        self._device = loaded.device
        self._pad_id = loaded.tokenizer.pad_token_id or 0
        blocks = find_blocks(self._network)
        check_sites(self._network, blocks, sites=sites)
        self._capture = PooledCapture(blocks, sites=sites, layers=layers, pools=pools)

    @contextmanager
    def ready(self) -> Iterator[TransformersEngine]:
        """Keep the hooks on while the context lasts."""
        with self._capture.attached():
            yield self

    @torch.inference_mode()
    def forward(self, rows: Sequence[TokenRow]) -> dict[str, torch.Tensor]:
        """Return the arrays of one batch, on the model's device.

        Rows are padded on the right with explicit positions, so that a text has the same
        positions alone and in any batch (ENGINES 10).
        """
        longest = max(row.n_tokens for row in rows)
        ids = torch.full((len(rows), longest), self._pad_id, dtype=torch.long)
        attended = torch.zeros((len(rows), longest), dtype=torch.long)
        response = torch.zeros((len(rows), longest), dtype=torch.bool)
        ordinary = torch.zeros((len(rows), longest), dtype=torch.bool)
        last_prompt = torch.zeros(len(rows), dtype=torch.long)
        last_response = torch.zeros(len(rows), dtype=torch.long)
        for i, row in enumerate(rows):
            n = row.n_tokens
            ids[i, :n] = torch.from_numpy(row.ids)
            attended[i, :n] = 1
            response[i, :n] = torch.from_numpy(row.response)
            ordinary[i, :n] = torch.from_numpy(~row.special)
            last_prompt[i] = max(row.n_prompt - 1, 0)
            last_response[i] = int(row.response.nonzero()[0][-1])
        positions = torch.arange(longest).expand(len(rows), -1)
        inputs = {"input_ids": ids, "attention_mask": attended, "position_ids": positions}
        masks = PoolMasks(
            response.to(self._device), ordinary.to(self._device), last_prompt, last_response
        )
        self._capture.run(self._network, {k: v.to(self._device) for k, v in inputs.items()}, masks)
        return self._capture.take()
