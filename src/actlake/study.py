"""A whole study: its stages in order, skipping what is done, ending with the report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .graph import Graph, Outcome, Place, Task
from .reporting import read_steering, report_stage
from .schemas import SteerSpec, StudyFile
from .stages import Results, load_corpus, load_scenarios
from .study_files import load_study
from .study_tasks import StudyParts, study_graph

if TYPE_CHECKING:
    import pandas as pd


__all__ = [
    "StudyOutcome",
    "load_study",
    "open_study",
    "run_study",
    "summarise",
]


@dataclass(frozen=True)
class StudyOutcome:
    """Where a study's results are, its summary (one plain dict per model), and its tasks' ends."""

    store_url: str
    results: Path
    report: Path | None  # None where no model was probed
    summary: list[dict[str, Any]]
    outcomes: list[Outcome]
    seconds: float

    @property
    def unfinished(self) -> list[Outcome]:
        """The tasks that failed, or wait for others."""
        return [outcome for outcome in self.outcomes if outcome.state in {"failed", "waits"}]


def open_study(
    study: StudyFile,
    *,
    out: Path,
    store_url: str | None = None,
    base: Path | None = None,
    write: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> Graph:
    """Return the tasks of a study; its store is made where there is none.

    Parameters
    ----------
    study
        What is to be run.
    out
        Folder for ``results/``, ``report.html`` and, unless ``store_url`` says otherwise,
        ``store/``.
    store_url
        Any fsspec URL; machines that share it share what is done.
    base
        Folder that relative paths in the study file are taken from.
    write
        Whether the store is made where there is none, and the study noted beside its results.
    say
        Called with lines of progress.

    Raises
    ------
    ActlakeError
        If the corpus or the store cannot be read.
    """
    from .store import create_store, preview_store

    info, texts = load_corpus(study.corpus, base=base)
    url, results = store_url or str(out / "store"), Results(out / "results")
    if write:
        results.folder.mkdir(parents=True, exist_ok=True)
        (results.folder / "study.json").write_text(study.to_json())
    store = create_store(url) if write else preview_store(url)
    parts = StudyParts(
        study=study,
        store=store,
        results=results,
        info=info,
        texts=texts,
        scenarios=load_scenarios(study.corpus.source, study.corpus.scenarios, base=base),
        say=say,
    )
    say(f"corpus {info.id}: {info.n_texts} texts, {info.n_pairs} pairs; store {store.url}")
    return study_graph(parts)


def run_study(
    study: StudyFile,
    *,
    out: Path,
    store_url: str | None = None,
    base: Path | None = None,
    only: Sequence[str] = (),
    until: str | None = None,
    where: Place | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> StudyOutcome:
    """Run the stages of a study that are not done yet and write its report.

    A stage that fails stops only what needs it; the outcomes say why. The report is of the models
    that were probed, and is not written where none was.

    Parameters
    ----------
    study, out, store_url, base, say
        See :func:`open_study`.
    only, until, where
        See :meth:`Graph.select`.

    Raises
    ------
    ActlakeError
        If the corpus, the store or the study's models cannot be read, before anything is run.
    InvalidInputError
        If a stage is unknown.
    """
    began = time.monotonic()
    graph = open_study(study, out=out, store_url=store_url, base=base, say=say)
    results = graph.results
    chosen = graph.select(only=only, until=until, where=where)
    _check_models(graph, chosen)
    outcomes = graph.carry_out(chosen, say=say)
    shown = {(task.subject, task.stage) for task in graph.bring_finished()}
    runs = [m.run_name for m in study.models if (m.run_name, "probe") in shown]
    report, summary = None, []
    if runs:
        report = report_stage(
            results, out / "report.html", title=study.title, wanted=lambda *of: of in shown
        )
        summary = [summarise(results, run, steer=study.steer) for run in runs]
        (results.folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return StudyOutcome(
        store_url=graph.store.url,
        results=results.folder,
        report=report,
        summary=summary,
        outcomes=outcomes,
        seconds=round(time.monotonic() - began, 1),
    )


def _check_models(graph: Graph, tasks: Sequence[Task]) -> None:
    """Plan every extraction that is to be run, so that a wrong model costs no time of others."""
    for task in tasks:
        if task.stage == "extract" and task.cost is not None and not graph.is_done(task):
            ready = all(graph.is_done(graph.task(need)) for need in task.needs)
            if ready:
                task.cost()


def summarise(results: Results, run: str, *, steer: SteerSpec) -> dict[str, Any]:
    """Return the figures of one run that a reader asks for first, as plain values.

    ``auroc`` is the nested estimate of the diff-of-means probe (layer chosen inside the training
    scenarios); ``bow`` the bag of words on the same texts; ``random_max`` the best of the
    isotropic directions at the selected layer; ``steer_effect`` half the change of the log-prob
    difference between +1 and -1 class separations [nats/token], ``steer_random_max`` the
    largest of the random directions' and ``steer_vs_random`` the ratio to their mean (both of
    absolute values).
    """
    from .analyze import load_probe_result

    probe = load_probe_result(results.stage(run, "probe"))
    pools = probe.rows["pool"].dropna()
    pool: str = steer.pool if steer.pool in set(pools) else str(pools.iloc[0])
    method = "diff_means" if (pool, "diff_means") in probe.selected_layer else "logistic"
    layers = sorted(probe.rows["layer"].dropna().unique())
    layer = probe.selected_layer.get((pool, method), int(layers[len(layers) // 2]))
    mine = probe.rows[(probe.rows["pool"] == pool) & (probe.rows["method"] == method)]
    at_layer = mine[(mine["layer"] == layer) & (mine["metric"] == "auroc")]
    out: dict[str, Any] = {"run": run, "pool": pool, "layer": layer}
    nested = mine[(mine["metric"] == "auroc_nested") & (mine["subset"] == "all")].iloc[0]
    out["auroc"] = _number(nested["estimate"])
    out["bow"] = _number(nested["bow_estimate"])
    for subset in sorted(set(at_layer["subset"]) - {"all"}):
        row = at_layer[at_layer["subset"] == subset].iloc[0]
        out[f"auroc_{subset}"] = _number(row["estimate"])
        out[f"bow_{subset}"] = _number(row["bow_estimate"])
    null = probe.null
    null = null[(null["pool"] == pool) & (null["layer"] == layer) & (null["subset"] == "all")]
    if len(null):
        out["random_max"] = _number(null.iloc[0]["max_folded"])
    whole = at_layer[(at_layer["subset"] == "all") & (at_layer["cv"] == nested["cv"])]
    if len(whole):
        out["p_value"] = _number(whole.iloc[0]["p_value"])
    if results.key(run, "steer") is not None:
        out |= _steering_figures(read_steering(results, run))
    return out


def _steering_figures(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the effect nearest to one class separation, beside that of random directions.

    Half the difference between +alpha and -alpha, where both were run: a push that disrupts the
    model moves both ends alike, and cancels.
    """
    import numpy as np

    table = rows.pivot_table(
        index=["direction", "direction_index"], columns="alpha_separation", values="estimate"
    )
    alphas, values = table.columns.to_numpy(dtype=float), table.to_numpy()
    # The nearest to +1 of the positive strengths; where there are none, of all.
    distance = np.where((alphas > 0) | ~(alphas > 0).any(), np.abs(alphas - 1), np.inf)
    at = int(distance.argmin())
    mirrored = np.flatnonzero(np.isclose(alphas, -alphas[at]))
    effect = (values[:, at] - values[:, mirrored[0]]) / 2 if len(mirrored) else values[:, at]
    is_random = table.index.get_level_values("direction") == "random"
    own, random = float(effect[~is_random][0]), np.abs(effect[is_random])
    near = values[~is_random][0][np.abs(alphas) <= 1 + 1e-6]
    return {
        "steer_layer": int(rows["layer"].iloc[0]),
        "steer_alpha": _number(alphas[at]),
        "steer_effect": _number(own),
        "steer_random_max": _number(random.max()) if len(random) else None,
        "steer_vs_random": _number(abs(own) / random.mean()) if len(random) else None,
        "steer_monotone": bool((np.diff(near) > 0).all()),
    }


def _number(value: object) -> float | None:
    """Return a plain float with four digits after the point, None for a missing one."""
    number = float(value)  # type: ignore[arg-type]
    return None if number != number else round(number, 4)
