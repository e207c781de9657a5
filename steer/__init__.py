"""Interventions: steering a model along a direction and measuring what changes."""

from .aligned import AlignedCase, align_contrasts
from .attribution import attribute_patches
from .contrast_directions import fit_contrast_direction
from .generated_table import condition_cost, generate_table, prompt_ids, read_generated
from .generation import Generated, GenerateRow, generate_rows
from .intervention import Intervention, intervene
from .layers import compare_layers
from .matched import MatchedResult, compare_with_steering, weigh_comparison
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
    "GenerateRow",
    "Generated",
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
    "attribute_patches",
    "choose_pairs",
    "compare_layers",
    "compare_with_steering",
    "condition_cost",
    "decompose_effects",
    "fit_contrast_direction",
    "generate_rows",
    "generate_table",
    "intervene",
    "mediate",
    "plan_positions",
    "prompt_ids",
    "read_generated",
    "run_patches",
    "score_rows",
    "steered_mask",
    "sweep_direction",
    "sweep_patches",
    "weigh_comparison",
    "weigh_mediation",
    "weigh_sweep",
]
