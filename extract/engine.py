"""Engines: what turns token rows into pooled activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch

from ..schemas import InvalidInputError
from .blocks import find_blocks
from .capture import PooledCapture, PoolMasks, to_device
from .loading import LoadedModel
from .rendering import TokenRow
from .sites import check_sites

__all__ = ["Engine", "LocatesNonfinite", "TransformersEngine", "pad_rows"]


class Engine(Protocol):
    """One method: run a batch of rows and return its arrays."""

    def forward(self, rows: Sequence[TokenRow]) -> dict[str, torch.Tensor]:
        """Return ``<site>_<pool>`` (batch, layer, hidden) and both norms (batch, layer).

        Where the plan has token arrays, ``<site>_tokens`` (token, token_layer, hidden) too: the
        tokens of ``rows`` one after another, in the model's own type.
        """
        ...


@runtime_checkable
class LocatesNonfinite(Protocol):
    """What an engine may do besides, so that an error can name a token."""

    def nonfinite_position(self, row: TokenRow, *, site: str, layer: int) -> int | None:
        """Return the first token of ``row`` that is NaN or infinite when the row is run alone."""
        ...


class TransformersEngine:
    """Runs any transformers decoder or encoder whose blocks are a ``ModuleList``."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        sites: Sequence[str],
        layers: Sequence[int],
        pools: Sequence[str],
        tokens: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.n_halved = 0  # batches that ran in halves for want of memory
        self._network = loaded.backbone
        self._device = loaded.device
        self._pad_id = loaded.tokenizer.pad_token_id or 0
        self._bos_id = loaded.first_id
        self._is_encoder = loaded.is_encoder
        blocks = find_blocks(self._network)
        check_sites(self._network, blocks, sites=sites)
        self._capture = PooledCapture(
            blocks, sites=sites, layers=layers, pools=pools, tokens=tokens
        )

    @contextmanager
    def ready(self) -> Iterator[TransformersEngine]:
        """Keep the hooks on while the context lasts."""
        with self._capture.attached():
            yield self

    def forward(self, rows: Sequence[TokenRow]) -> dict[str, torch.Tensor]:
        """Return the arrays of one batch, on the model's device.

        Rows are padded on the right with explicit positions, so that a text has the same
        positions alone and in any batch (ENGINES 10). A batch that does not fit into the
        device's memory is run in halves, and counted in ``n_halved``.

        Raises
        ------
        InvalidInputError
            If a single text does not fit.
        """
        try:
            return self._forward(rows)
        except torch.OutOfMemoryError as err:
            if len(rows) == 1:
                (row,) = rows
                msg = (
                    f"text {row.text.id!r} with {row.n_tokens} tokens does not fit into the memory "
                    f"of {self._device}: {str(err).splitlines()[0]}; leave it out, lower "
                    "--max-tokens with --truncate, or take a smaller --dtype"
                )
                raise InvalidInputError(msg) from err
        # Outside of the handler: the traceback would keep the failed pass's tensors alive.
        self.n_halved += 1
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(rows) // 2
        first, second = self.forward(rows[:half]), self.forward(rows[half:])
        return {name: torch.cat([array, second[name]]) for name, array in first.items()}

    @torch.inference_mode()
    def _forward(self, rows: Sequence[TokenRow]) -> dict[str, torch.Tensor]:
        inputs, masks = self._inputs(rows)
        self._capture.run(self._network, inputs, masks.to(self._device))
        return self._capture.take()

    @torch.inference_mode()
    def nonfinite_position(self, row: TokenRow, *, site: str, layer: int) -> int | None:
        """Return the first token of ``row`` where ``site`` of ``layer`` is not finite.

        The row is run alone: it costs nothing until it is asked for. None where every token is
        finite then, as when a sum over tokens overflowed, or other rows of the batch played in.
        """
        inputs, _ = self._inputs([row])
        bad = self._capture.nonfinite_tokens(self._network, inputs, site=site, layer=layer)[0]
        found = bad.nonzero()
        return int(found[0]) if len(found) else None

    def _inputs(self, rows: Sequence[TokenRow]) -> tuple[dict[str, Any], PoolMasks]:
        ids, attended, masks = pad_rows(rows, pad_id=self._pad_id, bos_id=self._bos_id)
        given = {"input_ids": ids, "attention_mask": attended}
        if not self._is_encoder:
            given["position_ids"] = torch.arange(ids.shape[1]).expand(len(rows), -1)
        inputs: dict[str, Any] = {
            name: to_device(value, self._device) for name, value in given.items()
        }
        # Encoders have no cache, and some count positions from elsewhere than 0 (RoBERTa from 2).
        return (inputs if self._is_encoder else {**inputs, "use_cache": False}), masks


def pad_rows(
    rows: Sequence[TokenRow], *, pad_id: int, bos_id: int | None
) -> tuple[torch.Tensor, torch.Tensor, PoolMasks]:
    """Return ids and attention mask (batch, token), padded on the right, and what pools read."""
    shape = (len(rows), max(row.n_tokens for row in rows))
    ids = torch.full(shape, pad_id, dtype=torch.long)
    attended = torch.zeros(shape, dtype=torch.long)
    response, ordinary, prompt, bos = (torch.zeros(shape, dtype=torch.bool) for _ in range(4))
    positions = {
        pool: torch.zeros(len(rows), dtype=torch.long)
        for pool in ("last_prompt", "first_response", "last_response", "first_token")
    }
    spans = {name: torch.zeros(shape, dtype=torch.bool) for row in rows for name in row.spans}
    for i, row in enumerate(rows):
        n = row.n_tokens
        for name, mask in row.spans.items():
            spans[name][i, :n] = torch.from_numpy(mask)
        ids[i, :n] = torch.from_numpy(row.ids)
        attended[i, :n] = 1
        response[i, :n] = torch.from_numpy(row.response)
        ordinary[i, :n] = torch.from_numpy(~row.special)
        prompt[i, : row.n_prompt] = ordinary[i, : row.n_prompt]
        bos[i, 0] = int(row.ids[0]) == bos_id
        (where,) = row.response.nonzero()
        positions["last_prompt"][i] = max(row.n_prompt - 1, 0)
        positions["first_response"][i] = int(where[0])
        positions["last_response"][i] = int(where[-1])
    return (
        ids,
        attended,
        PoolMasks(
            response, prompt, ordinary, bos, positions, spans, attended.flatten().nonzero()[:, 0]
        ),
    )
