"""Texts from other people's tables: JSONL, CSV and Parquet, with columns mapped by name."""

from __future__ import annotations

import csv
import io
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..schemas import ArmNames, InvalidInputError, Split, Text, near_names
from .lines import others, read_bytes, read_lines
from .texts import check_texts

__all__ = ["FORMATS", "import_texts", "parse_mapping", "split_scenarios"]

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
_COMMON = (
    "id", "prompt", "system", "scenario", "category", "generator", "split", "subset",
    "task_conflict",
)  # fmt: skip
_PAIR_FIELDS = ("positive", "negative", *_COMMON)
_TEXT_FIELDS = ("response", "arm", "pair", "variant", "parent", *_COMMON)
_LABELS = {
    "1": "positive",
    "0": "negative",
    "-1": "neutral",
    "true": "positive",
    "false": "negative",
}
Rows = Iterator[tuple[str, dict[str, Any]]]


def parse_mapping(text: str) -> dict[str, str]:
    """Return the columns by field that ``positive=kind,negative=cold,scenario=topic`` names.

    Raises
    ------
    InvalidInputError
        If a part is no ``FIELD=COLUMN``, a field is unknown or stands twice.
    """
    known = sorted({*_PAIR_FIELDS, *_TEXT_FIELDS})
    found: dict[str, str] = {}
    for part in text.split(","):
        name, mark, column = (piece.strip() for piece in part.partition("="))
        if not mark or not column:
            msg = f"map {part.strip()!r} is not FIELD=COLUMN; expected e.g. positive=kind"
            raise InvalidInputError(msg)
        if name not in known:
            near = near_names(name, known)
            msg = f"map names no field {name!r}{near}; there are: {', '.join(known)}"
            raise InvalidInputError(msg)
        if name in found:
            msg = f"map names field {name!r} twice"
            raise InvalidInputError(msg)
        found[name] = column
    return found


def import_texts(
    path: str | Path,
    mapping: Mapping[str, str] | None = None,
    *,
    arms: ArmNames | None = None,
    generator: str | None = None,
    test_share: float | None = None,
    seed: int = 0,
) -> list[Text]:
    """Return the texts of a table.

    Parameters
    ----------
    path
        A .jsonl, .csv, .tsv or .parquet file; text in it is UTF-8.
    mapping
        The column of each field. With ``positive`` and ``negative`` a row is a pair; else a row
        is one text with ``response`` and ``arm`` (a name of ``arms``, or 1, 0, -1). Fields that
        are not mapped come from the columns of their own names.
    arms
        The study's names of the arms.
    generator
        Who wrote the texts, where no column says it.
    test_share
        Put this share of the scenarios of each category into the test split, instead of what
        a column says.
    seed
        Of that draw.

    Raises
    ------
    NotFoundError
        If there is no such file.
    InvalidInputError
        If the file is of another kind, is not UTF-8, lacks a column, or a row is no text: the
        row is named, with how many others are bad.
    """
    path = Path(path)
    names = arms or ArmNames()
    rows = list(_read_rows(path))
    if not rows:
        msg = f"{path}: holds no rows"
        raise InvalidInputError(msg)
    columns = list(dict.fromkeys(name for _, row in rows for name in row))
    mapping = _complete(dict(mapping or {}), columns, where=str(path))
    texts: list[Text] = []
    faults: list[str] = []
    for number, (where, row) in enumerate(rows, start=1):
        values = {field: row.get(column) for field, column in mapping.items()}
        values.setdefault("generator", generator)
        default = f"{_slug(path.stem)}-{number:05d}"
        try:
            texts += _parse_row(values, default, names, where=where)
        except InvalidInputError as err:
            faults.append(str(err))
    if faults:
        raise InvalidInputError(faults[0] + others(len(faults) - 1, "row", "also bad"))
    if test_share is not None:
        texts = split_scenarios(texts, test_share=test_share, seed=seed)
    check_texts(texts, where=str(path))
    return texts


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "_.-" else "-" for c in name)[:80] or "text"


def _read_rows(path: Path) -> Rows:
    """Yield (where, row) of a table by the ending of its name."""
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        msg = f"{path}: cannot tell its format; expected a name that ends in {', '.join(FORMATS)}"
        raise InvalidInputError(msg)
    if kind == "jsonl":
        yield from read_lines(path, _json_row, noun="row")[0]
    elif kind == "parquet":
        yield from _parquet_rows(path)
    else:
        yield from _csv_rows(path, delimiter="\t" if kind == "tsv" else ",")


def _json_row(data: object, where: str) -> tuple[str, dict[str, Any]]:
    if not isinstance(data, dict):
        msg = f"{where}: expected a JSON object, got {type(data).__name__}"
        raise InvalidInputError(msg)
    return where, data


