"""Texts, pairs and corpora: what is run through a model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from .base import Record, canonical_json

__all__ = ["Arm", "ArmNames", "CorpusInfo", "Pair", "Split", "Text", "TextId", "texts_digest"]

Arm = Literal["positive", "negative", "neutral"]
Split = Literal["train", "test"]
TextId = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[\w.:@+-]+$")]


class ArmNames(Record):
    """The study's own names for the arms, e.g. ``empathic`` and ``task_focused``."""

    positive: str = "positive"
    negative: str = "negative"
    neutral: str = "neutral"

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len({self.positive, self.negative, self.neutral}) < 3:
            msg = "the three arms need three different names"
            raise ValueError(msg)
        return self

    def arm_of(self, name: str) -> Arm | None:
        """Return the arm that ``name`` (the study's name or ours) stands for, or None."""
        table: dict[str, Arm] = {
            "positive": "positive",
            "negative": "negative",
            "neutral": "neutral",
            self.positive: "positive",
            self.negative: "negative",
            self.neutral: "neutral",
        }
        return table.get(name)


class Text(Record):
    """One text: what was asked (``system``, ``prompt``) and what was answered (``response``).

    ``pair`` links the two arms of a contrast; ``scenario`` is the unit of generalisation;
    ``subset`` names a part of a corpus that was designed differently (``shortcut``, ``balanced``);
    ``variant`` is the lexical arm (``original`` or an ablation of the text in ``parent``);
    ``task_conflict`` says whether helping costs the task anything, None where nobody said.
    """

    encoding_type: ClassVar[str] = "actlake-text"
    later_fields: ClassVar[tuple[str, ...]] = ("task_conflict",)  # left out of digests while None

    id: TextId
    response: Annotated[str, StringConstraints(min_length=1)]
    prompt: str | None = None
    system: str | None = None
    arm: Arm = "neutral"
    pair: TextId | None = None
    scenario: str = Field(default="none", min_length=1)
    category: str = "none"
    generator: str = "unknown"
    split: Split = "train"
    subset: str = "none"
    variant: str = "original"
    parent: TextId | None = None
    task_conflict: bool | None = None

    @model_validator(mode="after")
    def _not_blank(self) -> Self:
        if not self.response.strip():
            msg = "the response is empty or only white space"
            raise ValueError(msg)
        if self.arm == "neutral" and self.pair is not None:
            msg = "a neutral text cannot belong to a pair"
            raise ValueError(msg)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return the text as JSON values; fields of later versions only where they say something.

        So that the digest of a text without them is the one it always had.
        """
        values = super().to_dict()
        return {k: v for k, v in values.items() if v is not None or k not in self.later_fields}

    @property
    def n_chars(self) -> int:
        """Characters of system, prompt and response together: the key of the row order."""
        return len(self.system or "") + len(self.prompt or "") + len(self.response)


class Pair(Record):
    """Two texts that differ in the concept and in as little else as could be arranged."""

    encoding_type: ClassVar[str] = "actlake-pair"

    id: TextId
    positive: Text
    negative: Text

    @model_validator(mode="after")
    def _matched(self) -> Self:
        for arm, text in (("positive", self.positive), ("negative", self.negative)):
            if text.arm != arm or text.pair != self.id:
                msg = (
                    f"text {text.id!r} has arm {text.arm!r} and pair {text.pair!r}, "
                    f"expected arm {arm!r} and pair {self.id!r}"
                )
                raise ValueError(msg)
        if self.positive.scenario != self.negative.scenario:
            msg = (
                f"the arms of pair {self.id!r} come from unlike scenarios "
                f"({self.positive.scenario!r}, {self.negative.scenario!r})"
            )
            raise ValueError(msg)
        if self.positive.split != self.negative.split:
            msg = f"the arms of pair {self.id!r} lie in different splits"
            raise ValueError(msg)
        return self


class CorpusInfo(Record):
    """What a corpus is: written beside its texts in a store.

    ``file_digest`` is the hash of ``texts.parquet``, filled in where the corpus is stored.
    """

    encoding_type: ClassVar[str] = "actlake-corpus"
    digested: ClassVar[bool] = True

    id: TextId
    title: str = ""
    arms: ArmNames = ArmNames()
    n_texts: int = Field(ge=1)
    n_pairs: int = Field(ge=0)
    n_scenarios: int = Field(ge=0)
    texts_digest: str
    licence: str = "unknown"
    provenance: str = ""
    file_digest: str | None = None


def texts_digest(texts: Sequence[Text]) -> str:
    """Return ``sha256:<hex>`` over the texts in order of their ids."""
    digest = hashlib.sha256()
    for text in sorted(texts, key=lambda t: t.id):
        digest.update(canonical_json(text.to_dict()).encode())
        digest.update(b"\n")
    return "sha256:" + digest.hexdigest()
