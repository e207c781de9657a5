"""A few texts of a run once more, each alone: how far batches take them (ENGINES 14)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..schemas import RunPlan
from .engine import Engine
from .rendering import TokenRow

__all__ = ["ParitySample"]

_TEXTS = 3


@dataclass
class ParitySample:
    """The texts that were run alone, and how far they were off in their batches.

    A deviation is the largest of a text's pooled array over the largest magnitude there.
    """

    plan: RunPlan
    texts: list[str] = field(default_factory=list)
    deviation: float = 0.0
    array: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether enough texts were run."""
        return len(self.texts) >= _TEXTS

    def add(
        self, engine: Engine, rows: Sequence[TokenRow], arrays: Mapping[str, torch.Tensor]
    ) -> None:
        """Run the text of a batch that is padded the most alone; compare it with its ``arrays``."""
        if len(rows) < 2 or self.is_whole:
            return
        index = min(range(len(rows)), key=lambda i: rows[i].n_tokens)
        alone = engine.forward([rows[index]])
        for spec in self.plan.arrays:
            if spec.is_tokens:
                continue
            batched, single = arrays[spec.name][index].double(), alone[spec.name][0].double()
            size = float(single.abs().max())
            error = float((batched - single).abs().max()) / (size or 1.0)
            if math.isfinite(error) and error >= self.deviation:  # others the run itself reports
                self.deviation, self.array = error, spec.name
        self.texts.append(rows[index].text.id)

    def notes(self) -> dict[str, Any]:
        """Return plain JSON for a commit record: nothing where no text shared a batch."""
        if not self.texts:
            return {}
        found = {"texts": self.texts, "deviation": self.deviation, "array": self.array}
        return {"parity": found}
