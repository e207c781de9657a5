"""What the texts of a run say of its rows, whoever makes the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..schemas import Text

__all__ = ["LABELS", "text_coords"]

LABELS = {"positive": 1, "negative": 0, "neutral": -1}


def text_coords(texts: Sequence[Text]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the coordinates over ``text`` that need no tokenizer, each (text,)."""
    strings = {
        "text": [t.id for t in texts],
        "arm": [t.arm for t in texts],
        "pair": [t.pair or "" for t in texts],
        "scenario": [t.scenario for t in texts],
        "category": [t.category for t in texts],
        "generator": [t.generator for t in texts],
        "split": [t.split for t in texts],
        "subset": [t.subset for t in texts],
        "variant": [t.variant for t in texts],
    }
    return {
        **{name: np.array(values, dtype=np.str_) for name, values in strings.items()},
        "n_chars": np.array([t.n_chars for t in texts], dtype=np.int32),
        "label": np.array([LABELS[t.arm] for t in texts], dtype=np.int8),
    }
