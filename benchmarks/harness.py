"""What benchmarks share: alternating timings, the quick mode, the last line."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

QUICK = bool(os.environ.get("QUICK"))


def seconds(work: Callable[[], object]) -> float:
    """Return how long ``work`` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compare(
    name: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    repeats: int,
    before: Callable[[], object] = lambda: None,
) -> float:
    """Return how many times as fast as ``theirs`` ``ours`` is: the median over paired runs.

    The two take turns, so that a busy machine slows both. ``before`` runs untimed before each.
    What this process took of the processors is printed beside: other work does not change it.
    """
    ratios = []
    for _ in range(repeats):
        before()
        baseline, of_baseline = _timed(theirs)
        before()
        mine, of_mine = _timed(ours)
        ratios.append(baseline / mine)
        print(
            f"{name}: ours {mine:.3f} s, baseline {baseline:.3f} s "
            f"(processor {of_mine:.3f} s, {of_baseline:.3f} s)",
            flush=True,
        )
    return round(median(ratios), 3)


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return how long ``work`` takes by the clock, and of this process's processor time."""
    began = time.process_time()
    return seconds(work), time.process_time() - began


def peak_mib() -> float:
    """Return the peak resident memory of this program, MiB (Linux).

    Not ``ru_maxrss``, in which what the parent held when it forked counts too.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def emit(figures: dict[str, Any]) -> None:
    """Print the last line: one JSON object."""
    print(json.dumps(figures))
