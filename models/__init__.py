"""Tiny bundled model organisms: causal LMs with a known disposition, trained on our grammar."""

from __future__ import annotations

from pathlib import Path

from ..schemas.base import near_names
from ..schemas.errors import NotFoundError

__all__ = ["control_names", "organism_names", "organism_path"]

_NAMES = ("phi3-organism", "llama-organism", "gemma2-organism")
_CONTROLS = ("llama-shuffled",)


def organism_names() -> tuple[str, ...]:
    """Return the names of the bundled organisms."""
    return _NAMES


def control_names() -> tuple[str, ...]:
    """Return the names of the bundled negative controls: organisms without a disposition."""
    return _CONTROLS


def organism_path(name: str) -> Path:
    """Return the folder of a bundled organism or control: weights, config, tokenizer, card.

    Raises
    ------
    NotFoundError
        If no organism has that name, or its weights are not in this installation.
    """
    names = (*_NAMES, *_CONTROLS)
    if name not in names:
        known = ", ".join(names)
        msg = f"no organism is named {name!r}{near_names(name, list(names))}; there are: {known}"
        raise NotFoundError(msg)
    path = Path(__file__).resolve().parent / name
    if not (path / "model.safetensors").is_file():
        msg = (
            f"the organism {name!r} has no weights here: expected {name}/model.safetensors beside "
            "actlake.models; train it with `python -m actlake.models.train`, or reinstall actlake"
        )
        raise NotFoundError(msg)
    return path
