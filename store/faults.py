"""What a verification says: which object is wrong, why, and what it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["Fault", "FaultKind", "VerifyReport"]

FaultKind: TypeAlias = Literal[
    "plan", "manifest", "commit", "decision", "seal", "pulled", "static", "chunk", "stranger",
    "corpus", "catalog", "store",
]  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """One object that is not what it must be.

    Parameters
    ----------
    key
        Of metadata and chunks the key below ``data.zarr``, of the run's records that below the
        run, of anything else that below the store.
    reason
        What is wrong.
    rows
        The rows it holds (first, stop), None where it holds no block.
    layer
        The layer it holds (block index of the model), None where it holds all or none.
    kind
        What the object is: a record by its name, ``static`` for metadata and coordinates,
        ``chunk`` for activations, ``stranger`` for what the run does not have.
    """

    key: str
    reason: str
    rows: tuple[int, int] | None = None
    layer: int | None = None
    kind: FaultKind = "chunk"


@dataclass(frozen=True)
class VerifyReport:
    """What was read, and what was wrong."""

    run: str
    sealed: bool
    n_objects: int
    n_bytes: int
    faults: tuple[Fault, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was wrong."""
        return not self.faults
