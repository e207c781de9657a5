"""The commands that bring texts in from tables and take them out: corpus import, export."""

from __future__ import annotations

from pathlib import Path

import click

from .cli_corpus import arms_option, load_source
from .console import emit, json_option, print_facts

__all__ = ["export", "import_"]

_file = click.Path(dir_okay=False, path_type=Path)


@click.command("import")
@click.argument("file", type=_file)
@click.option("--out", type=_file, required=True, help="The corpus to write, JSONL.")
@click.option("--map", "mapping", help="Columns, as positive=COLUMN,negative=COLUMN,scenario=….")
@arms_option
@click.option("--generator", help="Who wrote the texts, where no column says it.")
@click.option("--test-share", type=float, help="Draw this share of the scenarios as test split.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of that draw.")
@json_option
def import_(
    file: Path,
    *,
    out: Path,
    mapping: str | None,
    arms: tuple[str, str] | None,
    generator: str | None,
    test_share: float | None,
    seed: int,
    as_json: bool,
) -> None:
    """Bring in pairs, or single labelled texts, from a JSONL, CSV, TSV or Parquet FILE.

    \b
    Example: actlake corpus import pairs.csv --out pairs.jsonl \\
                 --map positive=kind,negative=cold,scenario=topic,generator=model
    """
    from .corpus import corpus_info, import_texts, parse_mapping, write_jsonl
    from .schemas import ArmNames

    names = ArmNames.parse({"positive": arms[0], "negative": arms[1]} if arms else {})
    texts = import_texts(
        file,
        parse_mapping(mapping) if mapping else None,
        arms=names,
        generator=generator,
        test_share=test_share,
        seed=seed,
    )
    write_jsonl(texts, out)
    info = corpus_info(out.stem, texts, arms=names)
    value = {**info.to_dict(), "file": str(out)}
    shown = {"texts": info.n_texts, "pairs": info.n_pairs, "scenarios": info.n_scenarios}
    emit(value, as_json=as_json, show=lambda: print_facts({**shown, "file": str(out)}))


@click.command()
@click.argument("source")
@click.argument("target", type=click.Path(path_type=Path))
@arms_option
@click.option("--title", help="Title on the card.")
@click.option("--licence", help="Licence on the card, as SPDX names it.")
@click.option("--provenance", help="Who wrote the texts, on the card.")
@json_option
def export(
    source: str,
    target: Path,
    *,
    arms: tuple[str, str] | None,
    title: str | None,
    licence: str | None,
    provenance: str | None,
    as_json: bool,
) -> None:
    """Write SOURCE as TARGET: .jsonl, .csv, .tsv, .parquet, or a Hugging Face folder.

    A TARGET without such an ending is a folder: Parquet per split, and a card.

    \b
    Example: actlake corpus export bundled:demo demo-dataset
    """
    from .corpus import export_dataset, export_texts

    info, texts = load_source(source, arms)
    said = {"title": title, "licence": licence, "provenance": provenance}
    info = info.model_copy(update={k: v for k, v in said.items() if v is not None})
    write = export_texts if target.suffix else export_dataset
    written = write(info, texts, target)
    value = {"target": str(written), "texts": len(texts)}
    emit(value, as_json=as_json, show=lambda: print_facts(value))
