"""The one place that knows where things lie: keys, chunk shapes, array metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..schemas import (
    ArraySpec,
    InvalidInputError,
    RunPlan,
    array_name,
    canonical_json,
    norm_name,
)
from .bits import fill_value, stored_dtype
from .blocks import FLOAT_BYTES, chunk_shape
from .codec import BLOSC, codec_metadata, data_type, encode_chunk

__all__ = [
    "STORE_KEY",
    "RunKeys",
    "StaticArray",
    "encode_static",
    "group_metadata",
    "plan_metadata",
    "rows_per_block",
    "static_metadata",
    "text_limit",
    "to_bytes",
]

STORE_KEY = "store.json"
CATALOG_KEY = "catalog.json"
METADATA_NAME = "zarr.json"
DEFAULT_CHUNK_BYTES = 16 * 2**20
TEXT_BYTES = 1024  # of a coordinate string, on average
TOKENS_PER_CHUNK = 2**22  # 16 MiB of int32


@dataclass(frozen=True)
class RunKeys:
    """The keys of one run, or of a part that was appended to one, below the store."""

    run: str

    @property
    def folder(self) -> str:
        """The run's folder."""
        run, _, number = self.run.partition("~")
        return f"runs/{run}/appended/{number}" if number else f"runs/{run}"

    @property
    def plan(self) -> str:
        """The plan, whose bytes hash to the plan id."""
        return f"{self.folder}/plan.json"

    @property
    def manifest(self) -> str:
        """The run manifest: the last object that creating a run writes."""
        return f"{self.folder}/run.json"

    @property
    def seal(self) -> str:
        """The seal: the last object of a run."""
        return f"{self.folder}/seal.json"

    @property
    def commits(self) -> str:
        """The folder of the commit records."""
        return f"{self.folder}/commits"

    @property
    def data(self) -> str:
        """The Zarr group."""
        return f"{self.folder}/data.zarr"

    def commit(self, block: int) -> str:
        """Return the key of the commit record of ``block``."""
        return f"{self.commits}/{block}.json"

    @property
    def claims(self) -> str:
        """The folder of the claims: who is at work; of no meaning to readers."""
        return f"{self.folder}/claims"

    def claim(self, block: int, generation: int) -> str:
        """Return the key of a claim; each later generation took over from the one before."""
        return f"{self.claims}/{block}.{generation}.json"

    def decision(self, block: int) -> str:
        """Return the key of the record that says whose bytes of ``block`` were chosen."""
        return f"{self.folder}/decisions/{block}.json"

    @property
    def staged(self) -> str:
        """The folder of objects that wait for their place."""
        return f"{self.folder}/staged"

    def object(self, key: str) -> str:
        """Return the key below the store of ``key`` below ``data.zarr``."""
        return f"{self.data}/{key}"


@dataclass(frozen=True)
class StaticArray:
    """A one-dimensional array that is known before the first forward pass."""

    name: str
    dim: str
    values: np.ndarray[Any, Any]


