"""One reading of a layer for all that is asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import xarray as xr
from dask.delayed import delayed
from numpy.typing import NDArray

from ..schemas import InvalidInputError, array_name
from .arrays import layer_values
from .auroc import Floats
from .linear import Scatter, train_scatter
from .rowspace import PairSpace, pair_space
from .schedule import one_blas_thread, run_tasks
from .splits import Fold, PairTable

__all__ = ["Activations", "Part", "paired_rows", "run_parts"]


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
    """What one analysis computes from a layer; it is sent to where the layer is read."""

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


def run_parts(
    ds: xr.Dataset,
    parts: Sequence[Part],
    table: PairTable,
    *,
    site: str,
    pools: Sequence[str],
    scheduler: str | None = None,
) -> dict[tuple[str, int], list[Any]]:
    """Return the results of all ``parts`` by pool and layer, each layer read once.

    Every (pool, layer) is one Dask task that reads the chunks of that layer alone.
    """
    # Wrapped once, so that the tasks of a cluster share one copy of it.
    shared = delayed((tuple(parts), table), traverse=False)
    tasks = {
        (pool, int(layer)): delayed(_fit_parts)(
            layer_values(ds, array_name(site, pool), at), shared, pool=pool, layer=int(layer)
        )
        for pool in pools
        for at, layer in enumerate(ds["layer"].values)
    }
    return dict(zip(tasks, run_tasks(list(tasks.values()), scheduler=scheduler), strict=True))


def _fit_parts(
    values: NDArray[Any], shared: tuple[tuple[Part, ...], PairTable], *, pool: str, layer: int
) -> list[Any]:
    """Return every part's result; with one BLAS thread, since layers are what is parallel."""
    parts, table = shared
    with one_blas_thread():
        activations = Activations(np.asarray(values), table, pool=pool, layer=layer)
        return [part.fit(activations) for part in parts]
