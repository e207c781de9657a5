"""One of several workers that share the blocks of a run."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..schemas import InvalidInputError

__all__ = ["Worker", "local_device"]

_SPELLING = re.compile(r"(\d{1,6})/(\d{1,6})")


@dataclass(frozen=True)
class Worker:
    """Worker ``index`` (from 1) of ``count``, who has every count-th block.

    Rows are ordered by length, so neighbouring blocks cost about the same: taking turns gives
    every worker about as much.
    """

    index: int = 1
    count: int = 1
    local_rank: int | None = None  # which one on its machine, where a launcher says so

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            msg = f"there is no worker {self.index}/{self.count}: expected 1/{self.count} or more"
            raise InvalidInputError(msg)

    @classmethod
    def parse(cls, text: str) -> Worker:
        """Return the worker that ``"2/4"`` names; raise InvalidInputError."""
        match = _SPELLING.fullmatch(text)
        if match is None:
            msg = f"expected a worker such as 1/4 (the first of four), got {text!r}"
            raise InvalidInputError(msg)
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Worker:
        """Return the worker that a launcher made of this process.

        ``torchrun`` (RANK, WORLD_SIZE, LOCAL_RANK); or the tasks of a Slurm array
        (SLURM_ARRAY_TASK_ID and its like), times the tasks that ``srun`` starts in each
        (SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID).

        Raises
        ------
        InvalidInputError
            If no launcher said anything, or an array has ids with gaps.
        """
        given = os.environ if environment is None else environment
        if "RANK" in given and "WORLD_SIZE" in given:
            rank, count = _number(given, "RANK"), _number(given, "WORLD_SIZE")
            local = _number(given, "LOCAL_RANK") if "LOCAL_RANK" in given else None
            return cls(rank + 1, count, local)
        index, count, local = 0, 1, None
        is_array, is_step = "SLURM_ARRAY_TASK_ID" in given, "SLURM_STEP_NUM_TASKS" in given
        if is_array:
            index, count = _array_task(given)
        if is_step:
            n_tasks = _number(given, "SLURM_STEP_NUM_TASKS")
            index = index * n_tasks + _number(given, "SLURM_PROCID")
            count *= n_tasks
            local = _number(given, "SLURM_LOCALID")
        if not is_array and not is_step:
            msg = (
                "--worker auto: neither torchrun (RANK, WORLD_SIZE) nor Slurm "
                "(SLURM_ARRAY_TASK_ID, or srun) started this process; name the worker, such as 1/4"
            )
            raise InvalidInputError(msg)
        return cls(index + 1, count, local)

    def blocks(self, blocks: Iterable[int]) -> list[int]:
        """Return those of ``blocks`` that are this worker's."""
        return [block for block in blocks if block % self.count == self.index - 1]


def local_device(device: str, worker: Worker | None, *, n_devices: int) -> str:
    """Return the device of a worker: of ``auto`` and ``cuda`` its own GPU of the machine's.

    A launcher that shows each process one GPU (Slurm's ``--gpus-per-task``) has chosen already.

    Parameters
    ----------
    device
        What was asked for.
    n_devices
        GPUs that this process sees.

    Raises
    ------
    InvalidInputError
        If the machine has fewer GPUs than workers.
    """
    rank = None if worker is None else worker.local_rank
    if rank is None or device not in {"auto", "cuda"} or n_devices < 2:
        return device
    if rank >= n_devices:
        msg = (
            f"this is worker number {rank + 1} of its machine, which has {n_devices} GPUs; start "
            "one worker per GPU"
        )
        raise InvalidInputError(msg)
    return f"cuda:{rank}"


def _number(given: Mapping[str, str], name: str) -> int:
    value = given.get(name, "")
    if not value.isdecimal():
        msg = f"--worker auto: {name} is {value!r}, expected a number"
        raise InvalidInputError(msg)
    return int(value)


def _array_task(given: Mapping[str, str]) -> tuple[int, int]:
    """Return (index from 0, tasks) of a Slurm array task."""
    names = ("ID", "MIN", "MAX", "COUNT")
    at, low, high, count = (_number(given, f"SLURM_ARRAY_TASK_{name}") for name in names)
    step = _number(given, "SLURM_ARRAY_TASK_STEP") if "SLURM_ARRAY_TASK_STEP" in given else 1
    if step < 1 or (at - low) % step or (high - low) // step + 1 != count:
        msg = (
            f"--worker auto: the Slurm array has {count} tasks from {low} to {high}, whose ids "
            "have gaps; use an array such as --array=1-4"
        )
        raise InvalidInputError(msg)
    return (at - low) // step, count
