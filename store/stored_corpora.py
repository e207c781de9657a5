"""The corpora of a store: the texts, and the record that vouches for them."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..schemas import (
    AlreadyExistsError,
    CorpusInfo,
    CorruptError,
    InvalidInputError,
    NotFoundError,
    Text,
    texts_digest,
)
from .corpora import parse_texts, texts_table

if TYPE_CHECKING:
    from .store import Store

__all__ = ["near_known", "read_corpus", "write_corpus"]

RECORD_BYTES = 4 * 2**20
CORPUS_BYTES = 4 * 2**30
NAME = re.compile(r"^[A-Za-z0-9][\w.:@+-]{0,199}$")


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
