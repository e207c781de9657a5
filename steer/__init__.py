"""Interventions: steering a model along a direction and measuring what changes.

The names below are imported when they are first used: torch loads only for what runs a model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .choices import ChoiceItem, ChoiceResult, endpoint_ask, force_choices
    from .curves import LogisticCurves, fit_curves
    from .doses import DoseResult, analyse_doses
    from .intervention import Intervention, intervene
    from .judges import Question, judge_texts
    from .layers import compare_layers
    from .model_scores import first_token_kl, perplexities
    from .negative import NegativeResult, contrast_negative
    from .positions import Positions, plan_positions
    from .power import margin_of, power_of, samples_for_difference, samples_for_margin
    from .prevalence import correct_prevalence, rater_agreement
    from .scored_tables import ScoredTable, score_table
    from .scoring import Condition, angle_degrees, score_rows, steered_mask
    from .sweep import SweepResult, choose_pairs, sweep_direction
    from .tables import map_columns, read_table, write_table
    from .task_free import ScenarioResult, contrast_scenarios
    from .text_scores import TextScore, build_scores, score_text

__all__ = [
    "ChoiceItem",
    "ChoiceResult",
    "Condition",
    "DoseResult",
    "Intervention",
    "LogisticCurves",
    "NegativeResult",
    "Positions",
    "Question",
    "ScenarioResult",
    "ScoredTable",
    "SweepResult",
    "TextScore",
    "analyse_doses",
    "angle_degrees",
    "build_scores",
    "choose_pairs",
    "compare_layers",
    "contrast_negative",
    "contrast_scenarios",
    "correct_prevalence",
    "endpoint_ask",
    "first_token_kl",
    "fit_curves",
    "force_choices",
    "intervene",
    "judge_texts",
    "map_columns",
    "margin_of",
    "perplexities",
    "plan_positions",
    "power_of",
    "rater_agreement",
    "read_table",
    "samples_for_difference",
    "samples_for_margin",
    "score_rows",
    "score_table",
    "score_text",
    "steered_mask",
    "sweep_direction",
    "write_table",
]

_MODULES = {
    "ChoiceItem": "choices",
    "ChoiceResult": "choices",
    "Condition": "scoring",
    "DoseResult": "doses",
    "Intervention": "intervention",
    "LogisticCurves": "curves",
    "NegativeResult": "negative",
    "Positions": "positions",
    "Question": "judges",
    "ScenarioResult": "task_free",
    "ScoredTable": "scored_tables",
    "SweepResult": "sweep",
    "TextScore": "text_scores",
    "analyse_doses": "doses",
    "angle_degrees": "scoring",
    "build_scores": "text_scores",
    "choose_pairs": "sweep",
    "compare_layers": "layers",
    "contrast_negative": "negative",
    "contrast_scenarios": "task_free",
    "correct_prevalence": "prevalence",
    "endpoint_ask": "choices",
    "first_token_kl": "model_scores",
    "fit_curves": "curves",
    "force_choices": "choices",
    "intervene": "intervention",
    "judge_texts": "judges",
    "map_columns": "tables",
    "margin_of": "power",
    "perplexities": "model_scores",
    "plan_positions": "positions",
    "power_of": "power",
    "rater_agreement": "prevalence",
    "read_table": "tables",
    "samples_for_difference": "power",
    "samples_for_margin": "power",
    "score_rows": "scoring",
    "score_table": "scored_tables",
    "score_text": "text_scores",
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
