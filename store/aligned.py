"""Several runs at once, with the same texts in the same rows."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from functools import reduce
from typing import Any

import numpy as np
import xarray as xr

from ..schemas import InvalidInputError, NotFoundError
from .parts import part_names
from .reader import open_run
from .store import Store, open_store
from .token_view import take_texts

__all__ = ["open_runs"]


def open_runs(
    url_or_store: str | os.PathLike[str] | Store,
    runs: Collection[str] | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
    allow_partial: bool = False,
    pulled_only: bool = False,
    chunks: Mapping[str, int] | str | int | None = {},  # xarray's own spelling
) -> dict[str, xr.Dataset]:
    """Return several runs as lazy datasets whose rows are the same texts in the same order.

    Runs of one corpus have the same rows as they are stored, and nothing is joined. Otherwise
    every dataset is cut to the texts that all of them have, by id, in the order of the first,
    and to the tokens of these.
    A dataset each, and not one array with a model dimension, because models differ in layers and
    hidden size; chunks are those of :func:`open_run` and never mix layers.

    Parameters
    ----------
    url_or_store, storage_options, allow_partial, pulled_only, chunks
        See :func:`open_run`.
    runs
        Ids; None is every run of the store.

    Returns
    -------
    dict of str to xarray.Dataset
        By run id, in the order of ``runs``; the coordinate ``text`` is equal in all.

    Raises
    ------
    NotFoundError
        If the store has no such run, or none at all.
    InvalidInputError
        If the runs have no text in common, or two of them have unlike texts under one id.
    """
    if isinstance(url_or_store, Store):
        store = url_or_store
    else:
        store = open_store(url_or_store, storage_options=storage_options)
    names = store.run_ids() if runs is None else list(dict.fromkeys(runs))
    if not names:
        msg = f"no runs to open in {store.url}; name some, or extract them first"
        raise NotFoundError(msg)
    opened = {
        name: open_run(
            store, name, allow_partial=allow_partial, pulled_only=pulled_only, chunks=chunks
        )
        for name in names
    }
    ids = [dataset["text"].values for dataset in opened.values()]
    common = ids[0][reduce(np.logical_and, [np.isin(ids[0], other) for other in ids])]
    if not len(common):
        corpora = {name: dataset.attrs["corpus"] for name, dataset in opened.items()}
        msg = f"the runs have no text in common: they are of the corpora {corpora}"
        raise InvalidInputError(msg)
    _check_texts(store, names, set(common.tolist()))
    return {name: _in_rows(dataset, common) for name, dataset in opened.items()}


def _in_rows(dataset: xr.Dataset, ids: np.ndarray) -> xr.Dataset:
    """Return the dataset with the texts of ``ids``, in their order."""
    there = dataset["text"].values
    if np.array_equal(there, ids):
        return dataset
    order = np.argsort(there)
    rows = order[np.searchsorted(there, ids, sorter=order)]
    return take_texts(dataset, rows)


def _check_texts(store: Store, runs: list[str], ids: set[str]) -> None:
    """Raise InvalidInputError where corpora of the runs have unlike texts under one id."""
    plans = [[store.read_plan(part) for part in part_names(store, name)] for name in runs]
    if len({tuple(plan.corpus_digest for plan in parts) for parts in plans}) == 1:
        return
    known = set(store.corpus_ids())
    first: dict[str, tuple[str, tuple[object, ...]]] = {}
    for corpus in sorted({plan.corpus for parts in plans for plan in parts} & known):
        for text in store.read_corpus(corpus)[1]:
            if text.id not in ids:
                continue
            # Not the token ids: two models spell one text in two ways.
            words = (text.system, text.prompt, text.response, text.messages)
            other, found = first.setdefault(text.id, (corpus, words))
            if found != words:
                msg = (
                    f"text {text.id!r} of corpus {corpus!r} is another text than that of corpus "
                    f"{other!r}: its rows cannot be compared; open the runs one by one, or give "
                    "the texts ids of their own"
                )
                raise InvalidInputError(msg)
