"""Who is writing a block, and whose bytes of it were chosen."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints

from .base import Record
from .run import BlockCommit, Digest

__all__ = ["BlockClaim", "BlockDecision"]

WriterId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{1,64}$")]


class BlockClaim(Record):
    """claims/<block>.<generation>.json: a worker is at work on a block.

    ``machine`` tells one running system from another without naming it; ``started`` is what
    tells two processes of one number apart (Linux: ticks since the boot). Times are seconds
    since 1970 by the clock of the claiming machine.
    """

    encoding_type: ClassVar[str] = "actlake-claim"

    plan_id: Digest
    block: int = Field(ge=0)
    writer: WriterId
    machine: str
    pid: int
    started: str
    claimed_at: float
    renewed_at: float
    released: bool = False


class BlockDecision(Record):
    """decisions/<block>.json: created once, when all bytes of a block lie in the storage.

    ``staged`` are the objects (keys below ``data.zarr``) whose keys were taken by leftovers of
    another writer: their bytes wait below ``staged/<staged_in>`` to replace those. When all are
    in place, ``commit`` becomes the commit record.
    """

    encoding_type: ClassVar[str] = "actlake-decision"
    digested: ClassVar[bool] = True

    commit: BlockCommit
    staged_in: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,12}-[0-9a-f]{1,64}$")]
    staged: tuple[str, ...] = ()
