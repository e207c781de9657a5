"""Rows of any record as a data frame with one typed column per field."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

import pandas as pd

from ..schemas import ResultRow
from .table import name_missing_intervals, plain_strings

__all__ = ["record_frame"]

_TYPES: dict[type, str] = {int: "Int64", float: "float64", bool: "bool"}


def record_frame(rows: Iterable[ResultRow], record: type[ResultRow]) -> pd.DataFrame:
    """Return ``rows`` with the columns of ``record``, typed by its annotations.

    Integers are nullable, strings are objects with None, missing floats are NaN.
    """
    frame = pd.DataFrame.from_records(
        [row.model_dump() for row in rows], columns=list(record.model_fields)
    )
    types = {
        name: _TYPES[kind]
        for name, field in record.model_fields.items()
        for kind in _kinds(field.annotation)
        if kind in _TYPES
    }
    return name_missing_intervals(plain_strings(frame.astype(types)))


def _kinds(annotation: Any) -> tuple[Any, ...]:  # noqa: ANN401
    """Return the types that an annotation such as ``int | None`` admits."""
    return tuple(get_args(annotation)) or (annotation,)
