"""The rows of a sweep that a summary shows; read where no model is, and torch is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["main_sweep"]


def main_sweep(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that a summary or a figure shows: the first layer's, without controls.

    What is left are one direction and its random placebos at one layer.
    """
    single = rows[rows["layer"].notna()] if "layers" in rows.columns else rows
    first = single[single["layer"] == single["layer"].iloc[0]]
    own = first["direction"] == first["direction"].iloc[0]
    shown: pd.DataFrame = first[own | (first["direction"] == "random")]
    return shown
