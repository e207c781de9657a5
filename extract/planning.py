"""The plan of a run: every row, shape and block, fixed before the model is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..schemas import (
    ArraySpec,
    CaptureSpec,
    ExtractSpec,
    InvalidInputError,
    ModelInfo,
    RunPlan,
    Text,
    array_name,
    canonical_json,
    norm_name,
    parse_size,
    texts_digest,
)
from ..store import rows_per_block, text_coords
from .batching import group_rows, order_texts, pack_batches
from .loading import LoadedModel
from .rendering import TokenRow, render_texts

__all__ = ["TOKEN_MASK", "PreparedRun", "prepare_run"]

TOKEN_MASK = "response tokens without special tokens"  # not a password
ORDINARY = "all tokens without special tokens"
WITH_BOS = "all tokens without special tokens, and the BOS"

_VLLM_STEPS = 16  # forward passes that one call is worth: the last is seldom full


@dataclass(frozen=True)
class PreparedRun:
    """A plan with the rows it was made from."""

    plan: RunPlan
    rows: list[TokenRow]
    coords: dict[str, np.ndarray]
    token_data: dict[str, np.ndarray]

    def batches(self, block: int) -> list[list[int]]:
        """Return the batches of ``block`` as lists of row numbers.

        vLLM makes its own: it is given as many rows at once as keep it busy.
        """
        span = self.plan.block_rows(block)
        lengths = [row.n_tokens for row in self.rows[span]]
        if self.plan.engine == "vllm":
            packed = group_rows(lengths, n_tokens=_VLLM_STEPS * self.plan.batch_tokens)
        else:
            packed = pack_batches(lengths, batch_tokens=self.plan.batch_tokens)
        return [[span.start + i for i in batch] for batch in packed]

    def summary(self) -> dict[str, Any]:
        """Return what the run will cost, as plain values.

        ``bytes`` are uncompressed; ``padding`` is the share of computed positions that are pads.
        """
        plan = self.plan
        batches = [b for block in range(plan.n_blocks) for b in self.batches(block)]
        computed = sum(len(b) * max(self.rows[i].n_tokens for i in b) for b in batches)
        if plan.engine == "vllm":  # which lays rows behind one another
            computed = plan.n_tokens
        sizes = {
            a.name: int(np.prod(a.shape)) * (4 if a.dtype == "float32" else 2) for a in plan.arrays
        }
        per_block = sum(len(plan.layers) if "hidden" in a.dims else 1 for a in plan.arrays)
        return {
            "run": plan.run,
            "model": plan.model.name,
            "texts": plan.n_texts,
            "tokens": plan.n_tokens,
            "layers": len(plan.layers),
            "hidden": plan.model.hidden_size,
            "blocks": plan.n_blocks,
            "rows_per_block": plan.rows_per_block,
            "batches": len(batches),
            "padding": round(1 - plan.n_tokens / computed, 4),
            "bytes": sum(sizes.values()),
            "bytes_per_array": sizes,
            "objects": per_block * plan.n_blocks,
            "plan_id": plan.fingerprint(),
        }


def prepare_run(
    texts: Sequence[Text],
    loaded: LoadedModel,
    *,
    run: str,
    corpus: str,
    capture: CaptureSpec,
    extract: ExtractSpec,
) -> PreparedRun:
    """Return the plan of running ``loaded`` over ``texts``; needs no weights.

    Raises
    ------
    InvalidInputError
        If the texts do not fit the model, or a layer does not exist.
    """
    info = loaded.info
    layers = (
        tuple(range(info.n_layers)) if capture.layers == "all" else tuple(sorted(capture.layers))
    )
    if layers[-1] >= info.n_layers:
        msg = f"layer {layers[-1]} does not exist: {info.name} has layers 0 to {info.n_layers - 1}"
        raise InvalidInputError(msg)
    rows = render_texts(
        order_texts(texts), loaded.tokenizer, spec=capture, max_positions=loaded.max_positions
    )
    n = len(rows)
    shape3 = (n, len(layers), info.hidden_size)
    arrays = [
        ArraySpec(
            name=array_name(site, pool),
            dims=("text", "layer", "hidden"),
            shape=shape3,
            dtype=_stored_as(pool, extract, info),
            attrs={"site": site, "pool": pool, "token_mask": _mask_of(pool)},
        )
        for site in capture.sites
        for pool in capture.pools
    ]
    arrays += [
        ArraySpec(
            name=norm_name(site, with_bos=with_bos),
            dims=("text", "layer"),
            shape=shape3[:2],
            attrs={"site": site, "token_mask": WITH_BOS if with_bos else ORDINARY},
        )
        for site in capture.sites
        for with_bos in (False, True)
    ]
    size = extract.chunk_size
    per_block = (
        size
        if isinstance(size, int)
        else rows_per_block(n, info.hidden_size, chunk_bytes=parse_size(size))
    )
    plan = RunPlan(
        run=run,
        corpus=corpus,
        corpus_digest=texts_digest(texts),
        model=info,
        tokenizer=loaded.tokenizer_info,
        capture=capture,
        layers=layers,
        n_texts=n,
        n_tokens=sum(row.n_tokens for row in rows),
        rows_digest=_rows_digest(rows),
        rows_per_block=min(per_block, n),
        batch_tokens=extract.batch_tokens,
        engine=extract.engine,
        codec="crc32c" if extract.codec == "none" else "blosc-zstd-1-shuffle+crc32c",
        arrays=tuple(arrays),
        seed=extract.seed,
    )
    return PreparedRun(plan, rows, _coords(rows, layers), _token_data(rows))


def _stored_as(
    pool: str, extract: ExtractSpec, info: ModelInfo
) -> Literal["float32", "bfloat16-bits", "float16-bits"]:
    """Return the type of a pooled array: a mean is no longer a value of the model's own type."""
    if not extract.bits16:
        return "float32"
    if info.dtype not in {"bfloat16", "float16"}:
        msg = f"bits16 needs a bfloat16 or float16 model, {info.name} runs in {info.dtype}"
        raise InvalidInputError(msg)
    if pool.startswith("mean_"):
        return "float32"
    return "bfloat16-bits" if info.dtype == "bfloat16" else "float16-bits"


