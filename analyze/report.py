"""The report of a study: one HTML file with its findings, figures, numbers and provenance."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from .._version import __version__
from ..schemas import ArmNames, MissingDependencyError
from .report_numbers import RunView, number, pick_views, require_columns, rows_of, string

__all__ = ["ReportInput", "write_report"]

_OPTIONAL = {
    "rows": (
        "site", "cv", "depth", "subset", "reason", "ci_low", "ci_high", "ci_method", "boundary",
        "p_value", "p_value_max", "bow_estimate", "bow_delta", "bow_delta_ci_low",
        "bow_delta_ci_high", "verdict", "n_pairs", "n_scenarios",
    ),
    "null": ("site", "sd_formula", "max_folded", "share_above_95", "share_above_95_folded"),
    "steering": (
        "site", "pool", "method", "layer", "reason", "ci_low", "ci_high", "direction_index",
    ),
    "pca_points": ("scenario", "category", "split"),
    "pca": ("cosine_with_probe", "effective_rank"),
}  # fmt: skip
_NEEDED = {
    "rows": ("analysis", "metric", "estimate", "run", "model", "pool", "layer", "method"),
    "null": ("run", "pool", "layer", "subset", "n_draws", "q025", "q975", "max"),
    "steering": (
        "run", "direction", "estimate", "alpha_raw", "alpha_separation", "alpha_norm",
        "alpha_angle",
    ),
    "pca_points": ("run", "pool", "layer", "text", "pc1", "pc2", "arm", "subset"),
    "pca": ("run", "pool", "layer", "component", "explained_variance_ratio"),
}  # fmt: skip


@dataclass(frozen=True)
class ReportInput:
    """Everything a report is made of; it reads nothing else.

    ``rows`` holds ResultRow columns (analyses ``probe`` and ``bow``), ``null`` the random
    directions' band per run, pool, subset and layer, ``steering`` SteeringRow columns, ``runs``
    the manifests with their seals' digests. An empty table or None means "not run".
    ``selected_layers`` are the layers that inner folds selected, by run and then by
    (pool, method), as ``ProbeResult.selected_layer`` returns them. ``tables`` are those of all
    other stages by name (``patching``, ``ablation_verdicts``), each with a column ``run``; a stage
    that was not run has none.
    """

    title: str
    study: Mapping[str, Any]
    rows: pd.DataFrame
    null: pd.DataFrame | None = None
    pca: pd.DataFrame | None = None
    pca_points: pd.DataFrame | None = None
    steering: pd.DataFrame | None = None
    runs: Sequence[Mapping[str, Any]] = ()
    arm_names: ArmNames | Mapping[str, str] = field(default_factory=ArmNames)
    environment: Mapping[str, Any] = field(default_factory=dict)
    selected_layers: Mapping[str, Mapping[tuple[str, str], int]] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)


def write_report(results: ReportInput, path: Path) -> Path:
    """Return ``path``, to which one self-contained HTML file was written.

    The file loads nothing from anywhere: scripts, styles and a static drawing of every chart are
    inside, and its content security policy forbids the rest. Text from data is only ever shown.

    Raises
    ------
    MissingDependencyError
        If altair or vl-convert-python is not installed.
    InvalidInputError
        If a table lacks a column that the report needs.
    """
    _require_charts()
    from .report_figures import add_auroc, add_pca, add_steering, add_subsets
    from .report_hypotheses import add_hypotheses
    from .report_interventions import add_interventions, judge_report
    from .report_page import Page
    from .report_provenance import add_provenance
    from .report_sections import add_after_auroc, add_after_pca
    from .report_tables import add_findings, add_key_numbers

    rows, null = _table("rows", results.rows), _table("null", results.null)
    steering, pca = _table("steering", results.steering), _table("pca", results.pca)
    points = _table("pca_points", results.pca_points)
    steering = _study_level(steering)
    rows["subset"] = rows["subset"].fillna("all")
    views = pick_views(rows, null, results.study, layers=_selected(results, steering))
    names = results.arm_names
    arms = names.model_dump() if isinstance(names, ArmNames) else dict(names)

    title = results.title or string(results.study.get("title")) or "Study"
    page = Page(title=title, meta=_meta(results, views), version=__version__)
    add_findings(page, views, steering)
    tables = results.tables
    verdicts = judge_report(rows, null, tables=tables, views=views, study=results.study)
    add_hypotheses(page, views, verdicts)
    if views:
        add_subsets(page, views)
        add_auroc(page, views)
        add_after_auroc(page, views, results.tables)
        add_pca(page, views, variance=pca, points=points, arm_names=arms)
        add_after_pca(page, views, results.tables, arm_names=arms)
        add_steering(page, views, steering)
        add_interventions(page, views, tables, verdicts=verdicts)
        add_key_numbers(page, views)
    urls = [u for u in map(string, rows.get("store_url", pd.Series(dtype=object))) if u]
    add_provenance(
        page,
        results.runs,
        study=results.study,
        environment=results.environment,
        store_url=urls[0] if urls else None,
    )
    return _write(page.to_html(), path)


def _require_charts() -> None:
    missing = [name for name in ("altair", "vl_convert") if find_spec(name) is None]
    if missing:
        msg = (
            f"the report draws with altair and vl-convert-python, and {' and '.join(missing)} "
            "cannot be imported: run pip install 'actlake[report]'"
        )
        raise MissingDependencyError(msg)


def _table(name: str, frame: pd.DataFrame | None) -> pd.DataFrame:
    """Return a copy of a table that has every column the report looks at."""
    needed, optional = _NEEDED[name], _OPTIONAL[name]
    if frame is None or (frame.empty and not len(frame.columns)):
        return pd.DataFrame({c: pd.Series(dtype=object) for c in (*needed, *optional)})
    require_columns(frame, name, needed)
    absent = {c: None for c in optional if c not in frame.columns}
    return frame.assign(**absent).reset_index(drop=True)


def _study_level(steering: pd.DataFrame) -> pd.DataFrame:
    """Return the rows over all prompts, of one metric and prompt set."""
    for column, wanted in (("prompt", None), ("metric", None), ("prompt_set", "all")):
        if column not in steering.columns:
            continue
        values = steering[column]
        if column == "prompt":
            steering = steering[values.isna()]
        elif len(steering):
            first = wanted if wanted in set(values) else values.iloc[0]
            steering = steering[values == first]
    return steering


def _selected(
    results: ReportInput, steering: pd.DataFrame
) -> dict[str, dict[tuple[str, str], int]]:
    """Return the selected layers; where none were handed over, those that were steered at."""
    layers = {run: dict(chosen) for run, chosen in results.selected_layers.items()}
    for row in rows_of(steering[steering["layer"].notna() & (steering["direction"] != "random")]):
        of_run = layers.setdefault(str(row["run"]), {})
        of_run.setdefault((str(row["pool"]), str(row["method"])), int(row["layer"]))
    return layers


def _meta(results: ReportInput, views: Sequence[RunView]) -> str:
    """Return one line: how many models, texts, pairs and scenarios."""
    rows = results.rows
    n_models = len({v.run for v in views})
    parts = [f"{n_models} model{'s' if n_models != 1 else ''}"]
    counts = {
        "texts": [number(r.get("n_texts")) for r in results.runs],
        "pairs": [number(x) for x in rows["n_pairs"]] if "n_pairs" in rows else [],
        "scenarios": [number(x) for x in rows["n_scenarios"]] if "n_scenarios" in rows else [],
    }
    for name, values in counts.items():
        known = [v for v in values if v is not None]
        if known:
            parts.append(f"{max(known):.0f} {name}")
    corpora = dict.fromkeys(c for c in (string(r.get("corpus")) for r in results.runs) if c)
    if corpora:
        parts.append(f"corpus {', '.join(corpora)}")
    return " · ".join(parts)


def _write(text: str, path: Path) -> Path:
    """Write ``text`` beside ``path`` and move it there, so that no half report is ever seen."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8", newline="\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path
