"""Importing activations that exist already: files of arrays with a table of texts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..schemas import (
    ArraySpec,
    CaptureSpec,
    CorpusInfo,
    InvalidInputError,
    ModelInfo,
    NumericalError,
    RunPlan,
    Seal,
    Text,
    TokenizerInfo,
    array_name,
    digest_json,
    texts_digest,
)
from .coordinates import text_coords
from .environment import describe_environment
from .layout import DEFAULT_CHUNK_BYTES, rows_per_block
from .store import Store
from .tensors import Reader, Tensor, file_digest, find_files, natural_key, read_tensors

__all__ = ["PreparedImport", "import_run", "prepare_import"]

Arrangement = Literal["stacked", "per layer", "per text"]

_LAYER = re.compile(r"(?:^|[^a-z])layers?[_.\-]?(\d+)$", re.IGNORECASE)
_EXPECTED = (
    "expected (text, layer, hidden) in one or several files, or (text, hidden) each named "
    "layer_<i>, or (layer, hidden) each named by the id of its text"
)


@dataclass(frozen=True)
class PreparedImport:
    """Files that were understood: what they hold, and the run that they will be."""

    plan: RunPlan
    coords: dict[str, np.ndarray[Any, Any]] = field(repr=False)
    arrangement: Arrangement
    tensors: tuple[Tensor, ...] = field(repr=False)
    order: np.ndarray[Any, Any] = field(repr=False)  # by row of the run, the text's place

    def rows(self, span: slice) -> np.ndarray[Any, Any]:
        """Return rows of the run, dims (row, layer, hidden), float32."""
        chosen = self.order[span]
        shape = (len(chosen), *self.plan.arrays[0].shape[1:])
        out = np.empty(shape, dtype=np.float32)
        if self.arrangement == "per text":
            for row, place in enumerate(chosen.tolist()):
                out[row] = self.tensors[place].read()
            return out
        for layer, parts in _by_layer(self.tensors, self.arrangement).items():
            start = 0
            for part in parts:
                n = part.shape[0]
                here = np.flatnonzero((chosen >= start) & (chosen < start + n))
                if len(here):
                    values = part.read(chosen[here] - start)
                    if self.arrangement == "stacked":
                        out[here] = values
                    else:  # a single layer may be unnamed
                        index = self.plan.layers.index(layer) if layer >= 0 else 0
                        out[here, index] = values
                start += n
        return out

    def summary(self) -> dict[str, Any]:
        """Return what was understood, as plain values."""
        plan = self.plan
        return {
            "run": plan.run,
            "model": plan.model.name,
            "array": plan.arrays[0].name,
            "arrangement": self.arrangement,
            "files": len({tensor.file for tensor in self.tensors}),
            "first_file": self.tensors[0].file.name,
            "last_file": self.tensors[-1].file.name,
            "dtype": self.tensors[0].dtype,
            "texts": plan.n_texts,
            "layers": list(plan.layers),
            "hidden": plan.model.hidden_size,
            "blocks": plan.n_blocks,
            "bytes": int(np.prod(plan.arrays[0].shape)) * 4,
            "plan_id": plan.fingerprint(),
        }


def prepare_import(
    paths: Sequence[str | Path],
    texts: Sequence[Text],
    *,
    run: str,
    corpus: str,
    model: str,
    pool: str,
    site: str = "resid_post",
    layers: Sequence[int] | None = None,
    n_layers: int | None = None,
    revision: str | None = None,
    rows: int | None = None,
    readers: Mapping[str, Reader] | None = None,
) -> PreparedImport:
    """Return the run that files of activations will be; no store is touched.

    Three arrangements are understood: ``stacked`` (text, layer, hidden), in one file or in
    several whose natural order is the order of the texts; ``per layer`` (text, hidden), each
    named ``layer_<i>``, also in several files one after another; ``per text`` (layer, hidden),
    each named by the id of its text. Names are the files' own, or those inside a file of several
    arrays. Values are float32, float16, bfloat16, or float64 that float32 holds exactly.

    Parameters
    ----------
    paths
        Files, or folders of them.
    texts
        In the order of the activations.
    corpus
        Id of the corpus.
    model
        Name of the model: a hub id.
    pool, site
        What the activations are: see ``CaptureSpec``.
    layers
        Block indices of the layers in the files; the default is 0, 1, 2, ... or what the names
        say. An array of ``output_hidden_states`` begins with the embeddings, which are no block:
        cut them off first.
    n_layers
        Blocks of the model; the default is the last layer of the files + 1.
    revision
        Revision of the model.
    rows
        Texts per block; the default makes objects of up to 16 MiB.
    readers
        Readers of further kinds of files by their suffix, such as ``actlake.extract``'s for .pt.

    Raises
    ------
    NotFoundError
        If a path does not exist.
    InvalidInputError
        If shapes, names, types or numbers do not fit the texts.
    """
    files = find_files(paths)
    tensors = read_tensors(files, readers=readers or {})
    arrangement, kept = _arrange(tensors, texts, layers=layers)
    kinds = sorted({tensor.dtype for tensor in kept})
    if len(kinds) > 1:
        msg = f"the files mix the types {kinds}; expected one type throughout"
        raise InvalidInputError(msg)
    names = _layer_names(kept, arrangement, layers)
    hidden = kept[0].shape[-1]
    depth = names[-1] + 1 if n_layers is None else n_layers
    if names[-1] >= depth:
        msg = f"layer {names[-1]} does not exist in a model of {depth} layers"
        raise InvalidInputError(msg)
    order = sorted(range(len(texts)), key=lambda i: (texts[i].n_chars, texts[i].id))
    ordered = [texts[i] for i in order]
    capture = CaptureSpec.parse({"sites": [site], "pools": [pool], "layers": names})
    spec = ArraySpec(
        name=array_name(site, pool),
        dims=("text", "layer", "hidden"),
        shape=(len(texts), len(names), hidden),
        attrs={
            "site": site,
            "pool": pool,
            "token_mask": "not known: imported",
            "imported_digest": file_digest(files),
        },
    )
    plan = RunPlan(
        run=run,
        corpus=corpus,
        corpus_digest=texts_digest(texts),
        model=ModelInfo(
            name=model,
            revision=revision,
            architecture="unknown",
            n_layers=depth,
            hidden_size=hidden,
            n_parameters=0,
            dtype=kinds[0],
            attn_implementation="unknown",
        ),
        tokenizer=TokenizerInfo(digest=None, vocab_size=0),
        capture=capture,
        layers=tuple(names),
        n_texts=len(texts),
        n_tokens=0,
        rows_digest=digest_json([text.id for text in ordered]),
        rows_per_block=rows_per_block(len(texts), hidden, DEFAULT_CHUNK_BYTES, rows=rows),
        batch_tokens=1,
        arrays=(spec,),
    )
    return PreparedImport(plan, text_coords(ordered), arrangement, tuple(kept), np.array(order))


def import_run(
    store: Store, prepared: PreparedImport, texts: Sequence[Text], *, info: CorpusInfo
) -> Seal:
    """Write activations that were understood as a sealed run; resume if it was begun.

    Every value is looked at before the first is written.

    Parameters
    ----------
    store
        Where to write.
    prepared
        See :func:`prepare_import`.
    texts, info
        The corpus; it is written to the store beside the run.

    Raises
    ------
    NumericalError
        If a value is NaN or infinite: the text and the layer are named. Nothing was written.
    AlreadyExistsError
        If the store holds another run, or other files, under this run id.
    """
    plan = prepared.plan
    name = plan.arrays[0].name
    for block in range(plan.n_blocks):
        span = plan.block_rows(block)
        _check_finite(prepared, prepared.rows(span), first=span.start)
    store.write_corpus(info, texts)
    writer = store.create_run(
        plan, coords=prepared.coords, environment=describe_environment(("numpy", "zarr"))
    )
    files = sorted({tensor.file.name for tensor in prepared.tensors}, key=natural_key)
    for block in writer.pending_blocks():
        rows = prepared.rows(plan.block_rows(block))
        notes = {"imported_from": files if len(files) <= 64 else [*files[:64], "..."]}
        writer.write_block(block, {name: rows}, notes=notes)
    return writer.seal()


def _arrange(
    tensors: list[Tensor], texts: Sequence[Text], *, layers: Sequence[int] | None
) -> tuple[Arrangement, list[Tensor]]:
    """Return how the arrays are arranged, and the arrays in the order that they are read in."""
    ranks = {len(tensor.shape) for tensor in tensors}
    first = tensors[0]
    if len(ranks) > 1 or not ranks <= {2, 3}:
        shapes = sorted({str(tensor.shape) for tensor in tensors})[:4]
        msg = f"{first.file}: arrays of the shapes {', '.join(shapes)}; {_EXPECTED}"
        raise InvalidInputError(msg)
    if ranks == {3}:
        _check_like(tensors, first_axis=1)
        _check_count(sum(tensor.shape[0] for tensor in tensors), texts, "the files hold")
        return "stacked", tensors
    by_name = {tensor.name: tensor for tensor in tensors}
    ids = [text.id for text in texts]
    if set(ids) & set(by_name):
        missing = [i for i in ids if i not in by_name]
        extra = sorted(set(by_name) - set(ids))
        if missing or extra or len(by_name) != len(tensors):
            what = f"text {missing[0]!r} has no array" if missing else ""
            what = what or (f"{extra[0]!r} is no text" if extra else "an id is there twice")
            msg = (
                f"{len(tensors)} arrays are named by the ids of {len(ids)} texts, but {what} "
                f"({len(missing)} missing, {len(extra)} unknown)"
            )
            raise InvalidInputError(msg)
        _check_like(tensors, first_axis=0)
        return "per text", [by_name[i] for i in ids]
    named = all(_LAYER.search(tensor.name) for tensor in tensors)
    if not named and not (len(tensors) == 1 and layers is not None and len(layers) == 1):
        odd = next(t for t in tensors if not _LAYER.search(t.name))
        msg = (
            f"{odd.file}: {odd.name!r} with shape {odd.shape} names neither a layer nor a text; "
            f"{_EXPECTED}"
        )
        raise InvalidInputError(msg)
    _check_like(tensors, first_axis=1)
    for layer, parts in _by_layer(tensors, "per layer").items():
        n_rows = sum(part.shape[0] for part in parts)
        _check_count(n_rows, texts, f"the files of layer {layer} hold")
    return "per layer", tensors


def _by_layer(tensors: Sequence[Tensor], arrangement: Arrangement) -> dict[int, list[Tensor]]:
    """Return the parts of every layer in order; of stacked arrays all parts under -1."""
    groups: dict[int, list[Tensor]] = {}
    for tensor in tensors:
        match = _LAYER.search(tensor.name) if arrangement == "per layer" else None
        groups.setdefault(int(match[1]) if match else -1, []).append(tensor)
    return groups


def _layer_names(
    tensors: Sequence[Tensor], arrangement: Arrangement, layers: Sequence[int] | None
) -> list[int]:
    """Return the block indices of the layers, ascending."""
    if arrangement == "per layer":
        found = sorted(_by_layer(tensors, arrangement))
        if found == [-1]:
            return list(layers or ())
        if layers is not None and sorted(layers) != found:
            msg = f"the files are of layers {found}, but layers {sorted(layers)} were named"
            raise InvalidInputError(msg)
        return found
    n_found = tensors[0].shape[1 if arrangement == "stacked" else 0]
    names = list(range(n_found)) if layers is None else list(layers)
    if len(names) != n_found or names != sorted(set(names)) or names[0] < 0:
        msg = f"the arrays hold {n_found} layers, expected as many ascending numbers, got {names}"
        raise InvalidInputError(msg)
    return names


def _check_like(tensors: Sequence[Tensor], *, first_axis: int) -> None:
    first = tensors[0]
    for tensor in tensors:
        if tensor.shape[first_axis:] != first.shape[first_axis:] or min(tensor.shape) < 1:
            msg = (
                f"{tensor.file}: {tensor.name} has shape {tensor.shape}, which does not fit "
                f"{first.shape} of {first.file.name}"
            )
            raise InvalidInputError(msg)


def _check_count(n_rows: int, texts: Sequence[Text], what: str) -> None:
    if n_rows != len(texts):
        msg = f"{what} {n_rows} rows, the table {len(texts)} texts; expected one row per text"
        raise InvalidInputError(msg)


def _check_finite(prepared: PreparedImport, values: np.ndarray[Any, Any], *, first: int) -> None:
    if np.isfinite(values).all():
        return
    row, layer = (int(i) for i in np.argwhere(~np.isfinite(values).all(axis=-1))[0])
    text = str(prepared.coords["text"][first + row])
    msg = (
        f"the activations of text {text!r} are not finite at layer {prepared.plan.layers[layer]}; "
        "nothing was written: extract it again, or leave the text out"
    )
    raise NumericalError(msg)
