"""What memory a pass over rows needs, said before it is begun."""

from __future__ import annotations

from dataclasses import dataclass

from .statistics import STEP_ROWS

__all__ = ["N_LANES", "MemoryNeed", "memory_needed"]

FLOAT64 = 8
N_LANES = 4
TEMPORARIES = 2  # one step of rows in float64, and what is made of it


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a pass needs beside the interpreter: of one job, of all that is held at once."""

    job: int
    held: int
    n_workers: int

    @property
    def total(self) -> int:
        """Jobs that run at once, and the statistics that wait to be merged."""
        return self.n_workers * self.job + self.held

    def sentence(self) -> str:
        """Return the need in words."""
        return (
            f"{self.total / 2**20:.0f} MiB: {self.n_workers} jobs at once of "
            f"{self.job / 2**20:.0f} MiB, and {self.held / 2**20:.0f} MiB of statistics"
        )


def memory_needed(
    *,
    hidden: int,
    rows_per_job: int,
    n_workers: int,
    n_parts: int = 1,
    n_cells: int = 0,
    itemsize: int = 4,
    n_lanes: int = N_LANES,
) -> MemoryNeed:
    """Return the memory of :func:`stream_statistics`, an upper bound.

    Parameters
    ----------
    hidden, itemsize
        Width of the array and bytes of one number of it.
    rows_per_job
        Rows that a job reads.
    n_workers
        Jobs that run at once in this process (on a cluster: in one worker).
    n_parts, n_cells
        Parts have a (hidden, hidden) scatter each, cells a mean of (hidden,).
    n_lanes
        Chains whose statistics wait to be merged.
    """
    statistics = FLOAT64 * (n_parts * hidden * hidden + n_cells * hidden)
    steps = TEMPORARIES * FLOAT64 * min(STEP_ROWS, rows_per_job) * hidden
    reading = 2 * rows_per_job * hidden * itemsize  # decoded, and as it comes off the codec
    if rows_per_job > STEP_ROWS:
        steps += FLOAT64 * hidden * hidden  # the scatter of one step
    at_once = min(n_workers, n_lanes)
    return MemoryNeed(
        job=reading + steps + 2 * statistics,  # of what came before and of the block
        held=n_lanes * statistics,
        n_workers=at_once,
    )
