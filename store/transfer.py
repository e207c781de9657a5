"""Copying runs between stores: whole objects, each checked before it can be seen."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ..schemas import InvalidInputError
from .catalog import write_catalog
from .copying import RunCopy, Transfer
from .partial import pulled_keys
from .parts import existing_parts
from .selection import check_splits, choose, read_source
from .store import Store, create_store, open_store

__all__ = ["Transfer", "pull", "pulled_keys", "push"]

_Done = Callable[[int, int], None]


def pull(
    source: str | os.PathLike[str] | Store,
    target: str | os.PathLike[str] | Store,
    *,
    runs: Collection[str] | None = None,
    layers: Collection[int] | None = None,
    pools: Collection[str] | None = None,
    splits: Collection[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    concurrency: int = 16,
    on_object: _Done = lambda done, total: None,
) -> list[Transfer]:
    """Copy runs, or parts of them, from a store to another one; return what was done.

    Objects are copied whole, each is held against the manifest before it appears in the target,
    and those that are there already are not fetched again: an interrupted pull goes on where it
    was, and another pull adds to what is there. Of a run that is not sealed the committed blocks
    are copied. A run of which something was left out has a record ``pulled.json``; reading what
    was left out raises NotPulledError.

    Parameters
    ----------
    source, target
        Stores, or their folders or URLs; the target is created where it is none yet.
    runs
        Ids; None is every run. What was appended to a run comes with it, a Transfer each.
    layers
        Block indices of the model; None is every layer of the run.
    pools
        Names such as ``mean_response``; None is every pool. Mean norms are always copied.
    splits
        Leave out row-blocks that hold no text of these splits. Rows are not cut, so a block
        that holds several splits is copied as it is.
    storage_options
        Passed to fsspec for the source, where that is a URL.
    concurrency
        Objects that are copied at the same time, and held in memory.
    on_object
        Called with (objects done, objects of the run) after each object.

    Raises
    ------
    NotFoundError
        If there is no such store or run.
    InvalidInputError
        If a run has no such layer, pool or split.
    NotPulledError
        If the source is itself a partial copy and lacks what was asked for.
    AlreadyExistsError
        If the target holds another run under the same id.
    CorruptError
        If an object of the source is not what its manifest says; it was not copied.
    StorageError
        If the source or the target fails.
    """
    here = _open(source, storage_options)
    there = target if isinstance(target, Store) else create_store(target)
    return _copy(
        here, there, runs=runs, layers=layers, pools=pools, splits=splits,
        concurrency=concurrency, on_object=on_object,
    )  # fmt: skip


def push(
    source: str | os.PathLike[str] | Store,
    target: str | os.PathLike[str] | Store,
    *,
    runs: Collection[str] | None = None,
    layers: Collection[int] | None = None,
    pools: Collection[str] | None = None,
    splits: Collection[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    concurrency: int = 16,
    on_object: _Done = lambda done, total: None,
) -> list[Transfer]:
    """Copy runs, or parts of them, from a local store to a URL; return what was done.

    The same as :func:`pull`, with ``storage_options`` for the target. Objects under the same
    manifest are not written again; commit records are created, never overwritten.
    """
    here = _open(source, None)
    if isinstance(target, Store):
        there = target
    else:
        there = create_store(target, storage_options=storage_options)
    return _copy(
        here, there, runs=runs, layers=layers, pools=pools, splits=splits,
        concurrency=concurrency, on_object=on_object,
    )  # fmt: skip


def _open(place: str | os.PathLike[str] | Store, options: Mapping[str, Any] | None) -> Store:
    return place if isinstance(place, Store) else open_store(place, storage_options=options)


def _copy(
    source: Store,
    target: Store,
    *,
    runs: Collection[str] | None,
    layers: Collection[int] | None,
    pools: Collection[str] | None,
    splits: Collection[str] | None,
    concurrency: int,
    on_object: _Done,
) -> list[Transfer]:
    if concurrency < 1:
        msg = f"concurrency must be at least 1 object, got {concurrency}"
        raise InvalidInputError(msg)
    if source.url == target.url:
        msg = f"source and target are the same store: {source.url}"
        raise InvalidInputError(msg)
    names = source.run_ids() if runs is None else list(dict.fromkeys(runs))
    # Every choice is checked before the first byte is copied.
    jobs = []
    for name in names:
        parts = [read_source(source, part) for part in existing_parts(source, name)]
        known = {} if splits is None else check_splits(parts, splits)
        jobs += [
            (run, choose(run, layers=layers, pools=pools, splits=splits, known=known))
            for run in parts
        ]
    done = [
        RunCopy(run, target, wanted, concurrency=concurrency, on_object=on_object).copy()
        for run, wanted in jobs
    ]
    if done:
        write_catalog(target)
    return done