def _mask_of(pool: str) -> str:
    """Return in words which tokens a pool reads."""
    words = {
        "mean_response": TOKEN_MASK,
        "mean_prompt": "prompt tokens without special tokens",
        "mean_prompt_with_bos": "prompt tokens without special tokens, and the BOS",
        "mean_all": ORDINARY,
        "mean_all_with_bos": WITH_BOS,
        "max_abs": ORDINARY,
    }
    return words.get(pool, f"one token: {pool}")


def _rows_digest(rows: Sequence[TokenRow]) -> str:
    """Return ``sha256:<hex>`` over text ids, token ids and response spans in row order."""
    digest = hashlib.sha256()
    for row in rows:
        head = {"id": row.text.id, "n": row.n_tokens, "total": row.n_total}
        digest.update(canonical_json(head).encode())
        digest.update(row.ids.astype("<i4").tobytes())
        digest.update(np.packbits(row.response).tobytes())
    return "sha256:" + digest.hexdigest()


def _coords(rows: Sequence[TokenRow], layers: Sequence[int]) -> dict[str, np.ndarray]:
    """Return the coordinates that are known before the model runs."""
    counts = {
        "n_tokens": [row.n_tokens for row in rows],
        "n_tokens_total": [row.n_total for row in rows],
        "n_prompt_tokens": [row.n_prompt for row in rows],
        "n_response_tokens": [int(row.response.sum()) for row in rows],
    }
    return {
        **text_coords([row.text for row in rows]),
        **{name: np.array(values, dtype=np.int32) for name, values in counts.items()},
        "layer": np.array(layers, dtype=np.int32),
    }


def _token_data(rows: Sequence[TokenRow]) -> dict[str, np.ndarray]:
    """Return the token ids of all rows, flat, with the offset of each text."""
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([row.n_tokens for row in rows], out=offsets[1:])
    return {"token_id": np.concatenate([row.ids for row in rows]), "token_offset": offsets}
