"""Interventions: steering a model along a direction and measuring what changes."""

from .intervention import Addition, intervene
from .layers import compare_layers
from .scoring import Condition, angle_degrees, score_rows, steered_mask
from .sweep import SweepResult, choose_pairs, sweep_direction

__all__ = [
    "Addition",
    "Condition",
    "SweepResult",
    "angle_degrees",
    "choose_pairs",
    "compare_layers",
    "intervene",
    "score_rows",
    "steered_mask",
    "sweep_direction",
]
