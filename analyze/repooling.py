"""Difference-of-means scores of many re-poolings of the same tokens, from two passes over them.

Pooling is linear, and so is a difference of means: the first pass leaves, for every condition,
the sum of the re-pooled texts of each class and fold, which is one product of a block's tokens
with the masks of all conditions; the second reads the tokens on the directions that follow. What
is held at any time is those sums and a block, however many tokens and texts there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any, TypeAlias

import numpy as np
import xarray as xr
from dask.delayed import delayed
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from ..schemas import InvalidInputError, parse_size
from .auroc import Floats
from .schedule import Progress, one_blas_thread, run_tasks
from .streaming import LazyRows, array_dims, lazy_rows, row_spans

__all__ = ["Masks", "Readings", "TokenTable", "pack_masks", "passes_needed", "repooled_scores"]

Ints: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool_]

N_LANES = 4
DEFAULT_TASK = "64MiB"
STEP_ROWS = 4096  # at a time; those of one fold of them in float64
FLOAT32 = 4


@dataclass(frozen=True)
class TokenTable:
    """The tokens that the pools of the pairs are taken over, in the order of the stored rows.

    ``rows`` are rows of the token arrays, ascending, ``text`` the text of each, numbered as (arm,
    pair) flattened; ``fold`` is that of each text. Dims (token,), (token,), (text,).
    """

    rows: Ints
    text: Ints
    fold: Ints

    @property
    def n_texts(self) -> int:
        """Texts of both arms."""
        return int(self.fold.size)

    @property
    def n_folds(self) -> int:
        """Folds."""
        return int(self.fold.max()) + 1


@dataclass(frozen=True)
class Masks:
    """Which tokens each condition keeps.

    The first ``n_plain`` conditions are one mask for all folds. Each of the ``n_by_fold`` that
    follow has a mask for every fold, learned without that fold: its training texts and its
    held-out texts go by it. ``bits`` (token, byte) packs a column per mask, the plain ones, then
    (condition, fold) flattened; ``kept`` (column, text) says how many tokens are left of a text.
    """

    n_plain: int
    n_by_fold: int
    n_folds: int
    bits: NDArray[np.uint8]
    kept: Ints

    @property
    def n_columns(self) -> int:
        """Masks in all."""
        return self.n_plain + self.n_by_fold * self.n_folds

    def columns(self, conditions: Ints) -> Ints:
        """Return the columns of some conditions, plain ones first."""
        plain = conditions[conditions < self.n_plain]
        late = conditions[conditions >= self.n_plain] - self.n_plain
        by_fold = late[:, None] * self.n_folds + np.arange(self.n_folds) + self.n_plain
        return np.concatenate([plain, by_fold.ravel()])


@dataclass(frozen=True)
class Readings:
    """Held-out scores, dims (condition, arm, pair): by refitted probes, and by the originals'."""

    refit: Floats
    fixed: Floats


