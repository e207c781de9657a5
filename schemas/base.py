"""The base of every record: frozen, closed to unknown keys, with a type and version header."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import InvalidInputError
from .strict_json import load_json

__all__ = ["Record", "canonical_json", "check_distinct", "digest_json", "near_names"]


def canonical_json(value: object) -> str:
    """Return the one JSON spelling of ``value`` that digests are taken over.

    Keys are sorted, no spaces, non-ASCII kept, NaN refused.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest_json(value: object) -> str:
    """Return ``sha256:<hex>`` of the canonical JSON of ``value``."""
    return "sha256:" + hashlib.sha256(canonical_json(value).encode()).hexdigest()


_MARK = b'"digest": "sha256:'
_HEX = 64
_SHOWN_ERRORS = 20
_MEMBERS = ("literal[", "constrained-", "tuple[", "function-")  # of unions, as pydantic calls them


def _zeroed_digest(data: bytes) -> tuple[str, str]:
    """Return (digest in the text, digest of the text with zeros in its place).

    The last key of a digested record is its digest; the 64 hex digits count as zeros.
    """
    start = data.rfind(_MARK) + len(_MARK)
    if start < len(_MARK):
        return "", "none"
    stored = data[start : start + _HEX]
    blank = data[:start] + b"0" * len(stored) + data[start + len(stored) :]
    return stored.decode("ascii", "replace"), hashlib.sha256(blank).hexdigest()


