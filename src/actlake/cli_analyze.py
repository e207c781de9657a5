"""The commands that analyse stored runs on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .console import emit, json_option, print_facts, print_table, read_toml, say

if TYPE_CHECKING:
    from .analysis import AnalysisOutcome
    from .schemas import AnalysisPart, AnalyzeSpec
    from .stages import Results

__all__ = ["analyze"]

F = TypeVar("F", bound=Callable[..., Any])

_SHARED = (
    click.argument("store_url", metavar="STORE"),
    click.argument("runs", metavar="[RUN]...", nargs=-1),
    click.option(
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path("results"),
        show_default=True,
        help="Folder of the results.",
    ),
    click.option("--site", help="Such as attn_out or mlp_out.  [default: resid_post]"),
    click.option("--pools", help="Such as mean_response,last_prompt.  [default: all of the run]"),
    click.option("--scheduler", help="threads, processes, or an address of a Dask cluster."),
    click.option("--memory", help="Most memory, such as 4GiB: fewer layers at once."),
    click.option("--seed", type=int, default=0, show_default=True, help="Seed of every draw."),
    json_option,
)
_methods_option = click.option(
    "--methods", help="Such as diff_means,ridge.  [default: all five probes]"
)
_draws_option = click.option(
    "--draws",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Draws of every null distribution.",
)
_logistic_draws_option = click.option(
    "--logistic-draws",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Label-flip refits of the logistic probe; each costs about what the probe does.",
)


def _shared(command: F) -> F:
    """Add the arguments and options that all analyses have."""
    for add in reversed(_SHARED):
        command = add(command)
    return command


@click.group()
def analyze() -> None:
    """Analyse stored runs on the CPU; what is there already is read, not computed.

    Without a RUN, all runs of the store. Tables are Parquet and CSV, arrays Zarr.

    \b
    Example: actlake analyze all s3://bucket/store llama-3-8b --out results
    """


@analyze.command("probe")
@_shared
@_methods_option
@click.option("--generators", is_flag=True, help="Also leave one generator out at a time.")
def analyze_probe(*, generators: bool, **options: Any) -> None:  # noqa: ANN401
    """Probe every layer under nested leave-one-scenario-out.

    \b
    Example: actlake analyze probe store llama-3-8b --methods diff_means,lda,ridge
    """
    _analyze(["probe", "generators"] if generators else ["probe"], options)


@analyze.command("random")
@_shared
@click.option(
    "--directions",
    "draws",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Random directions per layer.",
)
def analyze_random(**options: Any) -> None:  # noqa: ANN401
    """Read random directions out of every layer.

    \b
    Example: actlake analyze random store llama-3-8b --directions 1000
    """
    _analyze(["random"], options)


@analyze.command("nulls")
@_shared
@_methods_option
@_draws_option
@_logistic_draws_option
def analyze_nulls(**options: Any) -> None:  # noqa: ANN401
    """Test for signal: label-flip refits and random readouts, corrected over layers.

    \b
    Example: actlake analyze nulls store llama-3-8b --draws 1000
    """
    _analyze(["nulls"], options)


@analyze.command("confounds")
@_shared
def analyze_confounds(**options: Any) -> None:  # noqa: ANN401
    """Read surface features and control concepts, and probe without them.

    \b
    Example: actlake analyze confounds store llama-3-8b
    """
    _analyze(["confounds"], options)


@analyze.command("all")
@_shared
@_methods_option
@_draws_option
@_logistic_draws_option
@click.option(
    "--ratings",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="A .csv or .parquet table of scored texts, to correlate the probes with.",
)
@click.option("--id", "id_column", help="Its column of text ids.  [default: text]")
@click.option("--rating", "rating_column", help="Its column of ratings.  [default: rating]")
@click.option(
    "--spec",
    "spec_file",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="TOML file of the spec (`actlake schema actlake-analysis`); options rule over it.",
)
@click.pass_context
def analyze_all(context: click.Context, /, **options: Any) -> None:  # noqa: ANN401
    """Run the whole suite: every part of every run, then what compares runs.

    A part that fails says why and leaves the others their results; then the exit status is 1.
    Finished jobs are kept: after Ctrl-C the same command goes on where it was.

    \b
    Example: actlake analyze all s3://bucket/store --out results --ratings scores.csv
    """
    from .analysis_job import AnalysisJob
    from .job_progress import job_progress
    from .stages import Results
    from .store import open_store
    from .suite import analyze_suite

    store = open_store(options["store_url"])
    given = {parameter for parameter in options if _was_given(context, parameter)}
    job = AnalysisJob(
        store=store,
        results=Results(options["out"]),
        spec=_suite_spec(options, given),
        ratings=options["ratings"],
        scheduler=options["scheduler"],
        memory=options["memory"],
        site=options["site"],
        say=say,
        bar=job_progress,
    )
    runs = list(options["runs"]) or store.run_ids()
    _print(analyze_suite(job, runs), job.results, as_json=options["as_json"])


@analyze.command("compare")
@click.argument("results", type=click.Path(file_okay=False, path_type=Path))
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@click.option(
    "--between",
    type=click.Choice(["method", "layer", "pool", "run"]),
    default="method",
    show_default=True,
    help="What is compared; all else is the same.",
)
@click.option("--pool", help="Only this pool.")
@click.option("--method", help="Only this probe.")
@click.option(
    "--bootstrap",
    "n_bootstrap",
    type=click.IntRange(0),
    default=1000,
    show_default=True,
    help="Resamples of pairs within scenarios.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the bootstrap.")
@json_option
def analyze_compare(
    results: Path,
    runs: Sequence[str],
    *,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Compare probes, layers, pools or models on the same texts, in pairs.

    RESULTS is the folder that `actlake analyze probe` wrote to.

    \b
    Example: actlake analyze compare results --between run --method diff_means
    """
    import json

    from .analysis import analysed_runs, compare_stage
    from .stages import Results

    folder = Results(results)
    table = compare_stage(folder, list(runs) or analysed_runs(folder), **options)
    value = json.loads(table.to_json(orient="records"))
    shown = (
        "run", "pool", "layer", "method", "first", "second", "delta", "ci_low", "ci_high",
        "ci_method", "n_pairs",
    )  # fmt: skip
    emit(
        value,
        as_json=as_json,
        show=lambda: print_table([{n: _shown(row[n]) for n in shown if n in row} for row in value]),
    )


