"""Opening, creating, writing, committing, sealing and verifying a store.

The names below are imported when they are first used: zarr and xarray load only for them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .catalog import read_catalog
    from .environment import describe_environment
    from .layout import rows_per_block
    from .reader import open_run
    from .store import Store, create_store, open_store
    from .verification import Fault, VerifyReport, verify_run
    from .writer import RunWriter

__all__ = [
    "Fault",
    "RunWriter",
    "Store",
    "VerifyReport",
    "create_store",
    "describe_environment",
    "open_run",
    "open_store",
    "read_catalog",
    "rows_per_block",
    "verify_run",
]

_MODULES = {
    "Fault": "verification",
    "RunWriter": "writer",
    "Store": "store",
    "VerifyReport": "verification",
    "create_store": "store",
    "describe_environment": "environment",
    "open_run": "reader",
    "open_store": "store",
    "read_catalog": "catalog",
    "rows_per_block": "layout",
    "verify_run": "verification",
}


def __getattr__(name: str) -> Any:  # a module's attribute can be anything  # noqa: ANN401
    """Import the module of a public name when it is first asked for."""
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return __all__
