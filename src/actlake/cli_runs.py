"""The commands that make and analyse runs: extract, probe."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import (
    emit,
    estimate_options,
    extract_specs,
    json_option,
    print_facts,
    print_table,
    probe_seconds,
    say,
)

if TYPE_CHECKING:
    from .store import Store

__all__ = ["extract", "probe"]

_out_option = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("results"),
    show_default=True,
    help="Folder of the results.",
)


@click.command("run")
@click.argument("model")
@click.option("--corpus", required=True, help="A JSONL file of texts, or bundled:NAME.")
@click.option("--store", "store_url", required=True, help="Folder or fsspec URL of the store.")
@click.option("--run", help="Name of the run.  [default: the model's name]")
@click.option("--revision", help="Revision of a hub model.")
@click.option("--layers", help="Block indices such as 0,4,8-12.  [default: all]")
@click.option(
    "--pools",
    help="Such as max_abs,mean_span:NAME.  [default: mean_response,last_prompt,last_response]",
)
@click.option("--sites", help="Such as attn_out,resid_mid,attn_heads.  [default: resid_post]")
@click.option("--tokens", help="Layers whose tokens are stored one by one, such as 12 or all.")
@click.option("--token-sites", help="Sites of those tokens.  [default: resid_post]")
@click.option("--dtype", help="auto, float32, bfloat16 or float16.  [default: auto]")
@click.option("--render", help="auto, chat or plain.  [default: auto]")
@click.option("--max-tokens", type=int, help="Longest text.  [default: 4096]")
@click.option("--truncate", is_flag=True, help="Cut longer texts instead of refusing them.")
@click.option("--engine", type=click.Choice(["transformers", "vllm"]), help="What runs the model.")
@click.option("--batch-tokens", help="Rows x longest row, or auto.  [default: 16384]")
@click.option("--tensor-parallel", type=int, help="With vllm: devices that share each layer.")
@click.option("--chunk-size", help="Texts per block, or an object's size.  [default: 16MiB]")
@click.option("--token-chunk", type=int, help="Tokens of one object of a token array.")
@click.option("--codec", type=click.Choice(["blosc", "none"]), help="Compression of activations.")
@click.option("--bits16", is_flag=True, help="Store single positions as 16-bit patterns.")
@click.option(
    "--nonfinite",
    type=click.Choice(["stop", "record"]),
    help="Of NaN or infinity: stop, or store NaN and note it.  [default: stop]",
)
@click.option("--device", help="auto, cpu, cuda, cuda:1, mps.  [default: auto]")
@click.option(
    "--device-map",
    type=click.Choice(["auto", "balanced", "sequential"]),
    help="Spread a large model over devices, host and disk.",
)
@click.option(
    "--compile", is_flag=True, help="Compile the blocks, where hooks around them prove to fire."
)
@click.option("--attn", "attn_implementation", help="eager, sdpa, flash_attention_2.")
@click.option("--arms", nargs=2, help="The corpus's own names of its positive and negative arm.")
@click.option(
    "--append", "is_append", is_flag=True, help="Add the texts that RUN does not have yet to it."
)
@click.option("--worker", help="Such as 1/4: every fourth block; auto asks torchrun or Slurm.")
@click.option(
    "--shard-plan",
    type=click.IntRange(1, 10_000),
    metavar="N",
    help="Print what each of N workers would do, and a line for Slurm; read no weights.",
)
@click.option("--dry-run", is_flag=True, help="Print what it would do; read no weights.")
@estimate_options
@json_option
def extract(
    model: str,
    corpus: str,
    store_url: str,
    run: str | None,
    *,
    revision: str | None,
    arms: tuple[str, str] | None,
    worker: str | None,
    is_append: bool,
    shard_plan: int | None,
    dry_run: bool,
    probe: float | None,
    price: float | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Run MODEL over a corpus once and store its activations; resume if begun.

    MODEL is a hub id, a folder, or bundled:NAME. With --append a grown corpus adds its new texts
    to a run, with the run's own settings; nothing that is stored is touched.

    \b
    Example: actlake extract microsoft/Phi-3-mini-4k-instruct --corpus pairs.jsonl \\
                 --store s3://bucket/store
    """
    from .extract import (
        Worker,
        append_texts,
        estimate_run,
        extract_run,
        plan_extraction,
        settings_of,
    )
    from .schemas import StudyCorpus, StudyModel
    from .stages import load_corpus
    from .store import create_store, new_texts, open_store, plan_append

    seconds = probe_seconds(probe, price, dry_run=dry_run)
    share = None
    if worker is not None:
        share = Worker.from_environment() if worker == "auto" else Worker.parse(worker)
    named = {"positive": arms[0], "negative": arms[1]} if arms else {}
    info, texts = load_corpus(StudyCorpus.parse({"source": corpus, "arms": named}))
    name = run or StudyModel(model=model).run_name
    base = settings_of(open_store(store_url).read_plan(name)) if is_append else None
    capture, execution = extract_specs(options, base=base)
    if dry_run or shard_plan:
        if is_append:
            found = open_store(store_url)
            texts = new_texts(found, plan_append(found, name), texts)
            if not texts:
                nothing = {"run": name, "texts": 0}
                emit(nothing, as_json=as_json, show=lambda: print_facts(nothing))
                return
        prepared = plan_extraction(
            texts,
            model=model,
            run=name,
            corpus=info.id,
            revision=revision,
            capture=capture,
            extract=execution,
        )
        if shard_plan:
            _show_shards(prepared.shards(shard_plan), run=name, as_json=as_json)
            return
        summary = estimate_run(
            prepared,
            model=model,
            extract=execution,
            probe_seconds=seconds,
            price_per_hour=price,
        )
        emit(summary, as_json=as_json, show=lambda: print_facts(summary))
        return
    store = create_store(store_url)
    try:
        done = (append_texts if is_append else extract_run)(
            store,
            texts,
            info,
            model=model,
            run=name,
            revision=revision,
            capture=capture,
            extract=execution,
            worker=share,
        )
    except KeyboardInterrupt:
        _say_interrupted(store, name)
        raise click.exceptions.Exit(130) from None
    value: dict[str, Any] = {
        "run": done.run,
        "blocks_run": done.n_blocks_run,
        "blocks_kept": done.n_blocks_kept,
    }
    if done.seal is None:
        value["blocks_missing"] = list(done.missing)
        say(
            f"{done.run}: {len(done.missing)} of {done.n_blocks} blocks are still to be committed "
            "by other workers; the last to finish seals the run"
        )
    else:
        value["objects"] = done.seal.n_objects
        value["bytes"] = done.seal.n_bytes
        value["data_digest"] = done.seal.data_digest
    emit(value, as_json=as_json, show=lambda: print_facts(value))


