"""The corpora of a store: texts as Parquet, one row each, and the record that vouches for them."""

from __future__ import annotations

import difflib
import hashlib
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..schemas import (
    AlreadyExistsError,
    CorpusInfo,
    CorruptError,
    InvalidInputError,
    NotFoundError,
    Text,
    texts_digest,
)

if TYPE_CHECKING:
    from .store import Store

__all__ = ["near_known", "parse_texts", "read_corpus", "texts_table", "write_corpus"]

RECORD_BYTES = 4 * 2**20
CORPUS_BYTES = 4 * 2**30
NAME = re.compile(r"^[A-Za-z0-9][\w.:@+-]{0,199}$")

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


def write_corpus(store: Store, info: CorpusInfo, texts: Sequence[Text]) -> None:
    """Write a corpus, or do nothing where the same texts are there already.

    See ``Store.write_corpus``.
    """
    if len(texts) != info.n_texts:
        msg = f"corpus {info.id!r}: its info says {info.n_texts} texts, got {len(texts)}"
        raise InvalidInputError(msg)
    key = _corpus_key(info.id, "corpus.json")
    there = store.read_record(CorpusInfo, key)
    if there is None:
        # The texts first: a corpus.json vouches for the texts beside it.
        table = texts_table(texts)
        store.backend.put(_corpus_key(info.id, "texts.parquet"), table)
        stored = info.model_copy(update={"file_digest": _file_digest(table)})
        if store.create(key, stored.to_json().encode()):
            return
        there = store.read_record(CorpusInfo, key)
    if there is None or there.texts_digest != info.texts_digest:
        got = "nothing" if there is None else there.texts_digest
        msg = (
            f"{store.url} holds other texts under corpus {info.id!r} ({got}, expected "
            f"{info.texts_digest}); give the corpus another id"
        )
        raise AlreadyExistsError(msg)


def read_corpus(store: Store, corpus_id: str) -> tuple[CorpusInfo, list[Text]]:
    """Return a corpus: its info and its texts; raise NotFoundError, or CorruptError."""
    info = store.read_record(CorpusInfo, _corpus_key(corpus_id, "corpus.json"))
    key = _corpus_key(corpus_id, "texts.parquet")
    data = store.backend.get(key, max_bytes=CORPUS_BYTES) if info else None
    if info is None or data is None:
        near = near_known(corpus_id, store.corpus_ids(), kind="corpora")
        msg = f"no corpus {corpus_id!r} in {store.url}{near}"
        raise NotFoundError(msg)
    if info.file_digest is not None and _file_digest(data) != info.file_digest:
        msg = f"{key} in {store.url} is not the file that its corpus.json was written for"
        raise CorruptError(msg)
    texts = parse_texts(data, where=f"{key} in {store.url}", n_texts=info.n_texts)
    if texts_digest(texts) != info.texts_digest:
        msg = f"{key} in {store.url} holds other texts than its corpus.json says"
        raise CorruptError(msg)
    return info.model_copy(update={"file_digest": None}), texts


def near_known(name: str, known: list[str], *, kind: str) -> str:
    """Return the end of a message about an unknown name: the nearest one, or what there is."""
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
    return f"; the store has these {kind}: {shown}" if known else f"; the store has no {kind} yet"


def _corpus_key(corpus_id: str, name: str) -> str:
    if not NAME.fullmatch(corpus_id):
        msg = f"{corpus_id!r} cannot be a corpus id; expected letters, digits and . _ - + @ :"
        raise InvalidInputError(msg)
    return f"corpora/{corpus_id}/{name}"


def _file_digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
