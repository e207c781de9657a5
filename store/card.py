"""The card of a store: README.md and croissant.json, for people and for data catalogues."""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..schemas import CorpusInfo, InvalidInputError, NotFoundError, RunPlan, Seal, near_names
from .corpora import text_columns
from .croissant import FileEntry, croissant_document
from .partial import LeftOut, coverage_of, read_pulled
from .parts import sealed_parts
from .store import SEAL_BYTES
from .stored_corpora import CORPUS_BYTES

if TYPE_CHECKING:
    from .store import Store

__all__ = ["write_card"]

README_KEY = "README.md"
CROISSANT_KEY = "croissant.json"
_LICENSE = re.compile(r"^[A-Za-z0-9][\w.+-]{0,79}$")
# What the Hub takes as `license`; any other is `other` with a `license_name`.
# https://huggingface.co/docs/hub/repositories-licenses
_HUB_LICENSES = {
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "lgpl-3.0", "agpl-3.0",
    "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0",
    "cc-by-nc-nd-4.0", "odbl", "odc-by", "pddl", "cdla-permissive-2.0", "unlicense", "other",
}  # fmt: skip
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))


@dataclass(frozen=True)
class _Run:
    """What the card says of a run."""

    plan: RunPlan
    plan_id: str
    seal: Seal | None
    left_out: LeftOut | None
    license: str

    @property
    def name(self) -> str:
        return self.plan.run


def write_card(
    store: Store,
    *,
    data_license: str,
    model_licenses: Mapping[str, str] | None = None,
    title: str | None = None,
    url: str | None = None,
) -> None:
    """Write ``README.md`` and ``croissant.json`` at the root of a store, replacing older ones.

    The README begins with the YAML that the Hugging Face Hub reads of a dataset; the other is
    Croissant 1.0 (https://docs.mlcommons.org/croissant/docs/croissant-spec.html). Neither names
    a folder of this machine.

    Parameters
    ----------
    data_license
        Licence of activations and texts, an identifier such as ``cc-by-4.0``.
    model_licenses
        Licence of the model of each run, by run id. It binds what may be done with what was made
        from the model; the card keeps it apart from the data's.
    title
        The heading; the default is made of the models' names.
    url
        Where readers will find the store, such as ``hf://datasets/me/acts``. The default is the
        store's own URL, or its folder as seen from the card where that is a folder.

    Raises
    ------
    InvalidInputError
        If a licence is no identifier, or ``model_licenses`` names a run that is not there.
    NotFoundError
        If the store has no run.
    StorageError
        If the store cannot be written to.
    """
    given = dict(model_licenses or {})
    for identifier in (data_license, *given.values()):
        if not _LICENSE.match(identifier):
            msg = f"{identifier!r} is not a licence identifier; expected such as cc-by-4.0 or mit"
            raise InvalidInputError(msg)
    names = store.run_ids()
    if not names:
        msg = f"{store.url} has no runs to make a card of; extract or import some first"
        raise NotFoundError(msg)
    for name in given:
        if name not in names:
            msg = f"no run {name!r} in {store.url}{near_names(name, names)}; it has {names}"
            raise InvalidInputError(msg)
    runs = [
        _read_run(store, part, license_=given.get(name, "not stated"))
        for name in names
        for part in sealed_parts(store, name)
    ]
    found = [store.read_corpus(corpus) for corpus in store.corpus_ids()]
    corpora = [info for info, _ in found]
    place = url or ("." if store.location.is_local else store.url)
    models = sorted({run.plan.model.name for run in runs})
    heading = title or f"Activations of {', '.join(models)}"
    described = (
        f"{len(runs)} run(s) of {', '.join(models)}: activations of every captured layer over "
        "every text, stored by actlake as chunked Zarr v3."
    )
    lines = [
        *_front_matter(heading, runs, corpora, data_license=data_license),
        f"# {_cell(heading)}",
        "",
        _cell(described),
        "",
        *_loading(runs, place),
        *_runs_table(runs),
        *_corpora_table(corpora),
        *_licenses(runs, data_license=data_license),
        *_checksums(runs),
    ]
    document = croissant_document(
        name=heading,
        description=described,
        license_=data_license,
        url=place,
        date=max([run.seal.sealed_at for run in runs if run.seal] or [store.info.created_at]),
        files=_files(store, runs, corpora),
        tables=[(info.id, _texts_key(info), text_columns(texts)) for info, texts in found],
    )
    store.backend.put(README_KEY, ("\n".join(lines) + "\n").encode())
    store.backend.put(CROISSANT_KEY, (json.dumps(document, indent=2) + "\n").encode())


def _read_run(store: Store, name: str, *, license_: str) -> _Run:
    plan, plan_id = store.read_plan_and_id(name)
    record = read_pulled(store, plan, plan_id)
    left_out = None
    if record is not None:
        held = coverage_of(plan, record, where=store.url)
        left_out = LeftOut(plan, held, where=store.url, source=record.source)
    return _Run(plan, plan_id, store.read_seal(name), left_out, license_)


