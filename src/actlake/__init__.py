"""A streaming activation store plus analysis services for contrastive-concept studies.

``import actlake`` is cheap: the rooms below are imported when they are first used.

>>> import actlake
>>> run = actlake.open_run("s3://bucket/store", "llama-3-8b")  # doctest: +SKIP
>>> run["resid_post_mean_response"].sel(layer=12)  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from . import analyze, corpus, extract, models, schemas, steer, store
    from .schemas import ActlakeError
    from .store import open_run, open_runs, open_store

__all__ = [
    "ActlakeError",
    "__version__",
    "analyze",
    "corpus",
    "extract",
    "models",
    "open_run",
    "open_runs",
    "open_store",
    "schemas",
    "steer",
    "store",
]

_ROOMS = {"analyze", "corpus", "extract", "models", "schemas", "steer", "store"}
_NAMES = {
    "ActlakeError": "schemas",
    "open_run": "store",
    "open_runs": "store",
    "open_store": "store",
}


def __getattr__(name: str) -> Any:  # a module's attribute can be anything  # noqa: ANN401
    """Import a room, or the room of a name, when it is first asked for."""
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    if name in _NAMES:
        return getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return __all__
