"""Runs: the manifest, the plan, the commits and the seal."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate, pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import FailFast, Field, StringConstraints, model_validator

from .base import Record
from .capture import CaptureSpec

__all__ = [
    "ArraySpec",
    "BlockCommit",
    "Continuation",
    "EngineName",
    "EnvironmentInfo",
    "ModelInfo",
    "ObjectInfo",
    "RunId",
    "RunManifest",
    "RunPlan",
    "Seal",
    "StoreInfo",
    "TokenAxis",
    "TokenizerInfo",
]

# What was appended to a run is a part of it: the run's name, a tilde, the part's number.
RunId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.@+-]{0,119}(~[1-9]\d{0,2})?$")]
EngineName = Literal["transformers", "vllm"]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


class ModelInfo(Record):
    """Which weights were run.

    ``revision`` is the commit of a hub model; ``content_digest`` the hash over the files of a
    local folder. ``name`` is the hub id or the folder's own name, never a path of a machine.
    """

    name: str
    revision: str | None = None
    content_digest: Digest | None = None
    architecture: str
    n_layers: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    n_parameters: int = Field(ge=0)
    dtype: str
    attn_implementation: str
    quantization: str | None = None


class TokenizerInfo(Record):
    """Which tokenizer turned texts into ids; None where imported activations do not say."""

    digest: Digest | None
    chat_template_digest: Digest | None = None
    vocab_size: int
    bos_token_id: int | None = None


class EnvironmentInfo(Record):
    """The software and hardware that wrote something."""

    actlake: str
    python: str
    platform: str
    packages: dict[str, str] = Field(default_factory=dict)
    hardware: str = ""
    n_threads: int | None = None


_DIMS = {
    ("text", "layer", "hidden"), ("text", "layer"), ("token", "token_layer", "hidden"),
    ("text", "layer", "head_hidden"), ("token", "token_layer", "head_hidden"),
}  # fmt: skip


class ArraySpec(Record):
    """One array of a run whose rows are texts or tokens, written block by block.

    ``shape`` is that of the stored array. Chunks are (rows per block, 1, hidden) for
    (text, layer, hidden) arrays, (rows per block, n_layers) for (text, layer) arrays, and
    (rows per chunk, 1, hidden) for (token, token_layer, hidden) arrays, see :class:`TokenAxis`.
    ``head_hidden`` takes the place of ``hidden`` where heads stand one after another: attributes
    ``n_heads`` and ``head_dim`` say how many of what size.
    The ``-bits`` types are stored as uint16: the bit patterns of a 16-bit float, half the memory.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=80)]
    dims: Annotated[
        tuple[Literal["text", "token", "layer", "token_layer", "hidden", "head_hidden"], ...],
        Field(max_length=3),
    ]
    shape: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(max_length=3)]
    dtype: Literal["float32", "bfloat16-bits", "float16-bits"] = "float32"
    attrs: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.dims not in _DIMS:
            msg = (
                "dims must be (text, layer[, hidden]) or (token, token_layer, hidden), with "
                f"head_hidden for hidden where heads are stored, got {self.dims}"
            )
            raise ValueError(msg)
        if len(self.dims) != len(self.shape):
            msg = f"{len(self.dims)} dims but a shape of {len(self.shape)} numbers"
            raise ValueError(msg)
        if self.dims[-1] == "head_hidden":
            heads = [self.attrs.get(name) for name in ("n_heads", "head_dim")]
            n, size = (part if type(part) is int and part > 0 else 0 for part in heads)
            if n * size != self.shape[-1]:
                msg = f"n_heads and head_dim are {heads}, their product must be {self.shape[-1]}"
                raise ValueError(msg)
        return self

    @property
    def is_tokens(self) -> bool:
        """Whether the rows are tokens."""
        return self.dims[0] == "token"