def _say_interrupted(store: Store, run: str) -> None:
    """Say what of an interrupted run is there, and how to go on."""
    from .store import run_progress

    committed = "nothing was committed yet"
    if run in store.run_ids():
        now = run_progress(store, run)
        committed = f"{now.blocks_committed} of {now.blocks} blocks are committed and stay"
    say(f"{run}: interrupted; {committed}. The same command again goes on from there")


def _show_shards(shards: list[dict[str, Any]], *, run: str, as_json: bool) -> None:
    """Print the shares of workers, and the command that starts them all as a Slurm array."""
    context = click.get_current_context()
    words = ["actlake", "extract"]
    for param in context.command.params:
        value = context.params.get(param.name or "")
        if param.name in {"shard_plan", "worker", "dry_run", "as_json"} or not value:
            continue
        values = [str(part) for part in value] if isinstance(value, tuple) else [str(value)]
        is_flag = isinstance(param, click.Option) and param.is_flag
        named = [param.opts[0]] if isinstance(param, click.Option) else []
        words += named + ([] if is_flag else values)
    command = shlex.join([*words, "--worker", "auto"])
    array = ["sbatch", f"--job-name={run}", f"--array=1-{len(shards)}", "--gpus=1", "--wrap"]
    line = shlex.join([*array, command])

    def show() -> None:
        print_table(shards)
        click.echo(f"\n{line}")

    emit({"workers": shards, "slurm": line}, as_json=as_json, show=show)


@click.command()
@click.argument("store_url", metavar="STORE")
@click.argument("run")
@_out_option
@click.option(
    "--random",
    "n_random",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Random directions per layer.",
)
@click.option("--scheduler", help="threads, processes, or an address of a Dask cluster.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of every draw.")
@json_option
def probe(
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
    emit(summary, as_json=as_json, show=lambda: print_facts(summary))