def _csv_rows(path: Path, *, delimiter: str) -> Rows:
    raw = read_bytes(path, noun="row")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = raw[: err.start].count(b"\n") + 1
        msg = f"{path}:{line}: not UTF-8 (byte {err.start + 1}: {err.reason}); save it as UTF-8"
        raise InvalidInputError(msg) from err
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                n = len(reader.fieldnames or ())
                msg = f"{where}: the row has more or fewer cells than the {n} columns"
                raise InvalidInputError(msg)
            yield where, dict(row)
    except csv.Error as err:
        msg = f"{path}:{reader.line_num}: not valid CSV ({err})"
        raise InvalidInputError(msg) from err


def _parquet_rows(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw = read_bytes(path, noun="row")
    try:
        table = pq.read_table(pa.BufferReader(raw))
    except (pa.ArrowException, OSError) as err:
        msg = f"{path}: not a Parquet file ({' '.join(str(err)[:200].split())})"
        raise InvalidInputError(msg) from err
    for number, row in enumerate(table.to_pylist(), start=1):
        yield f"{path}, row {number}", row


def _complete(mapping: dict[str, str], columns: Sequence[str], *, where: str) -> dict[str, str]:
    """Return the mapping with the columns that bear a field's own name; check what is needed."""
    for field, column in mapping.items():
        if column not in columns:
            near = near_names(column, list(columns))
            msg = (
                f"{where}: no column {column!r} for {field}{near}; there are: "
                f"{', '.join(map(str, columns[:20]))}"
            )
            raise InvalidInputError(msg)
    arms = [name for name in ("positive", "negative") if name in mapping or name in columns]
    single = "response" in mapping or "response" in columns
    if len(arms) == 1 and not single:
        other = "negative" if arms == ["positive"] else "positive"
        msg = f"{where}: a pair needs both arms, {other} is not mapped; add {other}=COLUMN"
        raise InvalidInputError(msg)
    paired = len(arms) == 2 and "response" not in mapping
    fields = _PAIR_FIELDS if paired else _TEXT_FIELDS
    foreign = [name for name in mapping if name not in fields]
    if foreign:
        kind = "pairs" if paired else "single texts"
        msg = f"{where}: rows are {kind}, which have no {foreign[0]!r}; leave it out of the map"
        raise InvalidInputError(msg)
    found = {name: name for name in fields if name in columns} | mapping
    missing = [] if paired else [name for name in ("response", "arm") if name not in found]
    if missing:
        msg = (
            f"{where}: nothing says which column is {' and '.join(missing)}; map "
            "positive=…,negative=… for pairs, or response=…,arm=… for labelled texts"
        )
        raise InvalidInputError(msg)
    return found


def _parse_row(values: dict[str, Any], default: str, arms: ArmNames, *, where: str) -> list[Text]:
    """Return the texts of one row: two for a pair."""
    common = {
        name: value
        for name, value in values.items()
        if name not in {"positive", "negative", "id"} and value not in (None, "")
    }
    for name, value in common.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            common[name] = str(value)
    name = str(values.get("id") or default)
    if "positive" in values:
        return [
            Text.parse(
                {**common, "id": f"{name}-{arm[:3]}", "arm": arm, "pair": name,
                 "response": values[arm]},
                where=f"{where}, {arm}",
            )
            for arm in ("positive", "negative")
        ]  # fmt: skip
    label = str(common.get("arm", "")).strip()
    arm = arms.arm_of(label) or _LABELS.get(label.lower())
    if arm is None:
        msg = (
            f"{where}: arm {label!r} is not known; expected {arms.positive!r}, {arms.negative!r}, "
            f"{arms.neutral!r}, or 1, 0, -1"
        )
        raise InvalidInputError(msg)
    return [Text.parse({**common, "id": name, "arm": arm}, where=where)]


def split_scenarios(texts: Sequence[Text], *, test_share: float, seed: int = 0) -> list[Text]:
    """Return the texts with whole scenarios drawn into the test split, category by category.

    A scenario with texts of several categories counts to that of its first text.

    Raises
    ------
    InvalidInputError
        If the share is not between 0 and 1.
    """
    if not 0 < test_share < 1:
        msg = f"the test share must lie between 0 and 1, got {test_share}"
        raise InvalidInputError(msg)
    category_of: dict[str, str] = {}
    for text in texts:
        category_of.setdefault(text.scenario, text.category)
    by_category: dict[str, list[str]] = defaultdict(list)
    for name, category in category_of.items():
        by_category[category].append(name)
    split_of: dict[str, Split] = {}
    for category, names in sorted(by_category.items()):
        order = sorted(names)
        random.Random(f"{seed} {category}").shuffle(order)
        n_test = round(test_share * len(order))
        for index, name in enumerate(order):
            split_of[name] = "test" if index < n_test else "train"
    return [t.model_copy(update={"split": split_of[t.scenario]}) for t in texts]
