"""The commands that intervene on a model: steer patch, mediate, match and generate."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import emit, json_option, parse_alphas, parse_layers, print_facts, print_table, say
from .schemas.errors import InvalidInputError

if TYPE_CHECKING:
    import numpy as np

    from .extract import LoadedModel
    from .schemas import DirectionSet, Record, SteeredTextsSpec
    from .steer import AlignedCase, PatchCost, RowEngine

__all__ = ["generate", "match", "mediate", "patch"]

_file = click.Path(dir_okay=False, path_type=Path)
_path = click.Path(path_type=Path)


def _common(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that patching, mediation and their comparison share."""
    options = [
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
        click.option("--method", default="diff_means", show_default=True, help="Of a set."),
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
        json_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _read_spec(kind: type[Record], path: Path | None, given: dict[str, Any]) -> Any:  # noqa: ANN401
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


def _read_directions(path: Path) -> DirectionSet:
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

    if options["direction_file"] and options["n_fit"]:
        msg = "directions are either given (--directions) or fitted (--fit)"
        raise InvalidInputError(msg)
    found = _read_contrasts(contrasts)
    loaded = load_model(
        model,
        revision=options["revision"],
        device=options["device"],
        head=True,
        weights=not options["dry_run"],
    )
    cases = align_contrasts(loaded, found)
    n_fit = options["n_fit"]
    if options["direction_file"]:
        given = _read_directions(options["direction_file"])
        method, layers = options["method"], spec.layers
        return loaded, cases, _vectors_of(given, loaded, method=method, layers=layers)
    if not n_fit:
        return loaded, cases, None
    if n_fit >= len(cases):
        msg = f"--fit {n_fit} leaves none of {len(cases)} contrasts to run; fit on fewer"
        raise InvalidInputError(msg)
    if options["dry_run"]:  # what is fitted does not change what is run
        return loaded, cases[n_fit:], np.eye(1, loaded.info.hidden_size)[0]
    fitted = fit_contrast_direction(loaded, cases[:n_fit], place=fit_place)  # type: ignore[arg-type]
    return loaded, cases[n_fit:], fitted


def _show_cost(cost: PatchCost, *, as_json: bool) -> None:
    facts = {"forwards": cost.n_forwards, "rows": cost.n_rows, "tokens": cost.n_tokens}
    emit(facts, as_json=as_json, show=lambda: print_facts(facts))


def _save(result: Any, folder: Path, *, name: str, spec: Record, facts: dict[str, Any]) -> None:  # noqa: ANN401
    from ._version import __version__

    folder.mkdir(parents=True, exist_ok=True)
    rows = result.rows.assign(code_version=__version__)
    rows.to_parquet(folder / f"{name}.parquet", index=False)
    rows.to_csv(folder / f"{name}.csv", index=False)
    result.samples.to_parquet(folder / f"{name}-samples.parquet", index=False)
    record = {"actlake": __version__, **facts, "spec": spec.to_dict()}
    (folder / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    say(f"tables: {folder / name}.parquet, {name}-samples.parquet")


def _finish(
    result: Any,  # noqa: ANN401
    *,
    name: str,
    spec: Record,
    columns: list[str],
    options: dict[str, Any],
    as_json: bool,
) -> None:
    facts = {key: str(options[key]) for key in ("model", "contrasts")}
    _save(result, options["out"], name=name, spec=spec, facts=facts)
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
    spec = _read_spec(PatchSpec, options["spec_file"], given)
    loaded, cases, direction = _prepare(
        options["model"], options["contrasts"], spec, options, fit_place="response"
    )
    if options["dry_run"]:
        cost = weigh_sweep(loaded, cases, spec=spec, direction=direction)
        _show_cost(cost, as_json=as_json)
        return
    result = sweep_patches(loaded, cases, spec=spec, direction=direction)
    columns = ["metric", "layer", "position", "arm", "estimate", "ci_low", "ci_high", "p_value_max"]
    _finish(result, name="patching", spec=spec, columns=columns, options=options, as_json=as_json)


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
    spec = _read_spec(MediateSpec, options["spec_file"], given)
    loaded, cases, direction = _prepare(
        options["model"], options["contrasts"], spec, options, fit_place=spec.position
    )
    if options["dry_run"]:
        _show_cost(weigh_mediation(loaded, cases, spec=spec, direction=direction), as_json=as_json)
        return
    result = run_mediation(loaded, cases, spec=spec, direction=direction)
    columns = ["way", "layer", "mediator", "metric", "estimate", "ci_low", "ci_high", "p_value_max"]
    _finish(result, name="mediation", spec=spec, columns=columns, options=options, as_json=as_json)


@click.command()
@_common
@click.option("--position", help="Where the patch is.  [default: suffix]")
@click.option("--steer-position", help="Where the steering is.  [default: suffix]")
@click.option("--arm", type=click.Choice(["full", "coordinate"]), help="[default: full]")
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

    given = {name: options[name] for name in ("layers", "n_random", "seed")}
    given["position"] = _place(position) if position else None
    given["steer_position"] = _place(steer_position) if steer_position else None
    given["arm"] = arm
    spec = _read_spec(MatchedSpec, options["spec_file"], given)
    loaded, cases, direction = _prepare(
        options["model"], options["contrasts"], spec, options, fit_place=spec.position
    )
    if direction is None:
        msg = "steering needs a direction: give --directions, or --fit N"
        raise InvalidInputError(msg)
    if options["dry_run"]:
        _show_cost(weigh_comparison(loaded, cases, direction, spec=spec), as_json=as_json)
        return
    result = compare_with_steering(loaded, cases, direction, spec=spec)
    columns = ["layer", "what", "estimate", "ci_low", "ci_high", "change_norm", "p_value"]
    _finish(result, name="matched", spec=spec, columns=columns, options=options, as_json=as_json)


def _load_generator(model: str, options: dict[str, Any]) -> LoadedModel:
    """Return the model for the engine that is asked for; vLLM reads the weights itself."""
    from .extract import load_model
    from .extract.engines import check_engine, load_for_plan
    from .schemas import CaptureSpec, ExtractSpec

    names = ("engine", "batch_tokens", "tensor_parallel", "device")
    given = {name: options[name] for name in names if options[name] is not None}
    extract = ExtractSpec.parse(given, where="options")
    if extract.engine == "vllm":
        check_engine(extract)
        return load_for_plan(
            model, revision=options["revision"], capture=CaptureSpec(), extract=extract
        )
    return load_model(
        model,
        revision=options["revision"],
        device=options["device"],
        head=True,
        weights=not options["dry_run"],
    )


@contextmanager
def _open_generator(
    loaded: LoadedModel,
    prompts: dict[str, np.ndarray],
    spec: SteeredTextsSpec,
    options: dict[str, Any],
) -> Iterator[RowEngine | None]:
    """Give vLLM where it is asked for, None for the model in this process."""
    if options["engine"] != "vllm":
        yield None
        return
    from .steer import VllmSteering

    engine = VllmSteering(
        loaded,
        longest=max(len(ids) for ids in prompts.values()) + spec.max_new_tokens,
        batch_tokens=options["batch_tokens"] or 16384,
        tensor_parallel=options["tensor_parallel"] or 1,
    )
    with engine.ready():
        yield engine


@click.command()
@click.argument("model")
@click.argument("source")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("generated"),
    show_default=True,
    help="Folder of the table; it goes on with what is missing.",
)
@click.option("--directions", "direction_file", type=_path, required=True, help="JSON or folder.")
@click.option("--method", default="diff_means", show_default=True, help="Of a set.")
@click.option("--layer", type=int, required=True, help="Block to steer.")
@click.option("--alphas", default="0", show_default=True, help="Raw strengths such as -2,0,2.")
@click.option("--positions", default="all", show_default=True, help="prompt-all, response, …")
@click.option("--random", "n_random", type=click.IntRange(0), default=0, help="Random directions.")
@click.option("--prompts", "n_prompts", type=click.IntRange(1), help="First N prompts.")
@click.option("--seeds", type=click.IntRange(1), default=1, help="Samples per condition.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--max-new-tokens", type=int, default=128, show_default=True, help="Of a text.")
@click.option("--batch-rows", type=int, default=64, show_default=True, help="Texts of a batch.")
@click.option(
    "--engine",
    type=click.Choice(["transformers", "vllm"]),
    default="transformers",
    show_default=True,
    help="What runs the model.",
)
@click.option("--batch-tokens", type=int, help="With vllm: of a forward pass.  [default: 16384]")
@click.option("--tensor-parallel", type=int, help="With vllm: devices that share each layer.")
@click.option("--revision", help="Revision of a hub model.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps.")
@click.option("--dry-run", is_flag=True, help="Say what would be run, and stop.")
@json_option
def generate(
    model: str,
    source: str,
    *,
    out: Path,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Generate steered answers to the prompts of SOURCE, a JSONL file or bundled:NAME.

    \b
    Example: actlake steer generate phi bundled:demo --directions phi.json --layer 12 --alphas 0,5
    """
    from .schemas import SteeredTextsSpec, StudyCorpus
    from .stages import load_corpus
    from .steer import condition_cost, generate_table, prompt_ids
    from .steer.sweep import check_direction, with_random

    names = ("layer", "positions", "temperature", "max_new_tokens", "batch_rows")
    spec = SteeredTextsSpec.parse(
        {
            **{name: options[name] for name in names},
            "alphas": parse_alphas(options["alphas"]),
            "seeds": list(range(options["seeds"])),
        },
        where="options",
    )
    direction = _read_directions(options["direction_file"]).get(options["method"], layer=spec.layer)
    loaded = _load_generator(model, options)
    check_direction(loaded, direction)
    vectors = with_random(direction, n_random=options["n_random"], seed=0)
    labels = [options["method"], *(f"random-{i}" for i in range(options["n_random"]))]
    _, texts = load_corpus(StudyCorpus(source=source))
    answering = [t for t in reversed(texts) if t.prompt is not None or t.messages is not None]
    asked = {(t.system, t.prompt, t.messages): t for t in answering}
    prompts = prompt_ids(loaded, list(reversed(asked.values()))[: options["n_prompts"]])
    directions = dict(zip(labels, vectors, strict=True))
    if options["dry_run"]:
        _show_cost(condition_cost(prompts, directions, spec=spec, folder=out), as_json=as_json)
        return
    with _open_generator(loaded, prompts, spec, options) as engine:
        table = generate_table(
            loaded, prompts, directions, spec=spec, folder=out, engine=engine,
            progress=lambda done, total: say(f"{done:,} of {total:,} texts"),
        )  # fmt: skip
    facts = {
        "texts": len(table),
        "ended": int(table["ended"].sum()),
        "tokens": int(table["n_new"].sum()),
    }
    say(f"table: {out}")
    emit(facts, as_json=as_json, show=lambda: print_facts(facts))
