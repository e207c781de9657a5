"""One of several workers that share the blocks of a run."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..schemas import InvalidInputError

__all__ = ["Worker"]

_SPELLING = re.compile(r"(\d{1,6})/(\d{1,6})")


@dataclass(frozen=True)
class Worker:
    """Worker ``index`` (from 1) of ``count``, who has every count-th block.

    Rows are ordered by length, so neighbouring blocks cost about the same: taking turns gives
    every worker about as much.
    """

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            msg = f"there is no worker {self.index}/{self.count}: expected 1/{self.count} or more"
            raise InvalidInputError(msg)

    @classmethod
    def parse(cls, text: str) -> Worker:
        """Return the worker that ``"2/4"`` names; raise InvalidInputError."""
        match = _SPELLING.fullmatch(text)
        if match is None:
            msg = f"expected a worker such as 1/4 (the first of four), got {text!r}"
            raise InvalidInputError(msg)
        return cls(int(match[1]), int(match[2]))

    def blocks(self, blocks: Iterable[int]) -> list[int]:
        """Return those of ``blocks`` that are this worker's."""
        return [block for block in blocks if block % self.count == self.index - 1]
