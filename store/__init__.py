"""Opening, creating, writing, committing, sealing and verifying a store.

The names below are imported when they are first used: zarr and xarray load only for them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .aligned import open_runs
    from .appending import Append, finish_append, new_texts, plan_append
    from .block_claims import BlockClaimedError
    from .blocks import block_bytes
    from .card import write_card
    from .catalog import read_catalog
    from .coordinates import text_coords
    from .environment import describe_environment
    from .heads import split_heads
    from .importing import PreparedImport, import_run, prepare_import
    from .layout import rows_per_block
    from .notes import finite_texts
    from .parts import content_digest, corpus_digest, part_names, read_texts, run_of, sealed_parts
    from .progress import RunProgress, run_progress
    from .reader import open_run
    from .repair import RepairPlan, apply_repair, plan_repair
    from .shared_results import fetch_result, find_result, publish_result, stored_results
    from .store import Store, create_store, open_store, preview_store
    from .tokens import plan_token_axis, rows_within_bytes
    from .transfer import Transfer, pull, push
    from .verification import Fault, VerifyReport, verify_run
    from .writer import RunWriter

__all__ = [
    "Append",
    "BlockClaimedError",
    "Fault",
    "PreparedImport",
    "RepairPlan",
    "RunProgress",
    "RunWriter",
    "Store",
    "Transfer",
    "VerifyReport",
    "apply_repair",
    "block_bytes",
    "content_digest",
    "corpus_digest",
    "create_store",
    "describe_environment",
    "fetch_result",
    "find_result",
    "finish_append",
    "finite_texts",
    "import_run",
    "new_texts",
    "open_run",
    "open_runs",
    "open_store",
    "part_names",
    "plan_append",
    "plan_repair",
    "plan_token_axis",
    "prepare_import",
    "preview_store",
    "publish_result",
    "pull",
    "push",
    "read_catalog",
    "read_texts",
    "rows_per_block",
    "rows_within_bytes",
    "run_of",
    "run_progress",
    "sealed_parts",
    "split_heads",
    "stored_results",
    "text_coords",
    "verify_run",
    "write_card",
]

_MODULES = {
    "Append": "appending",
    "BlockClaimedError": "block_claims",
    "Fault": "verification",
    "PreparedImport": "importing",
    "RepairPlan": "repair",
    "RunProgress": "progress",
    "RunWriter": "writer",
    "Store": "store",
    "Transfer": "transfer",
    "VerifyReport": "verification",
    "apply_repair": "repair",
    "block_bytes": "blocks",
    "content_digest": "parts",
    "corpus_digest": "parts",
    "create_store": "store",
    "describe_environment": "environment",
    "fetch_result": "shared_results",
    "find_result": "shared_results",
    "finish_append": "appending",
    "finite_texts": "notes",
    "import_run": "importing",
    "new_texts": "appending",
    "open_run": "reader",
    "open_runs": "aligned",
    "open_store": "store",
    "part_names": "parts",
    "plan_append": "appending",
    "plan_repair": "repair",
    "plan_token_axis": "tokens",
    "prepare_import": "importing",
    "preview_store": "store",
    "publish_result": "shared_results",
    "pull": "transfer",
    "push": "transfer",
    "read_catalog": "catalog",
    "read_texts": "parts",
    "rows_per_block": "layout",
    "rows_within_bytes": "tokens",
    "run_of": "parts",
    "run_progress": "progress",
    "sealed_parts": "parts",
    "split_heads": "heads",
    "stored_results": "shared_results",
    "text_coords": "coordinates",
    "verify_run": "verification",
    "write_card": "card",
}


def __getattr__(name: str) -> Any:  # a module's attribute can be anything  # noqa: ANN401
    """Import the module of a public name when it is first asked for."""
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return __all__
