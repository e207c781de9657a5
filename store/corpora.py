"""The texts of a corpus as Parquet: one row per text, one column per field, no index.

Every column is text. What is more than text (turns, token ids) is JSON in a column that is only
there where a text of the corpus has it.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..schemas import CorruptError, InvalidInputError, Text
from ..schemas.strict_json import load_json
from ..schemas.text import MAX_TOKENS

__all__ = ["parse_texts", "text_columns", "texts_table"]

_JSON_FIELDS = ("messages", "token_ids", "response_start", "task_conflict", "spans")
_FIELDS = tuple(name for name in Text.model_fields if name not in _JSON_FIELDS)
_IDS = re.compile(r"\[\d{1,10}(,\d{1,10})*\]")
_LIMITS = {"thrift_string_size_limit": 2**20, "thrift_container_size_limit": 2**20}
BATCH_ROWS = 1024
TEXT_BYTES = 64 * 2**20
MOST_SHRUNK = 64  # what the texts decode to is bounded by what the file weighs


def text_columns(texts: Sequence[Text]) -> list[str]:
    """Return the columns of the Parquet file of ``texts``."""
    used = {name for text in texts for name in _JSON_FIELDS if getattr(text, name) is not None}
    return [*_FIELDS, *(name for name in _JSON_FIELDS if name in used)]


def texts_table(texts: Sequence[Text]) -> bytes:
    """Return the Parquet file of ``texts``, in their order."""
    rows = [text.model_dump(mode="json") for text in texts]
    columns: dict[str, list[str | None]] = {
        name: [_spell(row.get(name)) if name in _JSON_FIELDS else row.get(name) for row in rows]
        for name in text_columns(texts)
    }
    schema = pa.schema([(name, pa.string()) for name in columns])
    out = io.BytesIO()
    pq.write_table(pa.table(columns, schema=schema), out, compression="zstd")
    return out.getvalue()


def _spell(value: object) -> str | None:
    if value is None:
        return None
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _read_row(row: Mapping[str, str | None], *, where: str) -> Text:
    """Return the text of a row; raise InvalidInputError."""
    given: dict[str, Any] = {name: cell for name, cell in row.items() if cell is not None}
    for name in _JSON_FIELDS:
        if name not in given:
            continue
        cell = given[name]
        if name != "token_ids":
            given[name] = load_json(cell.encode(), where=f"{where}, {name}")
        elif _IDS.fullmatch(cell) and cell.count(",") < MAX_TOKENS:
            given[name] = json.loads(cell)  # checked above: more ids than load_json lets pass
        else:
            msg = f"{where}: token_ids are not a JSON list of at most {MAX_TOKENS} ids"
            raise InvalidInputError(msg)
    return Text.parse(given, where=where)


def parse_texts(data: bytes, *, where: str, n_texts: int) -> list[Text]:
    """Return the ``n_texts`` texts of a Parquet file; raise CorruptError where it is no such file.

    The file says in its footer how much it holds; what is more than text of this size can be is
    refused before it is decoded.
    """
    most = TEXT_BYTES + MOST_SHRUNK * len(data)
    try:
        plain = pq.ParquetFile(io.BytesIO(data), **_LIMITS)
        _check_table(plain, where=where, n_texts=n_texts, most=most)
        # Dictionaries: a text that stands in all rows is decoded once, and can be counted first.
        file = pq.ParquetFile(io.BytesIO(data), read_dictionary=plain.schema.names, **_LIMITS)
        texts: list[Text] = []
        n_bytes = 0
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            n_bytes += sum(_n_bytes(column) for column in batch.columns)
            if n_bytes > most or len(texts) + len(batch) > n_texts:
                msg = f"{where} holds more than {n_texts} texts or {most} bytes of text"
                raise CorruptError(msg)
            for row in batch.to_pylist():
                texts.append(_read_row(row, where=f"{where}, row {len(texts)}"))
    except (pa.ArrowException, OSError, ValueError, OverflowError, InvalidInputError) as err:
        msg = f"{where} is not a table of texts: {' '.join(str(err)[:300].split())}"
        raise CorruptError(msg) from err
    if len(texts) != n_texts:
        msg = f"{where} holds {len(texts)} texts, expected {n_texts}"
        raise CorruptError(msg)
    return texts


def _n_bytes(column: pa.DictionaryArray) -> int:
    """Return the bytes of the texts of a column, each row counted."""
    lengths = pc.binary_length(column.dictionary).take(column.indices)
    return int(pc.sum(lengths).as_py() or 0)


def _check_table(file: pq.ParquetFile, *, where: str, n_texts: int, most: int) -> None:
    """Raise CorruptError where the footer promises another table than one of texts."""
    footer, wrong = file.metadata, None
    columns = [file.schema.column(i) for i in range(len(file.schema))]
    names = [column.path for column in columns]
    n_decoded = sum(footer.row_group(i).total_byte_size for i in range(footer.num_row_groups))
    later = [name for name in _JSON_FIELDS if name in names]
    if names != [*_FIELDS, *later]:
        wrong = f"the columns {', '.join(map(repr, names[:20]))}, expected {', '.join(_FIELDS)}"
    elif not all(column.physical_type == "BYTE_ARRAY" for column in columns):
        wrong = "columns that are not text"
    elif footer.num_rows != n_texts:
        wrong = f"{footer.num_rows} texts, expected {n_texts}"
    elif n_decoded > most:
        wrong = f"{n_decoded} bytes of text, expected at most {most}"
    if wrong:
        msg = f"{where} holds {wrong}"
        raise CorruptError(msg)
