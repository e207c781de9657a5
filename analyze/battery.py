"""All analyses of a run from one reading of its layers, and how their results are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any, TypeAlias, get_args

import numpy as np
import pandas as pd
import xarray as xr

from ..schemas import (
    AnalysisPart,
    AnalyzeSpec,
    InvalidInputError,
    NotFoundError,
    Text,
    digest_json,
    near_names,
)
from .compare import compare_probes
from .confounds import ConfoundPart, ConfoundResult, confound_part, confound_tables
from .design import Design, dataset_digest, make_design
from .jobs import JobCache, Jobs
from .layer import ProbePart
from .memory import pooled_memory
from .nullrun import NullPart, NullResult, null_part, null_tables
from .parts import FAILURES, Failure, Part, run_parts
from .readouts import RandomPart, RandomResult, random_part, random_tables
from .results import ProbeResult, load_probe_result, save_probe_result
from .schedule import Progress
from .suite import probe_part, probe_tables
from .table import add_origin, plain_strings, write_table

__all__ = [
    "PARTS",
    "PartResult",
    "analyze_parts",
    "analyze_run",
    "load_part",
    "save_part",
]

PartResult: TypeAlias = ProbeResult | RandomResult | NullResult | ConfoundResult
Layers: TypeAlias = dict[tuple[str, int], Any]

PARTS: tuple[AnalysisPart, ...] = get_args(AnalysisPart)
FORMATS = ("parquet", "csv")
RECORDS: dict[AnalysisPart, tuple[type, ...]] = {
    "probe": ProbePart.records,
    "generators": ProbePart.records,
    "random": RandomPart.records,
    "nulls": NullPart.records,
    "confounds": ConfoundPart.records,
}


def analyze_run(
    ds: xr.Dataset,
    texts: Sequence[Text],
    *,
    spec: AnalyzeSpec,
    parts: Sequence[AnalysisPart] = PARTS,
    site: str | None = None,
    scheduler: str | None = None,
) -> dict[AnalysisPart, PartResult]:
    """Return the results of ``parts``; every layer is read once for all of them.

    A run of one generator has no ``generators``: that part is left out of the result.

    Parameters
    ----------
    ds
        An opened run.
    texts
        The corpus of the run.
    spec
        What each part computes.
    parts
        Some of ``probe``, ``generators``, ``random``, ``nulls``, ``confounds``.
    site
        None takes ``resid_post``, or the run's first site.
    scheduler
        As for :func:`probe_run`.

    Raises
    ------
    InvalidInputError
        If a part is unknown, there are fewer than two scenarios, one class, no complete pair, or
        rows with NaN.
    NotFoundError
        If a site, a pool or a text of the corpus is missing.
    """
    results = analyze_parts(ds, texts, spec=spec, parts=parts, site=site, scheduler=scheduler)
    found: dict[AnalysisPart, PartResult] = {}
    for name, result in results.items():
        if isinstance(result, Failure):
            raise result.error
        found[name] = result
    return found


def analyze_parts(
    ds: xr.Dataset,
    texts: Sequence[Text],
    *,
    spec: AnalyzeSpec,
    parts: Sequence[AnalysisPart] = PARTS,
    site: str | None = None,
    scheduler: str | None = None,
    progress: Progress | None = None,
    cancel: Event | None = None,
    cache: JobCache | None = None,
    memory_limit: int | str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[AnalysisPart, PartResult | Failure]:
    """Return the results of ``parts``, of each that failed the :class:`Failure` that says why.

    What fails in one part leaves the others their results. Otherwise as :func:`analyze_run`.

    Parameters
    ----------
    ds, texts, spec, parts, site, scheduler
        See :func:`analyze_run`.
    progress, cancel
        See :func:`run_tasks`; progress counts layers of pools.
    cache
        Where finished layers are kept: a call that was stopped goes on, and a spec that names
        more pools computes those alone.
    memory_limit
        Most memory, in bytes or such as ``4GiB``: fewer layers run at once to stay within it.
    say
        Told the expected memory before anything is read.

    Raises
    ------
    InvalidInputError
        If a part is unknown, or one layer alone needs more than ``memory_limit``.
    CancelledError
        If ``cancel`` was set; finished layers are in the cache.
    """
    unknown = sorted({*parts} - {*PARTS})
    if unknown or not parts:
        near = near_names(unknown[0], list(PARTS)) if unknown else ""
        msg = f"unknown parts {unknown}{near}; expected some of {list(PARTS)}"
        raise InvalidInputError(msg)
    results: dict[AnalysisPart, PartResult | Failure] = {}
    try:
        design = make_design(ds, texts, spec=spec.probe, site=site)
    except FAILURES as err:
        return dict.fromkeys(dict.fromkeys(parts), Failure(err))
    work: dict[AnalysisPart, Part] = {}
    finish: dict[AnalysisPart, Callable[[Layers], PartResult]] = {}
    for name in dict.fromkeys(parts):
        if name == "generators" and n_generators(design) < 2:
            continue
        try:
            work[name], finish[name] = _prepare(name, design, texts, spec, site=site)
        except FAILURES as err:
            results[name] = Failure(err)
    if work:
        need = pooled_memory(design, list(work.values()), spec)
        n_workers = need.workers_within(memory_limit, scheduler=scheduler)
        say(need.sentence(n_workers))
        kept = None if cache is None else [_jobs(cache, name, design, spec) for name in work]
        found = run_parts(
            ds,
            list(work.values()),
            design.table,
            site=design.site,
            pools=design.pools,
            scheduler=scheduler,
            progress=progress,
            cancel=cancel,
            jobs=kept,
            n_workers=n_workers,
            failures=True,
        )
        for at, name in enumerate(work):
            results[name] = _finished({cell: of[at] for cell, of in found.items()}, finish[name])
        for name, jobs in zip(work, kept or (), strict=False):
            if cache is not None and not isinstance(results[name], Failure):
                cache.keep_only(jobs, name)
    return {name: results[name] for name in dict.fromkeys(parts) if name in results}


def _finished(layers: Layers, finish: Callable[[Layers], PartResult]) -> PartResult | Failure:
    """Return the result of a part from its layers, or the first failure of one."""
    failed = [of for of in layers.values() if isinstance(of, Failure)]
    if failed:
        return failed[0]
    try:
        return finish(layers)
    except FAILURES as err:
        return Failure(err)


def _jobs(cache: JobCache, name: AnalysisPart, design: Design, spec: AnalyzeSpec) -> Jobs:
    """Return the kept layers of a part: of these texts, this site and spec, whatever the pools."""
    specs = {key: of.to_dict() for key, of in spec.of(name).items()}
    specs["probe"] = {key: value for key, value in specs["probe"].items() if key != "pools"}
    texts = digest_json([design.table.texts.tolist(), design.table.neutral.tolist()])
    responses = dataset_digest(design.table, design.responses)
    key = {"site": design.site, "texts": texts, "responses": responses, "specs": specs}
    return cache.jobs(name, key, records=RECORDS[name])


def n_generators(design: Design) -> int:
    """Return how many generators have pairs of their own."""
    return len({*design.table.generator.tolist()} - {"mixed"})


def _prepare(
    name: AnalysisPart,
    design: Design,
    texts: Sequence[Text],
    spec: AnalyzeSpec,
    *,
    site: str | None,
) -> tuple[Part, Callable[[Layers], PartResult]]:
    """Return what a part computes on a layer, and how its layers become a result."""
    if name in ("probe", "generators"):
        asked, of = spec.probe, design
        if name == "generators":
            # The directions are those of the train split, whose reliability ``probe`` has.
            asked = asked.model_copy(update={"groups": "generator", "n_reliability": 0})
            of = make_design(design.ds, texts, spec=asked, site=site)
        probes = probe_part(of, spec=asked, random=spec.random, bow=spec.bow)
        return probes, lambda layers: probe_tables(of, layers, probes)
    if name == "random":
        readouts = random_part(design.table, spec.random)
        return readouts, lambda layers: random_tables(
            design.ds, design.table, layers, site=design.site, pools=design.pools, spec=spec.random
        )
    if name == "nulls":
        nulls = null_part(design, spec=spec.nulls, probe=spec.probe)
        return nulls, lambda layers: null_tables(design, layers, spec.nulls, probe=spec.probe)
    confounds = confound_part(design, spec=spec.confounds)
    return confounds, lambda layers: confound_tables(design, layers, confounds, bow=spec.bow)


def save_part(result: PartResult, folder: str | Path) -> Path:
    """Write a part's tables (Parquet and CSV) and arrays (Zarr v3) into ``folder``; return it."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    if isinstance(result, ProbeResult):
        save_probe_result(result, target)
        comparisons = _compare(result)
        if comparisons is not None:
            comparisons = add_origin(comparisons, result.rows)
            write_table(comparisons, target, name="comparisons", formats=FORMATS)
    elif isinstance(result, RandomResult):
        write_table(result.bands, target, name="random", formats=FORMATS)
        _write_aurocs(result.aurocs, target / "aurocs.zarr")
    elif isinstance(result, NullResult):
        write_table(result.rows, target, name="nulls", formats=FORMATS)
        write_table(result.bands, target, name="bands", formats=FORMATS)
    else:
        write_table(result.rows, target, name="confounds", formats=FORMATS)
    return target


