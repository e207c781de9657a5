"""The command that has a model write texts: corpus generate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import emit, json_option, print_facts, print_table, say
from .schemas.errors import InvalidInputError

if TYPE_CHECKING:
    from .corpus import Client

__all__ = ["generate"]

_file = click.Path(dir_okay=False, path_type=Path)


def make_client(
    server: str | None,
    model: str,
    *,
    revision: str | None = None,
    quantisation: str | None = None,
    n_parallel: int = 8,
    in_process: bool = False,
) -> Client:
    """Return the client of a server, or vLLM in this process."""
    from .corpus import ServerClient, VllmClient

    if (server is None) != in_process:
        msg = "name a server with --server URL, or ask for --vllm in this process, not both"
        raise InvalidInputError(msg)
    if server is None:
        return VllmClient(model, revision=revision, quantisation=quantisation)
    return ServerClient(
        server, model, revision=revision, quantisation=quantisation, n_parallel=n_parallel
    )


@click.command()
@click.argument("scenarios", type=_file)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder of the texts, their provenance and the log; the same one goes on.",
)
@click.option("--model", required=True, help="The model, as the server names it or on the hub.")
@click.option("--server", help="Base URL of an OpenAI-compatible server (key: OPENAI_API_KEY).")
@click.option("--vllm", "in_process", is_flag=True, help="Run vLLM in this process instead.")
@click.option("--revision", help="Revision of the model, for the provenance and for vLLM.")
@click.option("--quantisation", help="Its quantisation, for the provenance and for vLLM.")
@click.option("--personas", "persona_file", type=_file, help="Personas (TOML) instead of ours.")
@click.option("--spec", "spec_file", type=_file, help="Thresholds (TOML) that pairs must pass.")
@click.option("--per-cell", type=click.IntRange(1), help="Pairs per prompt.  [default: 2]")
@click.option("--max-attempts", type=click.IntRange(1), help="Tries per text.  [default: 6]")
@click.option("--max-new-tokens", type=click.IntRange(1), help="Longest answer.  [default: 300]")
@click.option("--temperature", type=click.FloatRange(0), help="Of sampling.  [default: 0.9]")
@click.option("--top-p", type=click.FloatRange(0, 1), help="Of sampling.  [default: 0.95]")
@click.option("--seed", type=int, help="All seeds follow from it.  [default: 0]")
@click.option("--parallel", type=click.IntRange(1), default=8, help="Requests under way at once.")
@click.option("--max-requests", type=click.IntRange(1), help="Stop before more requests.")
@click.option("--max-tokens", type=click.IntRange(1), help="Stop before more tokens.")
@click.option("--max-dollars", type=float, help="Stop before more is spent.")
@click.option("--price-in", type=click.FloatRange(0), help="Dollars per million prompt tokens.")
@click.option("--price-out", type=click.FloatRange(0), help="Dollars per million answer tokens.")
@json_option
def generate(
    scenarios: Path,
    *,
    out: Path,
    model: str,
    server: str | None,
    in_process: bool,
    revision: str | None,
    quantisation: str | None,
    persona_file: Path | None,
    spec_file: Path | None,
    parallel: int,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Have MODEL write pairs and neutral texts for a scenario file, until every cell is full.

    Refusals, duplicates and pairs that fail validation are asked again with another seed.

    \b
    Example: actlake corpus generate scenarios.jsonl --out generated --per-cell 5 \\
                 --server http://localhost:8000/v1 --model meta-llama/Llama-3.1-8B-Instruct
    """
    from .corpus import generate_corpus, read_personas, read_scenarios, read_toml
    from .schemas import GenerateSpec, ValidateSpec

    given = {name: value for name, value in options.items() if value is not None}
    spec = GenerateSpec.parse(given, where="options")
    thresholds = read_toml(spec_file, noun="threshold") if spec_file else {}
    validation = ValidateSpec.parse(thresholds, where=str(spec_file))
    design, personas = read_scenarios(scenarios), read_personas(persona_file)
    client = make_client(
        server,
        model,
        revision=revision,
        quantisation=quantisation,
        n_parallel=parallel,
        in_process=in_process,
    )
    report = generate_corpus(
        design, personas, client, folder=out, spec=spec, validation=validation, say=say
    )

    def show() -> None:
        print_table([cell.model_dump() for cell in report.cells])
        click.echo()
        print_facts(report.model_dump(exclude={"cells", "rejected"}))
        click.echo(f"rejected: {report.rejected or 'none'}")
        click.echo(f"texts: {out / 'texts.jsonl'}")

    emit(report.to_dict(), as_json=as_json, show=show)
