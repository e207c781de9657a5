"""How much memory an analysis of pooled activations takes, before anything is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dask.system import CPU_COUNT

from ..schemas import (
    AnalyzeSpec,
    GeometrySpec,
    InvalidInputError,
    SimilaritySpec,
    TransferSpec,
    array_name,
    parse_size,
)
from .confounds import ConfoundPart
from .design import Design
from .layer import ProbePart
from .nullrun import NullPart
from .parts import Part
from .readouts import RandomPart
from .schedule import runs_locally

__all__ = ["JobMemory", "geometry_memory", "pooled_memory", "similarity_memory", "transfer_memory"]

FLOAT32, FLOAT64 = 4, 8
# How many arrays of a kind a job holds at its peak; tests/analyze/test_memory.py measures them.
READ = 2  # as it comes off the codec, and decoded
WIDE = 4  # of (text, hidden) in float64: pairs, their centred copy, and what a fold takes of them
LOGISTIC = 2  # more of them: a standardised copy and its rows
SQUARE = 8  # of (rank, rank): scatters and eigenvectors of the folds that are shared
DRAWN = 6  # of (text, draw): scores, their order, their ranks
GEOMETRY_WIDE, GEOMETRY_SQUARE, GEOMETRY_DRAWN = 6, 12, 6
SIMILARITY_WIDE, SIMILARITY_SQUARE = 3, 8
TRANSFER_WIDE, TRANSFER_SQUARE, TRANSFER_DRAWN = 5, 8, 3


@dataclass(frozen=True)
class JobMemory:
    """Bytes of one job, of what all jobs of a process share, and of all results together."""

    job: int
    shared: int
    held: int
    n_jobs: int

    def total(self, n_workers: int) -> int:
        """Return the bytes of ``n_workers`` jobs at once."""
        return n_workers * self.job + self.shared + self.held

    def sentence(self, n_workers: int | None) -> str:
        """Return the need in words; None is a cluster, whose workers are not counted here."""
        each = f"{_mib(self.job + self.shared)} a job"
        if n_workers is None:
            return f"expected memory: {each} on a worker, and {_mib(self.held)} of results here"
        jobs = "job" if n_workers == 1 else "jobs"
        return (
            f"expected memory: {_mib(self.total(n_workers))}, {n_workers} {jobs} at once of "
            f"{_mib(self.job)}, {_mib(self.shared)} that they share and {_mib(self.held)} of "
            f"results; {self.n_jobs} jobs in all"
        )

    def workers_within(
        self, limit: int | str | None = None, *, scheduler: str | None = None
    ) -> int | None:
        """Return how many jobs may run at once; None on a cluster, which has its own number.

        Raises
        ------
        InvalidInputError
            If one job alone needs more than ``limit``.
        """
        n_bytes = parse_size(limit) if isinstance(limit, str) else limit
        local = runs_locally(scheduler)
        least = self.total(1) if local else self.job + self.shared
        if n_bytes is not None and least > n_bytes:
            msg = (
                f"one layer alone needs {_mib(least)}, more than the {_mib(n_bytes)} that were "
                "allowed; take fewer draws, one pool at a time, or allow more"
            )
            raise InvalidInputError(msg)
        if not local:
            return None
        most = 1 if scheduler == "synchronous" else max(1, min(CPU_COUNT, self.n_jobs))
        if n_bytes is None:
            return most
        return max(1, min(most, (n_bytes - self.shared - self.held) // self.job))


def pooled_memory(design: Design, parts: Sequence[Part], spec: AnalyzeSpec) -> JobMemory:
    """Return the memory of the ``parts`` of a run's layers, an upper bound."""
    arrays = [design.ds[array_name(design.site, pool)] for pool in design.pools]
    hidden = max(int(array.sizes["hidden"]) for array in arrays)
    n_texts, rows = design.ds.sizes["text"], 2 * design.table.n_pairs
    itemsize = max(array.dtype.itemsize for array in arrays)
    rank = min(rows, hidden)
    nulls = any(isinstance(part, NullPart) for part in parts)
    probes = sum(isinstance(part, ProbePart) for part in parts)
    drawn = max(spec.random.n_directions, spec.nulls.n_draws if nulls else 0) + 1
    n_methods = len(spec.probe.methods)
    wide = WIDE + (LOGISTIC if probes and "logistic" in spec.probe.methods else 0)
    if all(isinstance(part, RandomPart) for part in parts):
        wide = 0  # the pairs are never made in double precision
    refits = n_methods * rows * (spec.nulls.n_draws + 1) * FLOAT64 if nulls else 0
    controls = rows * rows * FLOAT64 if any(isinstance(p, ConfoundPart) for p in parts) else 0
    job = (
        READ * n_texts * hidden * itemsize
        + n_texts * hidden * FLOAT32  # centred in single precision for the random readouts
        + wide * rows * hidden * FLOAT64
        + SQUARE * rank * rank * FLOAT64
        + DRAWN * (rows + rank) * drawn * FLOAT64
        + refits
        + controls
    )
    n_jobs = len(design.pools) * len(design.layers)
    subsets = len(design.subsets)
    result = (
        probes * n_methods * (hidden + 4 * rows) + (n_methods + 3) * subsets * drawn
    ) * FLOAT64
    return JobMemory(
        job=job,
        shared=hidden * drawn * FLOAT32,
        held=n_jobs * result,
        n_jobs=n_jobs,
    )


