"""Zarr metadata of a run as it was found: read with bounds, and checked before it is believed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from ..schemas import CorruptError, RunPlan
from .bits import stored_dtype
from .codec import BLOSC, PLAIN
from .layout import chunk_rows

__all__ = ["METADATA_BYTES", "check_array", "coordinate_names", "parse_document"]

METADATA_BYTES = 16 * 2**20
MAX_CHUNKS = 50_000_000
# What this version writes, in order. Nothing else is decoded: blosc says in its header how much
# it decodes to, and none of these runs anything that the store brought along.
_FIRST = {"bytes", "vlen-utf8"}
CODECS = {BLOSC: (_FIRST, {"blosc"}, {"crc32c"}), PLAIN: (_FIRST, {"crc32c"})}
DATA_TYPES = {
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", "string",
}  # fmt: skip
_KNOWN_FIELDS = {
    "zarr_format", "node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding",
    "fill_value", "codecs", "attributes", "dimension_names", "storage_transformers",
}  # fmt: skip


def parse_document(data: bytes, *, where: str, node_type: str) -> dict[str, Any]:
    """Return a Zarr v3 metadata document; raise CorruptError where it is none."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as err:
        msg = f"{where} is not JSON: {err}"
        raise CorruptError(msg) from err
    if not isinstance(document, dict) or document.get("zarr_format") != 3:
        msg = f"{where} is not Zarr v3 metadata; only Zarr v3 is read"
        raise CorruptError(msg)
    if document.get("node_type") != node_type:
        msg = f"{where} describes {document.get('node_type')!r}, expected {node_type!r}"
        raise CorruptError(msg)
    if not isinstance(document.get("attributes", {}), dict):
        msg = f"{where}: its attributes are not an object"
        raise CorruptError(msg)
    return document


def coordinate_names(group: Mapping[str, Any]) -> list[str]:
    """Return the names of the static arrays that the group's attributes list."""
    listed = group.get("attributes", {}).get("coordinates", "")
    return sorted({"text", "layer", *str(listed).split()})


def check_array(document: Mapping[str, Any], *, name: str, plan: RunPlan, where: str) -> None:
    """Raise CorruptError where an array is not what the plan allows.

    Arrays of the plan need the plan's shape, type and chunks, coordinates one dimension of a
    known length. Every codec must be on the whitelist.
    """
    shape: Any = document.get("shape")
    dtype, dims = document.get("data_type"), document.get("dimension_names")
    grid = document.get("chunk_grid")
    chunk: Any = None
    if isinstance(grid, dict) and grid.get("name") == "regular":
        chunk = grid.get("configuration", {}).get("chunk_shape")
    _expect(dtype in DATA_TYPES, f"{where}: data type {dtype!r} is not read", name)
    _expect(_is_shape(shape) and _is_shape(chunk, least=1), f"{where}: no regular chunks", name)
    _expect(len(shape) == len(chunk), f"{where}: chunks of another rank than the array", name)
    unknown = sorted(k for k, v in document.items() if k not in _KNOWN_FIELDS and _binds(v))
    _expect(not unknown, f"{where}: unknown fields {unknown}", name)
    _expect(not document.get("storage_transformers"), f"{where}: storage transformers", name)
    codecs = document.get("codecs")
    names = [c.get("name") if isinstance(c, dict) else c for c in codecs or []]
    expected = {spec.name: spec for spec in plan.arrays}.get(name)
    chain = CODECS[BLOSC if expected is None else plan.codec]
    known = len(names) == len(chain) and all(
        isinstance(n, str) and n in allowed for n, allowed in zip(names, chain, strict=True)
    )
    _expect(known, f"{where}: codecs {names} are not read", name)
    sizes = {"text": plan.n_texts, "layer": len(plan.layers), "text_edge": plan.n_texts + 1}
    sizes |= {"token": plan.n_tokens, "hidden": plan.model.hidden_size}
    if expected is None:
        fits = isinstance(dims, list) and len(dims) == 1 and shape == [sizes.get(dims[0])]
        _expect(fits, f"{where}: a coordinate of shape {shape} over {dims}", name)
    else:
        got = (shape, dtype, dims, chunk)
        planned = list(expected.shape)
        inner = [1, planned[2]] if len(planned) == 3 else [planned[1]]
        stored = stored_dtype(expected.dtype)
        want = (planned, stored, list(expected.dims), [chunk_rows(plan), *inner])
        _expect(got == want, f"{where}: has {got}, the plan says {want}", name)
    n_chunks = math.prod(-(-n // c) for n, c in zip(shape, chunk, strict=True))
    _expect(n_chunks <= MAX_CHUNKS, f"{where}: {n_chunks} chunks", name)


def _binds(field: object) -> bool:
    """Return whether a reader must understand a field that the specification does not name."""
    return not (isinstance(field, dict) and field.get("must_understand") is False)


def _is_shape(value: object, *, least: int = 0) -> bool:
    return isinstance(value, list) and all(
        isinstance(n, int) and not isinstance(n, bool) and least <= n < 2**40 for n in value
    )


def _expect(holds: bool, what: str, name: str) -> None:  # the condition itself  # noqa: FBT001
    if not holds:
        msg = f"array {name!r}: {what}"
        raise CorruptError(msg)
