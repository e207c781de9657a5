"""What a repair would do, as it is shown before it is done."""

from __future__ import annotations

from dataclasses import dataclass, field

from .faults import Fault

__all__ = ["RepairPlan"]


@dataclass(frozen=True)
class RepairPlan:
    """What is wrong with a run and what mends it.

    Parameters
    ----------
    run
        The run.
    faults
        What verification found.
    blocks, rows, text_ids
        The row-blocks whose activations must be extracted again, their rows (first, stop) and
        the ids of their texts where the coordinate ``text`` can be read.
    extract_again
        Whether the extraction must run again: for ``blocks``, or, with no block, only for what it
        writes before the first forward pass (coordinates, the plan), which needs no GPU.
    remove
        Keys below the store that ``apply_repair`` removes: what is damaged and would stand in the
        way of that extraction, the commit records of ``blocks``, and the seal over them.
    rebuild
        Keys that ``apply_repair`` writes again from what is good.
    by_hand
        What is left to do, in words.
    pull_from
        Of a partial copy the store to pull from again, which mends activations.
    """

    run: str
    faults: tuple[Fault, ...]
    blocks: tuple[int, ...] = ()
    rows: tuple[tuple[int, int], ...] = ()
    text_ids: tuple[str, ...] = ()
    extract_again: bool = False
    remove: tuple[str, ...] = ()
    rebuild: tuple[str, ...] = ()
    by_hand: tuple[str, ...] = ()
    pull_from: str | None = None
    _writes: dict[str, bytes] = field(default_factory=dict, repr=False, compare=False)

    @property
    def is_needed(self) -> bool:
        """Whether anything is wrong."""
        return bool(self.faults)
