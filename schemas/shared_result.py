"""The record of a stage's results that a store keeps beside its runs."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, StringConstraints

from .base import Record
from .run import Digest, ObjectInfo

__all__ = ["StageResult"]

PlainName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.@+-]{0,199}$")]


class StageResult(Record):
    """results/<subject>/<stage>/<digest>/result.json: created once, after all of its files.

    ``made_from`` is everything the files follow from, and ``made_from_digest`` its hash: who has
    the same study and the same data finds the results that another machine made.
    """

    encoding_type: ClassVar[str] = "actlake-stage-result"
    digested: ClassVar[bool] = True

    subject: PlainName
    stage: PlainName
    made_from: dict[str, Any]
    made_from_digest: Digest
    files: tuple[ObjectInfo, ...]
    actlake: str
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    created_at: str
