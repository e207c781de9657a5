"""The report of a folder of results: which tables it shows, and where they lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .schemas import NotFoundError
from .stages import Results

if TYPE_CHECKING:
    import pandas as pd

    from .analyze.report import ReportInput

__all__ = ["read_steering", "read_tables", "report_input", "report_stage"]

_TABLES = {
    "nulls": ("nulls", "bands"),
    "confounds": ("confounds",),
    "ablation": ("ablation", "ablation_draws", "ablation_verdicts", "ablation_words"),
    "geometry": ("geometry", "geometry_points", "tsne"),
    "similarity": ("similarity",),
    "transfer": ("transfer",),
    "patch": ("patching",),
    "mediate": ("mediation",),
    "match": ("matched",),
    "doses": ("doses", "doses-verdicts"),
    "negative": ("negative", "negative-verdicts"),
    "task_free": ("task-free", "task-free-verdicts"),
    "texts": ("scored",),
    "steer_transfer": ("steer-transfer",),
}
_PACKAGES = ("numpy", "scipy", "scikit-learn", "pandas", "xarray", "dask", "zarr")
_OF_SUITE = "analyze-"  # the suite's parts are kept under names of their own

Wanted = Callable[[str, str], bool]  # of a subject and a stage


def read_steering(results: Results, run: str) -> pd.DataFrame:
    """Return what a summary shows of a sweep: one direction and its random placebos."""
    import pandas as pd

    from .steer import main_sweep

    return main_sweep(pd.read_parquet(results.stage(run, "steer") / "steering.parquet"))


def read_tables(results: Results, *, wanted: Wanted = lambda *_: True) -> dict[str, pd.DataFrame]:
    """Return the tables of the finished stages by name, those of several subjects in one.

    A table without a column ``run`` gets the subject's name there: a run, two runs
    (``source--target``), or ``study`` where the stage is of all.
    """
    import pandas as pd

    found: dict[str, list[pd.DataFrame]] = {}
    for subject, stage in results.finished():
        for name in _TABLES.get(stage.removeprefix(_OF_SUITE), ()):
            path = results.stage(subject, stage) / f"{name}.parquet"
            if wanted(subject, stage) and path.exists():
                table = pd.read_parquet(path)
                table = table if "run" in table else table.assign(run=subject)
                found.setdefault(name, []).append(table)
        record = results.stage(subject, stage) / "steer-transfer.json"
        if stage == "steer_transfer" and wanted(subject, stage) and record.exists():
            found.setdefault("steer-transfer-verdicts", []).append(_verdicts(record, subject))
    return {name: pd.concat(tables, ignore_index=True) for name, tables in found.items()}


def _verdicts(record: Path, subject: str) -> pd.DataFrame:
    """Return what a transfer of steering concluded, with the runs of its source and its target."""
    import pandas as pd

    source, _, target = subject.partition("--")
    verdicts = json.loads(record.read_text(encoding="utf-8")).get("verdicts", [])
    return pd.DataFrame(verdicts).assign(run=target, source_run=source)


def report_input(
    results: Results, *, title: str = "", wanted: Wanted = lambda *_: True
) -> ReportInput:
    """Return what a report shows of the runs that were probed, and of all other stages.

    Parameters
    ----------
    results
        The folder of results.
    title
        Of the report; by default that of the study.
    wanted
        Says of a subject and a stage whether its results are shown.

    Raises
    ------
    NotFoundError
        If no run has probe results.
    """
    import pandas as pd

    from .analyze import load_pca_result, load_probe_result
    from .analyze.report import ReportInput
    from .store import describe_environment

    chosen = [run for run in results.runs() if wanted(run, "probe")]
    if not chosen:
        msg = f"{results.folder}: no probe results here; run `actlake probe` first"
        raise NotFoundError(msg)
    rows, null, pca, points, steering, provenance = [], [], [], [], [], []
    selected = {}
    for run in chosen:
        probe = load_probe_result(results.stage(run, "probe"))
        rows.append(probe.rows)
        null.append(probe.null)
        selected[run] = probe.selected_layer
        if results.key(run, "pca") is not None and wanted(run, "pca"):
            found = load_pca_result(results.stage(run, "pca"))
            pca.append(found.rows)
            points.append(found.points)
        if results.key(run, "steer") is not None and wanted(run, "steer"):
            steering.append(read_steering(results, run))
        provenance.append(json.loads((results.stage(run, "probe") / "provenance.json").read_text()))
    study_file = results.folder / "study.json"
    study = json.loads(study_file.read_text()) if study_file.exists() else {}
    return ReportInput(
        title=title or study.get("title") or "actlake report",
        study=study,
        rows=pd.concat(rows, ignore_index=True),
        null=pd.concat(null, ignore_index=True),
        pca=pd.concat(pca, ignore_index=True) if pca else None,
        pca_points=pd.concat(points, ignore_index=True) if points else None,
        steering=pd.concat(steering, ignore_index=True) if steering else None,
        runs=provenance,
        arm_names=provenance[0]["arms"],
        environment=describe_environment(_PACKAGES).model_dump(),
        selected_layers=selected,
        tables=read_tables(results, wanted=wanted),
    )


def report_stage(
    results: Results, path: Path, *, title: str = "", wanted: Wanted = lambda *_: True
) -> Path:
    """Write the report of :func:`report_input`; return its path."""
    from .analyze.report import write_report

    return write_report(report_input(results, title=title, wanted=wanted), path)
