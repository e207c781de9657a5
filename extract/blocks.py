"""Finding the residual blocks of a model and reading what they return."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..schemas import InvalidInputError

__all__ = ["backbone_of", "find_blocks", "replace_hidden", "unwrap_hidden"]


def backbone_of(model: nn.Module) -> nn.Module:
    """Return a model without its language-model head; a model without one is its own backbone.

    Gemma-3 of transformers 4.57 looks for its backbone under a name that it has not, and then
    passes for its own: what lies under the head is asked for instead.
    """
    backbone = getattr(model, "base_model", model)
    if backbone is model and getattr(model, "lm_head", None) is not None:
        backbone = model.get_decoder()  # type: ignore[operator]
    return backbone if isinstance(backbone, nn.Module) else model


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the model's residual blocks, in order.

    They are the one ``ModuleList`` that has as many members as the config has layers, and whose
    members are all of one class (ENGINES 8: a site that matches no module is an error at load).

    Raises
    ------
    InvalidInputError
        If no such list, or more than one, exists; the message lists what was found.
    """
    config: Any = model.config
    n_layers = config.get_text_config().num_hidden_layers
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    fitting = [
        (n, m) for n, m in lists if len(m) == n_layers and len({type(block) for block in m}) == 1
    ]
    # A list inside another's block (experts, say) can have the same length: the outermost wins.
    outer = [(n, m) for n, m in fitting if not any(n.startswith(f"{o}.") for o, _ in fitting)]
    if len(outer) != 1:
        found = ", ".join(f"{n} ({len(m)})" for n, m in lists) or "none"
        msg = (
            f"{type(model).__name__}: expected one ModuleList of {n_layers} blocks, "
            f"got {len(outer)}; module lists: {found}"
        )
        raise InvalidInputError(msg)
    return list(outer[0][1])


def unwrap_hidden(output: object) -> torch.Tensor:
    """Return the hidden states (batch, token, hidden) that a block returned.

    Blocks return a tensor or a tuple, depending on the model and the transformers version;
    indexing a tensor as if it were a tuple would silently take row 0 of the batch.
    """
    hidden = output[0] if isinstance(output, tuple) else output
    if not isinstance(hidden, torch.Tensor) or hidden.ndim != 3:
        shape = tuple(hidden.shape) if isinstance(hidden, torch.Tensor) else type(hidden).__name__
        msg = f"expected a block to return (batch, token, hidden), got {shape}"
        raise InvalidInputError(msg)
    return hidden


def replace_hidden(output: object, hidden: torch.Tensor) -> object:
    """Return a block's ``output`` with its hidden states replaced."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
