"""What a run is created from, plan, coordinates and tokens, checked before anything is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..schemas import InvalidInputError, RunPlan
from .layout import StaticArray, text_limit
from .tokens import PADDING, to_stored_rows, token_places

__all__ = ["check_plan", "static_arrays"]

_NAME = re.compile(r"^[a-z][a-z0-9_]{0,79}$")
_TOKEN_MASKS = ("token_response", "token_special")
_TOKEN_CHARS = ("token_start", "token_stop")
_TOKEN_DATA = {"token_id", "token_offset", *_TOKEN_MASKS, *_TOKEN_CHARS}
_NUMBERS = {
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float32", "float64",
}  # fmt: skip
_DIMENSIONS = {
    "hidden", "head_hidden", "head", "head_dim", "token", "text_edge", "token_text",
    "token_position", "token_layer",
}  # fmt: skip


def check_plan(plan: RunPlan) -> None:
    """Raise InvalidInputError where the parts of ``plan`` contradict each other."""
    sizes = plan.sizes
    names = [spec.name for spec in plan.arrays]
    if not names or len(set(names)) != len(names):
        msg = f"run {plan.run!r}: expected arrays with distinct names, got {names}"
        raise InvalidInputError(msg)
    if not plan.layers or list(plan.layers) != sorted(set(plan.layers)):
        msg = f"run {plan.run!r}: expected layers in ascending order, got {list(plan.layers)}"
        raise InvalidInputError(msg)
    _check_token_axis(plan)
    for spec in plan.arrays:
        expected = tuple(sizes[dim] for dim in spec.dims)
        if spec.shape != expected:
            msg = (
                f"run {plan.run!r}: array {spec.name!r} with dims {spec.dims} has shape "
                f"{spec.shape}, expected {expected}"
            )
            raise InvalidInputError(msg)


def _check_token_axis(plan: RunPlan) -> None:
    """Raise InvalidInputError where the plan's token axis is not that of its token arrays."""
    axis, wrong = plan.token_axis, None
    if (axis is not None) != any(spec.is_tokens for spec in plan.arrays):
        wrong = "token arrays need a token axis, and a token axis token arrays"
    elif axis is not None and len(axis.token_edges) != plan.n_blocks + 1:
        wrong = f"its token axis has {len(axis.token_edges) - 1} blocks, expected {plan.n_blocks}"
    elif axis is not None and axis.token_edges[-1] != plan.n_tokens:
        wrong = f"its token axis has {axis.token_edges[-1]} tokens, expected {plan.n_tokens}"
    elif axis is not None and list(axis.layers) != [n for n in plan.layers if n in axis.layers]:
        wrong = f"token layers must be some of {list(plan.layers)}, got {list(axis.layers)}"
    if wrong:
        msg = f"run {plan.run!r}: {wrong}"
        raise InvalidInputError(msg)


def static_arrays(
    plan: RunPlan,
    *,
    coords: Mapping[str, np.ndarray[Any, Any]],
    token_data: Mapping[str, np.ndarray[Any, Any]],
) -> list[StaticArray]:
    """Return the checked static arrays of a run, sorted by name.

    Raises
    ------
    InvalidInputError
        If a coordinate is missing, has the wrong length or a type that Zarr cannot hold, or
        the token offsets do not fit the tokens.
    """
    if "text" not in coords:
        msg = f"run {plan.run!r}: coords need 'text' (the ids), got {sorted(coords)}"
        raise InvalidInputError(msg)
    given = {"layer": np.array(plan.layers, dtype=np.int32), **coords}
    taken = {spec.name for spec in plan.arrays} | _DIMENSIONS | set(token_data)
    clash = sorted(name for name in given if name in taken or not _NAME.match(name))
    if clash:
        msg = f"run {plan.run!r}: {clash} cannot name coordinates (taken, or not lower_case)"
        raise InvalidInputError(msg)
    sizes = {"text": plan.n_texts, "layer": len(plan.layers)}
    arrays = []
    for name, values in given.items():
        dim = "layer" if name == "layer" else "text"
        arrays.append(_checked(StaticArray(name, dim, np.asarray(values)), size=sizes[dim]))
    by_name = {array.name: array.values for array in arrays}
    if by_name["layer"].tolist() != list(plan.layers):
        msg = f"run {plan.run!r}: coordinate 'layer' is not the plan's {list(plan.layers)}"
        raise InvalidInputError(msg)
    ids = by_name["text"].tolist()
    if by_name["text"].dtype.kind != "O" or len(set(ids)) != len(ids):
        msg = f"run {plan.run!r}: coordinate 'text' needs distinct strings"
        raise InvalidInputError(msg)
    return sorted([*arrays, *_token_arrays(plan, token_data)], key=lambda array: array.name)


