"""One reading of a layer for all that is asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from threading import Event
from typing import Any, ClassVar, Protocol

import numpy as np
import xarray as xr
from dask.delayed import delayed
from numpy.typing import NDArray

from ..schemas import ActlakeError, InvalidInputError, array_name
from .arrays import layer_values
from .auroc import Floats
from .jobs import Jobs, job_name
from .linear import Scatter, train_scatter
from .rowspace import PairSpace, pair_space
from .schedule import Progress, one_blas_thread, run_tasks
from .splits import Fold, PairTable

__all__ = ["FAILURES", "Activations", "Failure", "Part", "paired_rows", "run_part", "run_parts"]

# What one analysis of many may fail with; its others go on, and the reason is said.
FAILURES = (ActlakeError, ArithmeticError, LookupError, MemoryError, TypeError, ValueError)


@dataclass(frozen=True)
class Activations:
    """The activations of one pool and layer: all rows as stored, dims (text, hidden)."""

    values: NDArray[Any]
    table: PairTable
    pool: str
    layer: int

    @cached_property
    def pairs(self) -> Floats:
        """The pairs, dims (arm, pair, hidden), float64; InvalidInputError names NaN rows."""
        return paired_rows(self.values, self.table, where=f"pool {self.pool}, layer {self.layer}")

    @cached_property
    def space(self) -> PairSpace:
        """The row space of the pairs."""
        return pair_space(self.pairs)

    def scatter(self, fold: Fold) -> Scatter:
        """Return the scatter of a fold's training pairs, which all parts and methods share."""
        key = fold.train.tobytes()
        if key not in self._scatters:
            train = self.space.points[:, fold.train]
            self._scatters[key] = train_scatter(train, hidden=self.space.hidden)
        return self._scatters[key]

    @cached_property
    def _scatters(self) -> dict[bytes, Scatter]:
        return {}

    @cached_property
    def neutral(self) -> Floats:
        """The neutral texts, dims (text, hidden), float64.

        They are a control beside the probes: texts with NaN or infinite values are left out.
        """
        x = np.asarray(self.values)[self.table.neutral].astype(np.float64)
        result: Floats = x[np.isfinite(x).all(axis=-1)]
        return result


class Part(Protocol):
    """What one analysis computes from a layer; it is sent to where the layer is read.

    ``records`` are the classes that its results are made of, so that they can be kept.
    """

    records: ClassVar[tuple[type, ...]]

    def fit(self, layer: Activations) -> Any:  # each part has its own result  # noqa: ANN401
        """Return the part's result of one layer."""


def paired_rows(values: NDArray[Any], table: PairTable, *, where: str) -> Floats:
    """Return the activations of the pairs, dims (arm, pair, hidden), float64.

    Raises
    ------
    InvalidInputError
        If a row has NaN or infinite values; the texts are named.
    """
    x = np.asarray(values)[table.rows].astype(np.float64)
    broken = ~np.isfinite(x).all(axis=-1)
    if broken.any():
        names = table.texts[broken].tolist()
        msg = (
            f"{where}: {len(names)} of {broken.size} rows have NaN or infinite values, the first "
            f"are {names[:3]}; expected finite activations. Resume the run if it is not sealed, "
            "verify it, or leave out the texts that store.finite_texts says are not finite"
        )
        raise InvalidInputError(msg)
    return x


@dataclass(frozen=True)
class Failure:
    """Why a part has no result of a layer."""

    error: Exception


def run_parts(
    ds: xr.Dataset,
    parts: Sequence[Part],
    table: PairTable,
    *,
    site: str,
    pools: Sequence[str],
    scheduler: str | None = None,
    progress: Progress | None = None,
    cancel: Event | None = None,
    jobs: Sequence[Jobs | None] | None = None,
    n_workers: int | None = None,
    failures: bool = False,
) -> dict[tuple[str, int], list[Any]]:
    """Return the results of all ``parts`` by pool and layer, each layer read once.

    Every (pool, layer) is one Dask task that reads the chunks of that layer alone.

    Parameters
    ----------
    ds, parts, table, site, pools
        What is read, and what is computed from it.
    scheduler, progress, cancel, n_workers
        See :func:`run_tasks`; progress counts layers of pools.
    jobs
        Of every part the results that are kept; a layer is read for the parts that lack it.
    failures
        Return the :class:`Failure` of a part in the place of its result; otherwise the first
        one is raised.
    """
    kept: Sequence[Jobs | None] = [None] * len(parts) if jobs is None else jobs
    cells = [(pool, int(layer)) for pool in pools for layer in ds["layer"].values]
    place = {int(layer): at for at, layer in enumerate(ds["layer"].values)}
    found: dict[tuple[str, int], list[Any]] = {cell: [None] * len(parts) for cell in cells}
    left: dict[tuple[str, int], tuple[int, ...]] = {}
    for cell in cells:
        done = [(False, None) if of is None else of.load(job_name(*cell)) for of in kept]
        found[cell] = [value for _, value in done]
        missing = tuple(at for at, (there, _) in enumerate(done) if not there)
        if missing:
            left[cell] = missing
    # Wrapped once, so that the tasks of a cluster share one copy of it.
    shared = delayed((tuple(parts), table), traverse=False)
    tasks = {
        (pool, layer): delayed(_fit_parts)(
            layer_values(ds, array_name(site, pool), place[layer]),
            shared,
            which=missing,
            pool=pool,
            layer=layer,
        )
        for (pool, layer), missing in left.items()
    }
    order = list(tasks)

    def keep(number: int, results: list[Any]) -> None:
        for at, result in zip(left[order[number]], results, strict=True):
            of = kept[at]
            if of is not None and not isinstance(result, Failure):
                of.save(job_name(*order[number]), result)
        if progress is not None:
            progress(len(cells) - len(tasks) + next(finished), len(cells))

    finished = count(1)
    results = run_tasks(
        list(tasks.values()),
        scheduler=scheduler,
        cancel=cancel,
        on_result=keep,
        n_workers=n_workers,
    )
    for cell, values in zip(order, results, strict=True):
        for at, value in zip(left[cell], values, strict=True):
            if isinstance(value, Failure) and not failures:
                raise value.error
            found[cell][at] = value
    return found


def run_part(
    ds: xr.Dataset,
    part: Part,
    table: PairTable,
    *,
    site: str,
    pools: Sequence[str],
    scheduler: str | None,
    n_workers: int | None = None,
) -> dict[tuple[str, int], Any]:
    """Return the results of one part by pool and layer; see :func:`run_parts`."""
    found = run_parts(
        ds, [part], table, site=site, pools=pools, scheduler=scheduler, n_workers=n_workers
    )
    return {cell: result for cell, (result,) in found.items()}


def _fit_parts(
    values: NDArray[Any],
    shared: tuple[tuple[Part, ...], PairTable],
    *,
    which: tuple[int, ...],
    pool: str,
    layer: int,
) -> list[Any]:
    """Return the results of some parts; with one BLAS thread, since layers are what is parallel."""
    parts, table = shared
    results: list[Any] = []
    with one_blas_thread():
        activations = Activations(np.asarray(values), table, pool=pool, layer=layer)
        for at in which:
            try:
                results.append(parts[at].fit(activations))
            except FAILURES as err:
                results.append(Failure(err))
    return results
