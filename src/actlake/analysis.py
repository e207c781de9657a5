"""The analyses of stored runs as stages: computed once per content and spec, then read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from .schemas import ActlakeError, CancelledError, InvalidInputError, NotFoundError, digest_json
from .stages import Results, content_digest, origin_key, run_provenance, stage_key

if TYPE_CHECKING:
    import pandas as pd

    from .analyze import ProbeResult
    from .analyze.schedule import Progress
    from .schemas import AnalysisPart, AnalyzeSpec
    from .store import Store

__all__ = [
    "JOBS",
    "AnalysisOutcome",
    "Bar",
    "analyze_stage",
    "compare_runs",
    "compare_stage",
    "failed",
    "no_bar",
    "stage_name",
    "summarise_analysis",
]

JOBS = ".jobs"  # the folder of kept jobs, beside the stages that were made of them


Bar: TypeAlias = "Callable[[str], AbstractContextManager[Progress | None]]"


def no_bar(_: str) -> AbstractContextManager[None]:
    """Return the progress of somebody who does not look."""
    return nullcontext()


@dataclass(frozen=True)
class AnalysisOutcome:
    """What became of each part: ``done``, ``was done``, ``left out: why`` or ``failed: why``.

    ``run`` is None where several runs were compared. ``errors`` are those of the parts that
    failed; they took nothing from the others.
    """

    run: str | None
    parts: dict[str, str]
    seconds: float
    errors: dict[str, Exception] = field(default_factory=dict)


def failed(error: Exception) -> str:
    """Return the state of a part that failed, with the reason."""
    what = str(error) if isinstance(error, ActlakeError) else f"{type(error).__name__}: {error}"
    return f"failed: {what}"


def stage_name(part: str) -> str:
    """Return the name of a part's folder beside the stages of a study."""
    return f"analyze-{part}"


def analyze_stage(
    store: Store,
    run: str,
    results: Results,
    *,
    spec: AnalyzeSpec,
    parts: Sequence[AnalysisPart],
    site: str | None = None,
    scheduler: str | None = None,
    memory: str | None = None,
    say: Callable[[str], None] = lambda _: None,
    bar: Bar = no_bar,
) -> AnalysisOutcome:
    """Compute the parts of a run's analysis that are not there under the same content and spec.

    What is missing comes from one reading of the layers. Each part is a folder that appears
    whole or not at all, so a second call reads them. Every layer of a pool is kept as soon as it
    is done (``<run>/.jobs``), so one after an interruption goes on; a spec that names more pools
    computes those alone.

    Parameters
    ----------
    store, run, results
        What is analysed, and where the folders are.
    spec, parts
        What is computed.
    site
        None takes ``resid_post``, or the run's first site. Another site takes the place of the
        results in this folder: give it a folder of its own.
    scheduler
        See :func:`actlake.analyze.analyze_run`.
    memory
        Most memory, such as ``4GiB``.
    say
        Told what is computed and what memory that takes.
    bar
        Makes the progress of a named piece of work.

    Raises
    ------
    NotFoundError
        If there is no such run.
    IncompleteError
        If it is not sealed.
    """
    from .analyze import JobCache, analyze_parts, save_part
    from .analyze.parts import FAILURES, Failure
    from .store import open_run, read_texts

    began = time.monotonic()
    store.read_manifest(run)  # first, since a run that is not there is not sealed either
    content = content_digest(store, run)
    origin = origin_key(store, run)
    place = origin if site is None else origin | {"site": site}
    keys = {p: stage_key(content, **spec.of(p)) | place | {"part": p} for p in parts}
    status: dict[str, str] = {}
    errors: dict[str, Exception] = {}
    for part, key in keys.items():
        done = results.key(run, stage_name(part))
        status[part] = "was done" if done and done.get("digest") == digest_json(key) else "missing"
    missing = [part for part in parts if status[part] == "missing"]
    if missing:
        say(f"{run}: {', '.join(missing)}")
        found: dict[Any, Any] = {}
        try:
            _, texts = read_texts(store, run)
            dataset = open_run(store, run, pulled_only=True, chunks="job")
            with bar(run) as progress:
                found = analyze_parts(
                    dataset,
                    texts,
                    spec=spec,
                    parts=missing,
                    site=site,
                    scheduler=scheduler,
                    progress=progress,
                    cache=JobCache(results.stage(run, JOBS), digest_json([content, origin])),
                    memory_limit=memory,
                    say=lambda line: say(f"{run}: {line}"),
                )
        except CancelledError:
            raise
        except FAILURES as err:  # the layers could not be read: no part has a result
            found = dict.fromkeys(missing, Failure(err))
        provenance = json.dumps(run_provenance(store, run), indent=2)
        for part in missing:
            if part not in found:
                status[part] = "left out: the run has one generator"
                continue
            result = found[part]
            if isinstance(result, Failure):
                errors[part], status[part] = result.error, failed(result.error)
                continue

            def make(folder: Path, result: Any = result) -> None:  # noqa: ANN401
                save_part(result, folder)
                (folder / "provenance.json").write_text(provenance)

            results.build(run, stage_name(part), key=keys[part], make=make)
            status[part] = "done"
    return AnalysisOutcome(run, status, round(time.monotonic() - began, 2), errors)


