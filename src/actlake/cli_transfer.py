"""The commands that steer one model with a direction of another: analyze map, steer transfer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from .cli_patch import (
    conditions_folder,
    draw_figure,
    needs_weights,
    read_directions,
    read_spec,
    show_cost,
)
from .console import (
    emit,
    estimate_options,
    json_option,
    parse_alphas,
    print_facts,
    print_table,
    say,
    show_progress,
)

__all__ = ["map_direction", "steer_transfer"]

_file = click.Path(dir_okay=False, path_type=Path)
_folder = click.Path(file_okay=False, path_type=Path)


def _layer_pair(text: str | None) -> tuple[int, int] | None:
    from .schemas.errors import InvalidInputError

    if text is None:
        return None
    parts = text.split(":")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        msg = f"--layers {text!r}: expected the blocks of source and target, such as 12:20"
        raise InvalidInputError(msg)
    return int(parts[0]), int(parts[1])


@click.command("map")
@click.argument("store_url", metavar="STORE")
@click.argument("source")
@click.argument("target")
@click.option(
    "--out", type=_folder, default=Path("mapped"), show_default=True, help="Folder of the set."
)
@click.option("--layers", help="Blocks of source and target, such as 12:20.")
@click.option("--maps", help="Of procrustes, ridge, cca.  [default: all three]")
@click.option(
    "--anchors",
    type=click.Choice(["neutral", "train"]),
    help="The texts that maps are fitted on.  [default: neutral]",
)
@click.option("--pool", default="mean_response", show_default=True, help="Pool of both runs.")
@click.option("--site", default="resid_post", show_default=True, help="Site of both runs.")
@click.option("--random", "n_random", type=click.IntRange(1), help="Random ones.  [default: 20]")
@click.option(
    "--permuted",
    "n_permuted",
    type=click.IntRange(1),
    help="Maps of permuted texts.  [default: 20]",
)
@click.option("--spec", "spec_file", type=_file, help="Keys of a transfer spec (TOML).")
@click.option("--seed", type=int, help="Seed of every draw.  [default: 0]")
@json_option
def map_direction(
    store_url: str,
    source: str,
    target: str,
    out: Path,
    *,
    layers: str | None,
    pool: str,
    site: str,
    spec_file: Path | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Map the direction of run SOURCE to run TARGET, with the controls of a transfer.

    The maps are fitted on texts that the directions do not use. `actlake steer transfer` steers
    with the set.

    \b
    Example: actlake analyze map s3://bucket/store llama-3-8b phi-3 --layers 20:24 --out mapped
    """
    from .analyze import map_directions, save_directions
    from .schemas import TransferSpec
    from .store import open_runs

    maps = options.pop("maps")
    given = options | {"maps": maps.split(",") if maps else None}
    given["n_random"] = given["n_random"] or 20
    spec = read_spec(TransferSpec, spec_file, given)
    opened = open_runs(store_url, [source, target], pulled_only=True, chunks="job")
    found = map_directions(
        opened,
        source=source,
        target=target,
        layers=_layer_pair(layers),
        pool=pool,
        site=site,
        spec=spec,
    )
    save_directions(found, out)
    records = [
        {
            "map": d.mapped.map,
            "source": f"{d.mapped.source_run}, layer {d.mapped.source_layer}",
            "target": f"{d.run}, layer {d.layer}",
            "cosine": round(d.mapped.cosine, 4),
            "map_r2": None if d.mapped.map_r2 is None else round(d.mapped.map_r2, 4),
            "share_kept": None if d.mapped.share_kept is None else round(d.mapped.share_kept, 4),
            "anchors": d.mapped.n_anchors,
        }
        for d in found.directions
        if d.mapped is not None and d.mapped.role == "mapped"
    ]
    emit(
        {"folder": str(out), "directions": records},
        as_json=as_json,
        show=lambda: print_table(records),
    )
    say(f"{len(found.directions)} directions are in {out}")


