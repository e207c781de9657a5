"""The commands that analyse stored runs on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .console import emit, json_option, print_facts, print_table, say

if TYPE_CHECKING:
    from .schemas import AnalysisPart, AnalyzeSpec

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
    click.option("--pools", help="Such as mean_response,last_prompt.  [default: all of the run]"),
    click.option("--scheduler", help="threads, processes, or an address of a Dask cluster."),
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
def analyze_all(**options: Any) -> None:  # noqa: ANN401
    """Run every analysis from one reading of the layers.

    \b
    Example: actlake analyze all s3://bucket/store --out results
    """
    _analyze(["probe", "generators", "random", "nulls", "confounds"], options)


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
    from .analysis import analyze_stage, stage_name, summarise_analysis
    from .stages import Results
    from .store import open_store

    spec = _spec(options)
    found, results = open_store(options["store_url"]), Results(options["out"])
    outcomes: list[dict[str, Any]] = []
    summary: list[dict[str, Any]] = []
    for run in options["runs"] or found.run_ids():
        outcome = analyze_stage(
            found, run, results, spec=spec, parts=parts, scheduler=options["scheduler"], say=say
        )
        say(f"{run}: " + "; ".join(f"{k} {v}" for k, v in outcome.parts.items())
            + f" ({outcome.seconds} s)")  # fmt: skip
        outcomes.append(
            {
                "run": run,
                "parts": outcome.parts,
                "seconds": outcome.seconds,
                "folders": {
                    part: str(results.stage(run, stage_name(part)))
                    for part, state in outcome.parts.items()
                    if state in ("done", "was done")
                },
            }
        )
        if "probe" in parts:
            summary.extend(summarise_analysis(results, run))

    def show() -> None:
        if summary:
            print_table([{k: _shown(v) for k, v in row.items()} for row in summary])
            return
        for outcome in outcomes:
            for part, folder in outcome["folders"].items():
                print_facts({"run": outcome["run"], "part": part, "folder": folder})

    value = {"runs": outcomes, "summary": summary}
    emit(value, as_json=options["as_json"], show=show)


def _spec(options: dict[str, Any]) -> AnalyzeSpec:
    """Return the spec of the options; what was not given keeps its default."""
    from .schemas import AnalyzeSpec

    seed = options["seed"]
    probe: dict[str, Any] = {"seed": seed}
    default = AnalyzeSpec()
    probe["methods"] = default.probe.methods
    for name in ("methods", "pools"):
        if options.get(name):
            probe[name] = [part.strip() for part in options[name].split(",")]
    draws = options.get("draws") or default.nulls.n_draws
    return AnalyzeSpec.parse(
        {
            "probe": probe,
            "random": {"n_directions": draws, "seed": seed},
            "nulls": {"n_draws": draws, "seed": seed},
            "confounds": {"seed": seed},
        },
        where="options",
    )
