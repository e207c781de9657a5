"""Jobs whose results are kept, so that what was stopped goes on and what is done is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

from .._version import __version__
from ..schemas import CorruptError, StorageError, digest_json
from .packing import load_value, save_value
from .schedule import Progress, run_tasks

__all__ = ["JobCache", "Jobs", "job_name", "run_jobs"]

JOB_VERSION = 1  # of what jobs compute: raise it where the same spec gives another result
KEY_FILE = "jobs.json"


def job_name(*place: str | int) -> str:
    """Return the name of the job of a place, such as a pool and a layer; a name of a file."""
    parts = [f"{part:04d}" if isinstance(part, int) else part.replace(":", "+") for part in place]
    return "-".join(parts)


@dataclass(frozen=True)
class Jobs:
    """The kept results of the jobs of one analysis under one key, one file per job.

    ``records`` are the classes that a result may be made of.
    """

    folder: Path
    records: tuple[type, ...] = ()

    def path(self, name: str) -> Path:
        """Return the file of a job."""
        return self.folder / f"{name}.npz"

    def load(self, name: str) -> tuple[bool, Any]:
        """Return whether a job is done, and its result; a damaged file is a job to do again."""
        path = self.path(name)
        if not path.is_file():
            return False, None
        try:
            return True, load_value(path, records=self.records)
        except CorruptError:
            return False, None

    def save(self, name: str, value: object) -> None:
        """Keep the result of a job; StorageError where it cannot be written."""
        try:
            save_value(value, self.path(name))
        except OSError as err:
            msg = f"{self.folder}: the result of a job cannot be written: {err.strerror or err}"
            raise StorageError(msg) from err


@dataclass(frozen=True)
class JobCache:
    """A folder of kept jobs, of all analyses of one run (or of several together).

    ``identity`` is what the jobs read: the content digest of the run and the texts that take
    part. An analysis under another identity or spec has another folder.
    """

    folder: Path
    identity: str

    def jobs(self, name: str, spec: Mapping[str, Any], *, records: Sequence[type] = ()) -> Jobs:
        """Return the jobs of the analysis ``name`` under ``spec``, what is not JSON left out."""
        key = {
            "actlake": __version__,
            "version": JOB_VERSION,
            "identity": self.identity,
            "name": name,
            "spec": dict(spec),
        }
        digest = digest_json(key)[7:23]
        folder = self.folder / f"{name}-{digest}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / KEY_FILE).write_text(json.dumps(key, indent=2) + "\n", encoding="utf-8")
        except OSError as err:
            msg = f"{folder}: jobs cannot be kept there: {err.strerror or err}"
            raise StorageError(msg) from err
        return Jobs(folder, tuple(records))

    def keep_only(self, jobs: Jobs, name: str) -> None:
        """Remove the jobs that the analysis ``name`` has under other keys."""
        for folder in self.folder.glob(f"{name}-{'[0-9a-f]' * 16}"):
            if folder != jobs.folder:
                shutil.rmtree(folder, ignore_errors=True)


def run_jobs(
    tasks: Mapping[str, Any],
    *,
    jobs: Jobs | None = None,
    scheduler: str | None = None,
    progress: Progress | None = None,
    cancel: Event | None = None,
    n_workers: int | None = None,
) -> dict[str, Any]:
    """Return the results of delayed ``tasks`` by name; those that are kept are read.

    Each result is kept as soon as it is there, so that what ends before the last job goes on
    where it was.

    Parameters
    ----------
    tasks
        ``dask.delayed`` objects by the name of their job.
    jobs
        Where results are kept; None keeps none.
    scheduler, cancel, n_workers
        See :func:`run_tasks`.
    progress
        Called with (jobs done, jobs in all), those that were read among them.
    """
    found: dict[str, Any] = {}
    for name in tasks:
        done, value = (False, None) if jobs is None else jobs.load(name)
        if done:
            found[name] = value
    left = [name for name in tasks if name not in found]
    finished = count(len(found) + 1)

    def keep(number: int, value: object) -> None:
        if jobs is not None:
            jobs.save(left[number], value)
        if progress is not None:
            progress(next(finished), len(tasks))

    results = run_tasks(
        [tasks[name] for name in left],
        scheduler=scheduler,
        cancel=cancel,
        on_result=keep,
        n_workers=n_workers,
    )
    found |= zip(left, results, strict=True)
    return {name: found[name] for name in tasks}