@click.command("transfer")
@click.argument("model")
@click.argument("source")
@click.option(
    "--directions", "direction_file", type=_folder, required=True, help="Of `actlake analyze map`."
)
@click.option(
    "--out",
    type=_folder,
    default=Path("results"),
    show_default=True,
    help="Folder for the tables, the figure and the spec.",
)
@click.option("--alphas", help="Class separations.  [default: -2,-1,-0.5,0,0.5,1,2]")
@click.option("--at", type=float, help="Separations that ratios are taken at.  [default: 1]")
@click.option(
    "--strength",
    type=click.Choice(["matched", "mapped"]),
    help="As long as the own direction, or as its map made it.  [default: matched]",
)
@click.option("--positions", help="all, response, prompt-all or prompt-last.  [default: all]")
@click.option("--subsets", help="Of the corpus, comma-separated.  [default: all]")
@click.option("--prompts", "n_prompts", type=int, help="Held-out pairs.  [default: 24]")
@click.option("--spec", "spec_file", type=_file, help="Settings (TOML).")
@click.option("--seed", type=int, help="Of the bootstrap.  [default: 0]")
@click.option("--revision", help="Revision of a hub model.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps.")
@click.option("--dry-run", is_flag=True, help="Say what would be run, and stop.")
@estimate_options
@json_option
def steer_transfer(
    model: str,
    source: str,
    direction_file: Path,
    out: Path,
    *,
    revision: str | None,
    device: str,
    spec_file: Path | None,
    dry_run: bool,
    probe: float | None,
    price: float | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Steer MODEL with a direction of another model, on the held-out pairs of SOURCE.

    SOURCE is a JSONL file or bundled:NAME; MODEL is the target that the directions were mapped
    to. Beside the mapped directions stand the model's own, random directions through the same
    maps, maps of texts that do not correspond, and no steering.

    \b
    Example: actlake steer transfer bundled:phi3-organism bundled:demo --directions mapped
    """
    from .corpus import pair_texts
    from .extract import load_model
    from .intervention_files import save_intervention
    from .schemas import CaptureSpec, SteerSpec, SteerTransferSpec, StudyCorpus
    from .stages import load_corpus
    from .steer import choose_pairs, compare_transfer, weigh_transfer

    estimate = {"dry_run": dry_run, "probe": probe, "price": price}
    subsets, alphas = options.pop("subsets"), options.pop("alphas")
    given = options | {
        "subsets": subsets.split(",") if subsets else None,
        "alphas": parse_alphas(alphas) if alphas else None,
    }
    spec = read_spec(SteerTransferSpec, spec_file, given)
    directions = read_directions(direction_file)
    _, texts = load_corpus(StudyCorpus(source=source))
    pairs = choose_pairs(
        pair_texts(texts), spec=SteerSpec(n_prompts=spec.n_prompts, subsets=spec.subsets)
    )
    loaded = load_model(
        model, revision=revision, device=device, head=True, weights=needs_weights(estimate)
    )
    capture, kept = CaptureSpec(), conditions_folder(out, loaded, of="scores")
    if dry_run:
        cost = weigh_transfer(loaded, directions, pairs, spec=spec, capture=capture, folder=kept)
        show_cost(cost, estimate, as_json=as_json)
        return
    with show_progress("transfer") as progress:
        result = compare_transfer(
            loaded,
            directions,
            pairs,
            spec=spec,
            capture=capture,
            folder=kept,
            progress=progress,
        )
    verdicts = [verdict.to_dict() for verdict in result.verdicts]
    facts = {
        "model": model,
        "source": source,
        "directions": str(direction_file),
        "verdicts": verdicts,
    }
    rows = save_intervention(result, out, name="steer-transfer", spec=spec, facts=facts)
    say(f"tables: {out / 'steer-transfer'}.parquet, steer-transfer-samples.parquet")
    draw_figure(result.rows, out / "steer-transfer.svg", name="transfer")
    shown = rows[rows["metric"].isin(["effect", "ratio"]) & rows["role"].isin(["own", "mapped"])]
    columns = ["direction", "metric", "estimate", "ci_low", "ci_high", "p_value", "p_broken",
               "p_orthogonal"]  # fmt: skip
    records = json.loads(shown[columns].round(4).to_json(orient="records"))

    def show() -> None:
        print_table(records)
        for verdict in result.verdicts:
            click.echo()
            print_facts({"map": verdict.map, "answer": verdict.answer, "words": verdict.words})

    emit({"rows": records, "verdicts": verdicts}, as_json=as_json, show=show)
