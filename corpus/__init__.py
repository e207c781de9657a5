"""Texts: reading, checking, varying, reviewing and generating them; the bundled corpora.

The names below are imported when they are first used: scikit-learn loads only for them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bundled import bundled_corpus, bundled_names, bundled_scenarios
    from .clients import ChatRequest, Client, Completion, Engine, ServerClient, VllmClient
    from .exporting import export_dataset, export_texts
    from .generation import generate_corpus
    from .importing import import_texts, parse_mapping, split_scenarios
    from .judge import ModelJudge
    from .lexica import bundled_lexica, load_lexicon
    from .lines import read_toml, write_lines
    from .personas import read_personas
    from .review import draw_review, fold_review, read_answers, review_scores
    from .review_sheet import read_key, write_review
    from .scenarios import read_scenarios, write_scenarios
    from .scoring import Judge, read_scores, score_texts, write_scores
    from .stats import corpus_stats, plot_stats
    from .texts import (
        check_texts,
        corpus_info,
        mark_spans,
        pair_texts,
        read_jsonl,
        texts_digest,
        write_jsonl,
    )
    from .validation import accepted_texts, validate_corpus
    from .variants import Variants, make_variants

__all__ = [
    "ChatRequest",
    "Client",
    "Completion",
    "Engine",
    "Judge",
    "ModelJudge",
    "ServerClient",
    "Variants",
    "VllmClient",
    "accepted_texts",
    "bundled_corpus",
    "bundled_lexica",
    "bundled_names",
    "bundled_scenarios",
    "check_texts",
    "corpus_info",
    "corpus_stats",
    "draw_review",
    "export_dataset",
    "export_texts",
    "fold_review",
    "generate_corpus",
    "import_texts",
    "load_lexicon",
    "make_variants",
    "mark_spans",
    "pair_texts",
    "parse_mapping",
    "plot_stats",
    "read_answers",
    "read_jsonl",
    "read_key",
    "read_personas",
    "read_scenarios",
    "read_scores",
    "read_toml",
    "review_scores",
    "score_texts",
    "split_scenarios",
    "texts_digest",
    "validate_corpus",
    "write_jsonl",
    "write_lines",
    "write_review",
    "write_scenarios",
    "write_scores",
]

_MODULES = {
    "ChatRequest": "clients",
    "Client": "clients",
    "Completion": "clients",
    "Engine": "clients",
    "Judge": "scoring",
    "ModelJudge": "judge",
    "ServerClient": "clients",
    "Variants": "variants",
    "VllmClient": "clients",
    "accepted_texts": "validation",
    "bundled_corpus": "bundled",
    "bundled_lexica": "lexica",
    "bundled_names": "bundled",
    "bundled_scenarios": "bundled",
    "check_texts": "texts",
    "corpus_info": "texts",
    "corpus_stats": "stats",
    "draw_review": "review",
    "export_dataset": "exporting",
    "export_texts": "exporting",
    "fold_review": "review",
    "generate_corpus": "generation",
    "import_texts": "importing",
    "load_lexicon": "lexica",
    "mark_spans": "texts",
    "make_variants": "variants",
    "pair_texts": "texts",
    "parse_mapping": "importing",
    "plot_stats": "stats",
    "read_answers": "review",
    "read_jsonl": "texts",
    "read_key": "review_sheet",
    "read_personas": "personas",
    "read_scenarios": "scenarios",
    "read_scores": "scoring",
    "read_toml": "lines",
    "review_scores": "review",
    "score_texts": "scoring",
    "split_scenarios": "importing",
    "texts_digest": "texts",
    "validate_corpus": "validation",
    "write_jsonl": "texts",
    "write_lines": "lines",
    "write_review": "review_sheet",
    "write_scenarios": "scenarios",
    "write_scores": "scoring",
}


def __getattr__(name: str) -> Any:  # a module's attribute can be anything  # noqa: ANN401
    """Import the module of a public name when it is first asked for."""
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return __all__
