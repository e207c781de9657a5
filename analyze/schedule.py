"""Where delayed tasks run: threads, processes, or a Dask cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from dask.base import compute
from threadpoolctl import ThreadpoolController

from ..schemas import InvalidInputError, near_names

__all__ = ["one_blas_thread", "run_tasks"]

LOCAL = ("threads", "processes", "synchronous")


def run_tasks(tasks: Sequence[Any], *, scheduler: str | None = None) -> list[Any]:
    """Return the results of delayed ``tasks`` in their order.

    Parameters
    ----------
    tasks
        ``dask.delayed`` objects.
    scheduler
        ``threads``, ``processes``, ``synchronous``, or the address of a running cluster such as
        ``tcp://host:8786``. None takes Dask's own configuration (threads, or the current
        client).

    Raises
    ------
    InvalidInputError
        If the scheduler is none of these.
    """
    if scheduler is not None and "://" in scheduler:
        from distributed import Client  # a cluster is asked for: only now is it worth its import

        with Client(scheduler, set_as_default=False) as client:  # type: ignore[no-untyped-call]
            return list(client.gather(client.compute(list(tasks))))
    if scheduler is not None and scheduler not in LOCAL:
        msg = (
            f"unknown scheduler {scheduler!r}{near_names(scheduler, list(LOCAL))}; expected "
            f"{', '.join(LOCAL)}, or an address such as tcp://host:8786"
        )
        raise InvalidInputError(msg)
    options = {} if scheduler is None else {"scheduler": scheduler}
    with one_blas_thread():
        return list(compute(*tasks, **options))  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold BLAS at one thread while tasks share the cores.

    The limit of OpenBLAS is global to a process. It is set around all tasks, since in threads
    the first task to end would otherwise lift it for the others, and again in every task, since
    processes and the workers of a cluster do not inherit it.
    """
    with _controller().limit(limits=1):
        yield


@lru_cache(maxsize=1)
def _controller() -> ThreadpoolController:
    """Return the thread pools of this process, looked up once: that reads its whole map."""
    return ThreadpoolController()
