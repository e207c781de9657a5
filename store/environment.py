"""The software and hardware that something was made with."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .._version import __version__
from ..schemas import EnvironmentInfo

__all__ = ["describe_environment"]


def describe_environment(
    packages: Sequence[str], *, hardware: str | None = None, n_threads: int | None = None
) -> EnvironmentInfo:
    """Return versions and hardware, without the host's name or anyone's paths.

    Parameters
    ----------
    packages
        Distributions whose versions matter; one that is not installed is left out.
    hardware
        None takes the processor's name.
    n_threads
        None takes the number of processors.
    """
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return EnvironmentInfo(
        actlake=__version__,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        packages=found,
        hardware=hardware or _processor(),
        n_threads=n_threads or os.cpu_count(),
    )


def _processor() -> str:
    """Return the processor's name: platform.processor() is empty or an architecture on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
