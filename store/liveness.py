"""Whether the process that wrote a record still lives."""

from __future__ import annotations

import hashlib
import os
import socket
from contextlib import suppress
from functools import cache
from pathlib import Path

__all__ = ["is_running", "machine_id", "process_start"]


@cache
def machine_id() -> str:
    """Return what tells this running system from any other: no name, a hash.

    Containers of one host differ by their process namespace, and a boot by its own id: pids
    mean something only within both.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    processes = Path("/proc/self/ns/pid")
    parts = [socket.gethostname()]
    with suppress(OSError):  # only Linux has these
        parts += [boot.read_text(), str(processes.readlink())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def process_start(pid: int) -> str:
    """Return when a process started (Linux: clock ticks after the boot), or an empty string."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    # proc_pid_stat(5): field 22, counted after the name, which may hold spaces and brackets.
    return text.rpartition(")")[2].split()[19]


def is_running(pid: int, *, started: str = "") -> bool:
    """Return whether the process ``pid`` of this machine runs and is the one meant."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it runs as somebody else
    except OverflowError:
        return False
    now = process_start(pid)
    return not (started and now and started != now)
