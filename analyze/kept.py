"""Statistics on disk: plain arrays, so that a pass that was stopped can go on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ..schemas import CorruptError
from .statistics import Moments, Statistics

__all__ = ["load_statistics", "save_statistics"]

FIELDS = ("n", "mean", "scatter", "target_mean", "target_scatter", "cross")


def save_statistics(statistics: Statistics, path: str | Path) -> None:
    """Write ``statistics`` as an .npz file of plain arrays; never half of one under its name."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {
        "hidden": np.array(statistics.hidden),
        "cells": statistics.cells,
        "cell_counts": statistics.cell_counts,
        "cell_means": statistics.cell_means,
        "parts": np.array(sorted(statistics.parts), dtype=np.int64),
    }
    for name, part in statistics.parts.items():
        arrays |= {f"{name}/{field}": np.asarray(getattr(part, field)) for field in FIELDS}
    partial = target.with_suffix(f".{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)
    partial.replace(target)


def load_statistics(path: str | Path) -> Statistics:
    """Return what :func:`save_statistics` wrote.

    Raises
    ------
    CorruptError
        If the file is not that.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            parts = {}
            for name in arrays["parts"].tolist():
                values = {field: arrays[f"{name}/{field}"] for field in FIELDS}
                values["scatter"] = np.asfortranarray(values["scatter"])
                parts[int(name)] = Moments(**(values | {"n": int(values["n"])}))
            return Statistics(
                int(arrays["hidden"]),
                parts,
                arrays["cells"],
                arrays["cell_counts"],
                arrays["cell_means"],
            )
    except (ValueError, KeyError, OSError, EOFError) as err:
        msg = f"{Path(path).name} holds no statistics ({err}); delete it and run again"
        raise CorruptError(msg) from err
