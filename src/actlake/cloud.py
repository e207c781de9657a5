"""A job on a rented machine: rent, run, watch, and give back whatever happens."""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from types import FrameType
from typing import Any

from ._version import __version__
from .rental import Offer, Order, Provider
from .schemas import FINAL_STATES, GpuWish, InvalidInputError, JobLimits, JobReport
from .schemas.errors import CloudError, StorageError

__all__ = ["CloudJob", "Reports", "plan_job", "run_job", "sweep"]

PREFIX = "actlake-"
IMAGE = "pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime"
# What a machine gets of our environment unasked: access to the bucket and to gated models.
PASSED = {
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "AWS_REGION", "HF_TOKEN", "ACTLAKE_S3_CLIENT",
}  # fmt: skip
UPLOAD_SECONDS = 300  # after the guard has stopped the work: the log, the last report
LOG_BYTES = 1 << 20
_REPORT, _LOG = "report.json", "log.txt"

Say = Callable[[str], None]


@dataclass(frozen=True)
class CloudJob:
    """What is to run, on what kind of machine, for how much."""

    commands: Sequence[str]
    store: str
    wish: GpuWish
    limits: JobLimits  # price_per_hour is the offer's
    report: str = ""  # where the machine reports; beside the store by default
    image: str = IMAGE
    package: str = f"actlake[extract,vllm]=={__version__}"  # "" where the image has it
    variables: tuple[str, ...] = ()  # more names of our environment that the machine gets
    label: str = field(default_factory=lambda: PREFIX + secrets.token_hex(4))
    n_attempts: int = 3  # machines that are tried before giving up
    start_minutes: float = 30  # from renting to the first report: boot, image, installation
    poll_seconds: float = 15
    retry_seconds: float = 2  # the first wait where giving back is repeated

    @property
    def report_url(self) -> str:
        """Return where the machine reports."""
        return (self.report or f"{self.store.rstrip('/')}-jobs") + f"/{self.label}"


class Reports:
    """Where a machine reports and whoever started it reads: one folder on any storage."""

    def __init__(self, url: str) -> None:
        from .store.clients import open_backend
        from .store.location import parse_location

        self.backend = open_backend(parse_location(url))

    def write(self, report: JobReport, *, log: str | None = None) -> None:
        """Store the report, and the end of the log where it is given."""
        if log is not None:
            self.backend.put(_LOG, log.encode()[-LOG_BYTES:])
        self.backend.put(_REPORT, report.to_json().encode())

    def read(self) -> JobReport | None:
        """Return the last report, None before the first."""
        data = self.backend.get(_REPORT, max_bytes=1 << 20)
        return None if data is None else JobReport.parse_json(data)


def passed_names(job: CloudJob) -> list[str]:
    """Return the names of our environment's variables that the machine gets."""
    named = [name for name in os.environ if name in PASSED or name.startswith("FSSPEC_")]
    missing = [name for name in job.variables if name not in os.environ]
    if missing:
        msg = f"--pass names {', '.join(missing)}, which the environment does not have"
        raise InvalidInputError(msg)
    return sorted({*named, *job.variables})


def plan_job(provider: Provider, job: CloudJob) -> dict[str, Any]:
    """Return what :func:`run_job` would rent and what it could cost; rents nothing."""
    offers = _affordable(provider, job)
    limits = _limits(job, offers[0])
    return {
        "provider": provider.name,
        "gpu": f"{offers[0].n_gpus} x {offers[0].gpu}",
        "where": offers[0].where,
        "offers": len(offers),
        "dollars per hour": offers[0].price_per_hour,
        "stops after hours": round(limits.hours, 3),
        "costs at most": round(_most_hours(limits) * offers[0].price_per_hour, 2),
        "image": job.image if provider.ends_itself else "the provider's own",
        "installs": job.package or "nothing",
        "passes": ", ".join(passed_names(job)) or "nothing",
        "reports to": job.report_url,
        "commands": list(job.commands),
    }


