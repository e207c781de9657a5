"""The whole suite over a store: every part of every run, then what compares runs.

A part that fails says why and leaves the others their results. Further parts are one line each in
``RUN_STAGES`` (of one run) or ``STORE_STAGES`` (of several).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .analysis import AnalysisOutcome, analyze_stage, failed
from .analysis_job import AnalysisJob, LeftOutError
from .schemas import CancelledError
from .suite_stages import (
    ablation_stage,
    correlation_stage,
    geometry_stage,
    models_stage,
    similarity_stage,
    transfer_stage,
)

if TYPE_CHECKING:
    from .schemas import AnalysisPart

__all__ = ["LAYERS", "RUN_STAGES", "STORE_STAGES", "analyze_suite", "run_stage"]

LAYERS: tuple[AnalysisPart, ...] = ("probe", "generators", "random", "nulls", "confounds")
RunStage = Callable[[AnalysisJob, str], str]
StoreStage = Callable[[AnalysisJob, Sequence[str]], str]

RUN_STAGES: tuple[tuple[str, RunStage], ...] = (
    ("geometry", geometry_stage),
    ("ablation", ablation_stage),
)
STORE_STAGES: tuple[tuple[str, StoreStage], ...] = (
    ("models", models_stage),
    ("similarity", similarity_stage),
    ("transfer", transfer_stage),
    ("correlation", correlation_stage),
)


def run_stage(stage: Callable[[], str]) -> tuple[str, Exception | None]:
    """Return the state of a stage, and the error if it failed."""
    from .analyze.parts import FAILURES

    try:
        return stage(), None
    except CancelledError:
        raise
    except LeftOutError as why:
        return f"left out: {why}", None
    except FAILURES as err:
        return failed(err), err


def analyze_suite(job: AnalysisJob, runs: Sequence[str]) -> list[AnalysisOutcome]:
    """Run every analysis of ``runs``, and return what became of each part.

    The last outcome, whose run is None, is of the parts that compare runs. What is there under
    the same content and spec is read, not computed.

    Raises
    ------
    NotFoundError
        If a run is not there.
    CancelledError
        If the caller stopped it.
    """
    for run in runs:
        job.store.read_manifest(run)
    outcomes = [_analyze_one(job, run) for run in runs]
    began, states, errors = time.monotonic(), {}, {}
    for name, stage in STORE_STAGES:
        states[name], error = run_stage(lambda stage=stage: stage(job, runs))  # type: ignore[misc]
        if error is not None:
            errors[name] = error
    seconds = round(time.monotonic() - began, 2)
    return [*outcomes, AnalysisOutcome(None, states, seconds, errors)]


def _analyze_one(job: AnalysisJob, run: str) -> AnalysisOutcome:
    """Return what became of the parts of one run."""
    from .analyze.parts import FAILURES

    began = time.monotonic()
    try:
        found = analyze_stage(
            job.store,
            run,
            job.results,
            spec=job.spec,
            parts=LAYERS,
            site=job.site,
            scheduler=job.scheduler,
            memory=job.memory,
            say=job.say,
            bar=job.bar,
        )
        states, errors = dict(found.parts), dict(found.errors)
    except CancelledError:
        raise
    except FAILURES as err:  # such as a run that is not sealed
        states, errors = dict.fromkeys(LAYERS, failed(err)), {"probe": err}
    for name, stage in RUN_STAGES:
        states[name], error = run_stage(lambda stage=stage: stage(job, run))  # type: ignore[misc]
        if error is not None:
            errors[name] = error
    return AnalysisOutcome(run, states, round(time.monotonic() - began, 2), errors)
