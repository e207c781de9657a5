"""The commands that share stores and take in what exists: pull, push, card, import."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .console import emit, json_option, parse_layers, print_facts, print_table
from .schemas.errors import InvalidInputError

if TYPE_CHECKING:
    from .store import Transfer

__all__ = ["card", "import_", "pull", "push"]

_Command = TypeVar("_Command", bound=Callable[..., None])


def _choice_options(command: _Command) -> _Command:
    """Add the options that choose what of a store is copied."""
    options = (
        click.option("--run", "runs", multiple=True, help="Only this run; repeatable."),
        click.option("--layer", "layers", type=int, multiple=True, help="Only this layer."),
        click.option("--pool", "pools", multiple=True, help="Only this pool, e.g. mean_response."),
        click.option("--split", "splits", multiple=True, help="Only blocks with this split."),
        click.option(
            "--concurrency",
            type=click.IntRange(1),
            default=16,
            show_default=True,
            help="Objects copied at the same time.",
        ),
        json_option,
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("source")
@click.argument("target")
@_choice_options
def pull(source: str, target: str, *, as_json: bool, **choice: Any) -> None:  # noqa: ANN401
    """Copy runs, or parts of them, from store SOURCE to TARGET, checked; again goes on.

    \b
    Example: actlake store pull s3://bucket/store here --run llama-3-8b --layer 12
    """
    from .store import pull as copy

    _transfer(copy, source, target, as_json=as_json, **choice)


@click.command()
@click.argument("source")
@click.argument("target")
@_choice_options
def push(source: str, target: str, *, as_json: bool, **choice: Any) -> None:  # noqa: ANN401
    """Copy runs, or parts of them, from local store SOURCE to the URL TARGET.

    \b
    Example: actlake store push here s3://bucket/store --run llama-3-8b
    """
    from .store import push as copy

    _transfer(copy, source, target, as_json=as_json, **choice)


def _transfer(
    copy: Callable[..., list[Transfer]],
    source: str,
    target: str,
    *,
    as_json: bool,
    concurrency: int,
    **choice: tuple[Any, ...],
) -> None:
    from dataclasses import asdict

    from tqdm import tqdm

    with tqdm(unit=" objects", disable=not sys.stderr.isatty()) as bar:

        def show_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        chosen = {name: values or None for name, values in choice.items()}
        done = copy(source, target, concurrency=concurrency, on_object=show_progress, **chosen)
    rows = [asdict(transfer) for transfer in done]
    emit(rows, as_json=as_json, show=lambda: print_table(rows))


@click.command()
@click.argument("url")
@click.option("--data-license", required=True, help="Licence of the data, such as cc-by-4.0.")
@click.option(
    "--model-license",
    "model_licenses",
    multiple=True,
    metavar="RUN=LICENSE",
    help="Licence of the model of a run; repeatable.",
)
@click.option("--title", help="Heading of the card.")
@click.option("--published-at", help="URL where readers will find the store.  [default: URL]")
def card(
    url: str,
    *,
    data_license: str,
    model_licenses: tuple[str, ...],
    title: str | None,
    published_at: str | None,
) -> None:
    """Write README.md and croissant.json of the store at URL.

    \b
    Example: actlake store card my-store --data-license cc-by-4.0 \\
                 --model-license llama-3-8b=llama3
    """
    from .store import open_store, write_card

    licenses = {}
    for text in model_licenses:
        run, equals, name = text.partition("=")
        if not equals:
            msg = f"--model-license {text!r} cannot be read; expected RUN=LICENSE"
            raise InvalidInputError(msg)
        licenses[run] = name
    found = open_store(url)
    write_card(
        found, data_license=data_license, model_licenses=licenses, title=title, url=published_at
    )
    click.echo(f"{found.url}/README.md")
    click.echo(f"{found.url}/croissant.json")


@click.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--store", "store_url", required=True, help="Folder or fsspec URL of the store.")
@click.option("--run", required=True, help="Name of the run.")
@click.option("--texts", required=True, help="A JSONL file of texts, in the files' order.")
@click.option("--model", required=True, help="Hub id or name of the model.")
@click.option(
    "--pool",
    required=True,
    type=click.Choice(["mean_response", "last_prompt", "last_response"]),
    help="Which tokens were pooled.",
)
@click.option(
    "--site",
    type=click.Choice(["resid_post", "resid_pre"]),
    default="resid_post",
    show_default=True,
    help="Where in a block they were taken.",
)
@click.option("--revision", help="Revision of the model.")
@click.option("--layers", help="Layers in the files, such as 0,4,8-12.  [default: from 0 on]")
@click.option("--n-layers", type=click.IntRange(1), help="Layers of the model.")
@click.option("--arms", nargs=2, help="The table's own names of its positive and negative arm.")
@click.option("--rows-per-block", type=click.IntRange(1), help="Texts per commit.")
@click.option("--dry-run", is_flag=True, help="Print what was understood; write nothing.")
@json_option
def import_(
    files: tuple[Path, ...],
    *,
    store_url: str,
    run: str,
    texts: str,
    arms: tuple[str, str] | None,
    layers: str | None,
    rows_per_block: int | None,
    dry_run: bool,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Store activations that exist already: .npy, .safetensors or .pt FILES, or folders of them.

    Arrays are (text, layer, hidden), or (text, hidden) named layer_<i>, or (layer, hidden) named
    by the id of a text. Pickled objects are never loaded.

    \b
    Example: actlake store import acts/ --store my-store --run llama --texts pairs.jsonl \\
                 --model meta-llama/Llama-3.1-8B --pool mean_response --dry-run
    """
    from .schemas import StudyCorpus
    from .stages import load_corpus
    from .store import create_store, import_run, prepare_import

    named = {"positive": arms[0], "negative": arms[1]} if arms else {}
    info, table = load_corpus(StudyCorpus.parse({"source": texts, "arms": named}))
    found = parse_layers(layers) if layers else None
    prepared = prepare_import(
        files,
        table,
        run=run,
        corpus=info.id,
        layers=None if isinstance(found, str) else found,
        rows=rows_per_block,
        readers=_torch_readers(files),
        **options,
    )
    if dry_run:
        summary = prepared.summary()
        emit(summary, as_json=as_json, show=lambda: print_facts(summary))
        return
    seal = import_run(create_store(store_url), prepared, table, info=info)
    value = {
        "run": run,
        "arrangement": prepared.arrangement,
        "objects": seal.n_objects,
        "bytes": seal.n_bytes,
        "data_digest": seal.data_digest,
    }
    emit(value, as_json=as_json, show=lambda: print_facts(value))


def _torch_readers(paths: tuple[Path, ...]) -> dict[str, Any]:
    """Return the readers of torch's own files, where there are any and torch is installed."""
    kinds = (".pt", ".pth")
    inside = [p for path in paths if path.is_dir() for p in path.iterdir()]
    if not any(path.suffix in kinds for path in (*paths, *inside)):
        return {}
    try:
        from .extract import read_torch
    except ImportError:  # the library says what to install
        return {}
    return dict.fromkeys(kinds, read_torch)
