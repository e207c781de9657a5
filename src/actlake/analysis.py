"""The analyses of stored runs as stages: computed once per content and spec, then read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .schemas import InvalidInputError, NotFoundError, digest_json
from .stages import Results, content_digest, pulled_key, run_provenance, stage_key

if TYPE_CHECKING:
    import pandas as pd

    from .schemas import AnalysisPart, AnalyzeSpec
    from .store import Store

__all__ = ["AnalysisOutcome", "analyze_stage", "compare_stage", "stage_name", "summarise_analysis"]


@dataclass(frozen=True)
class AnalysisOutcome:
    """What became of each part of one run: ``done``, ``was done``, or why it was left out."""

    run: str
    parts: dict[str, str]
    seconds: float


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
    scheduler: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> AnalysisOutcome:
    """Compute the parts of a run's analysis that are not there under the same content and spec.

    What is missing comes from one reading of the layers. Each part is a folder that appears
    whole or not at all, so a second call reads them, and one after an interruption goes on.

    Raises
    ------
    NotFoundError
        If there is no such run.
    IncompleteError
        If it is not sealed.
    InvalidInputError
        If it cannot be analysed: one scenario, one class, no pair, NaN.
    """
    from .analyze import analyze_run, save_part
    from .store import open_run, read_texts

    began = time.monotonic()
    store.read_manifest(run)  # first, since a run that is not there is not sealed either
    content = content_digest(store, run)
    pulled = pulled_key(store, run)
    keys = {p: stage_key(content, **spec.of(p)) | pulled | {"part": p} for p in parts}
    status: dict[str, str] = {}
    for part, key in keys.items():
        done = results.key(run, stage_name(part))
        status[part] = "was done" if done and done.get("digest") == digest_json(key) else "missing"
    missing = [part for part in parts if status[part] == "missing"]
    if missing:
        say(f"{run}: {', '.join(missing)}")
        _, texts = read_texts(store, run)
        dataset = open_run(store, run, pulled_only=True, chunks="job")
        found = analyze_run(dataset, texts, spec=spec, parts=missing, scheduler=scheduler)
        provenance = json.dumps(run_provenance(store, run), indent=2)
        for part in missing:
            if part not in found:
                status[part] = "left out: the run has one generator"
                continue
            result = found[part]

            def make(folder: Path, result: Any = result) -> None:  # noqa: ANN401
                save_part(result, folder)
                (folder / "provenance.json").write_text(provenance)

            results.build(run, stage_name(part), key=keys[part], make=make)
            status[part] = "done"
    return AnalysisOutcome(run, status, round(time.monotonic() - began, 2))


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


def compare_stage(
    results: Results,
    runs: Sequence[str],
    *,
    between: str,
    pool: str | None = None,
    method: str | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return paired comparisons from the kept probes of ``runs``, and keep them.

    Layers are compared with the one that each run's inner folds selected most. Models are
    compared at that layer of each.

    Raises
    ------
    NotFoundError
        If a run has no probes here.
    InvalidInputError
        If there is nothing to compare.
    """
    import pandas as pd

    from .analyze import compare_probes, load_part

    loaded: dict[str, Any] = {
        run: load_part("probe", results.stage(run, stage_name("probe"))) for run in runs
    }
    options = {"n_bootstrap": n_bootstrap, "seed": seed}
    frames, chosen = [], []
    for run, probe in loaded.items():
        scores = probe.scores[probe.scores["cv"] == probe.directions.attrs["cv"]]
        scores = scores if pool is None else scores[scores["pool"] == pool]
        scores = scores if method is None else scores[scores["method"] == method]
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
    if between != "layer":
        table = table.assign(layer="selected")
    target = results.folder / "comparisons"
    target.mkdir(parents=True, exist_ok=True)
    table.to_parquet(target / f"{between}.parquet", index=False)
    table.to_csv(target / f"{between}.csv", index=False)
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
