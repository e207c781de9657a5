"""A bounded queue between two stages of the pipeline."""

from __future__ import annotations

import queue
import threading
from typing import Generic, TypeVar

__all__ = ["Pipe", "Stopped"]

_T = TypeVar("_T")


class Stopped(Exception):  # a signal between stages, not an error
    """Another stage failed: leave quietly, the cause is raised by who runs the stages."""


class Pipe(Generic[_T]):
    """A bounded queue that gives up when the pipeline stops."""

    def __init__(self, size: int, stop: threading.Event) -> None:
        self._queue: queue.Queue[_T] = queue.Queue(size)
        self._stop = stop

    def put(self, item: _T) -> None:
        """Add an item when there is room; raise Stopped."""
        while not self._stop.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
        raise Stopped

    def get(self) -> _T:
        """Return the next item when there is one; raise Stopped."""
        while not self._stop.is_set():
            try:
                return self._queue.get(timeout=0.1)
            except queue.Empty:
                continue
        raise Stopped
