"""Result rows as tables: provenance, data frames, files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from .._version import __version__
from ..schemas import ResultRow

__all__ = [
    "OVER_LAYERS",
    "add_origin",
    "dataset_provenance",
    "name_missing_intervals",
    "plain_strings",
    "relative_depth",
    "rows_frame",
    "write_table",
]

INTEGERS = (
    "layer", "n_draws", "n_texts", "n_pairs", "n_scenarios", "n_generators", "seed",
)  # fmt: skip
FLAGS = ("boundary",)


def _number_columns() -> list[str]:
    """Return the fields of a ResultRow that hold floats."""
    return [
        name
        for name, field in ResultRow.model_fields.items()
        if "float" in str(field.annotation) and name not in INTEGERS
    ]


def dataset_provenance(ds: xr.Dataset) -> dict[str, Any]:
    """Return the fields of a ResultRow that the attributes of an opened run fill."""
    attrs = ds.attrs
    names = {
        "run": "run",
        "model": "model",
        "token_mask": "token_mask",
        "template_digest": "template_digest",
        "dtype": "dtype",
        "store_url": "store_url",
        "content_digest": "content_digest",
    }
    found = {field: attrs.get(name) for field, name in names.items()}
    text = {field: None if value is None else str(value) for field, value in found.items()}
    return text | {"code_version": __version__}


def relative_depth(layer: int, ds: xr.Dataset) -> float | None:
    """Return (layer + 1)/n_layers, or None where the run does not say how many blocks it has."""
    n_layers = ds.attrs.get("n_layers")
    return None if n_layers is None else (layer + 1) / int(n_layers)


def rows_frame(rows: Iterable[ResultRow]) -> pd.DataFrame:
    """Return ``rows`` as a data frame with one typed column per field of a ResultRow.

    Integers are nullable, strings are objects with None, missing floats are NaN.
    """
    records = [row.model_dump() for row in rows]
    frame = pd.DataFrame.from_records(records, columns=list(ResultRow.model_fields))
    typed = frame.astype(
        dict.fromkeys(INTEGERS, "Int64")
        | dict.fromkeys(_number_columns(), "float64")
        | dict.fromkeys(FLAGS, "bool")
    )
    return name_missing_intervals(plain_strings(typed))


def name_missing_intervals(frame: pd.DataFrame) -> pd.DataFrame:
    """Return ``frame`` whose estimates without an interval and a reason say that they have none."""
    bare = (
        frame["estimate"].notna()
        & frame["ci_low"].isna()
        & frame["ci_method"].isna()
        & frame["reason"].isna()
    )
    said = "none: no interval is computed for " + frame["metric"].astype(str)
    return frame.assign(ci_method=frame["ci_method"].where(~bare, said))


OVER_LAYERS = "the maximum over layers has no layer of its own"
ORIGIN = (
    "model", "token_mask", "template_digest", "dtype", "dataset_digest", "split_digest",
    "code_version", "store_url", "content_digest",
)  # fmt: skip


def add_origin(frame: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Return ``frame`` whose rows have the origin that ``rows`` of the same run have.

    What a row of ``frame`` says itself stays. Both have a column ``run``.
    """
    known = rows.dropna(subset=["run"]).drop_duplicates("run").set_index("run")
    result = frame.copy()
    for name in ORIGIN:
        mine = result[name] if name in result.columns else pd.Series(None, result.index, object)
        theirs = result["run"].map(known[name]) if name in known.columns else mine
        result[name] = mine.astype(object).where(mine.notna(), theirs)
    return plain_strings(result)


def plain_strings(frame: pd.DataFrame) -> pd.DataFrame:
    """Return ``frame`` whose text columns are objects with None where nothing stands.

    pandas 2 and 3 differ in the type of a text column and in its missing value, and a column of
    nothing but missing text has no type of its own.
    """
    result = frame.copy()
    for name in result.columns:
        column = result[name]
        if not (is_numeric_dtype(column) or is_bool_dtype(column)):
            values = column.astype(object)
            result[name] = pd.Series(
                values.where(values.notna(), None), index=frame.index, dtype=object
            )
    return result


def write_table(frame: pd.DataFrame, folder: Path, *, name: str, formats: Sequence[str]) -> None:
    """Write ``frame`` as ``<name>.parquet`` and ``<name>.csv`` (those in ``formats``)."""
    folder.mkdir(parents=True, exist_ok=True)
    if "parquet" in formats:
        frame.to_parquet(folder / f"{name}.parquet", index=False)
    if "csv" in formats:
        frame.to_csv(folder / f"{name}.csv", index=False)
