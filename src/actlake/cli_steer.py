"""The command that generates steered texts: steer generate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .cli_patch import needs_weights
from .cli_patch import read_directions as _read_directions
from .cli_patch import show_cost as _show_cost
from .console import emit, estimate_options, json_option, parse_alphas, print_facts, say

if TYPE_CHECKING:
    import numpy as np

    from .extract import LoadedModel
    from .schemas import ExtractSpec, SteeredTextsSpec
    from .steer import RowEngine

__all__ = ["engine_options", "generate", "read_engine"]

_path = click.Path(path_type=Path)


def engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say what runs the model."""
    options = [
        click.option(
            "--engine",
            type=click.Choice(["transformers", "vllm"]),
            default="transformers",
            show_default=True,
            help="What runs the model.",
        ),
        click.option(
            "--batch-tokens", type=int, help="With vllm: of a forward pass.  [default: 16384]"
        ),
        click.option(
            "--tensor-parallel", type=int, help="With vllm: devices that share each layer."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def read_engine(options: Mapping[str, Any]) -> ExtractSpec:
    """Return what :func:`engine_options` and the device ask for, checked."""
    from .schemas import ExtractSpec

    names = ("engine", "batch_tokens", "tensor_parallel", "device")
    given = {name: options[name] for name in names if options[name] is not None}
    return ExtractSpec.parse(given, where="options")


def _load_generator(model: str, options: dict[str, Any]) -> LoadedModel:
    """Return the model for the engine that is asked for; vLLM reads the weights itself."""
    from .extract import load_model
    from .extract.engines import check_engine, load_for_plan
    from .schemas import CaptureSpec

    extract = read_engine(options)
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
        weights=needs_weights(options),
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
@click.option(
    "--method", default="diff_means", show_default=True, help="Which of a set of directions."
)
@click.option("--layer", type=int, required=True, help="Block to steer.")
@click.option("--alphas", default="0", show_default=True, help="Raw strengths such as -2,0,2.")
@click.option("--positions", default="all", show_default=True, help="prompt-all, response, …")
@click.option("--random", "n_random", type=click.IntRange(0), default=0, help="Random directions.")
@click.option("--prompts", "n_prompts", type=click.IntRange(1), help="First N prompts.")
@click.option("--seeds", type=click.IntRange(1), default=1, help="Samples per condition.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--max-new-tokens", type=int, default=128, show_default=True, help="Of a text.")
@click.option("--batch-rows", type=int, default=64, show_default=True, help="Texts of a batch.")
@engine_options
@click.option("--revision", help="Revision of a hub model.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps.")
@click.option("--dry-run", is_flag=True, help="Say what would be run, and stop.")
@estimate_options
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
    if not needs_weights(options):
        cost = condition_cost(loaded, prompts, directions, spec=spec, folder=out)
        _show_cost(cost, options, as_json=as_json)
        return
    with _open_generator(loaded, prompts, spec, options) as engine:
        if options["dry_run"]:
            cost = condition_cost(loaded, prompts, directions, spec=spec, folder=out, engine=engine)
            _show_cost(cost, options, as_json=as_json)
            return
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
