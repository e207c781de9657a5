"""Texts: reading, checking, varying, reviewing and generating them; the bundled corpora.

The names below are imported when they are first used: scikit-learn loads only for them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bundled import bundled_corpus, bundled_names
    from .scenarios import read_scenarios, write_scenarios
    from .texts import (
        check_texts,
        corpus_info,
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
    "pair_texts",
    "read_jsonl",
    "read_scenarios",
    "texts_digest",
    "write_jsonl",
    "write_scenarios",
]

_MODULES = {
    "bundled_corpus": "bundled",
    "bundled_names": "bundled",
    "check_texts": "texts",
    "corpus_info": "texts",
    "pair_texts": "texts",
    "read_jsonl": "texts",
    "read_scenarios": "scenarios",
    "texts_digest": "texts",
    "write_jsonl": "texts",
    "write_scenarios": "scenarios",
}


def __getattr__(name: str) -> Any:  # a module's attribute can be anything  # noqa: ANN401
    """Import the module of a public name when it is first asked for."""
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return __all__