def _token_arrays(
    plan: RunPlan, token_data: Mapping[str, np.ndarray[Any, Any]]
) -> list[StaticArray]:
    if not token_data and plan.token_axis is None:
        return []
    if not {"token_id", "token_offset"} <= set(token_data) <= _TOKEN_DATA:
        msg = (
            f"run {plan.run!r}: token_data needs 'token_id' and 'token_offset', and may have "
            f"{', '.join(repr(n) for n in _TOKEN_MASKS + _TOKEN_CHARS)}, got {sorted(token_data)}"
        )
        raise InvalidInputError(msg)
    masks = [
        _checked(StaticArray(name, "token", np.asarray(token_data[name])), size=plan.n_tokens)
        for name in _TOKEN_MASKS
        if name in token_data
    ]
    if any(mask.values.dtype != bool for mask in masks):
        msg = f"run {plan.run!r}: {', '.join(_TOKEN_MASKS)} must be bool"
        raise InvalidInputError(msg)
    masks += _token_chars(plan, token_data)
    ids = StaticArray("token_id", "token", np.asarray(token_data["token_id"]))
    offsets = StaticArray("token_offset", "text_edge", np.asarray(token_data["token_offset"]))
    arrays = [_checked(ids, size=plan.n_tokens), _checked(offsets, size=plan.n_texts + 1)]
    edges = offsets.values
    if edges[0] != 0 or edges[-1] != plan.n_tokens or (np.diff(edges) < 0).any():
        msg = (
            f"run {plan.run!r}: token_offset must rise from 0 to {plan.n_tokens}, "
            f"got {edges[0]} to {edges[-1]}"
        )
        raise InvalidInputError(msg)
    if plan.token_axis is None:
        return [*arrays, *masks]
    stored = [
        StaticArray(
            m.name,
            "token",
            to_stored_rows(
                plan.token_axis, m.values, fill=PADDING if m.name in _TOKEN_CHARS else False
            ),
        )
        for m in masks
    ]
    return [*_padded(plan, ids=ids.values, offsets=edges), *stored]


def _token_chars(
    plan: RunPlan, token_data: Mapping[str, np.ndarray[Any, Any]]
) -> list[StaticArray]:
    """Return the characters of each token as they were given: both ends or none."""
    given = [name for name in _TOKEN_CHARS if name in token_data]
    if not given:
        return []
    if len(given) < len(_TOKEN_CHARS):
        msg = f"run {plan.run!r}: {' and '.join(_TOKEN_CHARS)} belong together, got {given[0]}"
        raise InvalidInputError(msg)
    start, stop = (
        _checked(StaticArray(name, "token", np.asarray(token_data[name])), size=plan.n_tokens)
        for name in _TOKEN_CHARS
    )
    wrong = (start.values < PADDING) | (stop.values < start.values)
    wrong |= (start.values < 0) != (stop.values < 0)
    if start.values.dtype != np.int32 or stop.values.dtype != np.int32 or wrong.any():
        msg = (
            f"run {plan.run!r}: {' and '.join(_TOKEN_CHARS)} need int32 with 0 <= start <= stop, "
            f"or {PADDING} in both"
        )
        raise InvalidInputError(msg)
    return [start, stop]


def _padded(
    plan: RunPlan, *, ids: np.ndarray[Any, Any], offsets: np.ndarray[Any, Any]
) -> list[StaticArray]:
    """Return the coordinates of a token axis as they are stored: padding is -1."""
    axis = plan.token_axis
    if axis is None:
        return []
    firsts = [plan.block_rows(block).start for block in range(plan.n_blocks)]
    if offsets[[*firsts, plan.n_texts]].tolist() != list(axis.token_edges):
        msg = (
            f"run {plan.run!r}: token_offset does not fit the token_edges of the plan's token axis"
        )
        raise InvalidInputError(msg)
    if ids.dtype.kind != "i" or (ids < 0).any():
        msg = f"run {plan.run!r}: token_id needs signed integers from 0, got {ids.dtype}"
        raise InvalidInputError(msg)
    text = np.full(axis.n_rows, PADDING, dtype=np.int32)
    position = text.copy()
    for span, texts, positions in token_places(plan, offsets, start=0, stop=axis.n_rows):
        text[span], position[span] = texts, positions
    return [
        StaticArray("token_id", "token", to_stored_rows(axis, ids, fill=PADDING)),
        StaticArray("token_layer", "token_layer", np.array(axis.layers, dtype=np.int32)),
        StaticArray("token_offset", "text_edge", offsets),
        StaticArray("token_position", "token", position),
        StaticArray("token_text", "token", text),
    ]


def _checked(array: StaticArray, *, size: int) -> StaticArray:
    """Return the array with text as objects; raise where its shape or type is wrong."""
    values = array.values
    if values.shape != (size,):
        msg = f"coordinate {array.name!r} has shape {values.shape}, expected ({size},)"
        raise InvalidInputError(msg)
    if values.dtype.kind in "UOT":
        wrong = next((v for v in values.tolist() if not isinstance(v, str)), None)
        if wrong is not None:
            msg = f"coordinate {array.name!r} mixes text with {wrong!r}; expected only text"
            raise InvalidInputError(msg)
        values = values.astype(object)
        n_bytes = sum(len(value.encode()) for value in values)
        if n_bytes > text_limit(size):
            msg = (
                f"coordinate {array.name!r} holds {n_bytes} bytes of text, expected at most "
                f"{text_limit(size)}; coordinates are names, the texts belong in the corpus"
            )
            raise InvalidInputError(msg)
    elif values.dtype.name not in _NUMBERS:
        msg = (
            f"coordinate {array.name!r} has type {values.dtype}, expected text or one of "
            f"{', '.join(sorted(_NUMBERS))}"
        )
        raise InvalidInputError(msg)
    return StaticArray(array.name, array.dim, values)