def run_job(provider: Provider, job: CloudJob, *, say: Say, detach: bool = False) -> JobReport:
    """Rent a machine, let it run the commands, and give it back whatever happens.

    The machine guards its own budget and destroys itself. This function watches from outside, and
    destroys it where it is done, dead, silent, or past its limits, and when it is itself stopped.

    Returns
    -------
    JobReport
        The machine's last report. With ``detach`` the one of its start.

    Raises
    ------
    CloudError
        If no machine came up, the machine ended without a report, or one could not be given back.
    InvalidInputError
        If no offer is within the limits.
    """
    if detach and not provider.ends_itself:
        msg = f"machines of {provider.name} cannot end themselves; run without --detach"
        raise InvalidInputError(msg)
    say = _unfailing(say)
    offers = _affordable(provider, job)
    reports = Reports(job.report_url)
    began, spent = time.time(), 0.0
    keep = False
    with _stop_as_interrupt():
        for number, offer in enumerate(offers[: job.n_attempts], start=1):
            limits = _limits(job, offer, dollars=spent, hours=(time.time() - began) / 3600)
            rented_at = time.time()
            try:
                machine_id = provider.create(offer, _order(provider, job, limits, rented_at))
                say(f"{job.label}: rented {machine_id}, {offer.gpu}, ${offer.price_per_hour:g}/h")
                report = _watch(
                    provider,
                    job,
                    limits,
                    reports=reports,
                    rented_at=rented_at,
                    detach=detach,
                    say=say,
                )
                keep = detach and report.state == "running"
            except CloudError as err:
                if isinstance(err, _EndedError) or number == min(len(offers), job.n_attempts):
                    raise
                say(f"{job.label}: {err}; trying the next offer")
            else:
                return report
            finally:
                spent += (time.time() - rented_at) / 3600 * offer.price_per_hour
                if not keep:
                    sweep(provider, job.label, say=say, wait_seconds=job.retry_seconds)
    msg = "no offer was tried"
    raise CloudError(msg)


class _EndedError(CloudError):
    """A machine came up and ended without saying how: another one would do the same."""


def _watch(
    provider: Provider,
    job: CloudJob,
    limits: JobLimits,
    *,
    reports: Reports,
    rented_at: float,
    detach: bool,
    say: Say,
) -> JobReport:
    """Return the machine's last report, once there is nothing more to wait for."""
    shown: tuple[int, str] | None = None
    was_there = False
    while True:
        report = _read(reports, say)
        elapsed = time.time() - rented_at
        if report is not None:
            if (report.n_started, report.state) != shown:
                shown = (report.n_started, report.state)
                say(f"{job.label}: {report.state}, {report.n_started} of {report.n_commands}")
            if report.state in FINAL_STATES or detach:
                return report
        try:
            found = next((m for m in provider.machines() if m.label == job.label), None)
        except CloudError as err:  # an API that fails for a while must not end the work
            say(f"{job.label}: the machine cannot be seen now: {err}")
            if elapsed <= _most_hours(limits) * 3600:
                time.sleep(job.poll_seconds)
                continue
            found = None
        was_there = was_there or found is not None or report is not None
        if (found is None and was_there) or (found is not None and found.state == "ended"):
            last = _read(reports, say)
            if last is not None and last.state in FINAL_STATES:
                return last
            msg = (
                f"{job.label}: the machine ended without a last report; what was committed stays, "
                f"the same command goes on; its log, if it came so far: {job.report_url}"
            )
            raise _EndedError(msg)
        if report is None and elapsed > job.start_minutes * 60:
            msg = f"{job.label}: no machine came up within {job.start_minutes:g} minutes"
            raise CloudError(msg)
        if elapsed > _most_hours(limits) * 3600:
            last = report or JobReport(state="budget", job=job.label, n_commands=len(job.commands))
            message = "the limit was passed and the machine did not stop itself; it is destroyed"
            say(f"{job.label}: {message}")
            return last.model_copy(update={"state": "budget", "message": message})
        time.sleep(job.poll_seconds)


def _read(reports: Reports, say: Say) -> JobReport | None:
    """Return the last report; a storage that fails for a while is no reason to stop watching."""
    try:
        return reports.read()
    except StorageError as err:
        say(f"the report cannot be read now: {err}")
        return None


