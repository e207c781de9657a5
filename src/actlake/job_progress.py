"""Progress of jobs on stderr: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .console import say

__all__ = ["job_progress"]

LINE_SECONDS = 10.0  # between two lines where there is no terminal


@contextmanager
def job_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Give a callable that is told (jobs done, jobs in all) and shows rate and time left.

    Jobs that were done before the first call are not counted in the rate.
    """
    if not sys.stderr.isatty():
        yield _Lines(what)
        return
    from tqdm import tqdm

    with tqdm(desc=what, unit="job", leave=False) as bar:

        def show(done: int, total: int) -> None:
            if bar.total is None:  # what was read is no work of this call
                bar.initial = bar.n = done - 1
            bar.total = total
            bar.update(done - bar.n)

        yield show


class _Lines:
    """A line of progress at the end, and at most one every few seconds before."""

    def __init__(self, what: str) -> None:
        self.what, self.told, self.began = what, time.monotonic(), time.monotonic()
        self.before: int | None = None

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self.before is None:
            self.before = done - 1
        if done < total and now - self.told < LINE_SECONDS:
            return
        self.told = now
        seconds = max(now - self.began, 1e-9)
        rate = (done - self.before) / seconds
        left = f", {(total - done) / rate:,.0f} s left" if done < total else ""
        say(f"{self.what}: {done:,} of {total:,} jobs, {rate:.3g} jobs/s{left}")
