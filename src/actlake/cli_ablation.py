"""The command of the lexical ablation: what is left of a contrast without some words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import emit, json_option, parse_layers, print_table, say

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ablation"]

_CURVE = (
    "way", "pool", "layer", "subset", "arm", "lexicon", "k", "words_removed", "before_estimate",
    "estimate", "delta", "delta_ci_low", "delta_ci_high", "random_mean", "percentile",
    "bow_estimate",
)  # fmt: skip


@click.command()
@click.argument("store_url", metavar="STORE")
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("results"),
    show_default=True,
    help="Folder of the tables.",
)
@click.option(
    "--spec",
    "spec_file",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="TOML file with the keys of the spec; `actlake schema` names them.",
)
@click.option("--site", help="Such as attn_out or mlp_out.  [default: resid_post]")
@click.option("--pools", help="Of the re-extracted variants.  [default: all]")
@click.option("--layers", help="Block indices such as 8,12-15.  [default: all]")
@click.option(
    "--way",
    "ways",
    multiple=True,
    type=click.Choice(["repooled", "reextracted"]),
    help="Only this way.  [default: what the run allows]",
)
@click.option("--lexicon", "lexicon_names", multiple=True, help="Lexica instead of the bundled.")
@click.option("--draws", "n_draws", type=click.IntRange(1), help="Of random words.  [default: 100]")
@click.option("--variants", "variant_run", help="The run that has the variants, if another one.")
@click.option(
    "--tokenizer", metavar="MODEL", help="Of a run that lacks the characters of its tokens."
)
@click.option("--memory", help="Most that the sums of a pass take.  [default: 1GiB]")
@click.option("--scheduler", help="threads, processes, or an address of a Dask cluster.")
@click.option("--seed", type=int, help="Seed of every draw.  [default: 0]")
@json_option
def ablation(
    store_url: str,
    runs: tuple[str, ...],
    out: Path,
    *,
    spec_file: Path | None,
    site: str | None,
    pools: str | None,
    layers: str | None,
    ways: tuple[str, ...],
    lexicon_names: tuple[str, ...],
    variant_run: str | None,
    tokenizer: str | None,
    scheduler: str | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Leave words out of both classes: keywords, random ones, those that a fold learned.

    Re-pools stored tokens, and compares variants that went through the model; says of every part
    of the corpus whether the contrast is a lexical shortcut.

    \b
    Example: actlake analyze ablation s3://bucket/store llama-3-8b --draws 100 --out results
    """
    from .analyze import ablation_run
    from .corpus import load_lexicon, read_toml
    from .schemas import AblationSpec
    from .stages import Results, content_digest, origin_key, stage_key
    from .store import open_run, open_store, read_texts
    from .suite_stages import keep_ablation

    given = {
        **options,
        "pools": None if pools is None else [part.strip() for part in pools.split(",")],
        "layers": None if layers in {None, "all"} else parse_layers(str(layers)),
        "ways": list(ways) or None,
    }
    told = {name: value for name, value in given.items() if value is not None}
    kept = {} if spec_file is None else read_toml(spec_file, noun="ablation spec")
    spec = AblationSpec.parse(kept | told, where=str(spec_file or "options"))
    lexica = [load_lexicon(name) for name in lexicon_names] or None
    store = open_store(store_url)
    value: list[dict[str, Any]] = []
    for run in runs or tuple(store.run_ids()):
        ds = open_run(store, run, pulled_only=True, chunks="job")
        _, texts = read_texts(store, run)
        if tokenizer is not None:
            from .extract import add_token_characters

            capture = store.read_plan(run).capture
            ds = add_token_characters(ds, texts, model=tokenizer, capture=capture)
        other = None
        if variant_run is not None:
            other = open_run(store, variant_run, pulled_only=True, chunks="job")
            texts = list({t.id: t for t in [*texts, *read_texts(store, variant_run)[1]]}.values())

        def told_of(done: int, total: int, run: str = run) -> None:
            say(f"{run}: layer {done} of {total} re-pooled")

        result = ablation_run(
            ds, texts, spec=spec, lexica=lexica, variants=other, site=site, scheduler=scheduler,
            progress=told_of,
        )  # fmt: skip
        key = stage_key(content_digest(store, run), ablation=spec) | origin_key(store, run)
        key |= {"site": site}
        others = {
            "lexica": [lexicon.to_dict() for lexicon in lexica] if lexica else None,
            "variants": content_digest(store, variant_run) if variant_run else None,
            "tokenizer": tokenizer,
        }
        key |= {name: value for name, value in others.items() if value is not None}
        folder = keep_ablation(store, run, Results(out), result, key=key)
        chosen = result.verdicts[result.verdicts["way"] == "all"]
        value.append(
            {
                "run": run,
                "folder": str(folder),
                "verdicts": _records(result.verdicts),
                "curve": _records(_curve(result.rows, chosen)),
            }
        )
        say(f"all rows are in {folder}")
    emit(value, as_json=as_json, show=lambda: _print(value))


def _curve(rows: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """Return the refitted AUROC of every arm on the layers that the verdicts are about."""
    layers = set(chosen["layer"])
    shown = rows[(rows["metric"] == "auroc") & (rows["readout"] == "refit")]
    return shown[shown["layer"].isin(layers)][list(_CURVE)]


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    import json

    found: list[dict[str, Any]] = json.loads(frame.to_json(orient="records"))
    return found


def _print(value: list[dict[str, Any]]) -> None:
    for of in value:
        print_table([_shown(row, _CURVE) for row in of["curve"] if row["subset"] == "all"])
        click.echo()
        verdicts = [row for row in of["verdicts"] if row["way"] == "all"]
        print_table(
            [_shown(row, ("run", "subset", "pool", "layer", "verdict")) for row in verdicts]
        )


def _shown(row: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    found = {name: row[name] for name in names}
    return {k: f"{v:.3f}" if isinstance(v, float) else v for k, v in found.items()}
