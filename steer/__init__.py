"""Interventions: steering a model along a direction and measuring what changes."""

from .aligned import AlignedCase, align_contrasts
from .contrast_directions import fit_contrast_direction
from .intervention import Intervention, intervene
from .layers import compare_layers
from .matched import MatchedResult, compare_with_steering
from .mediation import MediationResult, decompose_effects, mediate, weigh_mediation
from .patched_runs import CaseOutcome, CleanRuns, Patch, PatchCost, run_patches
from .patching import PatchResult, sweep_patches, weigh_sweep
from .positions import Positions, plan_positions
from .scoring import Condition, angle_degrees, score_rows, steered_mask
from .sweep import SweepResult, choose_pairs, sweep_direction

__all__ = [
    "AlignedCase",
    "CaseOutcome",
    "CleanRuns",
    "Condition",
    "Intervention",
    "MatchedResult",
    "MediationResult",
    "Patch",
    "PatchCost",
    "PatchResult",
    "Positions",
    "SweepResult",
    "align_contrasts",
    "angle_degrees",
    "choose_pairs",
    "compare_layers",
    "compare_with_steering",
    "decompose_effects",
    "fit_contrast_direction",
    "intervene",
    "mediate",
    "plan_positions",
    "run_patches",
    "score_rows",
    "steered_mask",
    "sweep_direction",
    "sweep_patches",
    "weigh_mediation",
    "weigh_sweep",
]
