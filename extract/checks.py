"""The self-check of a model: whether what would be captured is what its name says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..schemas import CaptureSpec, Text
from .blocks import find_blocks, replace_hidden, unwrap_hidden
from .engine import TransformersEngine
from .loading import LoadedModel
from .rendering import TokenRow, render_texts
from .sites import proven_sites

__all__ = ["Check", "check_model"]

_SAMPLES = (
    ("What is the capital of France?", "It is Paris."),
    ("A child has fallen in the street. What do you do?", "I stop and ask if it hurts."),
    ("Count to five.", "One, two, three, four, five, and then I stop counting."),
)
# Relative deviation of a text in a batch from the text alone (ENGINES 10 and 14).
_PADDING = {"float32": 5e-5}
_PADDING_HALF = 3e-2


@dataclass(frozen=True)
class Check:
    """One question, its answer, and what was seen."""

    name: str
    ok: bool
    seen: str


def check_model(loaded: LoadedModel) -> list[Check]:
    """Return what a short look at a loaded model says about capturing from it.

    A decoder must have its language-model head (``load_model(..., head=True)``). A few texts are
    run; nothing is stored.
    """
    blocks = find_blocks(loaded.backbone)
    sites = proven_sites(loaded.backbone, blocks)
    rows = _sample_rows(loaded)
    kinds = ", ".join(sorted({type(block).__name__ for block in blocks}))
    return [
        Check("blocks", ok=True, seen=f"{len(blocks)} of {kinds}"),
        Check("sites", ok={"resid_pre", "resid_post"} <= set(sites), seen=", ".join(sites)),
        _direction(loaded, rows[1]),
        _hidden_states(loaded, rows[1]),
        _final_norm(loaded, blocks, rows),
        _self_patch(loaded, blocks, rows[1]),
        _early_exit(loaded, rows, layer=len(blocks) // 2),
        _padding(loaded, rows),
        _softcap(loaded),
        _special_tokens(loaded, rows),
    ]


def _sample_rows(loaded: LoadedModel) -> list[TokenRow]:
    if loaded.is_encoder:
        texts = [Text(id=f"check-{i}", response=" ".join(s)) for i, s in enumerate(_SAMPLES)]
    else:
        texts = [
            Text(id=f"check-{i}", prompt=prompt, response=response)
            for i, (prompt, response) in enumerate(_SAMPLES)
        ]
    spec = CaptureSpec(pools=("last_response",))
    return render_texts(texts, loaded.tokenizer, spec=spec, max_positions=loaded.max_positions)


def _capture(loaded: LoadedModel, rows: Sequence[TokenRow], *, layers: Sequence[int]) -> np.ndarray:
    """Return ``resid_post`` at the last token, (row, layer, hidden)."""
    engine = TransformersEngine(
        loaded, sites=("resid_post",), layers=tuple(layers), pools=("last_response",)
    )
    with engine.ready():
        return engine.forward(rows)["resid_post_last_response"].cpu().numpy()


@torch.inference_mode()
def _outputs(loaded: LoadedModel, row: TokenRow, n_tokens: int) -> torch.Tensor:
    """Return the logits (token, vocabulary); of an encoder its last hidden state."""
    ids = torch.from_numpy(row.ids[:n_tokens]).long()[None].to(loaded.device)
    found = loaded.network(input_ids=ids, **_no_cache(loaded))
    last = found.last_hidden_state if loaded.is_encoder else found.logits
    return last[0].float()  # type: ignore[no-any-return]


def _no_cache(loaded: LoadedModel) -> dict[str, bool]:
    return {} if loaded.is_encoder else {"use_cache": False}


@torch.inference_mode()
def _direction(loaded: LoadedModel, row: TokenRow) -> Check:
    """Whether a token sees what follows: a decoder's does not, an encoder's does."""
    ids = torch.from_numpy(row.ids).long()[None].to(loaded.device)
    other = ids.clone()
    other[0, -1] = ids[0, -2]
    first, second = (
        loaded.backbone(input_ids=i, **_no_cache(loaded)).last_hidden_state[0, :-1].float()
        for i in (ids, other)
    )
    limit = _PADDING.get(loaded.info.dtype, _PADDING_HALF)
    looks_ahead = _relative(first.cpu().numpy(), second.cpu().numpy()) > limit
    kind = "encoder" if loaded.is_encoder else "decoder"
    sees = "sees" if looks_ahead else "does not see"
    return Check(
        "direction",
        ok=looks_ahead == loaded.is_encoder,
        seen=f"{kind}, a token {sees} what follows",
    )


def _hidden_states(loaded: LoadedModel, row: TokenRow) -> Check:
    """ENGINES 1: what we capture at layer L is the library's ``hidden_states[L + 1]``."""
    n_layers = loaded.info.n_layers
    ours = _capture(loaded, [row], layers=range(n_layers))[0]
    ids = torch.from_numpy(row.ids).long()[None].to(loaded.device)
    with torch.inference_mode():
        states = loaded.backbone(
            input_ids=ids, output_hidden_states=True, **_no_cache(loaded)
        ).hidden_states
    last = int(row.response.nonzero()[0][-1])
    theirs = np.stack([states[i + 1][0, last].float().cpu().numpy() for i in range(n_layers - 1)])
    error = _relative(ours[:-1], theirs)
    return Check(
        "capture", ok=error <= _tolerance(loaded), seen=f"off the library's own by {error:.1e}"
    )


