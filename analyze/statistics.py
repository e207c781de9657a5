"""Sufficient statistics of blocks of rows: counts, means and scatters that merge exactly.

A block is read once. What PCA, ridge, LDA, difference of means, cross-validation folds and
re-pooling need is in its counts, means and scatters, and those of two blocks merge by Chan's
formula, in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dsyr
from scipy.sparse import csr_matrix

from ..schemas import InvalidInputError
from .auroc import Floats

__all__ = ["Moments", "Statistics", "block_statistics", "merge_moments", "merge_statistics"]

Ints = NDArray[np.int64]
STEP_ROWS = 2048  # in float64 at a time
STEP_COLUMNS = 1024


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of some rows, and their scatter with targets.

    ``mean`` has dims (hidden,); ``scatter`` (hidden, hidden) is Σ(x − x̄)(x − x̄)ᵀ, of which only
    the lower triangle is kept; ``target_mean`` (target,), ``target_scatter`` (target,) and
    ``cross`` (hidden, target), Σ(x − x̄)(y − ȳ)ᵀ. All float64.
    """

    n: int
    mean: Floats
    scatter: Floats
    target_mean: Floats
    target_scatter: Floats
    cross: Floats

    @property
    def n_bytes(self) -> int:
        """Bytes of all arrays."""
        return self.mean.nbytes + self.scatter.nbytes + self.cross.nbytes

    @property
    def trace(self) -> float:
        """Trace of the scatter."""
        return float(np.trace(self.scatter))

    @property
    def squared(self) -> float:
        """Sum of the squares of the whole scatter, tr(S²)."""
        diagonal = np.diag(self.scatter)
        total = 0.0
        for start in range(0, len(diagonal), STEP_COLUMNS):  # no second matrix in memory
            rows = self.scatter[start : start + STEP_COLUMNS]
            for offset, row in enumerate(rows, start):
                below = row[:offset]
                total += 2 * float(below @ below)
        return total + float(diagonal @ diagonal)

    def full_scatter(self) -> Floats:
        """Return the scatter with both triangles, a new array."""
        lower = np.tril(self.scatter)
        result: Floats = lower + np.tril(lower, -1).T
        return result


@dataclass(frozen=True)
class Statistics:
    """What one pass over rows leaves behind.

    ``parts`` are the moments of each part of the rows, such as the fold of a text's scenario;
    merged parts are the training rows of a fold. ``cells`` are sorted numbers, such as text ×
    mark, with how many rows each has and their mean, dims (cell,) and (cell, hidden): pooled
    activations, and with marks left out the re-pooled ones.
    """

    hidden: int
    parts: Mapping[int, Moments] = field(default_factory=dict)
    cells: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    cell_counts: Floats = field(default_factory=lambda: np.zeros(0))
    cell_means: Floats = field(default_factory=lambda: np.zeros((0, 0)))

    @property
    def n_bytes(self) -> int:
        """Bytes of all arrays."""
        arrays: list[NDArray[Any]] = [self.cells, self.cell_counts, self.cell_means]
        return sum(array.nbytes for array in arrays) + sum(p.n_bytes for p in self.parts.values())

    def __sizeof__(self) -> int:
        # What a Dask scheduler asks before it moves a job away from the worker that holds these:
        # without an answer it takes them for a few bytes, and ships them around.
        return object.__sizeof__(self) + self.n_bytes

    def total(self, *, without: int | None = None) -> Moments:
        """Return the moments of all parts, or of all but one: the training rows of that fold.

        Raises
        ------
        InvalidInputError
            If no row is left.
        """
        kept = [part for name, part in sorted(self.parts.items()) if name != without]
        if not kept:
            msg = f"no rows are left without part {without}; parts: {sorted(self.parts)}"
            raise InvalidInputError(msg)
        return reduce(merge_moments, kept)


