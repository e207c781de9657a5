"""What the texts of a run say of its rows, whoever makes the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..schemas import Text

__all__ = ["CONFLICTS", "LABELS", "text_coords"]

LABELS = {"positive": 1, "negative": 0, "neutral": -1}
CONFLICTS = {True: 1, False: 0, None: -1}


def text_coords(texts: Sequence[Text]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the coordinates over ``text`` that need no tokenizer, each (text,).

    ``task_conflict`` (1, 0, or -1 for unknown) is there where a text says something of it.
    """
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
    conflicts = [CONFLICTS[t.task_conflict] for t in texts]
    known = (
        {"task_conflict": np.array(conflicts, dtype=np.int8)}
        if any(c >= 0 for c in conflicts)
        else {}
    )
    return {
        **{name: np.array(values, dtype=np.str_) for name, values in strings.items()},
        **known,
        "n_chars": np.array([t.n_chars for t in texts], dtype=np.int32),
        "label": np.array([LABELS[t.arm] for t in texts], dtype=np.int8),
    }
