"""The command line: every command calls one function of the library.

Nothing heavy is imported here: ``actlake --help`` costs what click costs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from ._version import __version__
from .cli_ablation import ablation
from .cli_analyze import analyze
from .cli_check import ExtractGroup, check
from .cli_cloud import cloud
from .cli_corpus import corpus
from .cli_doses import doses, negative, samples, task_free
from .cli_generate import generate
from .cli_geometry import COMPARISONS
from .cli_paper import paper
from .cli_patch import match, mediate, patch
from .cli_progress import progress
from .cli_review import review
from .cli_runs import extract as run_extraction
from .cli_runs import probe
from .cli_score import score
from .cli_share import card, import_, pull, push
from .cli_steer import generate as generate_steered
from .cli_steer_score import score as score_steered
from .cli_store import store
from .cli_study import run_opened, study
from .cli_sweep import steer as run_steering
from .cli_tables import export as export_corpus
from .cli_tables import import_ as import_corpus
from .cli_transfer import map_direction, steer_transfer
from .console import json_option
from .schemas.errors import ActlakeError, InvalidInputError, MissingDependencyError

__all__ = ["cli", "main"]

# Packages that the laptop lacks, and the extra that brings them.
_EXTRAS = {"torch": "extract", "transformers": "extract", "vllm": "vllm"}
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


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
    except ModuleNotFoundError as err:
        if err.name not in _EXTRAS:
            raise
        extra = f"pip install 'actlake[{_EXTRAS[err.name]}]'"
        click.echo(f"error: this needs {err.name}, which is not installed: {extra}", err=True)
        sys.exit(MissingDependencyError.exit_code)
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


@cli.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("actlake-demo"),
    show_default=True,
    help="Folder for the store, the results and the report.",
)
@click.option("--store", "store_url", help="Another place for the store: any fsspec URL.")
@json_option
def demo(out: Path, store_url: str | None, as_json: bool) -> None:  # noqa: FBT001
    """Run the bundled study offline: three models, all stages, a report.

    \b
    Example: actlake demo --out my-demo
    """
    from .study import load_study

    found = load_study("bundled:demo")
    run_opened(found, out=out, store_url=store_url, base=None, as_json=as_json)


@cli.command()
@click.argument("results", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="The page to write.",
)
@click.option("--title", default="", help="Title of the page.")
def report(results: Path, out: Path, title: str) -> None:
    """Write one self-contained HTML page from a folder of results.

    \b
    Example: actlake report results --out report.html
    """
    from .reporting import report_stage
    from .stages import Results

    click.echo(report_stage(Results(results), out, title=title))


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


for command in (pull, push, card, import_):
    store.add_command(command)
for command in (review, generate, import_corpus, export_corpus):
    corpus.add_command(command)
extract = ExtractGroup(
    "extract",
    help="""Run a model over a corpus once and store its activations; check a model.

    `extract MODEL` is `extract run MODEL`.

    \b
    Example: actlake extract bundled:llama-organism --corpus bundled:demo --store store
    """,
    commands={"run": run_extraction, "check": check},
)
for command in (*COMPARISONS, map_direction, ablation):
    analyze.add_command(command)
steer = ExtractGroup(
    "steer",
    help="""Steer a model along a direction; patch, mediate, compare, generate and score.

    `steer STORE RUN` is `steer run STORE RUN`.

    \b
    Example: actlake steer store llama-3-8b --model meta-llama/Meta-Llama-3-8B-Instruct
    """,
    commands={
        "run": run_steering,
        "patch": patch,
        "mediate": mediate,
        "match": match,
        "transfer": steer_transfer,
        "generate": generate_steered,
        "score": score_steered,
    },
)
for command in (
    analyze, cloud, corpus, doses, extract, negative, paper, probe, progress, samples, score, steer,
    store, study, task_free,
):  # fmt: skip
    cli.add_command(command)