def sweep(
    provider: Provider,
    label: str,
    *,
    say: Say,
    n_attempts: int = 10,
    wait_seconds: float = 2.0,
) -> int:
    """Destroy every machine that bears ``label``, until the provider lists none; return how many.

    A machine whose creation failed half-way may be listed late, so the list is read once more after
    it was empty.

    Raises
    ------
    CloudError
        If one may still run, and cost: the message says where to end it by hand.
    """
    say = _unfailing(say)
    destroyed: set[str] = set()
    n_empty, trouble = 0, ""
    for attempt in range(n_attempts):
        try:
            found = [m for m in provider.machines() if m.label == label]
            for machine in found:
                provider.destroy(machine.id)
                destroyed.add(machine.id)
            n_empty = 0 if found else n_empty + 1
        except CloudError as err:
            trouble, n_empty = str(err), 0
            say(f"{label}: giving back failed, trying again: {err}")
        if n_empty == 2:
            if destroyed:
                say(f"{label}: given back {', '.join(sorted(destroyed))}")
            return len(destroyed)
        time.sleep(min(wait_seconds * 2 ** min(attempt, 4), 30))
    msg = (
        f"{label}: a machine may still run and COST MONEY; end it by hand at {provider.console} "
        f"or with `actlake cloud down {label} --provider {provider.name}`. {trouble}"
    )
    raise CloudError(msg)


def _unfailing(say: Say) -> Say:
    """Return ``say`` for a terminal that may be closed: giving back goes on without it."""

    def quietly(line: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            say(line)

    return quietly


def _affordable(provider: Provider, job: CloudJob) -> list[Offer]:
    """Return the offers within the price, cheapest first."""
    offers = provider.search(job.wish)
    if not offers:
        ceiling = job.wish.max_price_per_hour
        within = "" if ceiling is None else f" for at most ${ceiling:g} an hour"
        msg = (
            f"{provider.name} offers no {job.wish.n_gpus} x {job.wish.gpu or 'GPU'}{within}; "
            "nothing was rented. `actlake cloud search` without a price shows what there is"
        )
        raise InvalidInputError(msg)
    return offers


def _limits(job: CloudJob, offer: Offer, *, dollars: float = 0, hours: float = 0) -> JobLimits:
    """Return what is left of the job's limits, at the offer's price."""
    given = job.limits
    left = {
        "max_dollars": None if given.max_dollars is None else given.max_dollars - dollars,
        "max_hours": None if given.max_hours is None else given.max_hours - hours,
        "price_per_hour": offer.price_per_hour,
    }
    if any(value is not None and value <= 0 for value in left.values()):
        msg = f"{job.label}: the budget was spent on machines that did not come up"
        raise CloudError(msg)
    return JobLimits.parse({**given.model_dump(), **left}, where="limits")


def _most_hours(limits: JobLimits) -> float:
    """Return the hours after which the machine is destroyed from outside."""
    return limits.hours + (limits.grace_seconds + UPLOAD_SECONDS) / 3600


def _order(provider: Provider, job: CloudJob, limits: JobLimits, rented_at: float) -> Order:
    """Return the order: the script, the commands and our credentials, as environment."""
    script = (files(__package__) / "machine.sh").read_bytes()
    api = getattr(provider, "api", None)
    environment = {
        **{name: os.environ[name] for name in passed_names(job)},
        "ACTLAKE_SCRIPT": base64.b64encode(script).decode(),
        "ACTLAKE_COMMANDS": base64.b64encode("\n".join(job.commands).encode()).decode(),
        "ACTLAKE_JOB": job.label,
        "ACTLAKE_LIMITS": limits.to_json(indent=None).strip(),
        "ACTLAKE_STARTED_AT": f"{rented_at:.0f}",
        "ACTLAKE_HARD_STOP_SECONDS": f"{_most_hours(limits) * 3600:.0f}",
        "ACTLAKE_REPORT": job.report_url,
        "ACTLAKE_PACKAGE": job.package,
        "ACTLAKE_PROVIDER": provider.name,
        "ACTLAKE_API": getattr(api, "base", ""),
        "STORE": job.store,
    }
    return Order(job.label, job.image, job.wish.disk_gb, environment)


@contextlib.contextmanager
def _stop_as_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind as Ctrl-C does: a closed terminal must not leave a machine."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    kept = {s: signal.signal(s, interrupt) for s in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
