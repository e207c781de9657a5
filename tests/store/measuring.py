"""How much memory something took."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MOST = 300 * 2**20  # the bound of docs/store-format.md for a store of a few MB


@contextmanager
def bounded_memory(most: int = MOST) -> Iterator[None]:
    """Fail where this process holds more than ``most`` bytes more at any time inside."""
    with measured_memory() as peak:
        yield
    assert peak[0] < most, f"{peak[0] / 2**20:.0f} MiB"


@contextmanager
def measured_memory() -> Iterator[list[int]]:
    """Yield a list whose only item becomes the peak of the memory above that at the start."""
    peak = [0]
    if sys.platform != "linux":
        tracemalloc.start()
        try:
            yield peak
            peak[0] = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        return
    # Linux forgets the peak of a process that writes 5 here (man 5 proc, clear_refs).
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    yield peak
    peak[0] = max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))