def _shown(value: object) -> object:
    return f"{value:.3f}" if isinstance(value, float) else value


def _analyze(parts: Sequence[AnalysisPart], options: dict[str, Any]) -> None:
    """Run ``parts`` on the runs that were asked for, and print what came out."""
    from .analysis import analyze_stage
    from .job_progress import job_progress
    from .stages import Results
    from .store import open_store

    spec = _spec(options)
    found, results = open_store(options["store_url"]), Results(options["out"])
    outcomes = [
        analyze_stage(
            found,
            run,
            results,
            spec=spec,
            parts=parts,
            site=options["site"],
            scheduler=options["scheduler"],
            memory=options["memory"],
            say=say,
            bar=job_progress,
        )
        for run in options["runs"] or found.run_ids()
    ]
    errors = [error for outcome in outcomes for error in outcome.errors.values()]
    if len(errors) == sum(len(outcome.parts) for outcome in outcomes) == 1:
        raise errors[0]
    _print(outcomes, results, as_json=options["as_json"])


def _print(outcomes: Sequence[AnalysisOutcome], results: Results, *, as_json: bool) -> None:
    """Print what became of all parts; exit status 1 if one failed."""
    from .analysis import stage_name, summarise_analysis
    from .suite import LAYERS

    listed: list[dict[str, Any]] = []
    together: dict[str, Any] = {"parts": {}, "seconds": 0.0, "folders": {}}
    summary: list[dict[str, Any]] = []
    for outcome in outcomes:
        run, made = outcome.run, ("done", "was done")
        say(f"{run or 'all runs'}: {_states(outcome.parts)} ({outcome.seconds} s)")
        folders = {
            part: str(results.stage(run or "", stage_name(part) if part in LAYERS else part))
            for part, state in outcome.parts.items()
            if state in made
        }
        value = {"parts": outcome.parts, "seconds": outcome.seconds, "folders": folders}
        if run is None:
            together = value
            continue
        listed.append({"run": run, **value})
        if outcome.parts.get("probe") in made:
            summary.extend(summarise_analysis(results, run))

    def show() -> None:
        if summary:
            print_table([{k: _shown(v) for k, v in row.items()} for row in summary])
            return
        for of in listed:
            for part, folder in of["folders"].items():
                print_facts({"run": of["run"], "part": part, "folder": folder})

    shared = {"together": together} if outcomes and outcomes[-1].run is None else {}
    emit({"runs": listed, **shared, "summary": summary}, as_json=as_json, show=show)
    if any(outcome.errors for outcome in outcomes):
        raise click.exceptions.Exit(1)


