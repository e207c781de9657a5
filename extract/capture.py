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

__all__ = ["PoolMasks", "PooledCapture", "to_device"]


_NORMS = ("norm", "norm_with_bos")


class _LastLayerReached(Exception):  # a signal, not an error
    """Ends a forward pass after the last layer that was asked for."""


@dataclass(frozen=True)
class PoolMasks:
    """Which positions of a padded batch the pools read.

    ``response``, ``prompt`` and ``ordinary`` (batch, token) bool mark the tokens of the response,
    of the prompt, and all, without special tokens and padding; ``bos`` the BOS. ``positions``
    holds those of the pools of one token by name, (batch,) int64; ``spans`` a mask for each name
    of spans; ``real`` (token,) int64 where in the flattened batch the tokens are that are no
    padding, which token arrays need.
    """

    response: torch.Tensor
    prompt: torch.Tensor
    ordinary: torch.Tensor
    bos: torch.Tensor
    positions: Mapping[str, torch.Tensor]
    spans: Mapping[str, torch.Tensor] = field(default_factory=dict)
    real: torch.Tensor | None = None

    def to(self, device: torch.device) -> PoolMasks:
        """Return the masks on a device: once per batch, not once per hook."""
        return PoolMasks(
            to_device(self.response, device),
            to_device(self.prompt, device),
            to_device(self.ordinary, device),
            to_device(self.bos, device),
            {pool: to_device(at, device) for pool, at in self.positions.items()},
            {name: to_device(mask, device) for name, mask in self.spans.items()},
            None if self.real is None else to_device(self.real, device),
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


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return ``values`` on a device; a GPU is not waited for.

    From memory that is not pinned, a copy would wait until all that was begun before is over.
    """
    if device.type != "cuda":
        return values.to(device)
    return values.contiguous().pin_memory().to(device, non_blocking=True)


class PooledCapture:
    """Pools every chosen site and layer while the model runs.

    Nothing larger than (batch, hidden) per layer outlives a hook, but for the layers whose tokens
    are asked for: ``tokens`` has them by site. Nothing is edited in place. Each forward must fire
    each hook exactly once (ENGINES 8); :meth:`take` checks it.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        *,
        sites: Sequence[str],
        layers: Sequence[int],
        pools: Sequence[str],
        tokens: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self._blocks = blocks
        self._tokens = {site: tuple(chosen) for site, chosen in (tokens or {}).items()}
        self._kept: dict[str, torch.Tensor] = {}  # by site: (layer, token, hidden)
        self._seen: set[tuple[str, int]] = set()  # whose tokens are in there
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
        self._kept.clear()
        self._seen.clear()
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
        (batch, layer), float32 on the model's first device; ``<site>_tokens`` (token, layer,
        hidden), the tokens of the rows one after another without padding, in the model's type;
        in memory they lie layer by layer.

        Raises
        ------
        InvalidInputError
            If a hook did not fire exactly once (a compiled model skips Python hooks).
        """
        wanted = [(f"{s}/{p}", la) for s in self._sites for p in (*self._pools, *_NORMS)
                  for la in self._layers]  # fmt: skip
        missing = sorted({key for key in wanted if key not in self._values})
        missing += sorted(
            {(f"{s}/tokens", la) for s, chosen in self._tokens.items() for la in chosen
             if (s, la) not in self._seen}
        )  # fmt: skip
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
        for site, kept in self._kept.items():
            out[array_name(site, "tokens")] = kept.transpose(0, 1)
        self._values.clear()
        self._kept = {}
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
        if layer in self._tokens.get(site, ()):
            self._keep_tokens(site, layer, hidden, masks)

    def _keep_tokens(self, site: str, layer: int, hidden: torch.Tensor, masks: PoolMasks) -> None:
        """Copy one layer's tokens to their place among those of all layers."""
        if masks.real is None:
            msg = "token arrays were asked for, but the batch does not say which tokens are real"
            raise InvalidInputError(msg)
        layers, flat = self._tokens[site], hidden.flatten(0, 1)
        if site not in self._kept:
            # Layer by layer, as they come and as they are stored: one copy, and no other.
            shape = (len(layers), len(masks.real), flat.shape[1])
            self._kept[site] = torch.empty(shape, dtype=flat.dtype, device=flat.device)
        place = self._kept[site][layers.index(layer)]
        real = masks.real.to(hidden.device)
        if place.device == flat.device:
            torch.index_select(flat, 0, real, out=place)
        else:
            place.copy_(flat.index_select(0, real))
        self._seen.add((site, layer))


def _masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean over tokens where ``mask`` holds, in float32: (batch, hidden).

    ``where``, not a product: padding may hold NaN, and NaN x 0 is NaN (ENGINES 11).
    """
    # Summed in float32 from the model's own type: nothing as wide as that is written in between.
    kept = torch.where(mask[..., None], values, 0)
    total = kept.sum(dim=1, dtype=torch.float32)
    return total / mask.sum(dim=1, dtype=torch.float32)[:, None]


def _masked_max_abs(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the largest magnitude over tokens where ``mask`` holds, (batch, hidden)."""
    return torch.where(mask[..., None], values.abs(), 0).amax(dim=1).float()


def _stop_forward(_module: nn.Module, _args: object, _output: object) -> None:
    raise _LastLayerReached
