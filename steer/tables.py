"""Tables that others made: reading them, naming their columns, writing ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from ..corpus.lines import read_lines
from ..schemas import InvalidInputError, NotFoundError, Record, near_names

__all__ = ["map_columns", "read_table", "record_table", "require_columns", "write_table"]

_SUFFIXES = (".csv", ".parquet", ".jsonl")


def _check_suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        msg = f"{path}: expected a name that ends with {', '.join(_SUFFIXES)}"
        raise InvalidInputError(msg)
    return suffix


def read_table(path: str | Path) -> pd.DataFrame:
    """Return the table of a .csv, .parquet or .jsonl file.

    Raises
    ------
    NotFoundError
        If there is no such file.
    InvalidInputError
        If it has another suffix, cannot be read, or has no rows.
    """
    path = Path(path)
    if not path.is_file():
        msg = f"{path}: no such file; expected a table ({', '.join(_SUFFIXES)})"
        raise NotFoundError(msg)
    suffix = _check_suffix(path)
    try:
        if suffix == ".csv":
            table = pd.read_csv(path)
        elif suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            table = pd.DataFrame.from_records(read_lines(path, _row, noun="row")[0])
    except (ValueError, OSError) as err:
        msg = f"{path}: cannot be read as {suffix}: {' '.join(str(err).split())}"
        raise InvalidInputError(msg) from err
    if table.empty:
        msg = f"{path}: the table has no rows"
        raise InvalidInputError(msg)
    return table


def _row(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        msg = f"{where}: expected a JSON object, got {type(value).__name__}"
        raise InvalidInputError(msg)
    return value


def map_columns(table: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """Return the table with columns renamed: ``names`` gives our name and theirs.

    Raises
    ------
    InvalidInputError
        If a column is missing, or the new name is taken by another column.
    """
    require_columns(table, list(names.values()))
    for ours, theirs in names.items():
        if ours != theirs and ours in table.columns and ours not in names.values():
            msg = f"the table already has a column {ours!r}; {theirs!r} cannot take its name"
            raise InvalidInputError(msg)
    twice = {theirs for theirs in names.values() if list(names.values()).count(theirs) > 1}
    if twice:
        msg = f"column {sorted(twice)[0]!r} is mapped to two names; give each its own"
        raise InvalidInputError(msg)
    return table.rename(columns={theirs: ours for ours, theirs in names.items()})


def require_columns(table: pd.DataFrame, names: Sequence[str]) -> None:
    """Raise InvalidInputError where a column is missing, naming the nearest one."""
    known = [str(column) for column in table.columns]
    for name in names:
        if name not in known:
            msg = f"the table has no column {name!r}{near_names(name, known)}; it has {known}"
            raise InvalidInputError(msg)


def record_table(records: Sequence[Record], kind: type[Record]) -> pd.DataFrame:
    """Return records of one kind as a table, its columns also where there are no records."""
    columns = list(kind.model_fields)
    return pd.DataFrame([record.model_dump() for record in records], columns=columns)


def write_table(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table as .csv, .parquet or .jsonl, by the suffix of ``path``."""
    path = Path(path)
    suffix = _check_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".csv":
        table.to_csv(path, index=False)
    elif suffix == ".parquet":
        table.to_parquet(path, index=False)
    else:
        table.to_json(path, orient="records", lines=True, force_ascii=False)
