"""The command line: every command calls one function of the library.

Nothing heavy is imported here: ``actlake --help`` costs what click costs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._version import __version__
from .schemas.errors import ActlakeError, InvalidInputError

if TYPE_CHECKING:
    from .schemas import CaptureSpec, ExtractSpec
    from .store import Store

__all__ = ["cli", "main"]

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
_out_option = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("results"),
    show_default=True,
    help="Folder of the results.",
)


def main() -> None:
    """Run the command line; errors that a user can mend are one line, without a traceback."""
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as err:
        err.show()
        sys.exit(err.exit_code)
    except ActlakeError as err:
        click.echo(f"error: {err}", err=True)
        sys.exit(err.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted: what was committed stays; the same command goes on", err=True)
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


@click.group(context_settings=_CONTEXT)
@click.version_option(__version__, prog_name="actlake")
def cli() -> None:
    """Store activations once, analyse them as often as wanted.

    \b
    Example: actlake demo
    """


def _say(line: str) -> None:
    click.echo(line, err=True)


def _emit(value: object, *, as_json: bool, show: Callable[[], None]) -> None:
    if as_json:
        click.echo(json.dumps(value, indent=2))
    else:
        show()


def _print_table(rows: list[dict[str, Any]]) -> None:
    """Print dicts of like keys as an aligned table."""
    if not rows:
        click.echo("nothing")
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names] + [["" if row.get(n) is None else str(row[n]) for n in names] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    for line in cells:
        padded = [c.ljust(w) for c, w in zip(line, widths, strict=True)]
        click.echo("  ".join(padded).rstrip())


def _print_facts(facts: dict[str, Any]) -> None:
    """Print one dict as aligned lines."""
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
        click.echo(f"{name.ljust(width)}  {shown}")


@cli.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("actlake-demo"),
    show_default=True,
    help="Folder for the store, the results and the report.",
)
@click.option("--store", "store_url", help="Another place for the store: any fsspec URL.")
@_json_option
def demo(out: Path, store_url: str | None, as_json: bool) -> None:  # noqa: FBT001
    """Run the bundled study offline: three models, all stages, a report.

    \b
    Example: actlake demo --out my-demo
    """
    from .study import demo_study

    _run_study(demo_study(), out=out, store_url=store_url, base=None, as_json=as_json)


@cli.group()
def study() -> None:
    """Run a whole study from one TOML file.

    \b
    Example: actlake study run study.toml
    """


@study.command("run")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for store, results and report.  [default: the file's name]",
)
@click.option("--store", "store_url", help="Another place for the store: any fsspec URL.")
@_json_option
def study_run(file: Path, out: Path | None, store_url: str | None, as_json: bool) -> None:  # noqa: FBT001
    """Run the stages of FILE that are not done, and write the report.

    \b
    Example: actlake study run empathy.toml --store s3://bucket/empathy
    """
    from .study import load_study

    found = load_study(file)
    _run_study(
        found, out=out or Path(file.stem), store_url=store_url, base=file.parent, as_json=as_json
    )


def _run_study(
    study: Any,  # noqa: ANN401  # a StudyFile, whose import is not free
    *,
    out: Path,
    store_url: str | None,
    base: Path | None,
    as_json: bool,
) -> None:
    from .study import run_study

    outcome = run_study(study, out=out, store_url=store_url, base=base, say=_say)
    value = {
        "summary": outcome.summary,
        "report": str(outcome.report),
        "store": outcome.store_url,
        "seconds": outcome.seconds,
    }

    def show() -> None:
        for line in outcome.summary:
            _print_facts(line)
            click.echo()
        click.echo(f"done in {outcome.seconds} s; report: {outcome.report}")

    _emit(value, as_json=as_json, show=show)


@cli.command()
@click.argument("model")
@click.option("--corpus", required=True, help="A JSONL file of texts, or bundled:demo.")
@click.option("--store", "store_url", required=True, help="Folder or fsspec URL of the store.")
@click.option("--run", help="Name of the run.  [default: the model's name]")
@click.option("--revision", help="Revision of a hub model.")
@click.option("--layers", help="Block indices such as 0,4,8-12.  [default: all]")
@click.option("--pools", help="Pools such as mean_response,last_prompt.  [default: all]")
@click.option("--sites", help="Sites: resid_post, resid_pre.  [default: resid_post]")
@click.option("--dtype", help="auto, float32, bfloat16 or float16.  [default: auto]")
@click.option("--render", help="auto, chat or plain.  [default: auto]")
@click.option("--max-tokens", type=int, help="Longest text.  [default: 4096]")
@click.option("--truncate", is_flag=True, help="Cut longer texts instead of refusing them.")
@click.option("--batch-tokens", type=int, help="Rows x longest row.  [default: 16384]")
@click.option("--rows-per-block", type=int, help="Texts per commit.  [default: 16 MiB objects]")
@click.option("--device", help="auto, cpu, cuda, cuda:1, mps.  [default: auto]")
@click.option("--attn", "attn_implementation", help="eager, sdpa, flash_attention_2.")
@click.option("--arms", nargs=2, help="The corpus's own names of its positive and negative arm.")
@click.option("--dry-run", is_flag=True, help="Print what it would do; read no weights.")
@_json_option
def extract(  # noqa: PLR0913
    model: str,
    corpus: str,
    store_url: str,
    run: str | None,
    *,
    revision: str | None,
    arms: tuple[str, str] | None,
    dry_run: bool,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Run MODEL over a corpus once and store its activations; resume if begun.

    MODEL is a hub id, a folder, or bundled:NAME.

    \b
    Example: actlake extract microsoft/Phi-3-mini-4k-instruct --corpus pairs.jsonl \\
                 --store s3://bucket/store
    """
    from .extract import extract_run, plan_extraction
    from .schemas import StudyCorpus, StudyModel
    from .stages import load_corpus
    from .store import create_store
    from .study import run_name

    capture, execution = _extract_specs(options)
    named = {"positive": arms[0], "negative": arms[1]} if arms else {}
    info, texts = load_corpus(StudyCorpus.parse({"source": corpus, "arms": named}))
    name = run or run_name(StudyModel(model=model))
    if dry_run:
        prepared = plan_extraction(
            texts,
            model=model,
            run=name,
            corpus=info.id,
            revision=revision,
            capture=capture,
            extract=execution,
        )
        summary = prepared.summary()
        _emit(summary, as_json=as_json, show=lambda: _print_facts(summary))
        return
    done = extract_run(
        create_store(store_url),
        texts,
        info,
        model=model,
        run=name,
        revision=revision,
        capture=capture,
        extract=execution,
    )
    value = {
        "run": done.run,
        "blocks_run": done.n_blocks_run,
        "blocks_kept": done.n_blocks_kept,
        "objects": done.seal.n_objects,
        "bytes": done.seal.n_bytes,
        "data_digest": done.seal.data_digest,
    }
    _emit(value, as_json=as_json, show=lambda: _print_facts(value))


