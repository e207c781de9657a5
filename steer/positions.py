"""Which tokens an intervention touches: absolute columns of a batch, by phase of the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from ..schemas import InvalidInputError

__all__ = ["Phase", "Positions", "plan_positions"]

Phase = Literal["prompt-all", "prompt-last", "response", "all"]


@dataclass(frozen=True)
class Positions:
    """The columns of a batch that are touched, whether a cache splits the pass or not.

    ``planned`` (row, column) bool covers the columns of the batch as it was tokenised, padding
    included; ``generated`` says whether every column behind them is touched too. Columns are
    counted from the first of the batch: what a forward pass happens to see tells nothing about
    where it stands (ENGINES 22).
    """

    planned: torch.Tensor
    generated: bool = False

    def columns(self, start: int, stop: int) -> torch.Tensor:
        """Return the mask of columns ``start`` to ``stop`` - 1, (row, column) bool."""
        n_rows, width = self.planned.shape
        inside = self.planned[:, min(start, width) : min(stop, width)]
        beyond = stop - max(start, width)
        if beyond <= 0:
            return inside
        rest = torch.full((n_rows, beyond), self.generated, device=inside.device)
        return torch.cat([inside, rest], dim=1)


def plan_positions(
    ids: torch.Tensor, attended: torch.Tensor, *, phase: str, bos: int | None = None
) -> Positions:
    """Return the positions of a phase in a batch of prompts that are still to be answered.

    Parameters
    ----------
    ids, attended
        Token ids and attention mask of the prompts, (row, column), padded on either side.
    phase
        ``prompt-all``, ``prompt-last`` (the last token of each prompt), ``response`` (what is
        generated) or ``all``.
    bos
        The BOS id: an attention sink, never touched. None where there is none.

    Raises
    ------
    InvalidInputError
        If the phase is unknown.
    """
    if phase not in get_args(Phase):
        msg = f"phase {phase!r} is unknown; expected one of {', '.join(get_args(Phase))}"
        raise InvalidInputError(msg)
    ordinary = attended.bool()
    if bos is not None:
        # Only a first token is a BOS: the same id can pad the row, or stand inside a chat.
        first = ordinary.int().argmax(dim=1)
        rows = torch.arange(len(ids), device=ids.device)
        is_bos = torch.zeros_like(ordinary)
        is_bos[rows, first] = ids[rows, first] == bos
        ordinary = ordinary & ~is_bos
    if phase == "response":
        return Positions(torch.zeros_like(ordinary), generated=True)
    if phase == "prompt-last":
        width = attended.shape[1]
        last = width - 1 - attended.flip(1).int().argmax(dim=1)
        mask = torch.zeros_like(ordinary)
        mask[torch.arange(len(ids), device=ids.device), last] = True
        return Positions(mask)
    return Positions(ordinary, generated=phase == "all")
