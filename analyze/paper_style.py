"""How a paper's figures look: sizes, type and colours; files whose bytes follow from the data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from ..schemas import MissingDependencyError
from .report_numbers import decimal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

__all__ = [
    "BLACK",
    "COLOURS",
    "DOUBLE",
    "GREY",
    "MARKERS",
    "SINGLE",
    "add_legend",
    "add_scale",
    "draw_cells",
    "grid_of",
    "label_cells",
    "paper_style",
    "require_matplotlib",
    "save_pdf",
    "shorten",
    "wide_enough",
]

SINGLE, DOUBLE = 3.35, 6.9  # inches: one column of a two-column page, and both
# Okabe & Ito (2008): distinct under every common colour vision deficiency.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "^", "s", "D", "v", "P")
BLACK, GREY = "#000000", "#8a8a8a"
Share: TypeAlias = Literal["all", "row", "none"]
_MAX_COLUMNS = 4
_STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, so a figure looks alike everywhere
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 6,
    "ytick.labelsize": 6,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.1,
    "lines.markersize": 3,
    "patch.linewidth": 0,
    "text.parse_math": False,  # a name may hold a dollar sign
    "text.usetex": False,
    "pdf.fonttype": 42,  # TrueType: text can be searched, and journals take it
    "pdf.compression": 6,
    "savefig.transparent": False,
}


def require_matplotlib() -> None:
    """Raise MissingDependencyError where matplotlib cannot be imported."""
    if find_spec("matplotlib") is None:
        msg = (
            "figures of a paper are drawn with matplotlib, which cannot be imported: run "
            "pip install 'actlake[paper]'"
        )
        raise MissingDependencyError(msg)


@contextmanager
def paper_style() -> Iterator[None]:
    """Set sizes and type while figures are drawn and saved; the caller's settings come back."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()  # a matplotlibrc of the user's must not change a figure
        for name, value in _STYLE.items():
            mpl.rcParams[name] = value  # type: ignore[index]  # a literal of some versions
        yield


def grid_of(
    n: int, *, rows: int = 1, height: float, share_x: bool = False, share_y: Share = "row"
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure and its axes: ``rows`` of them, each with ``n`` panels.

    One panel is one column wide, more take both; rows wrap after four panels. ``height`` is that
    of a panel in inches.
    """
    from matplotlib.figure import Figure

    columns = n if n <= _MAX_COLUMNS else _MAX_COLUMNS - (n in {5, 6})
    wraps = -(-n // columns)
    width = SINGLE if n == 1 else DOUBLE
    figure = Figure(figsize=(width, height * rows * wraps + 0.35), layout="constrained")
    axes = figure.subplots(
        rows * wraps, columns, squeeze=False, sharex="all" if share_x else "none", sharey=share_y
    )
    found = []
    for row in range(rows):
        flat = [axes[row * wraps + i // columns][i % columns] for i in range(wraps * columns)]
        for unused in flat[n:]:
            unused.set_axis_off()
        found.append(flat[:n])
    return figure, found


def add_legend(figure: Figure, handles: list[Any], *, columns: int = 4) -> None:
    """Put one legend over the panels."""
    columns = min(columns, len(handles), 2 if figure.get_figwidth() < DOUBLE else columns)
    figure.legend(handles=handles, loc="outside upper center", ncol=columns, handlelength=1.8)


def draw_cells(axes: Axes, values: np.ndarray, *, limits: tuple[float, float]) -> QuadMesh:
    """Draw values (row, column) as cells, the first row on top; NaN stays white.

    The scale is white in its middle, and its arms differ in lightness and in hue.
    """
    edges = [np.arange(n + 1) - 0.5 for n in values.shape]
    low, high = limits
    # Cells, not an image: vectors stay sharp at every size. Edges close the hairlines between.
    drawn = axes.pcolormesh(
        edges[1], edges[0], np.ma.masked_invalid(values), cmap="PuOr_r", vmin=low, vmax=high,
        edgecolors="face", linewidth=0.2,
    )  # fmt: skip
    axes.set_ylim(values.shape[0] - 0.5, -0.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return drawn


def add_scale(figure: Figure, drawn: QuadMesh, axes: list[Axes], *, label: str) -> None:
    """Put the scale of heat maps beside them."""
    bar = figure.colorbar(drawn, ax=axes, shrink=0.85, aspect=25, label=label)
    bar.outline.set_visible(False)
    if bar.solids is not None:
        bar.solids.set_edgecolor("face")
        bar.solids.set_rasterized(False)


def label_cells(axes: Axes, values: np.ndarray, *, digits: int = 2, light: np.ndarray) -> None:
    """Write the values (row, column) into the cells of a heat map, white where ``light``."""
    for row, column in np.ndindex(values.shape):
        value = values[row, column]
        if np.isfinite(value):
            shown = decimal(float(value), digits)
            colour = "white" if light[row, column] else BLACK
            axes.text(column, row, shown, ha="center", va="center", fontsize=5.5, color=colour)


def shorten(name: str, n: int = 24) -> str:
    """Return a name that leaves room for the panels: its middle is left out beyond ``n`` letters.

    The caption's table and the CSV have the whole name.
    """
    if len(name) <= n:
        return name
    return f"{name[: n - n // 4 - 1]}\N{HORIZONTAL ELLIPSIS}{name[-(n // 4) :]}"


def wide_enough(n_columns: int, *, panels: int) -> bool:
    """Return whether figures fit into the cells of a heat map with so many columns."""
    width = SINGLE - 1.4 if panels == 1 else (DOUBLE - 1.4) / min(panels, _MAX_COLUMNS)
    return width / max(n_columns, 1) >= 0.21


def save_pdf(figure: Figure, path: Path) -> None:
    """Write the figure as vectors; the same figure gives the same bytes."""
    quiet = {"CreationDate": None, "ModDate": None, "Creator": "actlake", "Producer": "matplotlib"}
    figure.savefig(path, format="pdf", metadata=quiet)