def _extract_specs(options: dict[str, Any]) -> tuple[CaptureSpec, ExtractSpec]:
    """Return the capture and execution specs of the extract command's options."""
    from .schemas import CaptureSpec, ExtractSpec

    given = {name: value for name, value in options.items() if value not in (None, False)}
    for name in ("pools", "sites"):
        if name in given:
            given[name] = [part.strip() for part in given[name].split(",")]
    if "layers" in given:
        given["layers"] = _parse_layers(given["layers"])
    capture = {k: v for k, v in given.items() if k in CaptureSpec.model_fields}
    execution = {k: v for k, v in given.items() if k in ExtractSpec.model_fields}
    return (
        CaptureSpec.parse(capture, where="options"),
        ExtractSpec.parse(execution, where="options"),
    )


def _parse_layers(text: str) -> list[int] | str:
    """Return the layers that ``0,4,8-12`` names, or ``all``."""
    if text == "all":
        return text
    layers: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            layers.extend(range(int(first), int(last or first) + 1))
    except ValueError as err:
        msg = f"layers {text!r} cannot be read; expected something like 0,4,8-12 or all"
        raise InvalidInputError(msg) from err
    return layers


@cli.command()
@click.argument("store_url", metavar="STORE")
@click.argument("run")
@_out_option
@click.option("--random", "n_random", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--scheduler", help="threads, processes, or an address of a Dask cluster.")
@click.option("--seed", type=int, default=0, show_default=True)
@_json_option
def probe(  # noqa: PLR0913
    store_url: str,
    run: str,
    out: Path,
    n_random: int,
    *,
    scheduler: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Probe a run's every layer, beside random directions and a bag of words.

    \b
    Example: actlake probe s3://bucket/store llama-3-8b --out results
    """
    from .schemas import BagOfWordsSpec, PcaSpec, ProbeSpec, RandomSpec, SteerSpec
    from .stages import Results, pca_stage, probe_stage
    from .store import open_store
    from .study import summarise

    results, found = Results(out), open_store(store_url)
    probe_stage(
        found,
        run,
        results,
        probe=ProbeSpec(seed=seed),
        random=RandomSpec(n_directions=n_random, seed=seed),
        bow=BagOfWordsSpec(),
        scheduler=scheduler,
    )
    pca_stage(found, run, results, spec=PcaSpec(), scheduler=scheduler)
    summary = summarise(results, run, steer=SteerSpec())
    _emit(summary, as_json=as_json, show=lambda: _print_facts(summary))


@cli.command()
@click.argument("store_url", metavar="STORE")
@click.argument("run")
@click.option("--model", required=True, help="The model of the run: hub id, folder, bundled:NAME.")
@click.option("--revision", help="Revision of a hub model.")
@_out_option
@click.option("--layer", type=int, help="Block to steer.  [default: the probe's choice]")
@click.option("--alphas", help="Strengths such as -2,-1,0,1,2.")
@click.option("--unit", type=click.Choice(["raw", "separation", "norm"]), default="separation")
@click.option("--pool", help="Pool whose direction is used.  [default: mean_response]")
@click.option("--prompts", "n_prompts", type=int, help="Held-out pairs to score.  [default: 12]")
@click.option("--random", "n_random", type=int, help="Random directions.  [default: 20]")
@click.option("--positions", help="all, response, prompt-all or prompt-last.  [default: all]")
@click.option("--device", default="auto", show_default=True)
@_json_option
def steer(  # noqa: PLR0913
    store_url: str,
    run: str,
    out: Path,
    *,
    model: str,
    revision: str | None,
    alphas: str | None,
    device: str,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Sweep the strength of a run's probe direction through its model.

    \b
    Example: actlake steer store llama-3-8b --model meta-llama/Meta-Llama-3-8B-Instruct
    """
    from .schemas import SteerSpec
    from .stages import Results, steer_stage
    from .store import open_store
    from .study import summarise

    given = {name: value for name, value in options.items() if value is not None}
    if alphas is not None:
        given["alphas"] = _parse_alphas(alphas)
    spec = SteerSpec.parse(given, where="options")
    found, results = open_store(store_url), Results(out)
    steer_stage(
        found,
        run,
        results,
        model=model,
        revision=revision,
        spec=spec,
        capture=found.read_manifest(run).capture,
        device=device,
    )
    summary = summarise(results, run, steer=spec)
    _emit(summary, as_json=as_json, show=lambda: _print_facts(summary))


def _parse_alphas(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as err:
        msg = f"alphas {text!r} cannot be read; expected something like -2,-1,0,1,2"
        raise InvalidInputError(msg) from err


@cli.command()
@click.argument("results", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("report.html"),
    show_default=True,
)
@click.option("--title", default="", help="Title of the page.")
def report(results: Path, out: Path, title: str) -> None:
    """Write one self-contained HTML page from a folder of results.

    \b
    Example: actlake report results --out report.html
    """
    from .stages import Results, report_stage

    click.echo(report_stage(Results(results), out, title=title))


@cli.group()
def store() -> None:
    """List, describe and verify stores.

    \b
    Example: actlake store ls s3://bucket/store
    """


@store.command("ls")
@click.argument("url")
@_json_option
def store_ls(url: str, as_json: bool) -> None:  # noqa: FBT001
    """List the runs of a store.

    \b
    Example: actlake store ls s3://bucket/store
    """
    from .store import open_store

    found = open_store(url)
    rows = [_describe_run(found, run) for run in found.run_ids()]
    _emit(rows, as_json=as_json, show=lambda: _print_table(rows))


def _describe_run(found: Store, run: str) -> dict[str, Any]:
    manifest, seal = found.read_manifest(run), found.read_seal(run)
    return {
        "run": run,
        "model": manifest.model.name,
        "corpus": manifest.corpus,
        "texts": manifest.n_texts,
        "layers": manifest.n_layers,
        "hidden": manifest.hidden_size,
        "bytes": seal.n_bytes if seal else None,
        "state": "sealed" if seal else "incomplete",
        "data_digest": seal.data_digest[:19] if seal else None,
    }


@store.command("info")
@click.argument("url")
@click.argument("run")
@_json_option
def store_info(url: str, run: str, as_json: bool) -> None:  # noqa: FBT001
    """Describe a run: what was run, on what, and whether it is whole.

    \b
    Example: actlake store info s3://bucket/store llama-3-8b
    """
    from .store import open_store

    found = open_store(url)
    manifest, seal = found.read_manifest(run), found.read_seal(run)
    commits = found.read_commits(run)
    value: dict[str, Any] = {
        **manifest.to_dict(),
        "arrays": {a.name: list(a.shape) for a in found.read_plan(run).arrays},
        "blocks_committed": len(commits),
        "blocks": found.read_plan(run).n_blocks,
        "sealed": seal is not None,
        "data_digest": seal.data_digest if seal else None,
        "tree_digest": seal.tree_digest if seal else None,
        "objects": seal.n_objects if seal else None,
        "bytes": seal.n_bytes if seal else None,
    }

    def show() -> None:
        flat = {
            f"{name}.{key}" if isinstance(part, dict) else name: item
            for name, part in value.items()
            for key, item in (part.items() if isinstance(part, dict) else [("", part)])
        }
        _print_facts(flat)

    _emit(value, as_json=as_json, show=show)


@store.command("verify")
@click.argument("url")
@click.argument("run")
@click.option("--layer", "layers", type=int, multiple=True, help="Only these layers.")
@click.option("--sample", type=click.FloatRange(0, 1), help="Only this share of the objects.")
@_json_option
def store_verify(
    url: str, run: str, *, layers: tuple[int, ...], sample: float | None, as_json: bool
) -> None:
    """Check every object of a run against its manifest.

    \b
    Example: actlake store verify s3://bucket/store llama-3-8b
    """
    from .store import open_store, verify_run

    found = verify_run(open_store(url), run, layers=layers or None, sample=sample)
    value = found.describe()
    _emit(value, as_json=as_json, show=lambda: _print_facts(value))
    if not found.ok:
        sys.exit(1)


@cli.command()
@click.argument("name", required=False)
def schema(name: str | None) -> None:
    """Print the JSON Schema of record NAME, or the names of all records.

    \b
    Example: actlake schema actlake-study
    """
    from .schemas import json_schemas, near_names

    schemas = json_schemas()
    if name is None:
        click.echo("\n".join(schemas))
        return
    if name not in schemas:
        msg = f"no record {name!r}{near_names(name, list(schemas))}; `actlake schema` lists them"
        raise InvalidInputError(msg)
    click.echo(json.dumps(schemas[name], indent=2))
