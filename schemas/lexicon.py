"""Lexica: the keywords of an arm and the neutral words that may stand in their place."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from .base import Record

__all__ = ["Lexicon", "LexiconEntry"]

Word = Annotated[
    str, StringConstraints(pattern=r"^[^\W\d_A-Z]+([ '-][^\W\d_A-Z]+)*$", max_length=60)
]


class LexiconEntry(Record):
    """The forms of a keyword; ``replacements`` are parallel to ``forms``, or there are none."""

    forms: Annotated[tuple[Word, ...], Field(min_length=1)]
    replacements: tuple[Word, ...] = ()

    @model_validator(mode="after")
    def _parallel(self) -> Self:
        if self.replacements and len(self.replacements) != len(self.forms):
            msg = (
                f"{self.forms[0]!r} has {len(self.forms)} forms and {len(self.replacements)} "
                "replacements; give one replacement per form, or none"
            )
            raise ValueError(msg)
        if any(" " in form for form in self.forms):
            msg = (
                f"the forms of {self.forms[0]!r} are more than one word; keywords are single words"
            )
            raise ValueError(msg)
        return self


class Lexicon(Record):
    """The keywords of one arm, each form in lower case and in one entry only."""

    encoding_type: ClassVar[str] = "actlake-lexicon"

    name: Annotated[str, StringConstraints(pattern=r"^[\w.-]+$", max_length=80)]
    arm: Literal["positive", "negative"]
    title: str = ""
    licence: str = "unknown"
    entry: Annotated[tuple[LexiconEntry, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        forms = [form for entry in self.entry for form in entry.forms]
        twice = sorted({form for form in forms if forms.count(form) > 1})
        if twice:
            msg = f"lexicon {self.name!r} holds {', '.join(twice[:5])} in two entries"
            raise ValueError(msg)
        return self

    @property
    def keywords(self) -> frozenset[str]:
        """Every form of every keyword."""
        return frozenset(form for entry in self.entry for form in entry.forms)

    @property
    def table(self) -> dict[str, str]:
        """The replacement of every form that has one."""
        return {
            form: other
            for entry in self.entry
            for form, other in zip(entry.forms, entry.replacements, strict=False)
        }
