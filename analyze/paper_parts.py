"""What a figure or table of a paper is made of: the study's tables, and what one part shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from .paper_latex import escape
from .report_numbers import RunView, pick_views, printable, require_columns

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .report import ReportInput

__all__ = ["LeftOut", "PaperPart", "PaperTables", "count", "names_of", "paper_tables"]

_OF_PROBES = {
    "rows": (
        ("analysis", "metric", "estimate", "run", "model", "pool", "layer", "method"),
        ("site", "cv", "depth", "subset", "reason", "ci_low", "ci_high", "bow_estimate",
         "bow_delta", "bow_delta_ci_low", "bow_delta_ci_high", "p_value_max", "verdict",
         "n_pairs", "n_scenarios"),
    ),
    "null": (("run", "pool", "layer", "subset", "q025", "q975", "max"), ("site", "n_draws")),
}  # fmt: skip


@dataclass(frozen=True)
class LeftOut:
    """A part that has nothing to show, and why."""

    reason: str


@dataclass(frozen=True)
class PaperPart:
    """A figure or a table: what it shows as rows, its caption in LaTeX, and how it is made.

    ``draw`` returns the figure of ``rows``; a part without it is the LaTeX of ``tabular``, which
    gets the caption and returns a float.
    """

    rows: pd.DataFrame
    caption: str
    draw: Callable[[pd.DataFrame], Figure] | None = None
    tabular: Callable[[str], str] | None = None


@dataclass(frozen=True)
class PaperTables:
    """The tables of a study, and which numbers of each run are quoted."""

    results: ReportInput
    views: Sequence[RunView]

    def table(self, name: str) -> pd.DataFrame:
        """Return a stage's table, empty where it was not run."""
        return self.results.tables.get(name, pd.DataFrame())

    def label(self, run: object) -> str:
        """Return what a run is called in the figures: its model, as in the report."""
        found = [view.label for view in self.views if view.run == run]
        return found[0] if found else printable(run)

    def view(self, run: object) -> RunView | None:
        """Return what is quoted of a run, None where it was not probed."""
        return next((view for view in self.views if view.run == run), None)

    def in_order(self, runs: Sequence[object]) -> list[str]:
        """Return the distinct runs, those that were probed first and in that order."""
        seen = list(dict.fromkeys(str(run) for run in runs))
        known = [view.run for view in self.views if view.run in seen]
        return list(dict.fromkeys([*known, *seen]))


def paper_tables(results: ReportInput) -> PaperTables:
    """Return the tables with the views that the report quotes, too.

    Raises
    ------
    InvalidInputError
        If a table of the probes lacks a column.
    """
    rows = _with_columns(results.rows, "rows")
    null = pd.DataFrame() if results.null is None else results.null
    null = _with_columns(null if len(null.columns) else _no_rows("null"), "null")
    rows = rows.assign(subset=rows["subset"].fillna("all"))
    views = pick_views(rows, null, results.study, layers=results.selected_layers)
    return PaperTables(results, views)


def _no_rows(name: str) -> pd.DataFrame:
    return pd.DataFrame({column: pd.Series(dtype=object) for column in _OF_PROBES[name][0]})


def _with_columns(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    needed, optional = _OF_PROBES[name]
    require_columns(frame, name, needed)
    absent = {column: None for column in optional if column not in frame.columns}
    return frame.assign(**absent).reset_index(drop=True)


def count(values: pd.Series | None, noun: str) -> str:
    """Return ``24 pairs``, or ``20 to 24 pairs`` where they differ; nothing where none is known."""
    known = [] if values is None else sorted({int(value) for value in values.dropna()})
    if not known:
        return ""
    shown = str(known[0]) if len(known) == 1 else f"{known[0]} to {known[-1]}"
    return f"{shown} {noun if known[-1] == 1 else noun + 's'}"


def names_of(values: Sequence[object]) -> str:
    """Return names for a caption, escaped, joined by commas and an "and"."""
    shown = [escape(value) for value in dict.fromkeys(map(str, values))]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