def block_statistics(
    x: NDArray[Any],
    *,
    parts: Ints,
    cells: Ints | None = None,
    targets: Floats | None = None,
) -> Statistics:
    """Return the statistics of one block of rows.

    Parameters
    ----------
    x
        dims (row, hidden), any float type; converted to float64 in steps of 2048 rows.
    parts
        The part of every row, dims (row,); a row of a negative part enters none.
    cells
        The cell of every row, dims (row,), negative for none; None for no cells at all.
    targets
        dims (row, target), such as the label as 0 or 1; None for none.

    Raises
    ------
    InvalidInputError
        If the lengths differ, or a row of a part or cell has NaN or infinite values.
    """
    n = len(x)
    y = np.zeros((n, 0)) if targets is None else np.asarray(targets, dtype=np.float64)
    groups = np.full(n, -1, dtype=np.int64) if cells is None else np.asarray(cells)
    if x.ndim != 2 or not len(parts) == len(groups) == len(y) == n:
        msg = (
            f"expected rows (row, hidden) with a part, a cell and targets each, got {x.shape}, "
            f"{len(parts)} parts, {len(groups)} cells, {len(y)} targets"
        )
        raise InvalidInputError(msg)
    found = {}
    for part in np.unique(parts[parts >= 0]):
        rows = np.flatnonzero(parts == part)
        found[int(part)] = _moments(x, rows, y)
    names, means, counts = _cell_means(x, groups)
    return Statistics(x.shape[1], found, names, counts, means)


class _Steps:
    """Rows of a block in float64, some at a time, in memory that is used again.

    Fresh memory for every step would be paged in every time, which costs a worker of a cluster
    as much as a third of its work.
    """

    def __init__(self, x: NDArray[Any], rows: Ints) -> None:
        self.x, self.rows = x, rows
        self.buffer = np.empty((min(STEP_ROWS, rows.size), x.shape[1]))

    def __iter__(self) -> Iterator[tuple[Ints, Floats]]:
        """Yield the rows of every step and their values, which the next step overwrites."""
        for start in range(0, self.rows.size, STEP_ROWS):
            taken = self.rows[start : start + STEP_ROWS]
            values = self.buffer[: taken.size]
            first, last = int(taken[0]), int(taken[-1])
            whole = last - first + 1 == taken.size  # ascending: a slice is no copy
            np.copyto(values, self.x[first : last + 1] if whole else self.x[taken])
            with np.errstate(invalid="ignore", over="ignore"):
                total = values.sum()  # finite only where all are: one pass without a mask
            if not np.isfinite(total) and not np.isfinite(values).all():
                broken = taken[~np.isfinite(values).all(axis=1)]
                msg = (
                    f"row {int(broken[0])} of the block has NaN or infinite values; expected "
                    "finite activations. Resume the run if it is not sealed, or verify it"
                )
                raise InvalidInputError(msg)
            yield taken, values


def _moments(x: NDArray[Any], rows: Ints, y: Floats) -> Moments:
    """Return the moments of ``rows``, about a provisional mean that is corrected at the end.

    Sums about a point near the mean lose no digits to a large common offset, as sums of squares
    would, and need no second pass.
    """
    hidden, n = x.shape[1], rows.size
    origin, y_origin = np.zeros(hidden), y[rows[:STEP_ROWS]].mean(axis=0)
    sums, y_sums = np.zeros(hidden), np.zeros(y.shape[1])
    scatter: Floats | None = None
    product: Floats | None = None
    cross, y_scatter = np.zeros((hidden, y.shape[1])), np.zeros(y.shape[1])
    for taken, values in _Steps(x, rows):
        if scatter is None:
            origin = values.mean(axis=0)
        values -= origin
        of_y = y[taken] - y_origin
        # numpy sees that this is symmetric (SYRK), and lets other threads run meanwhile: scipy's
        # own dsyrk would add to the sum in place, but keeps the interpreter to itself.
        if scatter is None:
            scatter = values.T @ values
        else:
            product = np.matmul(values.T, values, out=product)
            scatter += product
        sums += values.sum(axis=0)
        y_sums += of_y.sum(axis=0)
        cross += values.T @ of_y
        y_scatter += (of_y**2).sum(axis=0)
    if scatter is None:
        msg = "expected rows to take the moments of, got none"
        raise InvalidInputError(msg)
    shift, y_shift = sums / n, y_sums / n
    return Moments(
        n=int(n),
        mean=origin + shift,
        scatter=_add_outer(scatter.T, shift, -n),  # in Fortran order, and symmetric
        target_mean=y_origin + y_shift,
        target_scatter=y_scatter - n * y_shift**2,
        cross=cross - n * np.outer(shift, y_shift),
    )


