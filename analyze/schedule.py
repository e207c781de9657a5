"""Where delayed tasks run: threads, processes, or a Dask cluster."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from threading import Event
from typing import Any, TypeAlias

from dask.base import compute
from dask.callbacks import Callback
from threadpoolctl import ThreadpoolController

from ..schemas import CancelledError, InvalidInputError, near_names

__all__ = ["Progress", "Result", "one_blas_thread", "run_tasks", "runs_locally"]

LOCAL = ("threads", "processes", "synchronous")
POLL_SECONDS = 0.1  # how soon a cancelled or finished cluster job is noticed

Progress: TypeAlias = Callable[[int, int], None]  # tasks done, tasks in all
Result: TypeAlias = Callable[[int, Any], None]  # the number of a task, its result


def runs_locally(scheduler: str | None) -> bool:
    """Whether ``scheduler`` is one of this machine, whose workers can be counted."""
    return scheduler is None or "://" not in scheduler


def run_tasks(
    tasks: Sequence[Any],
    *,
    scheduler: str | None = None,
    progress: Progress | None = None,
    cancel: Event | None = None,
    on_result: Result | None = None,
    n_workers: int | None = None,
) -> list[Any]:
    """Return the results of delayed ``tasks`` in their order.

    Parameters
    ----------
    tasks
        ``dask.delayed`` objects.
    scheduler
        ``threads``, ``processes``, ``synchronous``, or the address of a running cluster such as
        ``tcp://host:8786``. None takes Dask's own configuration (threads, or the current
        client).
    progress
        Called with (tasks done, tasks in all) after each. Locally the steps inside a task's
        graph count too; on a cluster only ``tasks`` themselves.
    cancel
        When it is set, no further task is begun; those that run are let finish.
    on_result
        Called in this process with (number of the task, its result) as soon as each is there.
    n_workers
        Most tasks at once, None for as many as there are cores; a cluster has its own number.

    Raises
    ------
    InvalidInputError
        If the scheduler is none of these.
    CancelledError
        If ``cancel`` was set before the end.
    """
    if not tasks and (scheduler is None or scheduler in LOCAL or "://" in scheduler):
        return []  # no cluster is asked for nothing
    if scheduler is not None and "://" in scheduler:
        return _on_cluster(tasks, scheduler, progress=progress, cancel=cancel, on_result=on_result)
    if scheduler is not None and scheduler not in LOCAL:
        msg = (
            f"unknown scheduler {scheduler!r}{near_names(scheduler, list(LOCAL))}; expected "
            f"{', '.join(LOCAL)}, or an address such as tcp://host:8786"
        )
        raise InvalidInputError(msg)
    options: dict[str, Any] = {} if scheduler is None else {"scheduler": scheduler}
    if n_workers is not None and scheduler != "synchronous":
        options["num_workers"] = n_workers
    watch: Any = contextlib.nullcontext()
    if progress or cancel or on_result:
        numbers = {task.key: number for number, task in enumerate(tasks)}
        watch = _Watch(progress, cancel, on_result, numbers=numbers)
    with one_blas_thread(), watch:
        return list(compute(*tasks, **options))  # type: ignore[no-untyped-call]


def _cancelled(done: int, total: int) -> CancelledError:
    msg = f"cancelled after {done} of {total} tasks; run it again to go on"
    return CancelledError(msg)


class _Watch(Callback):
    """Counts the tasks of the local schedulers, and stops between two of them."""

    def __init__(
        self,
        progress: Progress | None,
        cancel: Event | None,
        on_result: Result | None,
        *,
        numbers: dict[Any, int],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.progress, self.cancel, self.done, self.total = progress, cancel, 0, 0
        self.on_result, self.numbers = on_result, numbers

    def _start_state(self, dsk: Any, state: Any) -> None:  # noqa: ANN401
        self.total = len(state["ready"]) + len(state["waiting"])
        self._check()

    def _check(self) -> None:
        if self.cancel is not None and self.cancel.is_set():
            raise _cancelled(self.done, self.total)

    def _pretask(self, key: Any, dsk: Any, state: Any) -> None:  # noqa: ANN401
        self._check()

    def _posttask(
        self,
        key: Any,  # noqa: ANN401
        result: Any,  # noqa: ANN401
        dsk: Any,  # noqa: ANN401
        state: Any,  # noqa: ANN401
        worker_id: Any,  # noqa: ANN401
    ) -> None:
        self.done += 1
        if self.on_result is not None and key in self.numbers:
            self.on_result(self.numbers[key], result)
        if self.progress is not None:
            self.progress(self.done, self.total)


def _on_cluster(
    tasks: Sequence[Any],
    address: str,
    *,
    progress: Progress | None,
    cancel: Event | None,
    on_result: Result | None,
) -> list[Any]:
    """Return the results from the workers of a running cluster."""
    from distributed import Client  # a cluster is asked for: only now is it worth its import

    with Client(address, set_as_default=False) as client:  # type: ignore[no-untyped-call]
        futures = client.compute(list(tasks))
        numbers = {future: number for number, future in enumerate(futures)}
        pending, done, told = set(futures), 0, -1
        while (progress or cancel or on_result) and pending:
            if cancel is not None and cancel.is_set():
                client.cancel(futures)
                raise _cancelled(done, len(futures))
            time.sleep(POLL_SECONDS)
            finished = {future for future in pending if future.done()}
            pending -= finished
            if on_result is not None:
                for future in finished:
                    if future.status == "finished":  # an error is raised below, with its cause
                        on_result(numbers[future], future.result())
            done = len(futures) - len(pending)
            if progress is not None and done > told:
                progress(done, len(futures))
                told = done
        return list(client.gather(futures))


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
