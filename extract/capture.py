"""Capturing activations with hooks, pooled on the device in the same forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from ..schemas import InvalidInputError, array_name, norm_name
from .sites import find_taps

__all__ = ["PoolMasks", "PooledCapture"]


class _LastLayerReached(Exception):  # a signal, not an error
    """Ends a forward pass after the last layer that was asked for."""


@dataclass(frozen=True)
class PoolMasks:
    """Which positions of a padded batch each pool reads.

    ``response`` and ``ordinary`` (batch, token) bool mark the response's tokens and all tokens
    that are neither special nor padding; ``last_prompt`` and ``last_response`` (batch,) int64
    are positions.
    """

    response: torch.Tensor
    ordinary: torch.Tensor
    last_prompt: torch.Tensor
    last_response: torch.Tensor


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

    def run(self, network: nn.Module, inputs: dict[str, torch.Tensor], masks: PoolMasks) -> None:
        """Run one batch through ``network``; the pools are then in :meth:`take`."""
        self._values.clear()
        self._masks = masks
        try:
            network(**inputs, use_cache=False)
        except _LastLayerReached:
            pass
        finally:
            self._masks = None

    def take(self) -> dict[str, torch.Tensor]:
        """Return the last batch's arrays by name and forget them.

        ``<site>_<pool>`` (batch, layer, hidden) and ``<site>_norm`` (batch, layer), float32 on
        the model's first device.

        Raises
        ------
        InvalidInputError
            If a hook did not fire exactly once (a compiled model skips Python hooks).
        """
        wanted = [(f"{s}/{p}", la) for s in self._sites for p in (*self._pools, "norm")
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
            for pool in (*self._pools, "norm"):
                name = norm_name(site) if pool == "norm" else array_name(site, pool)
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
            if pool == "mean_response":
                value = _masked_mean(hidden, masks.response.to(hidden.device))
            elif pool == "last_prompt":
                value = hidden[rows, masks.last_prompt.to(hidden.device)].float()
            else:
                value = hidden[rows, masks.last_response.to(hidden.device)].float()
            self._values[f"{site}/{pool}", layer] = value
        norms = torch.linalg.vector_norm(hidden, dim=-1, dtype=torch.float32)
        mean_norm = _masked_mean(norms[..., None], masks.ordinary.to(hidden.device))
        self._values[f"{site}/norm", layer] = mean_norm[..., 0]


def _masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean over tokens where ``mask`` holds, in float32: (batch, hidden).

    ``where``, not a product: padding may hold NaN, and NaN x 0 is NaN (ENGINES 11).
    """
    kept = torch.where(mask[..., None], values.float(), 0.0)
    return kept.sum(dim=1) / mask.sum(dim=1, dtype=torch.float32)[:, None]


def _stop_forward(_module: nn.Module, _args: object, _output: object) -> None:
    raise _LastLayerReached
