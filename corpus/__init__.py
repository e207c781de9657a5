"""Texts: reading and checking them, the bundled corpora, the grammar of the demo."""

from .bundled import bundled_corpus, bundled_names
from .texts import (
    check_texts,
    corpus_info,
    mark_spans,
    pair_texts,
    read_jsonl,
    texts_digest,
    write_jsonl,
)

__all__ = [
    "bundled_corpus",
    "bundled_names",
    "check_texts",
    "corpus_info",
    "mark_spans",
    "pair_texts",
    "read_jsonl",
    "texts_digest",
    "write_jsonl",
]