def load_part(part: AnalysisPart, folder: str | Path) -> PartResult:
    """Return what :func:`save_part` wrote; raise NotFoundError if it is not there."""
    source = Path(folder)
    if part in ("probe", "generators"):
        return load_probe_result(source)
    if part == "random":
        return RandomResult(_read(source, "random"), _read_aurocs(source / "aurocs.zarr"))
    if part == "nulls":
        return NullResult(_read(source, "nulls"), _read(source, "bands"))
    return ConfoundResult(_read(source, "confounds"))


def _compare(result: ProbeResult) -> pd.DataFrame | None:
    """Return methods against each other and layers against the selected one, cross-validated."""
    scores = result.scores[result.scores["cv"] == result.directions.attrs["cv"]]
    seed = int(result.directions.attrs["seed"])
    frames = []
    if scores["method"].nunique() > 2:  # the bag of words is one of them
        frames.append(compare_probes(scores, between="method", n_bootstrap=0, seed=seed))
    for (pool, method), layer in result.selected_layer.items():
        mine = scores[(scores["pool"] == pool) & (scores["method"] == method)]
        if mine["layer"].nunique() > 1:
            frames.append(
                compare_probes(mine, between="layer", reference=layer, n_bootstrap=0, seed=seed)
            )
    return pd.concat(frames, ignore_index=True) if frames else None


