"""What a partial copy of a run holds."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from .base import Record
from .run import Digest, RunId

__all__ = ["Pulled", "PulledPart"]

_Index = Annotated[int, Field(ge=0)]


class PulledPart(Record):
    """Objects of one array: these layers of these blocks.

    ``layers`` are block indices of the model, None for arrays whose objects hold all layers;
    ``blocks`` are half-open ranges of the run's row-blocks.
    """

    array: str
    layers: tuple[_Index, ...] | None
    blocks: tuple[tuple[_Index, _Index], ...]

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        edges = [edge for span in self.blocks for edge in span]
        if edges != sorted(set(edges)):
            msg = f"blocks must be ascending ranges that do not touch, got {list(self.blocks)}"
            raise ValueError(msg)
        return self


class Pulled(Record):
    """pulled.json: beside the records of a run whose objects are not all here.

    Metadata and coordinates are always here; of the arrays that blocks are written to, only
    ``parts``. The record goes when the copy becomes whole. ``source`` is the URL that was copied
    from, empty where that was a folder.
    """

    encoding_type: ClassVar[str] = "actlake-pulled"
    digested: ClassVar[bool] = True

    run: RunId
    plan_id: Digest
    source: str = ""
    parts: tuple[PulledPart, ...] = ()
