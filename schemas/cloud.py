"""What a rented GPU machine may cost, what is wanted of it, and what it says of its work."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from .base import Record

__all__ = ["FINAL_STATES", "GpuWish", "JobLimits", "JobReport", "JobState"]

JobState = Literal["running", "done", "failed", "budget", "idle", "interrupted"]
FINAL_STATES = frozenset({"done", "failed", "budget", "idle", "interrupted"})


class GpuWish(Record):
    """What a machine must have: GPUs by a part of their name, memory, disk and price."""

    encoding_type: ClassVar[str] = "actlake-gpu-wish"

    gpu: str = Field(default="", description="Words of the GPU's name, such as A100.")
    n_gpus: int = Field(default=1, ge=1, le=16)
    gpu_memory_gb: float = Field(default=0, ge=0, description="Of each GPU, at least.")
    disk_gb: int = Field(default=100, ge=10)
    max_price_per_hour: float | None = Field(default=None, gt=0, description="US dollars, in all.")


class JobLimits(Record):
    """When work on a machine that costs money stops: the first limit that is reached."""

    encoding_type: ClassVar[str] = "actlake-job-limits"

    max_dollars: float | None = Field(default=None, gt=0)
    max_hours: float | None = Field(default=None, gt=0)
    price_per_hour: float | None = Field(default=None, ge=0, description="US dollars.")
    idle_minutes: float = Field(default=30, gt=0, description="Without work of the processor.")
    grace_seconds: float = Field(default=120, gt=0, description="From SIGINT to SIGKILL.")

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        if self.max_dollars is None and self.max_hours is None:
            msg = "a limit is needed: max_dollars with price_per_hour, max_hours, or both"
            raise ValueError(msg)
        if self.max_dollars is not None and not self.price_per_hour:
            msg = "max_dollars needs price_per_hour, what an hour of the machine costs"
            raise ValueError(msg)
        return self

    @property
    def hours(self) -> float:
        """Return the hours after which the first limit is reached."""
        hours = [] if self.max_hours is None else [self.max_hours]
        if self.max_dollars is not None and self.price_per_hour:
            hours.append(self.max_dollars / self.price_per_hour)
        return min(hours)


class JobReport(Record):
    """How far the commands on a machine are; written again and again beside the store."""

    encoding_type: ClassVar[str] = "actlake-job-report"

    job: str = ""
    state: JobState
    n_commands: int
    n_started: int = 0
    failed: tuple[int, ...] = Field(default=(), description="Which commands failed, from 1.")
    command: str = Field(default="", description="The one at work, or the last.")
    seconds: float = Field(default=0, description="Since the machine began to cost.")
    dollars: float | None = None
    message: str = ""
