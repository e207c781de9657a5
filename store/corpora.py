"""The texts of a corpus as Parquet: one row per text, one column per field, no index."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from ..schemas import CorruptError, InvalidInputError, Text

__all__ = ["parse_texts", "texts_table"]

_FIELDS = tuple(Text.model_fields)
_SCHEMA = pa.schema([(name, pa.string()) for name in _FIELDS])


def texts_table(texts: Sequence[Text]) -> bytes:
    """Return the Parquet file of ``texts``, in their order."""
    columns = {name: [getattr(text, name) for text in texts] for name in _FIELDS}
    out = io.BytesIO()
    pq.write_table(pa.table(columns, schema=_SCHEMA), out, compression="zstd")
    return out.getvalue()


def parse_texts(data: bytes, *, where: str) -> list[Text]:
    """Return the texts of a Parquet file; raise CorruptError where it is something else."""
    try:
        table = pq.read_table(io.BytesIO(data))
        return [
            Text.parse(row, where=f"{where}, row {index}")
            for index, row in enumerate(table.to_pylist())
        ]
    except (pa.ArrowException, OSError, InvalidInputError) as err:
        msg = f"{where} is not a table of texts: {err}"
        raise CorruptError(msg) from err