def _read(folder: Path, name: str) -> pd.DataFrame:
    path = folder / f"{name}.parquet"
    if not path.is_file():
        msg = f"no {name}.parquet in {folder}; run the analysis, or name the folder it wrote to"
        raise NotFoundError(msg)
    return plain_strings(pd.read_parquet(path))


def _write_aurocs(aurocs: xr.DataArray, path: Path) -> None:
    """Write AUROCs as Zarr v3; names go into attributes, as there is no settled string type."""
    names = {f"{n}_names": [str(x) for x in aurocs[n].values] for n in ("subset", "pool")}
    attrs = {"encoding-type": "actlake-random-aurocs", "encoding-version": "1", **names}
    plain = aurocs.drop_vars(["subset", "pool"]).to_dataset(name="auroc").assign_attrs(attrs)
    plain.to_zarr(path, mode="w", zarr_format=3, consolidated=False)


def _read_aurocs(path: Path) -> xr.DataArray:
    if not path.is_dir():
        msg = f"no {path.name} in {path.parent}; run the random baseline again"
        raise NotFoundError(msg)
    found = xr.open_zarr(path, chunks=None, consolidated=False).load()
    names: Mapping[str, Any] = {
        n: np.array(found.attrs[f"{n}_names"], dtype=object) for n in ("subset", "pool")
    }
    result: xr.DataArray = found["auroc"].assign_coords(names)
    return result