def pack_masks(
    dropped: Callable[[int, int], Flags], tokens: TokenTable, *, n_plain: int, n_by_fold: int
) -> Masks:
    """Return the masks of all conditions.

    ``dropped(condition, fold)`` are the tokens that it leaves out, dims (token,); of a plain
    condition the fold is −1.
    """
    n_folds = tokens.n_folds
    n_columns = n_plain + n_by_fold * n_folds
    bits = np.zeros((tokens.rows.size, -(-n_columns // 8)), dtype=np.uint8)
    kept = np.zeros((n_columns, tokens.n_texts), dtype=np.int64)
    for column in range(n_columns):
        late = column - n_plain
        condition, fold = (column, -1) if late < 0 else (n_plain + late // n_folds, late % n_folds)
        keep = ~dropped(condition, fold)
        kept[column] = np.bincount(tokens.text[keep], minlength=tokens.n_texts)
        bits[:, column // 8] |= keep.astype(np.uint8) << (7 - column % 8)
    return Masks(n_plain, n_by_fold, n_folds, bits, kept)


def passes_needed(masks: Masks, *, hidden: int, memory: int | str) -> list[Ints]:
    """Return the conditions of each pair of passes, so that their sums fit into ``memory``.

    Condition 0, the originals, is in each.

    Raises
    ------
    InvalidInputError
        If not even two conditions fit.
    """
    limit = memory if isinstance(memory, int) else parse_size(memory)
    # Sums of both classes in every lane, and the directions; a mask per fold has no fold axis.
    each = masks.n_folds * hidden * FLOAT32 * (2 * N_LANES + 1)
    most = limit // each
    if most < 2:
        msg = (
            f"two conditions need {2 * each / 2**20:.0f} MiB of sums ({masks.n_folds} folds, "
            f"{hidden} wide), the limit is {limit / 2**20:.0f} MiB; raise memory, or take fewer "
            "folds (max_folds)"
        )
        raise InvalidInputError(msg)
    rest = np.arange(1, masks.n_plain + masks.n_by_fold)
    n_groups = max(1, -(-rest.size // (most - 1)))
    return [np.concatenate([[0], part]) for part in np.array_split(rest, n_groups)]


def repooled_scores(
    array: xr.DataArray,
    tokens: TokenTable,
    masks: Masks,
    *,
    layer: int,
    memory: int | str,
    scheduler: str | None = None,
    progress: Progress | None = None,
    cancel: Event | None = None,
) -> Readings:
    """Return the held-out scores of every condition on one layer.

    The probe of a fold is the difference of means of its training texts, 0 at the midpoint and
    1 class separation long. ``refit`` takes the means of the re-pooled training texts, ``fixed``
    those of condition 0.

    Parameters
    ----------
    array
        dims (token, token_layer, hidden), lazy.
    tokens
        The tokens that count.
    masks
        Which of them each condition keeps. Every text keeps at least one.
    layer
        A value of the layer coordinate.
    memory
        Most that the sums of one pass take; see :func:`passes_needed`.
    scheduler, progress, cancel
        See :func:`run_tasks`; progress counts passes.

    Raises
    ------
    InvalidInputError
        If the array has other dims, a text keeps no token, a token has NaN, or the memory does
        not do.
    """
    _, layer_dim, hidden_dim = array_dims(array)
    hidden = array.sizes[hidden_dim]
    if (masks.kept == 0).any():
        msg = "a condition leaves no token of a text; leave the condition out"
        raise InvalidInputError(msg)
    at = int(np.flatnonzero(array[layer_dim].values == layer)[0])
    lanes = _lanes(array, tokens, at=at)
    n_conditions, n_pairs = masks.n_plain + masks.n_by_fold, tokens.n_texts // 2
    refit = np.zeros((n_conditions, 2, n_pairs))
    fixed = np.zeros_like(refit)
    groups = passes_needed(masks, hidden=hidden, memory=memory)
    for number, conditions in enumerate(groups):
        columns = masks.columns(conditions)
        n_plain = int((conditions < masks.n_plain).sum())
        part = _Part(tokens, masks, columns, n_plain)
        shared = delayed(part, traverse=False)
        options: dict[str, Any] = {"scheduler": scheduler, "cancel": cancel}
        sums = run_tasks([delayed(_sum_lane)(lane, shared) for lane in lanes], **options)
        probes = _probes(_added(sums), part)
        if progress is not None:
            progress(2 * number + 1, 2 * len(groups))
        given = delayed(probes, traverse=False)
        found = run_tasks([delayed(_read_lane)(lane, shared, given) for lane in lanes], **options)
        both = _added(found)
        refit[conditions] = _standardised(both[0], probes, tokens, own=True)
        fixed[conditions] = _standardised(both[1], probes, tokens, own=False)
        if progress is not None:
            progress(2 * number + 2, 2 * len(groups))
    return Readings(refit, fixed)


@dataclass(frozen=True)
class _Part:
    """The conditions of one pair of passes."""

    tokens: TokenTable
    masks: Masks
    columns: Ints
    n_plain: int

    @property
    def n_by_fold(self) -> int:
        """Conditions with a mask per fold."""
        return (self.columns.size - self.n_plain) // self.masks.n_folds

    def keep(self, members: slice) -> NDArray[np.uint8]:
        """Return the masks of some tokens, dims (token, column)."""
        bits = np.unpackbits(self.masks.bits[members], axis=1, count=self.masks.n_columns)
        return bits[:, self.columns]

    def weights(self, members: slice) -> NDArray[np.float32]:
        """Return 1/(tokens that are left of the text) for each kept token, dims (token, column)."""
        left = self.masks.kept[self.columns][:, self.tokens.text[members]].T.astype(np.float32)
        found: NDArray[np.float32] = np.divide(
            self.keep(members), left, dtype=np.float32, casting="same_kind"
        )
        return found


@dataclass(frozen=True)
class _Job:
    """A block of rows and which of its tokens count: ``local`` rows, ``members`` of the table."""

    block: LazyRows
    local: Ints
    members: slice
    where: str

    def steps(self) -> Any:  # a generator of (slice of tokens, values)  # noqa: ANN401
        """Yield the tokens that count in steps, with their values as stored."""
        values = self.block.read()
        for start in range(0, self.local.size, STEP_ROWS):
            x = values[self.local[start : start + STEP_ROWS]]
            if not np.isfinite(x).all():
                msg = (
                    f"{self.where}: a token has NaN or infinite values; expected finite "
                    "activations. Resume the run if it is not sealed, or verify it"
                )
                raise InvalidInputError(msg)
            first = self.members.start + start
            yield slice(first, first + len(x)), x


def _lanes(array: xr.DataArray, tokens: TokenTable, *, at: int) -> list[Any]:
    """Return lists of jobs, a row-block each; blocks without a token that counts are none."""
    rows_dim, layer_dim, hidden_dim = array_dims(array)
    jobs = []
    most = 1 if array.chunks else DEFAULT_TASK  # of chunks at least one is taken, and no more
    for span in row_spans(array, rows_dim, array.sizes[hidden_dim], task_bytes=most):
        low, high = (int(n) for n in np.searchsorted(tokens.rows, [span.start, span.stop]))
        if low == high:
            continue
        where = f"layer {int(array[layer_dim].values[at])}, rows {span.start} to {span.stop - 1}"
        block = lazy_rows(array, {rows_dim: span, layer_dim: at})
        jobs.append(_Job(block, tokens.rows[low:high] - span.start, slice(low, high), where))
    parts = np.array_split(np.arange(len(jobs)), min(N_LANES, len(jobs)))
    return [delayed([jobs[k] for k in part], traverse=False) for part in parts]


def _added(parts: Sequence[tuple[NDArray[Any], ...]]) -> tuple[NDArray[Any], ...]:
    """Return the sums over lanes, always in the same order; the first ones are overwritten."""
    first = parts[0]
    for part in parts[1:]:
        for mine, other in zip(first, part, strict=True):
            mine += other
    return first


def _sum_lane(jobs: Sequence[_Job], part: _Part) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the sums of the re-pooled texts over a lane.

    Of plain conditions by fold and class, dims (class, fold, condition, hidden); of a mask per
    fold over that fold's training texts, dims (class, column, hidden).
    """
    tokens, n_folds = part.tokens, part.masks.n_folds
    n_late = part.columns.size - part.n_plain
    plain, late = np.zeros(0, np.float32), np.zeros(0, np.float32)
    column_fold = np.arange(n_late) % n_folds
    with one_blas_thread():
        for job in jobs:
            for members, values in job.steps():
                x = values.astype(np.float32, copy=False)
                if not plain.size:
                    plain = np.zeros((2, n_folds, part.n_plain, x.shape[1]), np.float32)
                    late = np.zeros((2, n_late, x.shape[1]), np.float32)
                weights = part.weights(members)
                texts = tokens.text[members]
                fold, arm = tokens.fold[texts], texts // (tokens.n_texts // 2)
                weights[:, part.n_plain :] *= fold[:, None] != column_fold
                cell = arm * n_folds + fold
                for name in np.unique(cell):
                    of = np.flatnonzero(cell == name)
                    plain[name // n_folds, name % n_folds] += weights[of, : part.n_plain].T @ x[of]
                for which in (0, 1) if n_late else ():
                    of = np.flatnonzero(arm == which)
                    late[which] += weights[of, part.n_plain :].T @ x[of]
    return plain, late


@dataclass(frozen=True)
class _Probes:
    """Directions (fold, condition, hidden), midpoints and squared lengths (fold, condition)."""

    weight: NDArray[np.float32]
    middle: Floats
    length: Floats


def _probes(sums: tuple[NDArray[np.float32], ...], part: _Part) -> _Probes:
    """Return the difference of means of every fold's training texts."""
    plain, late = sums
    n_folds = part.masks.n_folds
    of_fold = np.bincount(part.tokens.fold, minlength=n_folds) / 2
    n_train = of_fold.sum() - of_fold
    n = plain.shape[2] + part.n_by_fold
    weight = np.zeros((n_folds, n, plain.shape[3]), np.float32)
    middle, length = np.zeros((n_folds, n)), np.zeros((n_folds, n))
    total = plain.astype(np.float64).sum(axis=1)
    for fold in range(n_folds):
        held = late[:, fold::n_folds]
        means = np.concatenate([total - plain[:, fold], held], axis=1) / n_train[fold]
        weight[fold] = means[0] - means[1]
        exact = weight[fold].astype(np.float64)
        middle[fold] = np.einsum("ch,ch->c", exact, (means[0] + means[1]) / 2)
        length[fold] = np.einsum("ch,ch->c", exact, exact)
    return _Probes(weight, middle, length)


def _read_lane(jobs: Sequence[_Job], part: _Part, probes: _Probes) -> tuple[Floats, Floats]:
    """Return the re-pooled texts on their held-out directions, dims (condition, text), twice.

    On those of their own condition, and on those of condition 0.
    """
    tokens, n_folds = part.tokens, part.masks.n_folds
    n = probes.weight.shape[1]
    own, original = np.zeros((n, tokens.n_texts)), np.zeros((n, tokens.n_texts))
    late = np.arange(part.n_by_fold) * n_folds + part.n_plain
    with one_blas_thread():
        for job in jobs:
            for members, values in job.steps():
                texts = tokens.text[members]
                fold = tokens.fold[texts]
                weights = part.weights(members)
                for name in np.unique(fold):
                    of = np.flatnonzero(fold == name)
                    columns = np.concatenate([np.arange(part.n_plain), late + name])
                    mine = weights[np.ix_(of, columns)].astype(np.float64)
                    x = values[of].astype(np.float64)
                    on = x @ probes.weight[name].astype(np.float64).T
                    gather = csr_matrix(
                        (np.ones(of.size), (texts[of], np.arange(of.size))),
                        shape=(tokens.n_texts, of.size),
                    )
                    own += (gather @ (mine * on)).T
                    original += (gather @ (mine * on[:, :1])).T
    return own, original


def _standardised(values: Floats, probes: _Probes, tokens: TokenTable, *, own: bool) -> Floats:
    """Return scores that are 0 at the midpoint and 1 class separation apart."""
    which = slice(None) if own else slice(0, 1)
    middle = probes.middle[tokens.fold].T[which]
    length = probes.length[tokens.fold].T[which]
    scores = np.divide(
        values - middle,
        length,
        out=np.zeros_like(values),
        where=np.broadcast_to(length > 0, values.shape),
    )
    result: Floats = scores.reshape(len(values), 2, -1)
    return result
