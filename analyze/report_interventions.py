"""The report's interventions, section by section, and the hypotheses that they answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from .hypotheses import HypothesisVerdict
from .hypothesis_tables import judge_study, study_tables
from .report_doses import add_doses
from .report_matched import add_matched
from .report_mediation import add_mediation
from .report_numbers import RunView
from .report_page import Page
from .report_patching import add_patching
from .report_samples import add_samples
from .report_shifts import add_negative, add_task_free
from .report_statements import label_runs
from .report_steer_transfer import add_steer_transfer

__all__ = ["add_interventions", "judge_report"]


def judge_report(
    rows: pd.DataFrame,
    null: pd.DataFrame,
    *,
    tables: Mapping[str, pd.DataFrame],
    views: Sequence[RunView],
    study: Mapping[str, Any],
) -> list[HypothesisVerdict]:
    """Return the verdicts on the plan's hypotheses, per model."""
    return judge_study(
        study_tables(rows, null, tables, views=views), list(label_runs(views)), study
    )


def add_interventions(
    page: Page,
    views: Sequence[RunView],
    tables: Mapping[str, pd.DataFrame],
    *,
    verdicts: Sequence[HypothesisVerdict] = (),
) -> None:
    """Add a section for every intervention whose table is there, in the order of the plan."""
    labels = label_runs(views)
    add_patching(page, tables, labels)
    add_matched(page, tables, labels, verdicts=verdicts)
    add_mediation(page, tables, labels)
    add_doses(page, tables, labels)
    add_negative(page, tables, labels)
    add_task_free(page, tables, labels)
    add_steer_transfer(page, tables, labels)
    add_samples(page, tables, labels)