def near_names(name: str, known: list[str]) -> str:
    """Return `` (did you mean 'x'?)``, or an empty string where nothing is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def check_distinct(name: str, values: object) -> None:
    """Raise ValueError where a tuple names something twice; of other values nothing is asked."""
    if isinstance(values, tuple) and len(set(values)) != len(values):
        msg = f"{name} names something twice: {list(values)}"
        raise ValueError(msg)


class Record(BaseModel):
    """A typed, frozen record that knows the name and version of its encoding.

    On disk every record is a JSON object whose first two keys are ``encoding-type`` and
    ``encoding-version``; :meth:`to_dict` writes them and :meth:`parse` checks them. The text of
    a ``digested`` record ends with a ``digest`` over its own bytes, which is no field of it:
    :meth:`to_json` writes it and :meth:`parse_stored` checks it.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), ser_json_inf_nan="null"
    )

    encoding_type: ClassVar[str] = ""
    encoding_version: ClassVar[str] = "1"
    digested: ClassVar[bool] = False  # where no other record of the store holds its hash

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain JSON values, with its encoding header first."""
        head = {"encoding-type": self.encoding_type, "encoding-version": self.encoding_version}
        body = self.model_dump(mode="json", exclude_none=False)
        return {**(head if self.encoding_type else {}), **body}

    def to_json(self, *, indent: int | None = 2) -> str:
        """Return the record as JSON text that ends with a newline."""
        values = self.to_dict()
        if self.digested:
            values["digest"] = "sha256:" + "0" * _HEX
        text = json.dumps(values, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
        if not self.digested:
            return text
        body, mark, tail = text.rpartition(_MARK.decode())
        # A lone surrogate has no bytes: what is stored never holds one, see load_json.
        _, digest = _zeroed_digest(text.encode("utf-8", "surrogatepass"))
        return body + mark + digest + tail[_HEX:]

    def fingerprint(self) -> str:
        """Return ``sha256:<hex>`` over the record's canonical JSON."""
        return digest_json(self.to_dict())

    @classmethod
    def parse(cls, data: object, *, where: str = "") -> Self:
        """Return a record from JSON values.

        Parameters
        ----------
        data
            A mapping, with or without the encoding header.
        where
            What is being read (a path, a line number), for the message of an error.

        Raises
        ------
        InvalidInputError
            If a key is unknown (the nearest known one is named), a value is wrong, or the
            header names another type or a version that this code cannot read.
        """
        prefix = f"{where}: " if where else ""
        if not isinstance(data, Mapping):
            msg = f"{prefix}expected a JSON object for {cls.__name__}, got {type(data).__name__}"
            raise InvalidInputError(msg)
        values = dict(data)
        if cls.digested:
            values.pop("digest", None)
        got_type = values.pop("encoding-type", cls.encoding_type)
        got_version = values.pop("encoding-version", cls.encoding_version)
        if got_type != cls.encoding_type:
            msg = f"{prefix}expected encoding-type {cls.encoding_type!r}, got {got_type!r}"
            raise InvalidInputError(msg)
        if got_version != cls.encoding_version:
            msg = (
                f"{prefix}{cls.encoding_type} has encoding-version {got_version!r}, this actlake "
                f"reads {cls.encoding_version!r}; install a newer actlake"
            )
            raise InvalidInputError(msg)
        try:
            return cls.model_validate(values)
        except ValidationError as err:
            raise InvalidInputError(prefix + cls._explain(err)) from err

    @classmethod
    def parse_json(cls, text: str | bytes, *, where: str = "") -> Self:
        """Return a record from JSON text; raise InvalidInputError as :meth:`parse` does."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as err:
            msg = f"{where + ': ' if where else ''}not valid JSON: {err}"
            raise InvalidInputError(msg) from err
        return cls.parse(data, where=where)

    @classmethod
    def parse_stored(cls, data: bytes, *, where: str = "") -> Self:
        """Return a record from the bytes of a store, which anybody may have written.

        Raises
        ------
        InvalidInputError
            If the JSON has more than one meaning or no bound (see :func:`load_json`), the
            header is missing, a digested record does not hash to its digest, or as
            :meth:`parse`.
        """
        prefix = f"{where}: " if where else ""
        values = load_json(data, where=where)
        if isinstance(values, dict) and "encoding-version" in values:
            stored, digest = _zeroed_digest(data) if cls.digested else ("", "")
            same_type = values.get("encoding-type") == cls.encoding_type
            same_version = values["encoding-version"] == cls.encoding_version
            if same_type and same_version and stored != digest:
                msg = f"{prefix}its bytes do not hash to its digest, so it was changed"
                raise InvalidInputError(msg)
        elif isinstance(values, dict):
            msg = f"{prefix}no encoding-version, expected {cls.encoding_type!r} version 1"
            raise InvalidInputError(msg)
        return cls.parse(values, where=where)

    @classmethod
    def _explain(cls, err: ValidationError) -> str:
        """Return one line that names every wrong key, what it got and what was expected."""
        parts = []
        found = _without_echoes(err.errors(include_url=False))
        for item in found[:_SHOWN_ERRORS]:
            path = ".".join(_printable(p) for p in item["loc"])
            if item["type"] == "extra_forbidden":
                *parents, last = item["loc"]
                known = cls._known_keys(parents)
                parts.append(f"unknown key {path!r}{near_names(str(last), known)}")
            elif item["type"] == "missing":
                parts.append(f"missing key {path!r}")
            else:
                reason = item["msg"].removeprefix("Value error, ")
                shown = repr(item.get("input"))
                if len(shown) > 60:
                    shown = shown[:57] + "..."
                got = f" (got {shown})" if path else ""
                parts.append(f"{path + ': ' if path else ''}{reason}{got}")
        n_more = len(found) - _SHOWN_ERRORS
        return "; ".join(parts) + (f"; and {n_more} more" if n_more > 0 else "")

    @classmethod
    def _known_keys(cls, parents: list[int | str]) -> list[str]:
        """Return the field names of the nested record that ``parents`` leads to."""
        model: Any = cls
        for name in parents:
            if isinstance(name, int):
                continue
            field = getattr(model, "model_fields", {}).get(name)
            if field is None:
                return list(getattr(model, "model_fields", {}))
            model = _record_in(field.annotation) or model
        return list(model.model_fields)


def _without_echoes(errors: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return errors without those that only follow from others.

    A value that fits no member of a union is one error, without the members in its path; a tuple
    is not too short where its items are wrong.
    """
    kept: dict[tuple[int | str, ...], Mapping[str, Any]] = {}
    for item in errors:
        names = (part for part in item["loc"] if not str(part).startswith(_MEMBERS))
        loc = tuple(names)
        known = kept.get(loc)
        msg = item["msg"] if known is None else f"{known['msg']}, or: {item['msg']}"
        kept[loc] = {**item, "loc": loc, "msg": msg}
    return [
        item
        for loc, item in kept.items()
        if item["type"] != "too_short" or not any(of[:-1] == loc for of in kept if of)
    ]


def _printable(part: int | str) -> str:
    """Return a key of someone else's file as it can be shown on a terminal."""
    text = str(part)
    return (text if text.isprintable() else repr(text))[:80]


def _record_in(annotation: object) -> type[BaseModel] | None:
    """Return the pydantic model inside ``annotation`` (``tuple[Model, ...]``, ``Model | None``)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for arg in get_args(annotation):
        found = _record_in(arg)
        if found is not None:
            return found
    return None
