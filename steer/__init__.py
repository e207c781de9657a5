"""Interventions: steering a model along a direction and measuring what changes.

The names below are imported when they are first used: torch loads only for what runs a model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .aligned import (
        AlignedCase,
        align_contrasts,
    )
    from .attribution import (
        attribute_patches,
    )
    from .choices import (
        ChoiceItem,
        ChoiceResult,
        endpoint_ask,
        force_choices,
    )
    from .contrast_directions import (
        fit_contrast_direction,
    )
    from .costs import PatchCost
    from .curves import (
        LogisticCurves,
        fit_curves,
    )
    from .doses import (
        DoseResult,
        analyse_doses,
    )
    from .generated_directions import (
        read_generated_directions,
    )
    from .generated_scores import (
        Asked,
        score_generated,
        weigh_scores,
    )
    from .generated_table import (
        condition_cost,
        generate_table,
        prompt_ids,
        read_generated,
    )
    from .generation import (
        Generated,
        GenerateRow,
        RowEngine,
        generate_rows,
    )
    from .intervention import (
        Intervention,
        intervene,
    )
    from .judges import (
        Question,
        judge_texts,
    )
    from .kept import (
        KeptRows,
    )
    from .layers import (
        compare_layers,
        weigh_layers,
    )
    from .main_rows import main_sweep
    from .matched import (
        MatchedResult,
        compare_with_steering,
        weigh_comparison,
    )
    from .mediation import (
        MediationResult,
        decompose_effects,
        mediate,
        weigh_mediation,
    )
    from .model_scores import (
        first_token_kl,
        perplexities,
        table_perplexities,
    )
    from .negative import (
        NegativeResult,
        contrast_negative,
    )
    from .patched_runs import (
        CaseOutcome,
        CleanRuns,
        Patch,
        run_patches,
    )
    from .patching import (
        PatchResult,
        sweep_patches,
        weigh_sweep,
    )
    from .positions import (
        Positions,
        plan_positions,
    )
    from .power import (
        margin_of,
        power_of,
        samples_for_difference,
        samples_for_margin,
    )
    from .prevalence import (
        correct_prevalence,
        rater_agreement,
    )
    from .prompting import (
        prompt_baseline,
        weigh_prompts,
    )
    from .scored_tables import (
        ScoredTable,
        score_table,
    )
    from .scoring import (
        Condition,
        angle_degrees,
        score_rows,
        steered_mask,
    )
    from .steered_choices import (
        model_choices,
    )
    from .sweep import (
        SweepResult,
        choose_pairs,
        sweep_direction,
        weigh_direction,
    )
    from .tables import (
        map_columns,
        read_table,
        write_table,
    )
    from .task_free import (
        ScenarioResult,
        contrast_scenarios,
    )
    from .text_scores import (
        TextScore,
        build_scores,
        score_text,
    )
    from .transfer import (
        TransferResult,
        compare_transfer,
        weigh_transfer,
    )
    from .vllm_engine import (
        VllmSteering,
    )

__all__ = [
    "AlignedCase",
    "Asked",
    "CaseOutcome",
    "ChoiceItem",
    "ChoiceResult",
    "CleanRuns",
    "Condition",
    "DoseResult",
    "GenerateRow",
    "Generated",
    "Intervention",
    "KeptRows",
    "LogisticCurves",
    "MatchedResult",
    "MediationResult",
    "NegativeResult",
    "Patch",
    "PatchCost",
    "PatchResult",
    "Positions",
    "Question",
    "RowEngine",
    "ScenarioResult",
    "ScoredTable",
    "SweepResult",
    "TextScore",
    "TransferResult",
    "VllmSteering",
    "align_contrasts",
    "analyse_doses",
    "angle_degrees",
    "attribute_patches",
    "build_scores",
    "choose_pairs",
    "compare_layers",
    "compare_transfer",
    "compare_with_steering",
    "condition_cost",
    "contrast_negative",
    "contrast_scenarios",
    "correct_prevalence",
    "decompose_effects",
    "endpoint_ask",
    "first_token_kl",
    "fit_contrast_direction",
    "fit_curves",
    "force_choices",
    "generate_rows",
    "generate_table",
    "intervene",
    "judge_texts",
    "main_sweep",
    "map_columns",
    "margin_of",
    "mediate",
    "model_choices",
    "perplexities",
    "plan_positions",
    "power_of",
    "prompt_baseline",
    "prompt_ids",
    "rater_agreement",
    "read_generated",
    "read_generated_directions",
    "read_table",
    "run_patches",
    "samples_for_difference",
    "samples_for_margin",
    "score_generated",
    "score_rows",
    "score_table",
    "score_text",
    "steered_mask",
    "sweep_direction",
    "sweep_patches",
    "table_perplexities",
    "weigh_comparison",
    "weigh_direction",
    "weigh_layers",
    "weigh_mediation",
    "weigh_prompts",
    "weigh_scores",
    "weigh_sweep",
    "weigh_transfer",
    "write_table",
]

_MODULES = {
    "AlignedCase": "aligned",
    "Asked": "generated_scores",
    "CaseOutcome": "patched_runs",
    "ChoiceItem": "choices",
    "ChoiceResult": "choices",
    "CleanRuns": "patched_runs",
    "Condition": "scoring",
    "DoseResult": "doses",
    "GenerateRow": "generation",
    "Generated": "generation",
    "Intervention": "intervention",
    "KeptRows": "kept",
    "LogisticCurves": "curves",
    "MatchedResult": "matched",
    "MediationResult": "mediation",
    "NegativeResult": "negative",
    "Patch": "patched_runs",
    "PatchCost": "costs",
    "PatchResult": "patching",
    "Positions": "positions",
    "Question": "judges",
    "RowEngine": "generation",
    "ScenarioResult": "task_free",
    "ScoredTable": "scored_tables",
    "SweepResult": "sweep",
    "TextScore": "text_scores",
    "VllmSteering": "vllm_engine",
    "TransferResult": "transfer",
    "align_contrasts": "aligned",
    "analyse_doses": "doses",
    "angle_degrees": "scoring",
    "attribute_patches": "attribution",
    "build_scores": "text_scores",
    "choose_pairs": "sweep",
    "compare_layers": "layers",
    "compare_transfer": "transfer",
    "compare_with_steering": "matched",
    "condition_cost": "generated_table",
    "contrast_negative": "negative",
    "contrast_scenarios": "task_free",
    "correct_prevalence": "prevalence",
    "decompose_effects": "mediation",
    "endpoint_ask": "choices",
    "first_token_kl": "model_scores",
    "fit_contrast_direction": "contrast_directions",
    "fit_curves": "curves",
    "force_choices": "choices",
    "generate_rows": "generation",
    "generate_table": "generated_table",
    "intervene": "intervention",
    "judge_texts": "judges",
    "main_sweep": "main_rows",
    "map_columns": "tables",
    "margin_of": "power",
    "mediate": "mediation",
    "model_choices": "steered_choices",
    "perplexities": "model_scores",
    "plan_positions": "positions",
    "power_of": "power",
    "prompt_baseline": "prompting",
    "prompt_ids": "generated_table",
    "rater_agreement": "prevalence",
    "read_generated": "generated_table",
    "read_generated_directions": "generated_directions",
    "read_table": "tables",
    "run_patches": "patched_runs",
    "samples_for_difference": "power",
    "samples_for_margin": "power",
    "score_generated": "generated_scores",
    "score_rows": "scoring",
    "score_table": "scored_tables",
    "score_text": "text_scores",
    "steered_mask": "scoring",
    "sweep_direction": "sweep",
    "sweep_patches": "patching",
    "table_perplexities": "model_scores",
    "weigh_comparison": "matched",
    "weigh_direction": "sweep",
    "weigh_layers": "layers",
    "weigh_mediation": "mediation",
    "weigh_prompts": "prompting",
    "weigh_scores": "generated_scores",
    "weigh_sweep": "patching",
    "weigh_transfer": "transfer",
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
