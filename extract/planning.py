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
    span_of,
    texts_digest,
)
from ..store import plan_token_axis, rows_per_block, rows_within_bytes, text_coords
from .batching import group_rows, order_texts, pack_batches
from .loading import LoadedModel
from .rendering import TokenRow, render_texts
from .worker import Worker

__all__ = ["MOST_TOKENS", "TOKEN_MASK", "PreparedRun", "prepare_run"]

TOKEN_MASK = "response tokens without special tokens"  # not a password
ORDINARY = "all tokens without special tokens"
EVERY = "all tokens, special ones too"
WITH_BOS = "all tokens without special tokens, and the BOS"

MOST_TOKENS = 65536  # of a batch, where memory decides: more make no device busier
_BLOCK_OBJECTS = 2048  # of tokens, full ones: all are named in one commit record
_VLLM_STEPS = 16  # forward passes that one call is worth: the last is seldom full


@dataclass(frozen=True)
class PreparedRun:
    """A plan with the rows it was made from."""

    plan: RunPlan
    rows: list[TokenRow]
    coords: dict[str, np.ndarray]
    token_data: dict[str, np.ndarray]

    @property
    def token_layers(self) -> dict[str, tuple[int, ...]]:
        """The layers whose tokens are stored, by site."""
        axis, tokens = self.plan.token_axis, self.plan.capture.tokens
        return {} if axis is None or tokens is None else dict.fromkeys(tokens.sites, axis.layers)

    def batches(self, block: int) -> list[list[int]]:
        """Return the batches of ``block`` as lists of row numbers.

        vLLM makes its own: it is given as many rows at once as keep it busy.
        """
        span = self.plan.block_rows(block)
        lengths = [row.n_tokens for row in self.rows[span]]
        if self.plan.engine == "vllm":
            packed = group_rows(lengths, n_tokens=_VLLM_STEPS * self.plan.batch_tokens)
        else:
            # Tokens in the order of their rows fill one chunk after another: few are begun.
            packed = pack_batches(
                lengths,
                batch_tokens=self.plan.batch_tokens,
                keeps_order=self.plan.token_axis is not None,
            )
        return [[span.start + i for i in batch] for batch in packed]

    def shards(self, count: int) -> list[dict[str, int | str | float]]:
        """Return what each of ``count`` workers would do: blocks, texts, tokens and their share."""
        plan, rows = self.plan, []
        for index in range(1, count + 1):
            worker = Worker(index, count)
            spans = [plan.block_rows(block) for block in worker.blocks(range(plan.n_blocks))]
            tokens = sum(row.n_tokens for span in spans for row in self.rows[span])
            rows.append(
                {
                    "worker": f"{index}/{count}",
                    "blocks": len(spans),
                    "texts": sum(span.stop - span.start for span in spans),
                    "tokens": tokens,
                    "share": round(tokens / max(1, plan.n_tokens), 4),
                }
            )
        return rows

    def summary(self) -> dict[str, Any]:
        """Return what the run will cost, as plain values.

        ``bytes`` are uncompressed; ``padding`` is the share of computed positions that are pads.
        """
        plan, axis = self.plan, self.plan.token_axis
        batches = [b for block in range(plan.n_blocks) for b in self.batches(block)]
        computed = sum(len(b) * max(self.rows[i].n_tokens for i in b) for b in batches)
        if plan.engine == "vllm":  # which lays rows behind one another
            computed = plan.n_tokens
        sizes = {
            a.name: int(np.prod(a.shape)) * (4 if a.dtype == "float32" else 2) for a in plan.arrays
        }
        return {
            "run": plan.run,
            "model": plan.model.name,
            "texts": plan.n_texts,
            "tokens": plan.n_tokens,
            "layers": len(plan.layers),
            "hidden": plan.model.hidden_size,
            **({} if axis is None else {"token_layers": len(axis.layers)}),
            "blocks": plan.n_blocks,
            "rows_per_block": plan.rows_per_block,
            "batches": len(batches),
            "padding": round(1 - plan.n_tokens / computed, 4),
            "bytes": sum(sizes.values()),
            "bytes_per_array": sizes,
            "objects": plan.n_objects,
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

    Where ``batch_tokens`` is ``auto``, batches are the largest there are:
    :func:`~actlake.extract.costs.fit_batches` makes them fit.

    Raises
    ------
    InvalidInputError
        If the texts do not fit the model, a layer does not exist, or an encoder is asked for
        prompts and responses.
    """
    info = loaded.info
    layers = (
        tuple(range(info.n_layers)) if capture.layers == "all" else tuple(sorted(capture.layers))
    )
    if layers[-1] >= info.n_layers:
        msg = f"layer {layers[-1]} does not exist: {info.name} has layers 0 to {info.n_layers - 1}"
        raise InvalidInputError(msg)
    if loaded.is_encoder:
        _check_encoder(texts, info.name, capture)
    if extract.engine == "vllm":
        _check_vllm(capture, is_encoder=loaded.is_encoder)
    rows = render_texts(
        order_texts(texts), loaded.tokenizer, spec=capture, max_positions=loaded.max_positions
    )
    n = len(rows)
    widths = {site: _width_of(site, loaded) for site in capture.sites}
    arrays = [
        ArraySpec(
            name=array_name(site, pool),
            dims=("text", "layer", width.dim),
            shape=(n, len(layers), width.size),
            dtype=_stored_as(pool, extract, info),
            attrs={"site": site, "pool": pool, "token_mask": _mask_of(pool), **width.attrs},
        )
        for site, width in widths.items()
        for pool in capture.pools
    ]
    arrays += [
        ArraySpec(
            name=norm_name(site, with_bos=with_bos),
            dims=("text", "layer"),
            shape=(n, len(layers)),
            attrs={"site": site, "token_mask": WITH_BOS if with_bos else ORDINARY},
        )
        for site in capture.sites
        for with_bos in (False, True)
    ]
    size = extract.chunk_size
    per_block = (
        size
        if isinstance(size, int)
        else rows_per_block(
            n, max(width.size for width in widths.values()), chunk_bytes=parse_size(size)
        )
    )
    lengths = [row.n_tokens for row in rows]
    axis = None
    if capture.tokens is not None:
        token_layers = layers if capture.tokens.layers == "all" else sorted(capture.tokens.layers)
        sizes = [widths[site].size for site in capture.tokens.sites]
        if not isinstance(size, int):
            token_bytes = 4 * sum(sizes) * len(token_layers)
            limit = _BLOCK_OBJECTS * parse_size(size)
            most = rows_within_bytes(lengths, token_bytes=token_bytes, block_bytes=limit)
            per_block = min(per_block, most)
        per_block = min(per_block, n)
        axis = plan_token_axis(
            lengths,
            layers=token_layers,
            hidden=max(sizes),
            rows_per_block=per_block,
            rows=extract.token_chunk,
            **({} if isinstance(size, int) else {"chunk_bytes": parse_size(size)}),
        )
        arrays += [
            ArraySpec(
                name=array_name(site, "tokens"),
                dims=("token", "token_layer", widths[site].dim),
                shape=(axis.n_rows, len(axis.layers), widths[site].size),
                dtype=_stored_as("tokens", extract, info),
                attrs={"site": site, "pool": "tokens", "token_mask": EVERY, **widths[site].attrs},
            )
            for site in capture.tokens.sites
        ]
    plan = RunPlan(
        run=run,
        corpus=corpus,
        corpus_digest=texts_digest(texts),
        model=info,
        tokenizer=loaded.tokenizer_info,
        capture=capture,
        layers=layers,
        n_texts=n,
        n_tokens=sum(lengths),
        rows_digest=_rows_digest(rows),
        rows_per_block=min(per_block, n),
        batch_tokens=MOST_TOKENS if extract.batch_tokens == "auto" else extract.batch_tokens,
        engine=extract.engine,
        codec="crc32c" if extract.codec == "none" else "blosc-zstd-1-shuffle+crc32c",
        arrays=tuple(arrays),
        seed=extract.seed,
        token_axis=axis,
    )
    token_data = _token_data(rows) | ({} if axis is None else _token_masks(rows))
    return PreparedRun(plan, rows, _coords(rows, layers), token_data)


def _check_vllm(capture: CaptureSpec, *, is_encoder: bool) -> None:
    """Raise InvalidInputError where something is asked for that the vLLM engine does not do."""
    asked = {
        "tokens": capture.tokens is not None,
        "the site attn_heads": "attn_heads" in capture.sites,  # split among ranks
        "an encoder": is_encoder,
    }
    missing = next((what for what, is_asked in asked.items() if is_asked), None)
    if missing:
        msg = f"the vllm engine has no {missing.removeprefix('an ')}; use the transformers engine"
        raise InvalidInputError(msg)


# In an encoder every token sees every other one: a prompt would have read its response.
_ENCODER_POOLS = ("mean_all", "mean_all_with_bos", "first_token", "max_abs")


def _check_encoder(texts: Sequence[Text], model: str, capture: CaptureSpec) -> None:
    """Raise InvalidInputError where something is asked for that only decoders have."""
    of_turns = [p for p in capture.pools if p not in _ENCODER_POOLS and span_of(p) is None]
    if of_turns:
        msg = (
            f"{model} is an encoder: its tokens see the whole text, so there is no "
            f"{of_turns[0]}; ask for {', '.join(_ENCODER_POOLS)} (--pools mean_all,first_token)"
        )
        raise InvalidInputError(msg)
    if capture.render == "chat":
        msg = f"{model} is an encoder, which has no chat template; use render = 'plain'"
        raise InvalidInputError(msg)
    split = [
        text.id
        for text in texts
        if (text.prompt, text.system, text.messages) != (None, None, None) or text.response_start
    ]
    if split:
        msg = (
            f"{model} is an encoder, which reads plain texts, but {len(split)} of {len(texts)} "
            f"have a prompt or turns, the first is {split[0]!r}; put the whole text into response"
        )
        raise InvalidInputError(msg)


@dataclass(frozen=True)
class _Width:
    """The innermost dim of a site's arrays."""

    dim: Literal["hidden", "head_hidden"]
    size: int
    attrs: dict[str, int]


def _width_of(site: str, loaded: LoadedModel) -> _Width:
    """Return the innermost dim of the arrays of ``site``; raise InvalidInputError."""
    if site != "attn_heads":
        return _Width("hidden", loaded.info.hidden_size, {})
    if loaded.heads is None:
        msg = (
            f"{loaded.info.name}: its heads cannot be told apart, so it has no site attn_heads; "
            "`actlake extract check` lists the sites it has"
        )
        raise InvalidInputError(msg)
    n_heads, head_dim = loaded.heads
    return _Width("head_hidden", n_heads * head_dim, {"n_heads": n_heads, "head_dim": head_dim})


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
    span = span_of(pool)
    if span is not None:
        return f"response tokens that overlap the spans {span!r} of the text"
    return words.get(pool, f"one token: {pool}")


def _rows_digest(rows: Sequence[TokenRow]) -> str:
    """Return ``sha256:<hex>`` over text ids, token ids and response spans in row order."""
    digest = hashlib.sha256()
    for row in rows:
        head = {"id": row.text.id, "n": row.n_tokens, "total": row.n_total}
        digest.update(canonical_json(head).encode())
        digest.update(row.ids.astype("<i4").tobytes())
        digest.update(np.packbits(row.response).tobytes())
        for name in sorted(row.spans):
            digest.update(canonical_json(name).encode() + np.packbits(row.spans[name]).tobytes())
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


def _token_masks(rows: Sequence[TokenRow]) -> dict[str, np.ndarray]:
    """Return which of all tokens are of a response, and which are special, (token,) bool.

    And the characters of the response that each holds, (token,) int32, −1 where it holds none.
    """
    chars = np.concatenate([row.chars for row in rows])
    return {
        "token_response": np.concatenate([row.response for row in rows]),
        "token_special": np.concatenate([row.special for row in rows]),
        "token_start": chars[:, 0],
        "token_stop": chars[:, 1],
    }


def _token_data(rows: Sequence[TokenRow]) -> dict[str, np.ndarray]:
    """Return the token ids of all rows, flat, with the offset of each text."""
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([row.n_tokens for row in rows], out=offsets[1:])
    return {"token_id": np.concatenate([row.ids for row in rows]), "token_offset": offsets}