def _add_outer(matrix: Floats, vector: Floats, factor: float) -> Floats:
    """Return the lower triangle of a matrix in Fortran order plus factor·v·vᵀ, in its place."""
    result: Floats = dsyr(factor, vector, lower=1, a=matrix, overwrite_a=1)
    return result


def _cell_means(x: NDArray[Any], cells: Ints) -> tuple[Ints, Floats, Floats]:
    """Return sorted cells, the mean of their rows and how many those are."""
    rows = np.flatnonzero(cells >= 0)
    names, code = np.unique(cells[rows], return_inverse=True)
    counts = np.bincount(code, minlength=names.size).astype(np.float64)
    sums = np.zeros((names.size, x.shape[1]))
    start = 0
    for taken, values in _Steps(x, rows):
        of_step = code[start : start + taken.size]
        start += taken.size
        where = (of_step, np.arange(len(values)))
        sums += csr_matrix((np.ones(len(values)), where), (names.size, len(values))) @ values
    return names.astype(np.int64), sums / np.maximum(counts, 1)[:, None], counts


def merge_moments(a: Moments, b: Moments, *, reuse: bool = False) -> Moments:
    """Return the moments of the rows of ``a`` and ``b`` together (Chan et al. 1983).

    S = S_a + S_b + δδᵀ n_a n_b/n with δ the difference of the means
    (doi 10.1080/00031305.1983.10483115). With ``reuse`` the scatter of ``b`` is overwritten:
    for one that nobody else holds.
    """
    n = a.n + b.n
    delta, y_delta = b.mean - a.mean, b.target_mean - a.target_mean
    weight = a.n * b.n / n
    scatter = b.scatter if reuse else b.scatter.copy(order="F")
    scatter += a.scatter
    scatter = _add_outer(scatter, delta, weight)
    return Moments(
        n=n,
        mean=a.mean + delta * (b.n / n),
        scatter=scatter,
        target_mean=a.target_mean + y_delta * (b.n / n),
        target_scatter=a.target_scatter + b.target_scatter + weight * y_delta**2,
        cross=a.cross + b.cross + weight * np.outer(delta, y_delta),
    )


def merge_statistics(a: Statistics, b: Statistics, *, reuse: bool = False) -> Statistics:
    """Return the statistics of the rows of ``a`` and ``b`` together; ``reuse`` as above.

    Raises
    ------
    InvalidInputError
        If their widths differ.
    """
    if a.hidden != b.hidden:
        msg = f"statistics of unlike widths cannot be merged: {a.hidden} and {b.hidden}"
        raise InvalidInputError(msg)
    parts = dict(a.parts)
    for name, part in b.parts.items():
        parts[name] = merge_moments(parts[name], part, reuse=reuse) if name in parts else part
    both = np.concatenate([a.cells, b.cells])
    names, code = np.unique(both, return_inverse=True)
    total = np.zeros(names.size)
    np.add.at(total, code, np.concatenate([a.cell_counts, b.cell_counts]))
    means = np.zeros((names.size, a.hidden))
    for of, at in ((a, code[: a.cells.size]), (b, code[a.cells.size :])):
        means[at] += of.cell_means.reshape(-1, a.hidden) * (of.cell_counts / total[at])[:, None]
    return Statistics(a.hidden, parts, names, total, means)
