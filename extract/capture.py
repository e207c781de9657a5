"""Capturing activations with hooks, pooled on the device in the same forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from ..schemas import InvalidInputError, array_name, span_of
from .sites import find_taps

__all__ = ["PoolMasks", "PooledCapture"]


_NORMS = ("norm", "norm_with_bos")


class _LastLayerReached(Exception):  # a signal, not an error
    """Ends a forward pass after the last layer that was asked for."""


@dataclass(frozen=True)
class PoolMasks:
    """Which positions of a padded batch the pools read.

    ``response``, ``prompt`` and ``ordinary`` (batch, token) bool mark the tokens of the response,
    of the prompt, and all, without special tokens and padding; ``bos`` the BOS. ``positions``
    holds those of the pools of one token by name, (batch,) int64; ``spans`` a mask for each name
    of spans.
    """

    response: torch.Tensor
    prompt: torch.Tensor
    ordinary: torch.Tensor
    bos: torch.Tensor
    positions: Mapping[str, torch.Tensor]
    spans: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> PoolMasks:
        """Return the masks on a device: once per batch, not once per hook."""
        positions = {pool: at.to(device) for pool, at in self.positions.items()}
        return PoolMasks(
            self.response.to(device),
            self.prompt.to(device),
            self.ordinary.to(device),
            self.bos.to(device),
            positions,
            {name: mask.to(device) for name, mask in self.spans.items()},
        )

    def tokens(self, pool: str) -> torch.Tensor:
        """Return the mask (batch, token) that a pool of many tokens is taken over."""
        span = span_of(pool)
        if span is not None:
            return self.spans[span]
        masks = {
            "mean_response": self.response,
            "mean_prompt": self.prompt,
            "mean_all": self.ordinary,
            "max_abs": self.ordinary,
        }
        mask = masks[pool.removesuffix("_with_bos")]
        return mask | self.bos if pool.endswith("_with_bos") else mask


class PooledCapture:
    """Pools every chosen site and layer while the model runs.

    Nothing larger than (batch, hidden) per layer outlives a hook, and nothing is edited in
    place. Each forward must fire each hook exactly once (ENGINES 8); :meth:`take` checks it.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        *,
        sites: Sequence[str],
        layers: Sequence[int],
        pools: Sequence[str],
    ) -> None:
        self._blocks = blocks
        self._sites = tuple(sites)
        self._layers = tuple(layers)
        self._pools = tuple(pools)
        self._values: dict[tuple[str, int], torch.Tensor] = {}
        self._masks: PoolMasks | None = None
        beyond = [layer for layer in self._layers if layer >= len(blocks)]
        if beyond:
            msg = f"layers {beyond} do not exist; the model has layers 0 to {len(blocks) - 1}"
            raise InvalidInputError(msg)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Keep the hooks on while the context lasts; they come off whatever happens."""
        handles = []
        last = max(self._layers)
        try:
            for layer in self._layers:
                taps = find_taps(self._blocks[layer])
                handles += [
                    taps[site].attach(partial(self._record, site, layer)) for site in self._sites
                ]
            if last < len(self._blocks) - 1:
                handles.append(self._blocks[last].register_forward_hook(_stop_forward))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def run(self, network: nn.Module, inputs: Mapping[str, Any], masks: PoolMasks) -> None:
        """Run one batch through ``network``; the pools are then in :meth:`take`."""
        self._values.clear()
        self._masks = masks
        try:
            network(**inputs)
        except _LastLayerReached:
            pass
        finally:
            self._masks = None

    def nonfinite_tokens(
        self, network: nn.Module, inputs: Mapping[str, Any], *, site: str, layer: int
    ) -> torch.Tensor:
        """Return where ``site`` of ``layer`` is NaN or infinite, (batch, token) bool; pool nothing.

        Only while :meth:`attached`.
        """
        seen: list[torch.Tensor] = []
        tap = find_taps(self._blocks[layer])[site]
        handle = tap.attach(lambda hidden: seen.append(~torch.isfinite(hidden).all(dim=-1)))
        try:
            network(**inputs)
        except _LastLayerReached:
            pass
        finally:
            handle.remove()
        return seen[0]

    def take(self) -> dict[str, torch.Tensor]:
        """Return the last batch's arrays by name and forget them.

        ``<site>_<pool>`` (batch, layer, hidden), ``<site>_norm`` and ``<site>_norm_with_bos``
        (batch, layer), float32 on the model's first device.

        Raises
        ------
        InvalidInputError
            If a hook did not fire exactly once (a compiled model skips Python hooks).
        """
        wanted = [(f"{s}/{p}", la) for s in self._sites for p in (*self._pools, *_NORMS)
                  for la in self._layers]  # fmt: skip
        missing = sorted({key for key in wanted if key not in self._values})
        if missing:
            msg = (
                f"{len(missing)} of {len(wanted)} captures did not happen (first: {missing[0]}); "
                "hooks do not fire in compiled or graph-captured models"
            )
            raise InvalidInputError(msg)
        device = self._values[wanted[0]].device
        out: dict[str, torch.Tensor] = {}
        for site in self._sites:
            for pool in (*self._pools, *_NORMS):
                name = array_name(site, pool)
                stack = [self._values[f"{site}/{pool}", la].to(device) for la in self._layers]
                out[name] = torch.stack(stack, dim=1)
        self._values.clear()
        return out

    def _record(self, site: str, layer: int, hidden: torch.Tensor) -> None:
        """Pool one layer's ``hidden`` (batch, token, hidden)."""
        masks = self._masks
        if masks is None:
            return
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        for pool in self._pools:
            if (f"{site}/{pool}", layer) in self._values:
                msg = f"{site} of layer {layer} was captured twice in one forward pass"
                raise InvalidInputError(msg)
            if pool in masks.positions:
                value = hidden[rows, masks.positions[pool].to(hidden.device)].float()
            elif pool == "max_abs":
                value = _masked_max_abs(hidden, masks.tokens(pool).to(hidden.device))
            else:
                value = _masked_mean(hidden, masks.tokens(pool).to(hidden.device))
            self._values[f"{site}/{pool}", layer] = value
        norms = torch.linalg.vector_norm(hidden, dim=-1, dtype=torch.float32)[..., None]
        for name, mask in zip(_NORMS, (masks.ordinary, masks.ordinary | masks.bos), strict=True):
            mean = _masked_mean(norms, mask.to(hidden.device))
            self._values[f"{site}/{name}", layer] = mean[..., 0]


def _masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean over tokens where ``mask`` holds, in float32: (batch, hidden).

    ``where``, not a product: padding may hold NaN, and NaN x 0 is NaN (ENGINES 11).
    """
    kept = torch.where(mask[..., None], values.float(), 0.0)
    return kept.sum(dim=1) / mask.sum(dim=1, dtype=torch.float32)[:, None]


def _masked_max_abs(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the largest magnitude over tokens where ``mask`` holds, (batch, hidden)."""
    return torch.where(mask[..., None], values.abs(), 0).amax(dim=1).float()


def _stop_forward(_module: nn.Module, _args: object, _output: object) -> None:
    raise _LastLayerReached
