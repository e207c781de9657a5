"""The command that sweeps the strength of a run's direction: steer run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .cli_patch import read_directions
from .cli_steer import engine_options, read_engine
from .console import (
    emit,
    estimate_options,
    json_option,
    parse_alphas,
    parse_layers,
    print_facts,
    probe_seconds,
    say,
)
from .schemas.errors import InvalidInputError

__all__ = ["steer"]

_file = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("store_url", metavar="STORE")
@click.argument("run")
@click.option("--model", required=True, help="The model of the run: hub id, folder, bundled:NAME.")
@click.option("--revision", help="Revision of a hub model.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("results"),
    show_default=True,
    help="Folder of the results.",
)
@click.option("--layer", type=int, help="Block to steer.  [default: chosen on train pairs]")
@click.option("--layers", help="Blocks such as 8,12,16, each by itself.")
@click.option("--top-layers", type=click.IntRange(1), help="The best N blocks, each by itself.")
@click.option("--together", is_flag=True, help="Steer all those blocks at once as well.")
@click.option(
    "--alphas", help="Strengths such as -2,-1,0,1,2.  [default: -4,-2,-1,-0.5,0,0.5,1,2,4]"
)
@click.option(
    "--unit",
    type=click.Choice(["raw", "separation", "norm"]),
    help="Unit of the strengths.  [default: separation]",
)
@click.option(
    "--grid",
    type=click.Choice(["raw", "separation"]),
    help="Strengths of the plan: raw 0 to 30, or 0 to 4 class separations, and their negatives.",
)
@click.option("--pool", help="Pool whose direction is used.  [default: mean_response]")
@click.option("--prompts", "n_prompts", type=int, help="Held-out pairs to score.  [default: 12]")
@click.option("--random", "n_random", type=int, help="Random directions.  [default: 20]")
@click.option(
    "--controls", help="Of shuffled,orthogonal,system_prompt; or none.  [default: all three]"
)
@click.option("--shuffled", "n_shuffled", type=int, help="Draws of labels.  [default: 5]")
@click.option("--personas", "persona_file", type=_file, help="System prompts (TOML) of your own.")
@click.option(
    "--against",
    "against_file",
    type=click.Path(path_type=Path),
    help="Directions (JSON or a saved set) that the orthogonal control loses too.",
)
@click.option("--positions", help="all, response, prompt-all or prompt-last.  [default: all]")
@click.option("--seed", type=int, help="Seed of every draw.  [default: 0]")
@engine_options
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps.")
@click.option("--dry-run", is_flag=True, help="Say what would be run, and stop.")
@estimate_options
@json_option
def steer(
    store_url: str,
    run: str,
    *,
    out: Path,
    model: str,
    revision: str | None,
    persona_file: Path | None,
    against_file: Path | None,
    device: str,
    engine: str,
    batch_tokens: int | None,
    tensor_parallel: int | None,
    dry_run: bool,
    probe: float | None,
    price: float | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Sweep the strength of a run's probe direction through its model.

    Beside the direction run random ones, some from shuffled labels, one without what confounds
    explain, and system prompts in its place. Conditions are kept as they are measured: the same
    command goes on where it was interrupted.

    \b
    Example: actlake steer run store llama-3-8b --model meta-llama/Meta-Llama-3-8B-Instruct
    """
    from .schemas import SteerSpec
    from .stages import Results
    from .steering import steer_stage, weigh_steering
    from .store import open_store
    from .study import summarise

    seconds = probe_seconds(probe, price, dry_run=dry_run)
    extract = read_engine(
        {
            "engine": engine,
            "batch_tokens": batch_tokens,
            "tensor_parallel": tensor_parallel,
            "device": device,
        }
    )
    spec = SteerSpec.parse(_given(options, persona_file), where="options")
    found, results = open_store(store_url), Results(out)
    common: dict[str, Any] = {
        "model": model,
        "revision": revision,
        "spec": spec,
        "capture": found.read_manifest(run).capture,
        "device": device,
        "extract": extract,
        "batch_tokens": batch_tokens or 16384,
        "against": read_directions(against_file).directions if against_file else (),
    }
    if dry_run:
        cost = weigh_steering(
            found, run, results, probe_seconds=seconds, price_per_hour=price, **common
        )
        emit(cost, as_json=as_json, show=lambda: print_facts(cost))
        return
    steer_stage(found, run, results, say=say, **common)
    summary = summarise(results, run, steer=spec)
    emit(summary, as_json=as_json, show=lambda: print_facts(summary))


def _given(options: dict[str, Any], persona_file: Path | None) -> dict[str, Any]:
    """Return the settings that were given, as the spec names them."""
    from .corpus import read_personas
    from .schemas import RAW_GRID, SEPARATION_GRID

    given = {name: value for name, value in options.items() if value not in (None, False)}
    grid = given.pop("grid", None)
    if grid is not None:
        if "alphas" in given or "unit" in given:
            msg = "--grid names strengths and their unit; leave out --alphas and --unit"
            raise InvalidInputError(msg)
        given |= {"alphas": {"raw": RAW_GRID, "separation": SEPARATION_GRID}[grid], "unit": grid}
    elif "alphas" in given:
        given["alphas"] = parse_alphas(given["alphas"])
    if "layers" in given:
        layers = parse_layers(given["layers"])
        if isinstance(layers, str):
            msg = "--layers of a sweep are named one by one, or chosen with --top-layers"
            raise InvalidInputError(msg)
        given["layers"] = layers
    if "controls" in given:
        names = [name.strip() for name in given["controls"].split(",")]
        given["controls"] = [] if names == ["none"] else names
    if persona_file is not None:
        given["system_prompts"] = read_personas(persona_file)
    return given
