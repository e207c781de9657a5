"""Zarr metadata of a run as it was found: read with bounds, and checked before it is believed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from ..schemas import CorruptError, InvalidInputError, RunPlan
from ..schemas.strict_json import load_json
from .blocks import chunk_shape
from .codec import BLOSC, PLAIN, codec_metadata
from .layout import group_metadata, plan_metadata

__all__ = [
    "MAX_OBJECTS",
    "METADATA_BYTES",
    "STATIC_KEY",
    "check_array",
    "check_bounds",
    "check_group",
    "coordinate_names",
    "parse_document",
]

METADATA_BYTES = 4 * 2**20
MAX_OBJECTS = 1_000_000  # of one run: 16 TB of 16 MiB objects, a seal of 150 MB
MAX_TEXTS = 2**27
MAX_COORDINATES = 256
MAX_COORDINATE_CHUNKS = 100_000
DATA_TYPES = {
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", "string",
}  # fmt: skip
# What a run has beside the chunks that blocks write: metadata, and chunks of coordinates.
STATIC_KEY = re.compile(r"zarr\.json|[a-z][a-z0-9_]{0,79}/(zarr\.json|c/(0|[1-9]\d{0,8}))")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,79}")
# Attributes by which xarray would change values or types.
CF_NAMES = {
    "_FillValue", "missing_value", "scale_factor", "add_offset", "units", "calendar", "dtype",
    "coordinates", "grid_mapping", "bounds", "_Unsigned", "_Encoding",
}  # fmt: skip
_REQUIRED = {
    "zarr_format", "node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding",
    "fill_value", "codecs", "attributes", "dimension_names",
}  # fmt: skip


def check_bounds(plan: RunPlan, *, where: str) -> None:
    """Raise CorruptError where a stored plan contradicts itself or is absurdly large."""
    sizes, names = plan.sizes, [spec.name for spec in plan.arrays]
    shapes = all(spec.shape == tuple(sizes.get(d) for d in spec.dims) for spec in plan.arrays)
    fits = all(4 * math.prod(chunk_shape(plan, spec)) < 2**31 for spec in plan.arrays)
    checks = (
        (plan.n_texts <= MAX_TEXTS, f"it has {plan.n_texts} texts"),
        (plan.n_tokens < 2**40, f"it has {plan.n_tokens} tokens"),
        (0 < len(names) == len(set(names)), "its arrays have no distinct names"),
        (bool(plan.layers) and list(plan.layers) == sorted(set(plan.layers)), "its layers"),
        (not any(spec.attrs.keys() & CF_NAMES for spec in plan.arrays), "its attributes"),
        (shapes, "the shapes of its arrays are not its numbers of texts, layers and values"),
        (_axis_fits(plan), "its token axis is not that of its blocks, tokens, layers and arrays"),
        (fits, "its chunks are larger than 2 GiB"),
        (plan.n_objects <= MAX_OBJECTS, f"it has {plan.n_objects} objects"),
    )
    for holds, what in checks:
        if not holds:
            msg = f"{where} is a plan that is not read: {what[:200]}"
            raise CorruptError(msg)


def _axis_fits(plan: RunPlan) -> bool:
    """Return whether the token axis of a plan is that of its blocks, if it has one."""
    axis = plan.token_axis
    if axis is None or not any(spec.is_tokens for spec in plan.arrays):
        return axis is None and not any(spec.is_tokens for spec in plan.arrays)
    return (
        len(axis.token_edges) == plan.n_blocks + 1
        and axis.token_edges[-1] == plan.n_tokens
        and list(axis.layers) == [layer for layer in plan.layers if layer in axis.layers]
    )


def parse_document(data: bytes, *, where: str, node_type: str) -> dict[str, Any]:
    """Return a Zarr v3 metadata document; raise CorruptError where it is none."""
    try:
        document = load_json(data, where=where)
    except InvalidInputError as err:
        raise CorruptError(str(err)) from err
    if not isinstance(document, dict) or document.get("zarr_format") != 3:
        msg = f"{where} is not Zarr v3 metadata; only Zarr v3 is read"
        raise CorruptError(msg)
    if document.get("node_type") != node_type:
        found = repr(document.get("node_type"))[:40]
        msg = f"{where} describes {found}, expected {node_type!r}"
        raise CorruptError(msg)
    if not isinstance(document.get("attributes", {}), dict):
        msg = f"{where}: its attributes are not an object"
        raise CorruptError(msg)
    return document


def coordinate_names(group: Mapping[str, Any]) -> list[str]:
    """Return the names of the static arrays that the group's attributes list.

    Raises
    ------
    CorruptError
        If they are not names of arrays, or more than 256.
    """
    listed = group.get("attributes", {}).get("coordinates", "")
    names = sorted({"text", "layer", *listed.split()}) if isinstance(listed, str) else [""]
    if len(names) > MAX_COORDINATES or not all(_NAME.fullmatch(name) for name in names):
        msg = f"the attribute 'coordinates' of the group names {repr(listed)[:80]}"
        raise CorruptError(msg)
    return names


def check_group(document: Mapping[str, Any], *, plan: RunPlan, where: str) -> dict[str, Any]:
    """Return the group's metadata as this version would have written it, not consolidated.

    Raises
    ------
    CorruptError
        If its attributes are not the plan's, or it holds anything else.
    """
    attributes = document.get("attributes", {})
    names = [name for name in coordinate_names(document) if name not in {"text", "layer"}]
    written = group_metadata(plan, plan_id=str(attributes.get("plan_id")), coordinates=names)
    rest = {key: value for key, value in document.items() if key != "consolidated_metadata"}
    if _spelled(rest) != _spelled(written):
        wrong = sorted(
            key
            for key in {*rest, *written, *attributes, *written["attributes"]}
            if _spelled(rest.get(key)) != _spelled(written.get(key))
            or _spelled(attributes.get(key)) != _spelled(written["attributes"].get(key))
        )
        msg = f"{where}: its {repr(wrong)[:120]} are not what the plan says"
        raise CorruptError(msg)
    return written


def check_array(
    document: Mapping[str, Any], *, name: str, plan: RunPlan, where: str
) -> dict[str, Any]:
    """Return the metadata of an array as this version would have written it.

    An array of the plan is exactly what the plan says. A coordinate has one dimension of a known
    length, a plain type, and chunks and codecs as this version writes them, no attributes.

    Raises
    ------
    CorruptError
        If the document says anything else: other shapes, types, chunks, codecs, attributes.
    """
    planned = plan_metadata(plan).get(name)
    if planned is not None:
        found = {key: document.get(key) for key in planned}
        wrong = [key for key in planned if _spelled(found[key]) != _spelled(planned[key])]
        if wrong:
            got = repr(found[wrong[0]])[:120]
            said = f"{where}: its {wrong[0]} is {got}, the plan says {planned[wrong[0]]}"
            _expect(not wrong, said, name)
        _check_rest(document, name=name, where=where)
        return planned
    _check_rest(document, name=name, where=where)
    return _check_coordinate(document, name=name, plan=plan, where=where)


def _check_coordinate(
    document: Mapping[str, Any], *, name: str, plan: RunPlan, where: str
) -> dict[str, Any]:
    dtype, dims, shape = (document.get(k) for k in ("data_type", "dimension_names", "shape"))
    known = isinstance(dtype, str) and dtype in DATA_TYPES
    _expect(known, f"{where}: data type {repr(dtype)[:60]} is not read", name)
    sizes = {"text": plan.n_texts, "layer": len(plan.layers), "text_edge": plan.n_texts + 1}
    sizes |= {"token": plan.n_tokens, "hidden": plan.model.hidden_size}
    if plan.token_axis is not None:
        sizes |= {"token": plan.token_axis.n_rows, "token_layer": len(plan.token_axis.layers)}
    dim = dims[0] if isinstance(dims, list) and len(dims) == 1 else None
    fits = isinstance(dim, str) and _spelled(shape) == _spelled([sizes.get(dim)])
    got = f"a coordinate of shape {repr(shape)[:60]} over {repr(dims)[:60]}"
    _expect(fits, f"{where}: {got}", name)
    grid: Any = document.get("chunk_grid")
    chunk: Any = None
    if isinstance(grid, dict) and isinstance(grid.get("configuration"), dict):
        chunk = grid["configuration"].get("chunk_shape")
    regular = isinstance(grid, dict) and grid.get("name") == "regular"
    is_chunk = isinstance(chunk, list) and len(chunk) == 1 and type(chunk[0]) is int
    _expect(regular and is_chunk and chunk[0] >= 1, f"{where}: no regular chunks", name)
    n_values = sizes[str(dim)]
    n_chunks = math.ceil(n_values / chunk[0])
    _expect(n_chunks <= MAX_COORDINATE_CHUNKS, f"{where}: {n_chunks} chunks", name)
    # Nothing is decoded but what this version writes: no codec runs what the store brought along.
    pipelines = [codec_metadata(str(dtype), codec=codec) for codec in (BLOSC, PLAIN)]
    codecs = next((p for p in pipelines if _spelled(p) == _spelled(document.get("codecs"))), None)
    shown = repr(document.get("codecs"))[:200]
    _expect(codecs is not None, f"{where}: codecs {shown} are not read", name)
    fill = {"string": "", "bool": False}.get(str(dtype), 0)
    written = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [n_values],
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [chunk[0]]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN" if str(dtype).startswith("float") else fill,
        "codecs": codecs,
        "attributes": {},
        "dimension_names": [dim],
    }
    wrong = [k for k, v in written.items() if _spelled(document.get(k)) != _spelled(v)]
    what = f"{where}: its {wrong[0]} is {repr(document.get(wrong[0]))[:120]}" if wrong else ""
    _expect(not wrong, what, name)
    return written


def _check_rest(document: Mapping[str, Any], *, name: str, where: str) -> None:
    unknown = sorted(
        k for k, v in document.items() if k not in _REQUIRED and (_binds(v) and v != [])
    )
    transformers = "storage_transformers" in unknown
    _expect(not transformers, f"{where}: storage transformers", name)
    _expect(not unknown, f"{where}: unknown fields {repr(unknown)[:120]}", name)


def _binds(field: object) -> bool:
    """Return whether a reader must understand a field that the specification does not name."""
    return not (isinstance(field, dict) and field.get("must_understand") is False)


def _spelled(value: object) -> str:
    """Return JSON text, in which 1, 1.0 and true are three things."""
    return json.dumps(value, sort_keys=True)


def _expect(holds: bool, what: str, name: str) -> None:  # the condition itself  # noqa: FBT001
    if not holds:
        msg = f"array {name!r}: {what}"
        raise CorruptError(msg)