def geometry_memory(
    *, n_texts: int, hidden: int, n_jobs: int, spec: GeometrySpec, itemsize: int = 4
) -> JobMemory:
    """Return the memory of :func:`geometry_run`, an upper bound."""
    drawn = max(spec.n_permutations, spec.n_bootstrap, spec.n_splits)
    job = (
        READ * n_texts * hidden * itemsize
        + GEOMETRY_WIDE * n_texts * hidden * FLOAT64
        + GEOMETRY_SQUARE * n_texts * n_texts * FLOAT64
        + GEOMETRY_DRAWN * drawn * n_texts * FLOAT64
    )
    held = n_jobs * n_texts * (spec.n_components + 2 * len(spec.tsne_seeds)) * FLOAT64
    return JobMemory(job=job, shared=0, held=held, n_jobs=n_jobs)


def similarity_memory(
    *, n_texts: int, hidden: int, n_jobs: int, spec: SimilaritySpec, itemsize: int = 4
) -> JobMemory:
    """Return the memory of :func:`similarity_run`, an upper bound; ``n_jobs`` are of one pool."""
    rows = min(n_texts, spec.max_texts)
    form = 2 * (spec.n_jackknife + 1) * rows * (rows - 1) // 2 * FLOAT32
    job = (
        READ * n_texts * hidden * itemsize
        + SIMILARITY_WIDE * rows * hidden * FLOAT64
        + SIMILARITY_SQUARE * rows * rows * FLOAT64
        + 2 * form  # in double precision, before it is halved
    )
    return JobMemory(job=job, shared=0, held=2 * n_jobs * form, n_jobs=n_jobs)


def transfer_memory(
    *,
    n_texts: int,
    widths: tuple[int, int],
    n_jobs: int,
    spec: TransferSpec,
    itemsize: int = 4,
) -> JobMemory:
    """Return the memory of :func:`transfer_run`, an upper bound; ``widths`` are the largest two."""
    width = sum(widths)
    job = (
        READ * n_texts * width * itemsize
        + TRANSFER_WIDE * n_texts * width * FLOAT64
        + TRANSFER_SQUARE * n_texts * n_texts * FLOAT64
        + TRANSFER_DRAWN * (max(widths) + n_texts) * spec.n_random * FLOAT64
        + TRANSFER_DRAWN * n_texts * spec.n_bootstrap * FLOAT64
    )
    return JobMemory(job=job, shared=0, held=0, n_jobs=n_jobs)


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:,.0f} MiB"
