"""The commands that patch a model: steer patch, mediate and match."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import (
    emit,
    estimate_options,
    json_option,
    parse_layers,
    print_facts,
    print_table,
    probe_seconds,
    say,
    show_progress,
)
from .intervention_files import save_intervention
from .schemas.errors import InvalidInputError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from .extract import LoadedModel
    from .schemas import DirectionSet, Record
    from .steer import AlignedCase, PatchCost

__all__ = [
    "conditions_folder",
    "draw_figure",
    "match",
    "mediate",
    "needs_weights",
    "patch",
    "read_directions",
    "read_spec",
    "show_cost",
]

_file = click.Path(dir_okay=False, path_type=Path)
_path = click.Path(path_type=Path)


def _common(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that patching, mediation and their comparison share."""
    options: list[Callable[[Any], Any]] = [
        click.argument("model"),
        click.argument("contrasts", type=_file),
        click.option(
            "--out",
            type=click.Path(file_okay=False, path_type=Path),
            default=Path("results"),
            show_default=True,
            help="Folder for the tables and the spec.",
        ),
        click.option("--directions", "direction_file", type=_path, help="JSON, or a saved set."),
        click.option(
            "--method",
            default="diff_means",
            show_default=True,
            help="Which of a set of directions.",
        ),
        click.option(
            "--fit",
            "n_fit",
            type=click.IntRange(1),
            help="Fit on the first N contrasts.",
        ),
        click.option("--spec", "spec_file", type=_file, help="Settings (TOML)."),
        click.option("--layers", help="Blocks such as 0,4,8-12.  [default: all]"),
        click.option("--random", "n_random", type=int, help="Random directions.  [default: 20]"),
        click.option("--seed", type=int, help="Seed of every draw.  [default: 0]"),
        click.option("--revision", help="Revision of a hub model."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps."),
        click.option("--dry-run", is_flag=True, help="Say what would be run, and stop."),
        estimate_options,
        json_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command


def read_spec(kind: type[Record], path: Path | None, given: dict[str, Any]) -> Any:  # noqa: ANN401
    """Return the spec of a TOML file with the options that were given over it."""
    from .corpus import read_toml

    chosen = {name: value for name, value in given.items() if value is not None}
    values = (read_toml(path, noun="setting") if path else {}) | chosen
    if isinstance(values.get("layers"), str) and values["layers"] != "all":
        values["layers"] = parse_layers(values["layers"])
    return kind.parse(values, where=str(path) if path else "options")


def _place(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text


def _read_contrasts(path: Path) -> list[Any]:
    from .schemas import Contrast

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        msg = f"{path} cannot be read: {err}; expected one contrast per line, as JSON"
        raise InvalidInputError(msg) from err
    return [
        Contrast.parse_json(line, where=f"{path}:{number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def read_directions(path: Path) -> DirectionSet:
    """Return the directions of a JSON file, or of a folder that holds a saved set."""
    from .schemas import Direction, DirectionSet

    if path.is_dir():
        from .analyze import load_directions

        return load_directions(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        msg = f"{path} cannot be read: {err}; expected a direction or a set of them, as JSON"
        raise InvalidInputError(msg) from err
    if isinstance(values, dict) and "directions" in values:
        return DirectionSet.parse(values, where=str(path))
    return DirectionSet(directions=(Direction.parse(values, where=str(path)),))


def _vectors_of(
    found: DirectionSet, loaded: LoadedModel, *, method: str, layers: str | tuple[int, ...]
) -> np.ndarray:
    """Return the unit vectors of a set (layer, hidden), for the layers that are asked for."""
    import numpy as np

    from .steer.sweep import check_direction

    n_layers = loaded.info.n_layers
    wanted = list(range(n_layers)) if isinstance(layers, str) else list(layers)
    chosen = {d.layer: d for d in found.directions if d.method == method}
    lacking = [layer for layer in wanted if layer not in chosen]
    if lacking:
        msg = (
            f"no direction {method!r} of layers {lacking}; the set has "
            f"{[d.name for d in found.directions][:12]}; name --layers or --method"
        )
        raise InvalidInputError(msg)
    for direction in chosen.values():
        check_direction(loaded, direction)
    # Layers that nobody asked for are never read: any unit vector fills them.
    filler = next(iter(chosen.values()))
    return np.array([chosen.get(layer, filler).vector for layer in range(n_layers)])


def _prepare(
    model: str,
    contrasts: Path,
    spec: Any,  # one of three specs  # noqa: ANN401
    options: dict[str, Any],
    *,
    fit_place: int | str,
) -> tuple[LoadedModel, list[AlignedCase], np.ndarray | None]:
    """Return the model, the contrasts to run, and the directions given or fitted."""
    import numpy as np

    from .extract import load_model
    from .steer import align_contrasts, fit_contrast_direction
    from .steer.kept import write_file

    if options["direction_file"] and options["n_fit"]:
        msg = "directions are either given (--directions) or fitted (--fit)"
        raise InvalidInputError(msg)
    found = _read_contrasts(contrasts)
    loaded = load_model(
        model,
        revision=options["revision"],
        device=options["device"],
        head=True,
        weights=needs_weights(options),
    )
    cases = align_contrasts(loaded, found)
    n_fit = options["n_fit"]
    if options["direction_file"]:
        given = read_directions(options["direction_file"])
        method, layers = options["method"], spec.layers
        return loaded, cases, _vectors_of(given, loaded, method=method, layers=layers)
    if not n_fit:
        return loaded, cases, None
    if n_fit >= len(cases):
        msg = f"--fit {n_fit} leaves none of {len(cases)} contrasts to run; fit on fewer"
        raise InvalidInputError(msg)
    kept = conditions_folder(options["out"], loaded) / f"{_fit_name(cases[:n_fit], fit_place)}.npy"
    if kept.exists():  # what was done along it is only found again along the same numbers
        return loaded, cases[n_fit:], np.load(kept, allow_pickle=False)
    if options["dry_run"]:  # the direction's numbers do not change what is run
        return loaded, cases[n_fit:], np.eye(1, loaded.info.hidden_size)[0]
    fitted = fit_contrast_direction(loaded, cases[:n_fit], place=fit_place)  # type: ignore[arg-type]
    with io.BytesIO() as file:
        np.save(file, fitted)
        write_file(kept, file.getvalue())
    return loaded, cases[n_fit:], fitted


def _fit_name(cases: list[AlignedCase], place: int | str) -> str:
    """Return the name of the direction that is fitted on contrasts at a place."""
    from .schemas import digest_json

    tokens = [[ids.tolist() for ids in (*c.prompts.values(), *c.completions)] for c in cases]
    return "fitted-" + digest_json([place, tokens]).removeprefix("sha256:")[:12]


def needs_weights(options: Mapping[str, Any]) -> bool:
    """Return whether a command runs the model: not in a dry run, unless it says how long."""
    seconds = probe_seconds(options["probe"], options["price"], dry_run=options["dry_run"])
    return not options["dry_run"] or seconds is not None


def show_cost(cost: PatchCost, options: Mapping[str, Any], *, as_json: bool) -> None:
    """Print what a command would run, how much of it is there already, and how long it takes."""
    from .steer.costs import describe_cost

    facts = describe_cost(
        cost,
        probe_seconds=probe_seconds(options["probe"], options["price"], dry_run=True),
        price_per_hour=options["price"],
    )
    emit(facts, as_json=as_json, show=lambda: print_facts(facts))


def conditions_folder(out: Path, loaded: LoadedModel, *, of: str = "patches") -> Path:
    """Return the folder that keeps a model's outcomes, whichever command makes them."""
    from .schemas import digest_json

    digest = digest_json(loaded.info.to_dict()).removeprefix("sha256:")[:12]
    return out / "conditions" / f"{of}-{Path(loaded.info.name).name}-{digest}"


def draw_figure(rows: pd.DataFrame, path: Path, *, name: str) -> None:
    """Draw the figure of an analysis, where the charts are installed."""
    try:
        from .analyze.intervention_charts import CHARTS, write_chart
    except ModuleNotFoundError as err:
        if (err.name or "").partition(".")[0] not in {"altair", "vl_convert"}:
            raise
        say("no figure: charts need pip install 'actlake[report]'")
        return
    say(f"figure: {write_chart(CHARTS[name](rows), path)}")


def _run(
    name: str,
    run: Callable[..., Any],
    weigh: Callable[..., PatchCost],
    *,
    spec: Record,
    fit_place: int | str,
    columns: list[str],
    options: dict[str, Any],
    as_json: bool,
) -> None:
    """Run an analysis of contrasts, or weigh it, and write and print what it found."""
    loaded, cases, direction = _prepare(
        options["model"], options["contrasts"], spec, options, fit_place=fit_place
    )
    asked = {
        "spec": spec,
        "direction": direction,
        "folder": conditions_folder(options["out"], loaded),
    }
    if options["dry_run"]:
        show_cost(weigh(loaded, cases, **asked), options, as_json=as_json)
        return
    with show_progress(name) as progress:
        result = run(loaded, cases, progress=progress, **asked)
    facts = {key: str(options[key]) for key in ("model", "contrasts")}
    save_intervention(result, options["out"], name=name, spec=spec, facts=facts)
    say(f"tables: {options['out'] / name}.parquet, {name}-samples.parquet")
    if name != "mediation":
        draw_figure(result.rows, options["out"] / f"{name}.svg", name=name)
    kept = {"patching": "arm", "mediation": "mediator", "matched": "what"}[name]
    shown = result.rows[result.rows[kept] != "random"][columns]
    records = json.loads(shown.round(4).to_json(orient="records"))
    emit(records, as_json=as_json, show=lambda: print_table(records))


@click.command()
@_common
@click.option("--positions", help="Such as response,suffix,-1.  [default: every phase]")
@click.option("--arms", help="Such as full,coordinate,random.  [default: all that can be run]")
def patch(
    *,
    as_json: bool,
    positions: str | None,
    arms: str | None,
    **options: Any,  # noqa: ANN401
) -> None:
    """Patch states of one run into another, at every layer and position of CONTRASTS.

    CONTRASTS is JSONL: id, prompt, the system prompts source and base, and the completions
    positive and negative.

    \b
    Example: actlake steer patch bundled:llama-organism contrasts.jsonl --fit 8
    """
    from .schemas import PatchSpec
    from .steer import sweep_patches, weigh_sweep

    given = {name: options[name] for name in ("layers", "n_random", "seed")}
    given["positions"] = [_place(p) for p in positions.split(",")] if positions else None
    given["arms"] = arms.split(",") if arms else None
    spec = read_spec(PatchSpec, options["spec_file"], given)
    columns = ["metric", "layer", "position", "arm", "estimate", "ci_low", "ci_high", "p_value_max"]
    _run(
        "patching", sweep_patches, weigh_sweep, spec=spec, fit_place="response", columns=columns,
        options=options, as_json=as_json,
    )  # fmt: skip


@click.command()
@_common
@click.option("--position", help="Where the mediator is.  [default: suffix]")
def mediate(*, as_json: bool, position: str | None, **options: Any) -> None:  # noqa: ANN401
    """Split the effect of CONTRASTS' system prompts into what passes through a state and the rest.

    Without directions the mediator is the whole residual.

    \b
    Example: actlake steer mediate bundled:llama-organism contrasts.jsonl --position response
    """
    from .schemas import MediateSpec
    from .steer import mediate as run_mediation
    from .steer import weigh_mediation

    given = {name: options[name] for name in ("layers", "n_random", "seed")}
    given["position"] = _place(position) if position else None
    if not options["direction_file"] and not options["n_fit"]:
        given["mediators"] = ["full"]
    spec = read_spec(MediateSpec, options["spec_file"], given)
    columns = ["way", "layer", "mediator", "metric", "estimate", "ci_low", "ci_high", "p_value_max"]
    _run(
        "mediation", run_mediation, weigh_mediation, spec=spec, fit_place=spec.position,
        columns=columns, options=options, as_json=as_json,
    )  # fmt: skip


@click.command()
@_common
@click.option("--position", help="Where the patch is.  [default: suffix]")
@click.option("--steer-position", help="Where the steering is.  [default: suffix]")
@click.option(
    "--arm", type=click.Choice(["full", "coordinate"]), help="What is patched.  [default: full]"
)
def match(
    *,
    as_json: bool,
    position: str | None,
    steer_position: str | None,
    arm: str | None,
    **options: Any,  # noqa: ANN401
) -> None:
    """Compare patching CONTRASTS with steering them as far, at every layer.

    \b
    Example: actlake steer match bundled:llama-organism contrasts.jsonl --fit 8 --position response
    """
    from .schemas import MatchedSpec
    from .steer import compare_with_steering, weigh_comparison

    if not options["direction_file"] and not options["n_fit"]:
        msg = "steering needs a direction: give --directions, or --fit N"
        raise InvalidInputError(msg)
    given = {name: options[name] for name in ("layers", "n_random", "seed")}
    given["position"] = _place(position) if position else None
    given["steer_position"] = _place(steer_position) if steer_position else None
    given["arm"] = arm
    spec = read_spec(MatchedSpec, options["spec_file"], given)
    columns = ["layer", "what", "estimate", "ci_low", "ci_high", "change_norm", "p_value"]
    _run(
        "matched", compare_with_steering, weigh_comparison, spec=spec, fit_place=spec.position,
        columns=columns, options=options, as_json=as_json,
    )  # fmt: skip