def _front_matter(
    heading: str, runs: Sequence[_Run], corpora: Sequence[CorpusInfo], *, data_license: str
) -> list[str]:
    """Return the YAML block; every value is a JSON string, which is YAML too."""
    known = data_license.lower() in _HUB_LICENSES
    n_texts = max(run.plan.n_texts for run in runs)
    size = next((name for limit, name in _SIZES if n_texts < limit), "n>1M")
    lines = ["---", f"license: {data_license.lower() if known else 'other'}"]
    if not known:
        lines.append(f"license_name: {json.dumps(data_license)}")
    lines += [f"pretty_name: {json.dumps(heading)}", "size_categories:", f"- {json.dumps(size)}"]
    lines += ["tags:", "- activations", "- interpretability", "- actlake", "- zarr"]
    if corpora:
        lines.append("configs:")
    for info in corpora:
        lines += [
            f"- config_name: {json.dumps(info.id)}",
            f"  data_files: {json.dumps(_texts_key(info))}",
        ]
    return [*lines, "---", ""]


def _loading(runs: Sequence[_Run], place: str) -> list[str]:
    """Return the section with code that loads one layer; a test of ours runs it."""
    run = next((run for run in runs if run.seal is not None), runs[0])
    deep = [spec for spec in run.plan.arrays if len(spec.shape) == 3]
    # Pools before tokens: a card shows the small array.
    arrays = [spec.name for spec in sorted(deep, key=lambda spec: spec.is_tokens)]
    of = {spec.name: spec for spec in deep}
    options = ""
    if run.left_out is not None:
        held = run.left_out.held
        arrays = [name for name in arrays if held[name].any()]
        options = ", pulled_only=True"
    if run.seal is None:
        options += ", allow_partial=True"
    lines = ["## Loading", "", "```python", "# pip install actlake", "import actlake", ""]
    if place == ".":
        lines.append("# The folder of this card; a URL such as s3://bucket/store works as well.")
    lines.append(f"run = actlake.open_run({json.dumps(place)}, {json.dumps(run.name)}{options})")
    layers = list(run.plan.layers_of(of[arrays[0]])) if arrays else []
    if run.left_out is not None and arrays:
        mask = run.left_out.held[arrays[0]]
        layers = [layer for index, layer in enumerate(layers) if mask[index].any()]
    if layers:
        middle = layers[len(layers) // 2]
        axis = of[arrays[0]].dims[1]
        lines += [
            "# This reads one layer and nothing else.",
            f"values = run[{json.dumps(arrays[0])}].sel({axis}={middle}).values",
            'texts = run["text"].values',
        ]
    return [*lines, "```", ""]


def _runs_table(runs: Sequence[_Run]) -> list[str]:
    lines = [
        "## Runs",
        "",
        "| run | model | revision or digest | corpus | texts | layers | hidden | bytes | state |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        plan, model = run.plan, run.plan.model
        state = "sealed" if run.seal else "incomplete"
        cells = [
            run.name,
            model.name,
            (model.revision or model.content_digest or "unknown")[:19],
            plan.corpus,
            f"{plan.n_texts:,}",
            f"{len(plan.layers)} of {model.n_layers}",
            str(model.hidden_size),
            f"{run.seal.n_bytes:,}" if run.seal else "",
            f"{state}, partial copy" if run.left_out else state,
        ]
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return [*lines, ""]


def _corpora_table(corpora: Sequence[CorpusInfo]) -> list[str]:
    if not corpora:
        return []
    lines = [
        "## Texts",
        "",
        "| corpus | title | texts | pairs | licence |",
        "|---|---|---|---|---|",
    ]
    for info in corpora:
        cells = [info.id, info.title, f"{info.n_texts:,}", f"{info.n_pairs:,}", info.licence]
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return [*lines, ""]


def _licenses(runs: Sequence[_Run], *, data_license: str) -> list[str]:
    lines = [
        "## Licences",
        "",
        f"Data (activations and texts): {_cell(data_license)}",
        "",
        "Models: what was made from a model is bound by the model's licence too.",
        "",
        "| run | model | licence of the model |",
        "|---|---|---|",
    ]
    for run in runs:
        cells = [run.name, run.plan.model.name, run.license]
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return [*lines, ""]


def _checksums(runs: Sequence[_Run]) -> list[str]:
    """Return the section of digests: each covers every object of its run."""
    lines = ["## Checksums", ""]
    sealed = [run for run in runs if run.seal is not None]
    if not sealed:
        return [*lines, "No run is sealed yet.", ""]
    lines += ["| run | tree digest |", "|---|---|"]
    lines += [f"| {_cell(run.name)} | {run.seal.tree_digest} |" for run in sealed if run.seal]
    return [*lines, "", "`actlake store verify URL RUN` holds every object against them.", ""]


def _files(store: Store, runs: Sequence[_Run], corpora: Sequence[CorpusInfo]) -> list[FileEntry]:
    """Return the files that a catalogue can fetch and check: texts, and the runs' manifests."""
    entries = []
    for info in corpora:
        about = f"Texts of corpus {info.id}."
        entries.append((_texts_key(info), about, "application/x-parquet", CORPUS_BYTES))
    for run in runs:
        if run.seal is not None:
            about = f"Manifest of run {run.name}: every object with its size and SHA-256."
            key = store.keys(run.name).seal
            entries.append((key, about, "application/json", SEAL_BYTES))
    files = []
    for key, about, encoding, limit in entries:
        data = store.backend.get(key, max_bytes=limit) or b""
        digest = hashlib.sha256(data).hexdigest()
        files.append(FileEntry(key, about, encoding, len(data), digest))
    return files


def _texts_key(info: CorpusInfo) -> str:
    return f"corpora/{info.id}/texts.parquet"


def _cell(text: str) -> str:
    """Return ``text`` for Markdown: nothing in it is markup, and it stays in its cell."""
    plain = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*\[\]|])", r"\\\1", plain)
