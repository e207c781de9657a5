"""Writing into the residual stream where vLLM keeps it in two parts.

What a token's state is to become goes into one part and 0 into the other, so that the sum is that
state to the last bit; tokens that are not touched keep both parts as they are. Nothing is edited
in place: vLLM's norms are, and its tensors may be shared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from ..extract.sites import find_taps
from ..extract.vllm_proof import find_parts, join_parts

__all__ = ["Write", "attach_write", "replace_stream"]

# Gives a stream (token, hidden) as it is to be, and the tokens that changed; None: none did.
Write: TypeAlias = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor] | None]


def replace_stream(values: Sequence[object], hidden_size: int, write: Write) -> list[Any] | None:
    """Return ``values`` with the stream among them as ``write`` leaves it, None for no change."""
    held: list[Any] = list(values)
    parts = find_parts(held, hidden_size)
    stream = join_parts(held, parts)
    found = write(stream)
    if found is None:
        return None
    changed, at = found
    # Of parts in unlike types the finer one can hold the sum.
    keeper = next(i for i in parts if held[i].dtype == stream.dtype)
    for i in parts:
        part = held[i].clone()
        flat = part[0] if part.ndim == 3 else part
        flat[at] = changed[at] if i == keeper else 0
        held[i] = part
    return held


def attach_write(
    block: nn.Module, site: str, *, hidden_size: int, write: Write
) -> list[torch.utils.hooks.RemovableHandle]:
    """Hang ``write`` at a site of a block; return the handles."""

    def on_output(_module: nn.Module, _args: object, output: object) -> object:
        values = output if isinstance(output, tuple) else (output,)
        changed = replace_stream(values, hidden_size, write)
        if changed is None:
            return None  # torch then keeps the output
        return tuple(changed) if isinstance(output, tuple) else changed[0]

    def on_input(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        changed = replace_stream((*args, *kwargs.values()), hidden_size, write)
        if changed is None:
            return None
        return tuple(changed[: len(args)]), dict(zip(kwargs, changed[len(args) :], strict=True))

    if site == "resid_pre":
        return [block.register_forward_pre_hook(on_input, with_kwargs=True)]
    if site == "resid_mid":
        return _attach_middle(block, hidden_size=hidden_size, write=write)
    module = block if site == "resid_post" else find_taps(block)[site].module
    return [module.register_forward_hook(on_output)]


def _attach_middle(
    block: nn.Module, *, hidden_size: int, write: Write
) -> list[torch.utils.hooks.RemovableHandle]:
    """Hang ``write`` between a block's sublayers.

    No module holds the stream there in every model: what it is to become is written into what
    attention adds to it, as the transformers engine does.
    """
    before: list[torch.Tensor] = []

    def remember(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = [*args, *kwargs.values()]
        before[:] = [join_parts(values, find_parts(values, hidden_size)).clone()]

    def on_sum(_module: nn.Module, _args: object, output: object) -> object:
        def add(added: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
            middle = before.pop() + added
            found = write(middle)
            if found is None:
                return None
            changed, at = found
            kept = (changed == middle).all(dim=-1, keepdim=True)
            return torch.where(kept, added, added + (changed - middle)), at

        values = output if isinstance(output, tuple) else (output,)
        changed = replace_stream(values, hidden_size, add)
        if changed is None:
            return None
        return tuple(changed) if isinstance(output, tuple) else changed[0]

    return [
        block.register_forward_pre_hook(remember, with_kwargs=True),
        find_taps(block)["attn_out"].module.register_forward_hook(on_sum),
    ]
