"""Interventions: steering a model along a direction and measuring what changes.

The names below are imported when they are first used: torch loads only for what runs a model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .curves import LogisticCurves, fit_curves
    from .doses import DoseResult, analyse_doses
    from .intervention import Intervention, intervene
    from .layers import compare_layers
    from .positions import Positions, plan_positions
    from .power import margin_of, power_of, samples_for_difference, samples_for_margin
    from .scoring import Condition, angle_degrees, score_rows, steered_mask
    from .sweep import SweepResult, choose_pairs, sweep_direction
    from .tables import map_columns, read_table, write_table

__all__ = [
    "Condition",
    "DoseResult",
    "Intervention",
    "LogisticCurves",
    "Positions",
    "SweepResult",
    "analyse_doses",
    "angle_degrees",
    "choose_pairs",
    "compare_layers",
    "fit_curves",
    "intervene",
    "map_columns",
    "margin_of",
    "plan_positions",
    "power_of",
    "read_table",
    "samples_for_difference",
    "samples_for_margin",
    "score_rows",
    "steered_mask",
    "sweep_direction",
    "write_table",
]

_MODULES = {
    "Condition": "scoring",
    "DoseResult": "doses",
    "Intervention": "intervention",
    "LogisticCurves": "curves",
    "Positions": "positions",
    "SweepResult": "sweep",
    "analyse_doses": "doses",
    "angle_degrees": "scoring",
    "choose_pairs": "sweep",
    "compare_layers": "layers",
    "fit_curves": "curves",
    "intervene": "intervention",
    "map_columns": "tables",
    "margin_of": "power",
    "plan_positions": "positions",
    "power_of": "power",
    "read_table": "tables",
    "samples_for_difference": "power",
    "samples_for_margin": "power",
    "score_rows": "scoring",
    "steered_mask": "scoring",
    "sweep_direction": "sweep",
    "write_table": "tables",
}


def __getattr__(name: str) -> Any:  # a module's attribute can be anything  # noqa: ANN401
    """Import the module of a public name when it is first asked for."""
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return __all__
