"""The stages of a suite beside the parts that come from one reading of a run's layers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .analysis import JOBS, compare_runs, stage_name
from .analysis_job import TOGETHER, AnalysisJob, LeftOutError
from .schemas import digest_json
from .stages import Results, content_digest, origin_key, run_provenance, stage_key

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from .analyze import AblationResult, JobCache
    from .store import Store

__all__ = [
    "ablation_stage",
    "correlation_stage",
    "geometry_stage",
    "keep_ablation",
    "models_stage",
    "similarity_stage",
    "transfer_stage",
]

MIN_TEXTS = 4  # that runs need in common to be compared
ONE_CORPUS = "models are compared on the same texts: extract them from one corpus"
FORMATS = ("parquet", "csv")


def geometry_stage(job: AnalysisJob, run: str) -> str:
    """Compute the geometry of a run, with the directions of its probes where they are kept."""
    from .analyze import JobCache, load_part
    from .analyze.arrays import run_pools
    from .analyze.geometry_run import geometry_run, save_geometry_result
    from .analyze.memory import geometry_memory
    from .store import open_run

    spec = job.spec.geometry
    key = stage_key(content_digest(job.store, run), geometry=spec) | origin_key(job.store, run)
    probed = job.results.key(run, stage_name("probe"))
    of_run = ("content_digest", "corpus_digest")
    same = probed is not None and all(probed.get(name) == key[name] for name in of_run)
    key |= {"site": job.site, "probe": probed["digest"] if probed and same else None}
    if job.is_done(run, "geometry", key):
        return "was done"
    ds = open_run(job.store, run, pulled_only=True, chunks="job")
    site, pools = run_pools(ds, site=job.site, pools=spec.pools)
    directions: Any = None
    if same:
        part: Any = load_part("probe", job.results.stage(run, stage_name("probe")))
        of_site = part.directions.attrs["site"] == site
        directions = part.directions if of_site else None
    need = geometry_memory(
        n_texts=ds.sizes["text"],
        hidden=int(ds.sizes["hidden"]),
        n_jobs=len(pools) * ds.sizes["layer"],
        spec=spec,
    )
    n_workers = need.workers_within(job.memory, scheduler=job.scheduler)
    job.say(f"{run}: geometry")
    job.say(f"{run}: {need.sentence(n_workers)}")
    cache = JobCache(job.results.stage(run, JOBS), digest_json(key))
    jobs = cache.jobs("geometry", {"spec": spec.to_dict(), "site": site})
    with job.bar(f"{run} geometry") as progress:
        result = geometry_run(
            ds,
            spec=spec,
            directions=directions,
            site=job.site,
            scheduler=job.scheduler,
            progress=progress,
            jobs=jobs,
            n_workers=n_workers,
        )
    provenance = json.dumps(run_provenance(job.store, run), indent=2)

    def make(folder: Path) -> None:
        save_geometry_result(result, folder)
        (folder / "provenance.json").write_text(provenance)

    job.results.build(run, "geometry", key=key, make=make)
    cache.keep_only(jobs, "geometry")
    return "done"


def ablation_stage(job: AnalysisJob, run: str) -> str:
    """Ablate the words of a run that has its tokens, or lexical variants among its texts."""
    from .analyze import ablation_run
    from .analyze.ablation import NothingToAblateError
    from .store import open_run, read_texts

    spec = job.spec.ablation
    key = stage_key(content_digest(job.store, run), ablation=spec) | origin_key(job.store, run)
    key |= {"site": job.site}
    if job.is_done(run, "ablation", key):
        return "was done"
    _, texts = read_texts(job.store, run)
    ds = open_run(job.store, run, pulled_only=True, chunks="job")
    job.say(f"{run}: ablation")
    try:
        with job.bar(f"{run} ablation") as progress:
            result = ablation_run(
                ds, texts, spec=spec, site=job.site, scheduler=job.scheduler, progress=progress
            )
    except NothingToAblateError as err:
        raise LeftOutError(str(err)) from err
    keep_ablation(job.store, run, job.results, result, key=key)
    return "done"


def keep_ablation(
    store: Store, run: str, results: Results, result: AblationResult, *, key: dict[str, Any]
) -> Path:
    """Keep an ablation of a run as the stage that was made from ``key``; return its folder."""
    from .analyze import save_ablation

    provenance = json.dumps(run_provenance(store, run), indent=2)

    def make(folder: Path) -> None:
        save_ablation(result, folder)
        (folder / "provenance.json").write_text(provenance)

    results.build(run, "ablation", key=key, make=make)
    return results.stage(run, "ablation")


def similarity_stage(job: AnalysisJob, runs: Sequence[str]) -> str:
    """Compare the layers of every two runs that have texts in common."""
    from .analyze.memory import similarity_memory
    from .analyze.similarity_run import similarity_run

    spec = job.spec.similarity

    def compare(opened: dict[str, xr.Dataset], cache: JobCache, name: str) -> pd.DataFrame:
        n_jobs = sum(ds.sizes["layer"] for ds in opened.values())
        need = similarity_memory(
            n_texts=max(ds.sizes["text"] for ds in opened.values()),
            hidden=max(int(ds.sizes["hidden"]) for ds in opened.values()),
            n_jobs=n_jobs,
            spec=spec,
        )
        n_workers = need.workers_within(job.memory, scheduler=job.scheduler)
        job.say(f"similarity: {need.sentence(n_workers)}")
        with job.bar("similarity") as progress:
            return similarity_run(
                opened,
                spec=spec,
                site=job.site,
                scheduler=job.scheduler,
                progress=progress,
                jobs=cache.jobs(name, spec.to_dict()),
                n_workers=n_workers,
            )

    return _compare(job, runs, name="similarity", spec=spec, compare=compare)


def transfer_stage(job: AnalysisJob, runs: Sequence[str]) -> str:
    """Carry the probes of runs that have texts in common to each other.

    Where no anchors were asked for and there are too few neutral texts, the maps are fitted on
    the train split, and the rows say so.
    """
    from .analyze.memory import transfer_memory
    from .analyze.transfer_run import transfer_run
    from .store import read_texts

    asked = job.spec.transfer

    def compare(opened: dict[str, xr.Dataset], cache: JobCache, name: str) -> pd.DataFrame:
        spec = asked
        if "anchors" not in asked.model_fields_set and not _has_neutral(opened):
            job.say("transfer: too few neutral texts; maps are fitted on the train split")
            spec = asked.model_copy(update={"anchors": "train"})
        texts = {text.id: text for run in opened for text in read_texts(job.store, run)[1]}
        widths = sorted((int(ds.sizes["hidden"]) for ds in opened.values()), reverse=True)
        need = transfer_memory(
            n_texts=max(ds.sizes["text"] for ds in opened.values()),
            widths=(widths[0], widths[1]),
            n_jobs=sum(ds.sizes["layer"] for ds in opened.values()) * (len(opened) - 1),
            spec=spec,
        )
        n_workers = need.workers_within(job.memory, scheduler=job.scheduler)
        job.say(f"transfer: {need.sentence(n_workers)}")
        with job.bar("transfer") as progress:
            return transfer_run(
                opened,
                list(texts.values()),
                spec=spec,
                site=job.site,
                scheduler=job.scheduler,
                progress=progress,
                jobs=cache.jobs(name, spec.to_dict()),
                n_workers=n_workers,
            )

    return _compare(job, runs, name="transfer", spec=asked, compare=compare)


def models_stage(job: AnalysisJob, runs: Sequence[str]) -> str:
    """Compare the kept probes of runs that have texts in common, text by text.

    ``models`` at the layers that each run's inner folds selected, ``by_depth`` at the nearest
    relative depths; ``depth_curves`` is the AUROC of every run by relative depth.
    """
    import pandas as pd

    from .analyze import compare_by_depth, depth_curves, load_part
    from .analyze.table import add_origin, write_table

    probes = _probed(job, runs)
    if len(probes) < 2:
        msg = f"a comparison needs the probes of two runs or more, there are those of {[*probes]}"
        raise LeftOutError(msg)
    seed = job.spec.probe.seed
    key = stage_key(digest_json(probes), probe=job.spec.probe) | {"probes": probes}
    if job.is_done(TOGETHER, "models", key):
        return "was done"
    groups, _ = _groups(job, list(probes))
    if not groups:
        msg = f"the runs {[*probes]} have fewer than {MIN_TEXTS} texts in common; {ONE_CORPUS}"
        raise LeftOutError(msg)
    parts: dict[str, Any] = {
        run: load_part("probe", job.results.stage(run, stage_name("probe"))) for run in probes
    }
    rows = pd.concat([part.rows for part in parts.values()], ignore_index=True)
    tables: dict[str, list[pd.DataFrame]] = {"models": [], "by_depth": []}
    for group in groups:
        found = {run: parts[run] for run in group}
        tables["models"].append(compare_runs(found, between="run", seed=seed))
        tables["by_depth"].append(compare_by_depth(found))
    # A row is of two runs; the origin that it has is that of the first.
    tables["models"] = [of.assign(run=of["first"]) for of in tables["models"]]
    tables["depth_curves"] = [depth_curves(rows)]

    def make(folder: Path) -> None:
        for name, frames in tables.items():
            frame = frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)
            write_table(add_origin(frame, rows), folder, name=name, formats=FORMATS)

    job.results.build(TOGETHER, "models", key=key, make=make)
    return "done"


def correlation_stage(job: AnalysisJob, runs: Sequence[str]) -> str:
    """Set the kept scores of ``runs`` against the table of ratings."""
    import pandas as pd

    from .analyze import correlate_scores, load_part
    from .analyze.behaviour import read_ratings
    from .analyze.table import add_origin, write_table

    if job.ratings is None:
        msg = "no table of scored texts was given"
        raise LeftOutError(msg)
    spec = job.spec.correlation
    there = _probed(job, runs)
    if not there:
        msg = "no run has probe scores to set against the ratings"
        raise LeftOutError(msg)
    ratings = read_ratings(job.ratings, id_column=spec.id_column)
    rated = "sha256:" + hashlib.sha256(job.ratings.read_bytes()).hexdigest()
    key = stage_key(digest_json(there), correlation=spec) | {"ratings": rated, "probes": there}
    if job.is_done(TOGETHER, "correlation", key):
        return "was done"
    parts: list[Any] = [
        load_part("probe", job.results.stage(run, stage_name("probe"))) for run in there
    ]
    scores = pd.concat([part.scores for part in parts], ignore_index=True)
    origin = pd.concat([part.rows for part in parts], ignore_index=True)
    frame = add_origin(correlate_scores(scores, ratings, spec=spec), origin)
    job.results.build(
        TOGETHER,
        "correlation",
        key=key,
        make=lambda to: write_table(frame, to, name="correlation", formats=FORMATS),
    )
    return "done"


def _compare(
    job: AnalysisJob,
    runs: Sequence[str],
    *,
    name: str,
    spec: Any,  # a Record  # noqa: ANN401
    compare: Callable[[dict[str, xr.Dataset], JobCache, str], pd.DataFrame],
) -> str:
    """Build the table of a comparison over every group of runs that have texts in common."""
    import pandas as pd

    from .analyze import JobCache
    from .analyze.table import write_table
    from .store import open_runs

    runs = list(dict.fromkeys(runs))
    if len(runs) < 2:
        msg = f"a comparison needs two runs or more, got {runs}"
        raise LeftOutError(msg)
    contents = job.contents(runs)
    key = stage_key(digest_json(contents), **{name: spec}) | {"runs": contents, "site": job.site}
    if job.is_done(TOGETHER, name, key):
        return "was done"
    groups, alone = _groups(job, runs)
    if not groups:
        msg = f"the runs {runs} have fewer than {MIN_TEXTS} texts in common; {ONE_CORPUS}"
        raise LeftOutError(msg)
    frames: list[pd.DataFrame] = []
    for group in groups:
        opened = open_runs(job.store, group, pulled_only=True, chunks="job")
        cache = JobCache(
            job.results.folder / JOBS,
            digest_json([{run: contents[run] for run in group}, job.site]),
        )
        frames.append(compare(opened, cache, name))
    frame = frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)
    job.results.build(
        TOGETHER,
        name,
        key=key,
        make=lambda folder: write_table(frame, folder, name=name, formats=FORMATS),
    )
    if alone:
        job.say(f"{name}: {alone} have no texts in common with the others and were left out")
    return "done"


def _groups(job: AnalysisJob, runs: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """Return runs that have texts in common, group by group, and those that have none."""
    from .store import open_run

    groups: list[tuple[list[str], set[str]]] = []
    for run in runs:
        mine = set(open_run(job.store, run, pulled_only=True)["text"].values.tolist())
        for names, texts in groups:
            if len(texts & mine) >= MIN_TEXTS:
                names.append(run)
                texts &= mine
                break
        else:
            groups.append(([run], mine))
    together = [names for names, _ in groups if len(names) > 1]
    return together, [names[0] for names, _ in groups if len(names) == 1]


def _has_neutral(opened: dict[str, xr.Dataset]) -> bool:
    from .analyze.maps import MIN_ANCHORS

    first = next(iter(opened.values()))
    neutral = (first["label"].values < 0) & (first["variant"].values.astype(str) == "original")
    return int(neutral.sum()) >= MIN_ANCHORS


def _probed(job: AnalysisJob, runs: Sequence[str]) -> dict[str, str]:
    """Return the runs whose probes are kept, with the digest of what they were made from."""
    keys = {run: job.results.key(run, stage_name("probe")) for run in runs}
    return {run: key["digest"] for run, key in keys.items() if key is not None}
