"""Texts, pairs and corpora: what is run through a model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
    model_validator,
)

from .base import Record, canonical_json

__all__ = [
    "MAX_TOKENS",
    "Arm",
    "ArmNames",
    "CorpusInfo",
    "Pair",
    "Split",
    "Text",
    "TextId",
    "Turn",
    "texts_digest",
]

Arm = Literal["positive", "negative", "neutral"]
Split = Literal["train", "test"]
TextId = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[\w.:@+-]+$")]

MAX_TOKENS = 2**20  # of one text
MAX_TURNS = 10_000
# Keys that came later: where they say nothing they are left out, so that digests stay.
_LATER = ("messages", "token_ids", "response_start", "task_conflict", "spans")
SpanName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
CharSpan = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]]


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


class Turn(Record):
    """One turn of a conversation, as chat templates take it."""

    role: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]
    content: str


class Text(Record):
    """One text: what was asked (``system``, ``prompt``) and what was answered (``response``).

    A conversation of several turns is ``messages``, all turns before the response, instead of
    ``system`` and ``prompt``; where no response is given it is the last of them, an assistant's.

    ``token_ids`` are run as they are, without a template and without special tokens being added;
    ``response_start`` is the index of the first one of the response, 0 where there is no prompt.
    ``prompt`` and ``response`` then only say to readers what the ids mean, and may be left out.
    Ids are those of one model's vocabulary.

    ``spans`` names parts of the response: lists of [start, stop) in its characters, which the
    pool ``mean_span:NAME`` is taken over.

    ``pair`` links the two arms of a contrast; ``scenario`` is the unit of generalisation;
    ``subset`` names a part of a corpus that was designed differently (``shortcut``, ``balanced``);
    ``variant`` is the lexical arm (``original`` or an ablation of the text in ``parent``);
    ``task_conflict`` says whether helping costs the task anything, None where nobody said.
    """

    encoding_type: ClassVar[str] = "actlake-text"

    id: TextId
    response: Annotated[str, StringConstraints(min_length=1)] = ""  # only beside token_ids
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
    messages: Annotated[tuple[Turn, ...], Field(min_length=1, max_length=MAX_TURNS)] | None = None
    token_ids: (
        Annotated[
            tuple[Annotated[int, Field(ge=0, lt=2**31)], ...],
            Field(min_length=1, max_length=MAX_TOKENS),
        ]
        | None
    ) = None
    response_start: Annotated[int, Field(ge=0)] | None = None
    task_conflict: bool | None = None
    spans: (
        dict[SpanName, Annotated[tuple[CharSpan, ...], Field(min_length=1, max_length=MAX_TURNS)]]
        | None
    ) = None

    @model_validator(mode="before")
    @classmethod
    def _split_conversation(cls, data: Any) -> Any:  # whatever was given  # noqa: ANN401
        """Take the response from the last turn of ``messages``, where it stands there."""
        if not isinstance(data, dict) or data.get("response") is not None:
            return data
        turns = data.get("messages")
        if not isinstance(turns, list | tuple) or len(turns) < 2:
            return data
        last = turns[-1].model_dump() if isinstance(turns[-1], Turn) else turns[-1]
        if not isinstance(last, dict) or last.get("role") != "assistant":
            return data
        return {**data, "messages": turns[:-1], "response": last.get("content")}

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.messages is not None and (self.prompt is not None or self.system is not None):
            msg = "messages hold all turns before the response; leave out prompt and system"
            raise ValueError(msg)
        if self.token_ids is None and self.response_start is not None:
            msg = "response_start counts token_ids, and there are none"
            raise ValueError(msg)
        if self.token_ids is not None:
            if self.messages is not None:
                msg = "token_ids are run as they are; leave out messages"
                raise ValueError(msg)
            if (self.response_start or 0) >= len(self.token_ids):
                msg = (
                    f"response_start is {self.response_start}, beyond the {len(self.token_ids)} "
                    "token_ids"
                )
                raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _spans_inside(self) -> Self:
        if self.spans is not None and self.token_ids is not None:
            msg = "spans are characters of the response, which token_ids do not have"
            raise ValueError(msg)
        for name, spans in (self.spans or {}).items():
            for start, stop in spans:
                if not start < stop <= len(self.response):
                    msg = (
                        f"span {name!r} is [{start}, {stop}), expected a part of the response of "
                        f"{len(self.response)} characters"
                    )
                    raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _not_blank(self) -> Self:
        if not self.response and self.token_ids is None:
            msg = "missing key 'response'"
            if self.messages is not None:
                msg += ", and the last of messages is not an assistant's"
            raise ValueError(msg)
        if self.response and not self.response.strip():
            msg = "the response is empty or only white space"
            raise ValueError(msg)
        if self.arm == "neutral" and self.pair is not None:
            msg = "a neutral text cannot belong to a pair"
            raise ValueError(msg)
        return self

    @model_serializer(mode="wrap")
    def _shortest(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = handler(self)
        if not self.response:
            found.pop("response", None)
        for name in _LATER:
            if name in found and found[name] is None:
                del found[name]
        return found

    @property
    def n_chars(self) -> int:
        """Characters of all turns together: the key of the row order.

        Of a text that is nothing but token ids, their number.
        """
        turns = sum(len(turn.content) for turn in self.messages or ())
        n_chars = len(self.system or "") + len(self.prompt or "") + turns + len(self.response)
        return n_chars or len(self.token_ids or ())


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
