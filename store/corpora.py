"""The texts of a corpus as Parquet: one row per text, one column per field, no index."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..schemas import CorruptError, InvalidInputError, Text

__all__ = ["parse_texts", "texts_table"]

_FIELDS = tuple(Text.model_fields)
_LIMITS = {"thrift_string_size_limit": 2**20, "thrift_container_size_limit": 2**20}
BATCH_ROWS = 1024
TEXT_BYTES = 64 * 2**20
MOST_SHRUNK = 64  # what the texts decode to is bounded by what the file weighs
_SCHEMA = pa.schema([(name, pa.string()) for name in _FIELDS])


def texts_table(texts: Sequence[Text]) -> bytes:
    """Return the Parquet file of ``texts``, in their order."""
    columns = {name: [getattr(text, name) for text in texts] for name in _FIELDS}
    out = io.BytesIO()
    pq.write_table(pa.table(columns, schema=_SCHEMA), out, compression="zstd")
    return out.getvalue()


def parse_texts(data: bytes, *, where: str, n_texts: int) -> list[Text]:
    """Return the ``n_texts`` texts of a Parquet file; raise CorruptError where it is no such file.

    The file says in its footer how much it holds; what is more than text of this size can be is
    refused before it is decoded.
    """
    most = TEXT_BYTES + MOST_SHRUNK * len(data)
    try:
        _check_table(
            pq.ParquetFile(io.BytesIO(data), **_LIMITS), where=where, n_texts=n_texts, most=most
        )
        # Dictionaries: a text that stands in all rows is decoded once, and can be counted first.
        file = pq.ParquetFile(io.BytesIO(data), read_dictionary=list(_FIELDS), **_LIMITS)
        texts: list[Text] = []
        n_bytes = 0
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            n_bytes += sum(_n_bytes(column) for column in batch.columns)
            if n_bytes > most or len(texts) + len(batch) > n_texts:
                msg = f"{where} holds more than {n_texts} texts or {most} bytes of text"
                raise CorruptError(msg)
            for row in batch.to_pylist():
                texts.append(Text.parse(row, where=f"{where}, row {len(texts)}"))
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
    if names != list(_FIELDS):
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
