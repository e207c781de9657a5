"""Interventions: steering a model along a direction and measuring what changes."""

from .intervention import Intervention, intervene
from .layers import compare_layers
from .positions import Positions, plan_positions
from .scoring import Condition, angle_degrees, score_rows, steered_mask
from .sweep import SweepResult, choose_pairs, sweep_direction

__all__ = [
    "Condition",
    "Intervention",
    "Positions",
    "SweepResult",
    "angle_degrees",
    "choose_pairs",
    "compare_layers",
    "intervene",
    "plan_positions",
    "score_rows",
    "steered_mask",
    "sweep_direction",
]
