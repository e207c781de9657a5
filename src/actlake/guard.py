"""Commands under a budget: when it is spent, they are stopped as Ctrl-C would stop them."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from .schemas import InvalidInputError, JobLimits, JobReport, JobState

__all__ = ["hide_secrets", "read_commands", "run_guarded"]

POLL_SECONDS = 0.2
REPORT_SECONDS = 60
IDLE_SHARE = 0.01  # of one processor: below it nothing is being done
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)


def read_commands(path: Path) -> list[str]:
    """Return the shell commands of a file: one per line, backslashes join, ``#`` comments.

    Raises
    ------
    InvalidInputError
        If the file cannot be read or holds no command.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        msg = f"the commands in {path} cannot be read: {err}"
        raise InvalidInputError(msg) from err
    lines = re.sub(r"[ \t]*\\\n\s*", " ", text).splitlines()
    commands = [
        line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")
    ]
    if not commands:
        msg = f"{path} holds no command; expected one per line"
        raise InvalidInputError(msg)
    return commands


def run_guarded(
    commands: Sequence[str],
    limits: JobLimits,
    *,
    job: str = "",
    started_at: float | None = None,
    report: Callable[[JobReport], None] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> JobReport:
    """Run shell commands one after another until they are done or a limit is reached.

    A command that fails does not keep the next ones from running. At a limit the command at work
    gets SIGINT, which actlake answers by storing what it has; what still runs after
    ``grace_seconds`` is killed. SIGTERM, SIGHUP and Ctrl-C to this process do the same.

    Parameters
    ----------
    started_at
        When the machine began to cost, as seconds since 1970; now by default. What was spent
        before the first command counts.
    report
        Is called with the state now and again, and at the end.
    """
    began = time.time() if started_at is None else started_at
    deadline = began + limits.hours * 3600
    failed: list[int] = []

    def now(state: JobState, number: int, message: str = "") -> JobReport:
        seconds = time.time() - began
        price = limits.price_per_hour
        done = JobReport(
            job=job,
            state=state,
            n_commands=len(commands),
            n_started=number,
            failed=tuple(failed),
            command=commands[number - 1] if number else "",
            seconds=round(seconds, 1),
            dollars=None if price is None else round(seconds / 3600 * price, 4),
            message=message,
        )
        if report is not None:
            report(done)
        return done

    with _stop_signals() as stop:
        for number, command in enumerate(commands, start=1):
            if time.time() >= deadline:
                return now("budget", number - 1, "the budget was spent before the next command")
            say(f"[{number}/{len(commands)}] {command}")
            now("running", number)
            code, ended = _run_one(
                command,
                limits,
                deadline=deadline,
                stop=stop,
                beat=functools.partial(now, "running", number),
            )
            if ended is not None:
                message = {
                    "budget": f"stopped after {limits.hours:.3g} h: the budget is spent",
                    "idle": f"stopped: nothing was done for {limits.idle_minutes:g} minutes",
                }.get(ended, "stopped from outside")
                say(message)
                return now(ended, number, message)
            if code:
                failed.append(number)
                say(f"[{number}/{len(commands)}] failed with exit code {code}")
        if failed:
            return now("failed", len(commands), f"{len(failed)} of {len(commands)} commands failed")
        return now("done", len(commands))


def _run_one(
    command: str,
    limits: JobLimits,
    *,
    deadline: float,
    stop: threading.Event,
    beat: Callable[[], object],
) -> tuple[int, JobState | None]:
    """Run one command; return its exit code and, where it was stopped, why."""
    process = subprocess.Popen(
        ["bash", "-c", command],
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # its own group: one signal reaches whatever it started
    )
    idle_since, spent, next_beat = time.time(), 0.0, time.time() + REPORT_SECONDS
    reason: JobState | None = None
    try:
        while reason is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=POLL_SECONDS), None
            at = time.time()
            seconds = _session_seconds(process.pid)
            if seconds is None or abs(seconds - spent) > IDLE_SHARE * (at - idle_since) + 0.01:
                idle_since, spent = at, seconds or 0.0
            if at >= next_beat:
                beat()
                next_beat = at + REPORT_SECONDS
            if stop.is_set():
                reason = "interrupted"
            elif at >= deadline:
                reason = "budget"
            elif at - idle_since > limits.idle_minutes * 60:
                reason = "idle"
    finally:
        code = _end(process, grace_seconds=limits.grace_seconds)
    return code, reason


def _end(process: subprocess.Popen[bytes], *, grace_seconds: float) -> int:
    """Stop a command's whole group: SIGINT, and after the grace SIGKILL."""
    for sent, seconds in ((signal.SIGINT, grace_seconds), (signal.SIGKILL, 10.0)):
        if process.poll() is not None and sent == signal.SIGINT:
            break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sent)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=seconds)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what the command left behind
    return process.returncode if process.returncode is not None else -signal.SIGKILL


def _session_seconds(session: int) -> float | None:
    """Return the processor seconds of a session's living processes; None without ``/proc``."""
    proc = Path("/proc")
    if not proc.is_dir():
        return None
    ticks = 0
    for path in proc.glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # proc(5): after the name in parentheses: state ppid pgrp session ...; 14, 15 are times
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Give an event that SIGINT, SIGTERM and SIGHUP set instead of ending this process."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python lets only the main thread take signals
        return

    def note(number: int, frame: FrameType | None) -> None:
        del number, frame
        stop.set()

    kept = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield stop
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def hide_secrets(text: str) -> str:
    """Return ``text`` without the values of environment variables that look like credentials."""
    values = [v for name, v in os.environ.items() if _SECRET.search(name) and len(v) > 5]
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, "***")
    return text
