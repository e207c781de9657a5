"""The report's sections on a study's further analyses, in the order of the story."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from .report_ablation import add_ablation
from .report_confounds import add_confounds
from .report_geometry import add_geometry, add_tsne
from .report_nulls import add_depth, add_nulls
from .report_numbers import RunView
from .report_page import Page
from .report_transfer import add_similarity, add_transfer

__all__ = ["add_after_auroc", "add_after_pca"]


def add_after_auroc(
    page: Page, views: Sequence[RunView], tables: Mapping[str, pd.DataFrame]
) -> None:
    """Add what the AUROC is worth: by depth across models, beside nulls, confounds and words."""
    add_depth(page, views)
    add_nulls(page, views, tables)
    add_confounds(page, views, tables)
    add_ablation(page, views, tables)


def add_after_pca(
    page: Page,
    views: Sequence[RunView],
    tables: Mapping[str, pd.DataFrame],
    *,
    arm_names: Mapping[str, str],
) -> None:
    """Add the geometry of the directions, and what the models have in common."""
    add_tsne(page, views, tables, arm_names=arm_names)
    add_geometry(page, views, tables)
    add_similarity(page, views, tables)
    add_transfer(page, views, tables)