def summarise_analysis(results: Results, run: str) -> list[dict[str, Any]]:
    """Return the figures that a reader asks for first, one row per pool and method.

    ``auroc`` is nested (layer chosen inside the training folds) with its interval; ``layer`` the
    one most folds chose; ``bow`` and ``surface`` the same texts without activations; ``p_max``
    of the label-flip refits at that layer, corrected over layers; ``other_generator`` the nested
    AUROC under leave-one-generator-out; ``residualised`` the AUROC at that layer without length,
    markdown, person, generator and scenario. What was not computed is None.

    Raises
    ------
    NotFoundError
        If the run has no probes here.
    """
    from .analyze import load_part

    folder = results.stage(run, stage_name("probe"))
    probe: Any = load_part("probe", folder)
    others: dict[str, Any] = {
        part: load_part(part, results.stage(run, stage_name(part)))
        for part in ("generators", "nulls", "confounds")
        if results.key(run, stage_name(part)) is not None
    }
    nested = probe.rows[(probe.rows["metric"] == "auroc_nested") & (probe.rows["subset"] == "all")]
    nested = nested[(nested["analysis"] == "probe") & nested["pool"].notna()]
    out = []
    for row in nested.to_dict("records"):
        layer = probe.selected_layer.get((row["pool"], row["method"]))
        where = {"pool": row["pool"], "layer": layer, "subset": "all"}
        out.append(
            {
                "run": run,
                "pool": row["pool"],
                "method": row["method"],
                "layer": layer,
                **{
                    name: _number(row[column])
                    for name, column in (
                        ("auroc", "estimate"), ("ci_low", "ci_low"), ("ci_high", "ci_high"),
                        ("bow", "bow_estimate"), ("surface", "surface_estimate"),
                    )
                },
                "p_max": _look(
                    others, "nulls", "p_value_max",
                    **where, method=row["method"], null="label_flip_refit",
                ),
                "other_generator": _look(
                    others, "generators", "estimate", metric="auroc_nested", analysis="probe",
                    pool=row["pool"], method=row["method"], subset="all",
                ),
                "residualised": _look(
                    others, "confounds", "estimate", **where, metric="auroc_residualised"
                ),
                "verdict": row["verdict"],
            }
        )  # fmt: skip
    return out


def compare_runs(
    probes: Mapping[str, ProbeResult],
    *,
    between: str,
    pool: str | None = None,
    method: str | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return paired comparisons from the probes of runs by name.

    Layers are compared with the one that each run's inner folds selected most. Models are
    compared at that layer of each.

    Raises
    ------
    InvalidInputError
        If there is nothing to compare.
    """
    import pandas as pd

    from .analyze import compare_probes

    options = {"n_bootstrap": n_bootstrap, "seed": seed}
    frames, chosen = [], []
    for run, probe in probes.items():
        scores = probe.scores[probe.scores["cv"] == probe.directions.attrs["cv"]]
        scores = scores if pool is None else scores[scores["pool"] == pool]
        scores = scores if method is None else scores[scores["method"] == method]
        if scores.empty:
            asked = " and ".join(f"{n} {v!r}" for n, v in (("pool", pool), ("method", method)) if v)
            there = [f"{of_pool} {of_method}" for of_pool, of_method in probe.selected_layer]
            msg = f"run {run!r} has no scores of {asked}; it has {', '.join(there) or 'none'}"
            raise InvalidInputError(msg)
        for (of_pool, of_method), layer in probe.selected_layer.items():
            mine = scores[(scores["pool"] == of_pool) & (scores["method"] == of_method)]
            if between == "layer" and mine["layer"].nunique() > 1:
                frames.append(compare_probes(mine, between="layer", reference=layer, **options))
            at_layer = mine[mine["layer"] == layer]
            chosen.append(at_layer.assign(layer=0) if between != "layer" else at_layer)
        if not chosen:
            msg = f"run {run!r} has no inner folds, so no layer was selected to compare at"
            raise InvalidInputError(msg)
    if between != "layer":
        every = pd.concat(chosen, ignore_index=True).assign(cv="cross-validated")
        frames.append(compare_probes(every, between=between, **options))  # type: ignore[arg-type]
    if not frames:
        msg = "one layer: there is nothing to compare it with"
        raise InvalidInputError(msg)
    table = pd.concat(frames, ignore_index=True)
    return table if between == "layer" else table.assign(layer="selected")


def compare_stage(
    results: Results,
    runs: Sequence[str],
    *,
    between: str,
    **options: Any,  # noqa: ANN401
) -> pd.DataFrame:
    """Return :func:`compare_runs` of the kept probes of ``runs``, and keep it.

    Raises
    ------
    NotFoundError
        If a run has no probes here.
    InvalidInputError
        If there is nothing to compare.
    """
    from .analyze import load_part
    from .analyze.table import write_table

    probes: dict[str, Any] = {
        run: load_part("probe", results.stage(run, stage_name("probe"))) for run in runs
    }
    table = compare_runs(probes, between=between, **options)
    write_table(table, results.folder / "comparisons", name=between, formats=("parquet", "csv"))
    return table


def _look(others: dict[str, Any], part: str, column: str, **where: object) -> float | None:
    """Return a number of another part's rows, None where it was not computed."""
    if part not in others:
        return None
    rows = others[part].rows
    for name, value in where.items():
        rows = rows[rows[name] == value]
    return _number(rows.iloc[0][column]) if len(rows) else None


def _number(value: object) -> float | None:
    """Return a plain float with four digits after the point, None for a missing one."""
    number = float(value)  # type: ignore[arg-type]
    return None if number != number else round(number, 4)


def analysed_runs(results: Results) -> list[str]:
    """Return the runs that have probes here; NotFoundError if there are none."""
    found = results.folder.glob(f"*/{stage_name('probe')}/stage.json")
    runs = sorted(path.parent.parent.name for path in found)
    if not runs:
        msg = f"{results.folder}: no analysed run here; run `actlake analyze probe` first"
        raise NotFoundError(msg)
    return runs