def _final_norm(
    loaded: LoadedModel, blocks: Sequence[nn.Module], rows: Sequence[TokenRow]
) -> Check:
    """ENGINES 1 and 27: the last block's output alone decides the logits, or last hidden state."""
    first, second = rows[:2]
    n = min(first.n_tokens, second.n_tokens)
    kept: list[torch.Tensor] = []
    with _hooked(blocks[-1], lambda hidden: kept.append(hidden.clone())):
        wanted = _outputs(loaded, first, n)
    with _hooked(blocks[-1], lambda _hidden: kept[0]):
        patched = _outputs(loaded, second, n)
    error = _relative(patched.cpu().numpy(), wanted.cpu().numpy())
    return Check(
        "before the final norm",
        ok=error <= _tolerance(loaded),
        seen=f"patched into another text, its outputs are off by {error:.1e}",
    )


def _self_patch(loaded: LoadedModel, blocks: Sequence[nn.Module], row: TokenRow) -> Check:
    """ENGINES 8 and 27: a block's own output put back changes nothing, a doubled one does."""
    middle = blocks[len(blocks) // 2]
    plain = _outputs(loaded, row, row.n_tokens)
    with _hooked(middle, torch.clone):
        same = _outputs(loaded, row, row.n_tokens)
    with _hooked(middle, lambda hidden: -hidden):
        other = _outputs(loaded, row, row.n_tokens)
    identical, moved = torch.equal(plain, same), not torch.allclose(plain, other)
    return Check(
        "intervention",
        ok=identical and moved,
        seen=f"own output put back: {'bitwise the same' if identical else 'outputs change'}; "
        f"negated: {'outputs change' if moved else 'nothing changes'}",
    )


def _early_exit(loaded: LoadedModel, rows: Sequence[TokenRow], *, layer: int) -> Check:
    """ENGINES 3: layers above the last one asked for are not run, and nothing else changes."""
    alone = _capture(loaded, rows, layers=[layer])[:, 0]
    among = _capture(loaded, rows, layers=range(loaded.info.n_layers))[:, layer]
    same = np.array_equal(alone, among)
    seen = f"layer {layer} alone is {'bitwise' if same else 'not'} that of a whole pass"
    return Check("early exit", ok=same, seen=seen)


def _padding(loaded: LoadedModel, rows: Sequence[TokenRow]) -> Check:
    """ENGINES 10: a text alone equals the text in a batch."""
    layers = range(loaded.info.n_layers)
    together = _capture(loaded, rows, layers=layers)
    alone = np.concatenate([_capture(loaded, [row], layers=layers) for row in rows])
    error = max(
        _relative(together[:, layer], alone[:, layer]) for layer in range(together.shape[1])
    )
    limit = _PADDING.get(loaded.info.dtype, _PADDING_HALF)
    return Check(
        "padding",
        ok=error <= limit,
        seen=f"a text in a batch is off the text alone by {error:.1e}, {limit:.0e} allowed",
    )


def _softcap(loaded: LoadedModel) -> Check:
    """ENGINES 18: sdpa drops the softcap of attention logits."""
    config = loaded.backbone.config
    text_config = config.get_text_config()  # type: ignore[union-attr,operator]
    cap = getattr(text_config, "attn_logit_softcapping", None)
    implementation = loaded.info.attn_implementation
    ok = not cap or implementation not in {"sdpa"}
    needs = f"softcap {cap}" if cap else "no softcap"
    return Check("attention", ok=ok, seen=f"{implementation}, {needs}")


def _special_tokens(loaded: LoadedModel, rows: Sequence[TokenRow]) -> Check:
    """ENGINES 12 and 15: one BOS at most, and no special token in any mean."""
    bos = loaded.first_id
    counts = [int((row.ids == bos).sum()) if bos is not None else 0 for row in rows]
    special = set(loaded.tokenizer.all_special_ids)
    clean = all(not special & set(row.ids[row.response].tolist()) for row in rows)
    template = "chat template" if loaded.tokenizer.chat_template else "no chat template"
    kept = "none in a response" if clean else "some in a response"
    return Check(
        "special tokens",
        ok=max(counts) <= 1 and clean,
        seen=f"{template}, {max(counts)} BOS, {kept}",
    )


@contextmanager
def _hooked(
    block: nn.Module, change: Callable[[torch.Tensor], torch.Tensor | None]
) -> Iterator[None]:
    """Replace a block's hidden states by ``change`` of them; None leaves them."""

    def hook(_module: nn.Module, _args: object, output: object) -> object:
        changed = change(unwrap_hidden(output))
        return None if changed is None else replace_hidden(output, changed)

    handle = block.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _relative(values: np.ndarray, reference: np.ndarray) -> float:
    """Return the largest deviation over the largest magnitude; infinite where one is NaN."""
    error = float(np.abs(values.astype(np.float64) - reference).max())
    size = float(np.abs(reference).max())
    if not np.isfinite(error) or not np.isfinite(size):
        return float("inf")
    return error / size if size else float(error > 0)


def _tolerance(loaded: LoadedModel) -> float:
    """Return what the same sums in the same order may differ by: nothing but a rounding."""
    return float(torch.finfo(getattr(torch, loaded.info.dtype)).eps)