def _states(parts: Mapping[str, str]) -> str:
    """Return what became of the parts; those that fared alike are named together."""
    alike: dict[str, list[str]] = {}
    for part, state in parts.items():
        alike.setdefault(state, []).append(part)
    return "; ".join(f"{', '.join(names)} {state}" for state, names in alike.items())


def _was_given(context: click.Context, parameter: str) -> bool:
    source = context.get_parameter_source(parameter)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")


def _suite_spec(options: dict[str, Any], given: set[str]) -> AnalyzeSpec:
    """Return the spec of a TOML file, if any, with the options that were given over it."""
    from .schemas import AnalyzeSpec

    base: dict[str, Any] = {}
    if options["spec_file"] is not None:
        base = read_toml(options["spec_file"])
        AnalyzeSpec.parse(base, where=str(options["spec_file"]))
    over: dict[str, dict[str, Any]] = {}
    for part in ("probe", "nulls", "random", "confounds", "geometry", "ablation", "similarity",
                 "transfer", "correlation"):  # fmt: skip
        if "seed" in given:
            over.setdefault(part, {})["seed"] = options["seed"]
    for option in ("methods", "pools"):
        if option in given:
            over.setdefault("probe", {})[option] = _names(options[option])
    if "draws" in given:
        over.setdefault("nulls", {})["n_draws"] = options["draws"]
        over.setdefault("random", {})["n_directions"] = options["draws"]
        over.setdefault("geometry", {})["n_permutations"] = options["draws"]
    if "logistic_draws" in given:
        over.setdefault("nulls", {})["logistic_draws"] = options["logistic_draws"]
    for option in ("id_column", "rating_column"):
        if option in given:
            over.setdefault("correlation", {})[option] = options[option]
    if "pools" in given:
        for part in ("geometry", "ablation", "similarity", "transfer"):
            over.setdefault(part, {})["pools"] = _names(options["pools"])
    probe = {"methods": AnalyzeSpec().probe.methods, **base.get("probe", {})}
    merged = {**base, "probe": probe}
    for part, values in over.items():
        merged[part] = {**merged.get(part, {}), **values}
    return AnalyzeSpec.parse(merged, where=str(options["spec_file"] or "options"))


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _spec(options: dict[str, Any]) -> AnalyzeSpec:
    """Return the spec of the options; what was not given keeps its default."""
    from .schemas import AnalyzeSpec

    seed = options["seed"]
    probe: dict[str, Any] = {"seed": seed}
    default = AnalyzeSpec()
    probe["methods"] = default.probe.methods
    for name in ("methods", "pools"):
        if options.get(name):
            probe[name] = _names(options[name])
    draws = options.get("draws") or default.nulls.n_draws
    return AnalyzeSpec.parse(
        {
            "probe": probe,
            "random": {"n_directions": draws, "seed": seed},
            "nulls": {
                "n_draws": draws,
                "logistic_draws": min(options.get("logistic_draws") or 0, draws),
                "seed": seed,
            },
            "confounds": {"seed": seed},
        },
        where="options",
    )
