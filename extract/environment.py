"""The software and hardware that a run was made with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from .._version import __version__
from ..schemas import EnvironmentInfo

__all__ = ["describe_environment"]

_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "zarr", "numcodecs")


def describe_environment() -> EnvironmentInfo:
    """Return versions and hardware, without the host's name or anyone's paths."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return EnvironmentInfo(
        actlake=__version__,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        packages=packages,
        hardware=_hardware(),
        n_threads=torch.get_num_threads(),
    )


def _hardware() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return platform.processor() or platform.machine()
