"""Interventions on the residual stream: what is added, where, and how strongly per row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from ..extract import find_blocks, replace_hidden, unwrap_hidden
from ..schemas import InvalidInputError

__all__ = ["Addition", "intervene"]


@dataclass(frozen=True)
class Addition:
    """Adds ``alpha * vector`` to the output of one block, each row with its own strength.

    ``vectors`` (row, hidden) or (hidden,); ``alphas`` (row,); ``positions`` (row, token) bool.
    Positions are absolute and come from the caller's plan of the prompt, never from the shape of
    what a block happens to see.
    """

    layer: int
    vectors: torch.Tensor
    alphas: torch.Tensor
    positions: torch.Tensor


@contextmanager
def intervene(model: nn.Module, additions: Sequence[Addition]) -> Iterator[None]:
    """Apply ``additions`` to every forward pass of ``model`` while the context lasts.

    Only the named layers change. Rows with alpha 0 are bitwise what they are without a hook: the
    sum is taken only where something is added. The hooks come off whatever happens.

    Raises
    ------
    InvalidInputError
        If a layer does not exist, a width does not fit the model, or a strength is not finite.
    """
    blocks = find_blocks(model.base_model)  # type: ignore[arg-type]
    hidden_size = model.config.get_text_config().hidden_size  # type: ignore[union-attr, operator]
    for addition in additions:
        _check_addition(addition, n_layers=len(blocks), hidden_size=hidden_size)
    handles = []
    try:
        handles = [blocks[a.layer].register_forward_hook(_adding_hook(a)) for a in additions]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_addition(addition: Addition, *, n_layers: int, hidden_size: int) -> None:
    if not 0 <= addition.layer < n_layers:
        msg = f"layer {addition.layer} does not exist; the model has layers 0 to {n_layers - 1}"
        raise InvalidInputError(msg)
    if addition.vectors.shape[-1] != hidden_size:
        msg = f"the direction is {addition.vectors.shape[-1]} wide, the model {hidden_size}"
        raise InvalidInputError(msg)
    if not torch.isfinite(addition.alphas).all() or not torch.isfinite(addition.vectors).all():
        msg = "alphas and directions must be finite numbers"
        raise InvalidInputError(msg)


def _adding_hook(addition: Addition) -> Callable[..., object]:
    def hook(_module: nn.Module, _args: object, output: object) -> object:
        hidden = unwrap_hidden(output)
        if hidden.shape[:2] != addition.positions.shape:
            msg = (
                f"the intervention was planned for rows x tokens {tuple(addition.positions.shape)}"
                f", the block sees {tuple(hidden.shape[:2])}"
            )
            raise InvalidInputError(msg)
        # Each block may live on another device of a sharded model (ENGINES 23).
        alphas = addition.alphas.to(hidden.device, torch.float32)
        vectors = addition.vectors.to(hidden.device, torch.float32)
        delta = alphas[:, None] * vectors
        where = addition.positions.to(hidden.device) & (alphas != 0)[:, None]
        steered = (hidden.float() + delta[:, None, :]).to(hidden.dtype)
        return replace_hidden(output, torch.where(where[..., None], steered, hidden))

    return hook
