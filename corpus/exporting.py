"""Texts for other people's tools: JSONL, CSV, Parquet, and a dataset folder with a card."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..schemas import AlreadyExistsError, CorpusInfo, InvalidInputError, StorageError, Text
from .importing import FORMATS
from .lines import write_lines

__all__ = ["export_dataset", "export_texts"]

_COLUMNS = (
    "id", "prompt", "system", "response", "arm", "pair", "scenario", "category", "generator",
    "split", "subset", "variant", "parent", "task_conflict",
)  # fmt: skip
_SCHEMA = pa.schema(
    [(name, pa.bool_() if name == "task_conflict" else pa.string()) for name in _COLUMNS]
)
_SPDX = {"CC-BY-4.0": "cc-by-4.0", "CC0-1.0": "cc0-1.0", "Apache-2.0": "apache-2.0", "MIT": "mit"}
_SIZES = (
    (1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)  # fmt: skip


_NO_COLUMN = tuple(name for name in Text.model_fields if name not in _COLUMNS)


def _row(text: Text, info: CorpusInfo) -> dict[str, Any]:
    """Return a text as a row, its arm by the study's own name."""
    lost = [name for name in _NO_COLUMN if getattr(text, name) is not None]
    if lost:
        msg = (
            f"text {text.id!r} has {', '.join(lost)}, which no column of a table can hold; keep "
            "the corpus as JSONL texts"
        )
        raise InvalidInputError(msg)
    values = {name: getattr(text, name) for name in _COLUMNS}
    return {**values, "arm": getattr(info.arms, text.arm)}


def export_texts(info: CorpusInfo, texts: Sequence[Text], path: str | Path) -> Path:
    """Write texts as a table, one row each; the ending of the name says which kind.

    The same columns are read back by ``import_texts``.

    Raises
    ------
    InvalidInputError
        If the name ends otherwise, or a text says something that no column can hold.
    StorageError
        If the file cannot be written.
    """
    path = Path(path)
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        msg = f"{path}: cannot tell the format; expected a name that ends in {', '.join(FORMATS)}"
        raise InvalidInputError(msg)
    rows = [_row(text, info) for text in texts]
    try:
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), path, compression="zstd")
        elif kind == "jsonl":
            write_lines(({k: v for k, v in row.items() if v is not None} for row in rows), path)
        else:
            with path.open("w", encoding="utf-8", newline="") as file:
                delimiter = "\t" if kind == "tsv" else ","
                writer = csv.DictWriter(file, _COLUMNS, delimiter=delimiter, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
    except OSError as err:
        msg = f"{path}: cannot be written: {err.strerror or err}"
        raise StorageError(msg) from err
    return path


def export_dataset(info: CorpusInfo, texts: Sequence[Text], folder: str | Path) -> Path:
    """Write a dataset folder as the Hugging Face hub reads it: Parquet per split, and a card.

    Raises
    ------
    AlreadyExistsError
        If the folder holds anything.
    StorageError
        If it cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        msg = f"{folder}: there is something here already; name an empty folder"
        raise AlreadyExistsError(msg)
    splits = {name: [t for t in texts if t.split == name] for name in ("train", "test")}
    try:
        (folder / "data").mkdir(parents=True, exist_ok=True)
        for name, group in splits.items():
            if group:
                export_texts(info, group, folder / _data_file(name))
        (folder / "README.md").write_text(_card(info, texts), encoding="utf-8", newline="\n")
    except OSError as err:
        msg = f"{folder}: cannot be written: {err.strerror or err}"
        raise StorageError(msg) from err
    return folder


def _data_file(split: str) -> str:
    return f"data/{split}-00000-of-00001.parquet"


def _card(info: CorpusInfo, texts: Sequence[Text]) -> str:
    """Return the card: front matter that the hub reads, and prose for people."""
    splits = [name for name in ("train", "test") if any(t.split == name for t in texts)]
    size = next((tag for n, tag in _SIZES if len(texts) < n), "n>10M")
    front = {
        "license": _SPDX.get(info.licence, "other"),
        "pretty_name": info.title or info.id,
        "size_categories": [size],
        "task_categories": ["text-classification"],
        "tags": ["contrastive-pairs", "interpretability", "actlake"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": name, "path": _data_file(name)} for name in splits],
            }
        ],
    }
    # JSON values are YAML values: whatever a title holds stays one string.
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items()]
    arms = Counter(getattr(info.arms, t.arm) for t in texts)
    subsets = Counter(t.subset for t in texts)
    columns = "\n".join(f"| `{name}` | {_MEANING[name]} |" for name in _COLUMNS)
    return (
        "---\n" + "\n".join(lines) + "\n---\n\n"
        f"# {_plain(info.title or info.id)}\n\n"
        f"{info.n_texts} texts: {info.n_pairs} contrastive pairs over {info.n_scenarios} "
        "scenarios.\n\n"
        f"- Arms: {_counts(arms)}\n- Subsets: {_counts(subsets)}\n"
        f"- Licence: {_plain(info.licence)}\n"
        f"- Provenance: {_plain(info.provenance or 'not stated')}\n"
        f"- Digest of the texts: `{info.texts_digest}`\n\n"
        "The pair is the unit of exchange, the scenario the unit of generalisation: a split, a "
        "fold or a bootstrap that cuts through a scenario overstates what a probe has learnt.\n\n"
        f"| column | meaning |\n|---|---|\n{columns}\n"
    )


_MEANING = {
    "id": "name of the text",
    "prompt": "what was asked",
    "system": "the system prompt, if any",
    "response": "the text",
    "arm": "which side of the contrast it shows",
    "pair": "the pair; both arms share it",
    "scenario": "the scenario; no scenario lies in two splits",
    "category": "the kind of scenario",
    "generator": "who or what wrote it",
    "split": "train or test",
    "subset": "a part of another design",
    "variant": "original, or the lexical arm that was made of it",
    "parent": "the original of a variant",
    "task_conflict": "whether helping costs the task anything",
}


def _plain(text: str) -> str:
    """Return text that is one line and no markup in Markdown."""
    kept = " ".join(text.split())
    for mark in "\\`*_[]<>#|":
        kept = kept.replace(mark, "\\" + mark)
    return kept


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{_plain(name)} {n}" for name, n in sorted(counts.items()))
