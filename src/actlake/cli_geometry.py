"""The commands that compare: geometry of a run, models with models, scores with behaviour."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .console import emit, json_option, print_table, read_toml, say

if TYPE_CHECKING:
    import pandas as pd

    from .analysis_job import AnalysisJob
    from .schemas import Record

__all__ = ["COMPARISONS"]

Spec = TypeVar("Spec", bound="Record")

_out = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("results"),
    show_default=True,
    help="Folder of the tables.",
)
_spec = click.option(
    "--spec",
    "spec_file",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="TOML file with the keys of the spec; `actlake schema` names them.",
)
_site = click.option("--site", help="Such as attn_out or mlp_out.  [default: resid_post]")
_pools = click.option("--pools", help="Pools, such as mean_response.  [default: all]")
_seed = click.option("--seed", type=int, help="Seed of every draw.  [default: 0]")
_scheduler = click.option(
    "--scheduler", help="threads, processes, or an address of a Dask cluster."
)
_memory = click.option("--memory", help="Most memory, such as 4GiB: fewer jobs at once.")


def _read_spec(record: type[Spec], file: Path | None, **options: object) -> Spec:
    """Return the spec of a TOML file with the options that were given over it."""
    values = {} if file is None else read_toml(file)
    given = {name: value for name, value in options.items() if value is not None}
    for name in ("pools", "maps"):
        if name in given:
            given[name] = [part.strip() for part in str(given[name]).split(",")]
    return record.parse(values | given, where=str(file or "options"))


@dataclass(frozen=True)
class _Stage:
    """A stage of the suite as a command asks for it."""

    job: AnalysisJob
    part: str
    as_json: bool

    def read(self, run: str = "") -> pd.DataFrame:
        """Return the table that the stage wrote, of one run where it has one for each."""
        return _read(self.job.results.stage(run, self.part), self.part)

    def show(self, frame: pd.DataFrame, columns: list[str], *, run: str = "") -> None:
        """Print the chosen columns of rows."""
        folder = self.job.results.stage(run, self.part)
        _show(frame, columns, folder=folder, as_json=self.as_json)


def _stage(part: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return what gives a command STORE and the options of every stage.

    The command is called with a :class:`_Stage` and its ``runs``; all other options are keys of
    the stage's spec.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @click.argument("store_url", metavar="STORE")
        @_out
        @_spec
        @_site
        @_pools
        @_scheduler
        @_memory
        @_seed
        @json_option
        @wraps(command)
        def called(
            store_url: str,
            runs: Any,  # one name, or a tuple of them  # noqa: ANN401
            *,
            out: Path,
            spec_file: Path | None,
            site: str | None,
            scheduler: str | None,
            memory: str | None,
            as_json: bool,
            **options: object,
        ) -> None:
            from .analysis_job import AnalysisJob
            from .job_progress import job_progress
            from .schemas import AnalyzeSpec
            from .stages import Results
            from .store import open_store

            whole = AnalyzeSpec()
            spec = _read_spec(type(getattr(whole, part)), spec_file, **options)
            job = AnalysisJob(
                open_store(store_url),
                Results(out),
                whole.model_copy(update={part: spec}),
                site=site,
                scheduler=scheduler,
                memory=memory,
                say=say,
                bar=job_progress,
            )
            command(_Stage(job, part, as_json), runs)

        return called

    return decorate


def _read(folder: Path, name: str) -> pd.DataFrame:
    import pandas as pd

    return pd.read_parquet(folder / f"{name}.parquet")


def _show(frame: pd.DataFrame, columns: list[str], *, folder: Path, as_json: bool) -> None:
    """Print the chosen columns of rows, and where all of them are."""
    rows = frame[columns].astype(object)
    records = rows.where(rows.notna(), None).to_dict("records")
    emit({"folder": str(folder), "rows": records}, as_json=as_json, show=lambda: _table(records))
    say(f"all rows are in {folder}")


def _table(records: list[dict[Any, Any]]) -> None:
    print_table(
        [{k: f"{v:.3f}" if isinstance(v, float) else v for k, v in r.items()} for r in records]
    )


def _write(frame: pd.DataFrame, folder: Path, name: str) -> None:
    from .analyze.table import write_table

    write_table(frame, folder, name=name, formats=("parquet", "csv"))


@click.command()
@_stage("geometry")
@click.argument("runs", metavar="RUN")
@click.option(
    "--shared",
    type=click.Choice(["refuse", "flag"]),
    help="Contrasts that have texts in common.  [default: refuse]",
)
@click.option(
    "--permutations", "n_permutations", type=click.IntRange(1), help="Of the null.  [default: 1000]"
)
def geometry(stage: _Stage, run: str) -> None:
    """Components of a run, cosines between its directions, and t-SNE pictures.

    \b
    Example: actlake analyze geometry s3://bucket/store llama-3-8b --out results
    """
    from .suite_stages import geometry_stage

    stage.job.store.read_manifest(run)
    say(f"{run}: geometry {geometry_stage(stage.job, run)}")
    every = stage.read(run)
    rows = every[every.metric == "cosine"]
    if rows.empty:
        rows = every[(every.metric == "reliability") & (every.space == "raw")]
    columns = [
        "pool", "layer", "contrast", "other", "space", "estimate", "ci_low", "ci_high",
        "p_value", "disattenuated", "verdict",
    ]  # fmt: skip
    stage.show(rows, columns, run=run)


@click.command()
@_stage("similarity")
@click.argument("runs", nargs=-1)
@click.option(
    "--max-texts", type=click.IntRange(4), help="A sample beyond so many.  [default: 700]"
)
def similarity(stage: _Stage, runs: tuple[str, ...]) -> None:
    """Debiased CKA and RSA of every layer of RUNS with every layer of the others.

    All runs of the store where none is named.

    \b
    Example: actlake analyze similarity s3://bucket/store llama-3-8b phi-3 --out results
    """
    from .suite_stages import similarity_stage

    say(f"similarity {similarity_stage(stage.job, runs or stage.job.store.run_ids())}")
    frame = stage.read()
    keys = ["pool", "run", "other_run", "metric", "layer"]
    there = frame[frame.estimate.notna()]
    best = there.loc[there.groupby(keys, sort=False).estimate.idxmax()]
    stage.show(best, [*keys, "other_layer", "estimate", "ci_low", "ci_high"])


@click.command()
@_stage("transfer")
@click.argument("runs", nargs=-1)
@click.option("--maps", help="Of procrustes, ridge, cca.  [default: all three]")
@click.option(
    "--anchors",
    type=click.Choice(["neutral", "train"]),
    help="The texts that maps are fitted on.  [default: neutral]",
)
def transfer(stage: _Stage, runs: tuple[str, ...]) -> None:
    """Carry the probes of RUNS to each other, beside every control.

    All runs of the store where none is named.

    \b
    Example: actlake analyze transfer s3://bucket/store llama-3-8b phi-3 --maps ridge
    """
    from .suite_stages import transfer_stage

    say(f"transfer {transfer_stage(stage.job, runs or stage.job.store.run_ids())}")
    frame = stage.read()
    rows = frame[(frame.metric == "auroc") & frame.control.isna()]
    columns = [
        "pool", "source_run", "source_layer", "run", "layer", "map", "map_r2", "estimate",
        "ci_low", "ci_high", "p_value", "ceiling_estimate", "bow_estimate",
    ]  # fmt: skip
    stage.show(rows, columns)


@click.command()
@click.argument("scores", type=click.Path(path_type=Path))
@click.argument("ratings", type=click.Path(path_type=Path))
@_out
@_spec
@click.option("--id", "id_column", help="Column of the text ids.  [default: text]")
@click.option("--rating", "rating_column", help="Column of the ratings.  [default: rating]")
@click.option("--scenario", "scenario_column", help="Column of the scenarios, if any.")
@_seed
@json_option
def correlate(
    scores: Path,
    ratings: Path,
    out: Path,
    *,
    spec_file: Path | None,
    scenario_column: str | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Set the probe scores of SCORES against a table of RATINGS.

    SCORES is the folder of a probe's results, or a .csv or .parquet table with the columns text
    and score; RATINGS is a .csv or .parquet table.

    \b
    Example: actlake analyze correlate results/llama-3-8b/probe ratings.csv --rating empathy
    """
    from .analysis_job import TOGETHER
    from .analyze.behaviour import correlate_scores, read_ratings
    from .analyze.table import add_origin
    from .schemas import CorrelationSpec, NotFoundError
    from .stages import Results, stage_key

    spec = _read_spec(CorrelationSpec, spec_file, **options)
    table = read_ratings(scores / "scores.parquet" if scores.is_dir() else scores)
    rated = read_ratings(ratings, id_column=spec.id_column)
    if scenario_column is not None:
        if scenario_column not in rated.columns:
            msg = f"the ratings have no column {scenario_column!r}; they have {list(rated.columns)}"
            raise NotFoundError(msg)
        rated = rated.rename(columns={scenario_column: "scenario"})
    frame = correlate_scores(table, rated, spec=spec)
    if scores.is_dir() and (scores / "probe.parquet").is_file() and "run" in table.columns:
        frame = add_origin(frame, read_ratings(scores / "probe.parquet"))
    results, made_of = Results(out), scores / "scores.parquet" if scores.is_dir() else scores
    key = stage_key(_digest(made_of), correlation=spec) | {"ratings": _digest(ratings)}
    key["scenario_column"] = scenario_column
    results.build(
        TOGETHER, "correlation", key=key, make=lambda to: _write(frame, to, "correlation")
    )
    folder = results.stage(TOGETHER, "correlation")
    columns = [
        "pool", "layer", "method", "metric", "estimate", "ci_low", "ci_high", "cluster_ci_low",
        "cluster_ci_high", "n_texts", "n_missing", "reason",
    ]  # fmt: skip
    _show(frame, columns, folder=folder, as_json=as_json)


def _digest(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


COMPARISONS = (geometry, similarity, transfer, correlate)
