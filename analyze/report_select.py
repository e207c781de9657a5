"""Which rows of a study's tables the report shows of a run: by rules fixed before the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from .report_numbers import RunView, number, require_columns, string

__all__ = ["at_layer", "label_of", "listed", "of_view", "span", "table_of", "value"]

Row = Mapping[str, Any]


def table_of(
    tables: Mapping[str, pd.DataFrame], name: str, needed: Sequence[str]
) -> pd.DataFrame | None:
    """Return a study's table, or None where the analysis was not run or left no row.

    Raises
    ------
    InvalidInputError
        If it lacks one of the columns.
    """
    table = tables.get(name)
    if table is None or table.empty:
        return None
    return require_columns(table, name, ("run", *needed))


def of_view(table: pd.DataFrame, view: RunView, *, pool: bool = True) -> pd.DataFrame:
    """Return the rows of a run at the site that its view quotes, and of that pool.

    Where the table does not have the quoted pool, its first one stands in.
    """
    keep = table["run"] == view.run
    if "site" in table:
        keep &= (table["site"] == view.site) | table["site"].isna()
    rows = table[keep]
    if not pool or "pool" not in rows:
        return rows
    pools = list(dict.fromkeys(p for p in rows["pool"].dropna()))
    wanted = view.pool if view.pool in pools else next(iter(pools), None)
    return rows[rows["pool"] == wanted]


def at_layer(rows: pd.DataFrame, view: RunView, column: str = "layer") -> pd.DataFrame:
    """Return the rows at the layer that the view quotes, or at the nearest that the table has."""
    known = rows[rows[column].notna()]
    if known.empty:
        return known
    layers = sorted({int(x) for x in known[column]})
    wanted = view.layer if view.layer is not None else layers[len(layers) // 2]
    return known[known[column] == min(layers, key=lambda x: abs(x - wanted))]


def label_of(views: Sequence[RunView], run: object) -> str:
    """Return the label of a run, or its name where it was not probed."""
    return next((v.label for v in views if v.run == str(run)), string(run) or "–")


def value(row: Row, name: str) -> float | None:
    """Return a field of a row as a finite number, or None."""
    return number(row.get(name))


def listed(names: Sequence[str]) -> str:
    """Return ``a``, ``a and b`` or ``a, b and c``."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def span(values: Sequence[float | None], *, margin: float = 0.06) -> tuple[float, float]:
    """Return an axis that holds all known values with a margin on both sides."""
    known = [v for v in values if v is not None]
    if not known:
        return 0.0, 1.0
    low, high = min(known), max(known)
    pad = margin * (high - low) or 1.0
    return low - pad, high + pad