def rows_per_block(
    n_texts: int, hidden: int, chunk_bytes: int = DEFAULT_CHUNK_BYTES, *, rows: int | None = None
) -> int:
    """Return how many rows a block has.

    Parameters
    ----------
    n_texts
        Rows of the run.
    hidden
        Values per row of one layer, 4 bytes each.
    chunk_bytes
        The largest uncompressed size of an object. Blocks are balanced, so objects of a run
        with several blocks have between half of it and all of it: 16 MiB gives 8 to 16 MiB.
    rows
        An explicit number of rows, where a kill shall lose less; wins over ``chunk_bytes``.

    Raises
    ------
    InvalidInputError
        If a number is not positive.
    """
    given = {"n_texts": n_texts, "hidden": hidden, "chunk_bytes": chunk_bytes, "rows": rows}
    wrong = {name: v for name, v in given.items() if v is not None and v < 1}
    if wrong:
        msg = f"expected positive numbers to choose the rows of a block, got {wrong}"
        raise InvalidInputError(msg)
    if rows is not None:
        return min(rows, n_texts)
    most = max(1, chunk_bytes // (FLOAT_BYTES * hidden))
    return math.ceil(n_texts / math.ceil(n_texts / most))


def plan_metadata(plan: RunPlan) -> dict[str, dict[str, Any]]:
    """Return the Zarr metadata of every array that blocks are written to, by name."""
    documents = {}
    for spec in plan.arrays:
        documents[spec.name] = _array_metadata(
            shape=spec.shape,
            chunk=chunk_shape(plan, spec),
            dtype=stored_dtype(spec.dtype),
            fill=fill_value(spec.dtype),
            dims=spec.dims,
            attributes={
                **_site_and_pool(plan, spec.name),
                **spec.attrs,
                **_bits_attribute(spec),
            },
            codec=plan.codec,
        )
    return documents


def static_metadata(array: StaticArray) -> dict[str, Any]:
    """Return the Zarr metadata of a static array."""
    return _array_metadata(
        shape=array.values.shape,
        chunk=(_static_chunk(array),),
        dtype=data_type(array.values),
        dims=(array.dim,),
        attributes={},
    )


def encode_static(array: StaticArray) -> dict[str, bytes]:
    """Return the objects of a static array by their keys below ``data.zarr``."""
    size = _static_chunk(array)
    objects = {f"{array.name}/{METADATA_NAME}": to_bytes(static_metadata(array))}
    for index, start in enumerate(range(0, len(array.values), size)):
        part = array.values[start : start + size]
        if len(part) < size:
            part = np.pad(part, (0, size - len(part)))
        objects[f"{array.name}/c/{index}"] = encode_chunk(part)
    return objects


def group_metadata(
    plan: RunPlan,
    *,
    plan_id: str,
    coordinates: list[str],
    consolidated: Mapping[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return the metadata of the Zarr group: what every reader sees, actlake or not.

    ``coordinates`` is what xarray reads to tell coordinates from data. With ``consolidated``
    (the metadata of all arrays by name) one GET opens the whole run.
    """
    document: dict[str, Any] = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {
            "encoding-type": "actlake-data",
            "encoding-version": "1",
            **_provenance(plan, plan_id=plan_id),
            "coordinates": " ".join(sorted(coordinates)),
        },
    }
    if consolidated is not None:
        document["consolidated_metadata"] = {
            "kind": "inline",
            "must_understand": False,
            "metadata": {name: consolidated[name] for name in sorted(consolidated)},
        }
    return document


def to_bytes(document: object) -> bytes:
    """Return the one spelling of a metadata document that is stored."""
    return canonical_json(document).encode()


def _provenance(plan: RunPlan, *, plan_id: str) -> dict[str, Any]:
    return {
        "run": plan.run,
        "plan_id": plan_id,
        "model": plan.model.name,
        "model_digest": plan.model.content_digest or plan.model.revision or "",
        "corpus": plan.corpus,
        "n_layers": plan.model.n_layers,
        "hidden_size": plan.model.hidden_size,
        "dtype": plan.model.dtype,
        "template_digest": plan.tokenizer.chat_template_digest or "",
        "token_mask": "no special tokens",
    }


def _site_and_pool(plan: RunPlan, name: str) -> dict[str, str]:
    for site in plan.capture.sites:
        if name == norm_name(site):
            return {"site": site, "quantity": "mean norm over non-special tokens"}
        for pool in plan.capture.pools:
            if name == array_name(site, pool):
                return {"site": site, "pool": pool}
        if name == array_name(site, "tokens"):
            return {"site": site, "pool": "tokens"}
    return {}


def _bits_attribute(spec: ArraySpec) -> dict[str, str]:
    """Return what tells a reader without actlake how to read bit patterns."""
    return {} if spec.dtype == "float32" else {"bits_of": spec.dtype.removesuffix("-bits")}


def text_limit(n_values: int) -> int:
    """Return the most bytes that ``n_values`` coordinate strings may take."""
    return TEXT_BYTES * n_values + 2**20


def _static_chunk(array: StaticArray) -> int:
    # Text arrays are one chunk whatever their length; token arrays can be long.
    return max(1, min(len(array.values), TOKENS_PER_CHUNK if array.dim == "token" else 2**31))


def _array_metadata(
    *,
    shape: tuple[int, ...],
    chunk: tuple[int, ...],
    dtype: str,
    dims: tuple[str, ...],
    attributes: Mapping[str, Any],
    fill: object = None,
    codec: str = BLOSC,
) -> dict[str, Any]:
    if fill is None:
        fill = {"string": "", "bool": False}.get(dtype, 0)
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN" if dtype.startswith("float") else fill,
        "codecs": codec_metadata(dtype, codec=codec),
        "attributes": dict(attributes),
        "dimension_names": list(dims),
    }