class TokenAxis(Record):
    """How the token axis of a run is stored: every block has chunks of its own.

    A block has ceil(its tokens / ``rows_per_chunk``) chunks; what its tokens leave of the last
    one is padding. ``token_edges`` and ``chunk_edges`` hold for each block its first token and
    its first chunk, and at their end the numbers of all. ``layers`` are the block indices of the
    model that token arrays hold: the ``token_layer`` axis.
    """

    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    rows_per_chunk: int = Field(ge=1)
    token_edges: Annotated[tuple[int, ...], FailFast(), Field(min_length=2)]
    chunk_edges: Annotated[tuple[int, ...], FailFast(), Field(min_length=2)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        tokens, chunks = self.token_edges, self.chunk_edges
        counts = [b - a for a, b in pairwise(tokens)]
        expected = [0, *accumulate(-(-n // self.rows_per_chunk) for n in counts)]
        if tokens[0] != 0 or min(counts) < 0 or tokens[-1] < 1 or list(chunks) != expected:
            msg = "chunk_edges must follow from token_edges (ascending from 0) and rows_per_chunk"
            raise ValueError(msg)
        return self

    @property
    def n_rows(self) -> int:
        """Stored rows, padding included."""
        return self.chunk_edges[-1] * self.rows_per_chunk

    def tokens(self, block: int) -> slice:
        """Return the tokens of ``block``, counted without padding."""
        return slice(self.token_edges[block], self.token_edges[block + 1])

    def rows(self, block: int) -> slice:
        """Return the stored rows that hold the tokens of ``block``, without its padding."""
        first = self.chunk_edges[block] * self.rows_per_chunk
        return slice(first, first + self.token_edges[block + 1] - self.token_edges[block])

    def block_of_chunk(self, chunk: int) -> int:
        """Return the block that a chunk of the axis belongs to."""
        return bisect_right(self.chunk_edges, chunk) - 1


class Continuation(Record):
    """What a part of a run was appended to: the run, and the plan of the part before it."""

    run: Annotated[str, StringConstraints(pattern=r"^[^~]*$")]
    plan_id: Digest


class RunPlan(Record):
    """Everything that is fixed before the first forward pass; its digest is the plan id.

    Nothing volatile (time, host, version) belongs here: the same work gives the same plan id.
    """

    encoding_type: ClassVar[str] = "actlake-plan"

    run: RunId
    corpus: str
    corpus_digest: Digest
    model: ModelInfo
    tokenizer: TokenizerInfo
    capture: CaptureSpec
    layers: Annotated[tuple[int, ...], FailFast()]
    n_texts: int = Field(ge=1)
    n_tokens: int = Field(ge=0)  # 0: not known, as of imported activations
    rows_digest: Digest  # over the text ids and token ids in row order
    rows_per_block: int = Field(ge=1)
    batch_tokens: int = Field(ge=1)
    # Written only where it is another: the plans of before have no such key.
    engine: EngineName = Field("transformers", exclude_if=lambda engine: engine == "transformers")
    arrays: Annotated[tuple[ArraySpec, ...], FailFast()]
    codec: Literal["blosc-zstd-1-shuffle+crc32c", "crc32c"] = "blosc-zstd-1-shuffle+crc32c"
    seed: int = 0
    # Written only where they apply: most plans have no such keys.
    token_axis: TokenAxis | None = Field(None, exclude_if=lambda axis: axis is None)
    continues: Continuation | None = Field(None, exclude_if=lambda part: part is None)

    @model_validator(mode="after")
    def _named(self) -> Self:
        run, mark, _ = self.run.partition("~")
        if (run if mark else None) != (self.continues.run if self.continues else None):
            msg = (
                f"run {self.run!r} continues {self.continues and self.continues.run!r}: only what "
                "is appended to a run has a tilde in its name, behind the name of that run"
            )
            raise ValueError(msg)
        return self

    @property
    def n_blocks(self) -> int:
        """Blocks of the run: ceil(n_texts / rows_per_block)."""
        return -(-self.n_texts // self.rows_per_block)

    def block_rows(self, block: int) -> slice:
        """Return the rows of ``block`` as a slice."""
        start = block * self.rows_per_block
        return slice(start, min(start + self.rows_per_block, self.n_texts))

    @property
    def sizes(self) -> dict[str, int]:
        """Length of each dim of the stored arrays, by its name."""
        sizes = {"text": self.n_texts, "layer": len(self.layers), "hidden": self.model.hidden_size}
        if self.token_axis is not None:
            sizes |= {"token": self.token_axis.n_rows, "token_layer": len(self.token_axis.layers)}
        wide = [spec.shape[-1] for spec in self.arrays if spec.dims[-1] == "head_hidden"]
        return sizes | ({"head_hidden": wide[0]} if wide else {})

    @property
    def n_objects(self) -> int:
        """Objects that blocks write: the chunks of all arrays."""
        n_token_chunks = self.token_axis.chunk_edges[-1] if self.token_axis else 0
        return sum(
            (n_token_chunks if spec.is_tokens else self.n_blocks)
            * (spec.shape[1] if len(spec.shape) == 3 else 1)
            for spec in self.arrays
        )

    def layers_of(self, spec: ArraySpec) -> tuple[int, ...]:
        """Return the layers of an array: block indices of the model, in the order of its axis."""
        return self.token_axis.layers if spec.is_tokens and self.token_axis else self.layers


class RunManifest(Record):
    """run.json: the plan's identity with who wrote it, when and on what."""

    encoding_type: ClassVar[str] = "actlake-run"
    digested: ClassVar[bool] = True

    run: RunId
    plan_id: Digest
    corpus: str
    model: ModelInfo
    tokenizer: TokenizerInfo
    capture: CaptureSpec
    n_texts: int
    n_tokens: int
    n_layers: int
    hidden_size: int
    seed: int
    created_at: str
    environment: EnvironmentInfo


class ObjectInfo(Record):
    """One stored object: its key below ``data.zarr``, its size and the hash of its bytes."""

    key: str
    n_bytes: int = Field(ge=0)
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class BlockCommit(Record):
    """commits/<block>.json: created once, after all objects of the block were stored."""

    encoding_type: ClassVar[str] = "actlake-commit"
    digested: ClassVar[bool] = True

    plan_id: Digest
    block: int = Field(ge=0)
    row_start: int = Field(ge=0)
    row_stop: int = Field(ge=1)
    objects: Annotated[tuple[ObjectInfo, ...], FailFast()]
    writer: str
    committed_at: str
    environment: EnvironmentInfo
    notes: dict[str, Any] = Field(default_factory=dict)


class Seal(Record):
    """seal.json: all objects of a finished run under one tree hash.

    ``tree_digest`` covers the plan id and every object of ``data.zarr``; ``data_digest`` only
    the chunks that blocks committed, so that it is equal for equal activations.
    """

    encoding_type: ClassVar[str] = "actlake-seal"
    digested: ClassVar[bool] = True

    plan_id: Digest
    n_blocks: int
    n_objects: int
    n_bytes: int
    objects: Annotated[tuple[ObjectInfo, ...], FailFast()]
    commits_digest: Digest
    data_digest: Digest
    tree_digest: Digest
    sealed_at: str


class StoreInfo(Record):
    """store.json: the first object of a store."""

    encoding_type: ClassVar[str] = "actlake-store"
    digested: ClassVar[bool] = True

    created_at: str
    created_by: str
    create_only: bool  # whether the server honours create-only PUTs, probed at creation
