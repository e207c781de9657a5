"""Where in a block each site is read, and a check that it is what its name says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..schemas import InvalidInputError
from .blocks import unwrap_hidden

__all__ = [
    "Tap",
    "check_sites",
    "find_heads",
    "find_taps",
    "proven_sites",
    "tapped",
]

_ATTENTION = ("self_attn", "attn", "attention", "self_attention", "SelfAttention")
# What mixes the heads of an attention into the stream.
_PROJECTION = ("o_proj", "out_proj", "c_proj", "dense", "out_lin", "Wo", "o")
_MLP = ("mlp", "block_sparse_moe", "feed_forward", "ffn", "DenseReluDense")
# Norms behind a sublayer: what they give is what is added to the stream (Gemma-2/3, OLMo-2, GLM-4).
_AFTER_MLP = ("post_feedforward_layernorm", "post_mlp_layernorm")
_AFTER_ATTENTION = ("post_self_attn_layernorm", "post_attention_layernorm")
# What reads the stream between the sublayers.
_BEFORE_MLP = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2", "mlp_norm")
_ATTENDED, _PROJECTED = "(attention)", "(projection)"  # no sites, but their proof
_ROUNDINGS = 8  # of the model's type, that a sum of two terms may be off by


@dataclass(frozen=True)
class Tap:
    """A module whose output, or whose input, is a site."""

    module: nn.Module
    reads_input: bool = False

    def attach(self, record: Callable[[torch.Tensor], None]) -> torch.utils.hooks.RemovableHandle:
        """Call ``record`` with (batch, token, hidden) at every forward, until removed."""
        if not self.reads_input:
            return self.module.register_forward_hook(
                lambda _module, _args, output: record(unwrap_hidden(output))
            )

        def before(_module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            record(unwrap_hidden(args[0] if args else next(iter(kwargs.values()))))

        return self.module.register_forward_pre_hook(before, with_kwargs=True)


def find_taps(block: nn.Module) -> dict[str, Tap]:
    """Return the candidates for a block's sites by their names; :func:`check_sites` tests them.

    ``resid_pre`` and ``resid_post`` are the block's own input and output. ``attn_out`` and
    ``mlp_out`` are what the sublayers add to the stream, ``resid_mid`` the stream between them.
    ``attn_heads`` is what the output projection of the attention reads. In a block that
    normalises after each sublayer (BERT) the stream is what its norms give.
    """
    taps = {"resid_pre": Tap(block, reads_input=True), "resid_post": Tap(block)}
    encoder = find_post_norm(block)
    if encoder is not None:
        return taps | {
            "attn_heads": Tap(encoder.projection, reads_input=True),
            "attn_out": Tap(encoder.projection),
            "resid_mid": Tap(encoder.after_attention),
            "mlp_out": Tap(encoder.mlp),
        }
    inner = _sublayers(block)
    attention, mlp = _first(inner, _ATTENTION), _first(inner, _MLP)
    after_mlp = _first(inner, _AFTER_MLP)
    if after_mlp is not None:
        attention = _first(inner, _AFTER_ATTENTION) or attention
    projection = _projection(block)
    if projection is not None:
        taps["attn_heads"] = Tap(projection, reads_input=True)
    if attention is not None:
        taps["attn_out"] = Tap(attention)
    if mlp is not None:
        taps["mlp_out"] = Tap(after_mlp or mlp)
    between = _first(inner, _BEFORE_MLP)
    if _T5_MLP in inner:
        between = inner[_T5_MLP]
    if between is not None and between is attention:  # OLMo-2: the MLP has no norm before it
        between = mlp
    if between is not None:
        taps["resid_mid"] = Tap(between, reads_input=True)
    return taps


@dataclass(frozen=True)
class PostNorm:
    """The parts of a block that normalises the stream after each sublayer."""

    projection: nn.Module
    after_attention: nn.Module
    mlp: nn.Module
    after_mlp: nn.Module


# Paths of those parts: BERT and what is built like it, MPNet, DistilBERT.
_POST_NORM = (
    ("attention.output.dense", "attention.output.LayerNorm", "output.dense", "output.LayerNorm"),
    ("attention.attn.o", "attention.LayerNorm", "output.dense", "output.LayerNorm"),
    ("attention.out_lin", "sa_layer_norm", "ffn", "output_layer_norm"),
)
_T5_MLP = "(T5's second layer)"


def find_post_norm(block: nn.Module) -> PostNorm | None:
    """Return the parts of a block that normalises after its sublayers, None for any other."""
    modules = dict(block.named_modules())
    for paths in _POST_NORM:
        if all(path in modules for path in paths):
            return PostNorm(*(modules[path] for path in paths))
    return None


def _sublayers(block: nn.Module) -> dict[str, nn.Module]:
    """Return what a block is made of, by name; T5 has its sublayers one level deeper."""
    inner = dict(block.named_children())
    layers = inner.get("layer")
    if not isinstance(layers, nn.ModuleList) or len(layers) != 2:
        return inner
    parts = [dict(layer.named_children()) for layer in layers]
    found = {name: part for children in parts for name, part in children.items()}
    return found | {_T5_MLP: layers[1]}


def find_heads(network: nn.Module, blocks: Sequence[nn.Module]) -> tuple[int, int] | None:
    """Return (heads, values of each) where every block's attention has the same, else None.

    By the config and the width of what the output projection reads; needs no weights.
    """
    config: Any = network.config
    n_heads = getattr(config.get_text_config(), "num_attention_heads", None)
    widths = {_width(_projection(block)) for block in blocks}
    width = widths.pop() if len(widths) == 1 else None
    if not isinstance(n_heads, int) or not n_heads or not width or width % n_heads:
        return None
    return n_heads, width // n_heads


def _projection(block: nn.Module) -> nn.Module | None:
    """Return what mixes the heads of a block's attention, None where there is no such module."""
    encoder = find_post_norm(block)
    if encoder is not None:
        return encoder.projection
    attention = _first(_sublayers(block), _ATTENTION)
    return None if attention is None else _first(dict(attention.named_children()), _PROJECTION)


def _width(projection: nn.Module | None) -> int | None:
    """Return how many values a projection reads per token."""
    if projection is None:
        return None
    # Linear layers, quantised ones too, say it; GPT-2's Conv1D has its weight the other way round.
    width = getattr(projection, "in_features", None)
    weight = getattr(projection, "weight", None)
    if width is None and hasattr(projection, "nf") and isinstance(weight, torch.Tensor):
        width = weight.shape[0]
    return width if isinstance(width, int) else None


def _first(inner: Mapping[str, nn.Module], names: Sequence[str]) -> nn.Module | None:
    return next((inner[name] for name in names if name in inner), None)


@contextmanager
def tapped(
    blocks: Sequence[nn.Module],
) -> Iterator[list[dict[str, torch.Tensor]]]:
    """Give what every candidate site of every block held in the last forward pass."""
    seen: list[dict[str, torch.Tensor]] = [{} for _ in blocks]
    handles = []
    try:
        for block, values in zip(blocks, seen, strict=True):
            for site, tap in find_taps(block).items():

                def record(
                    hidden: torch.Tensor, site: str = site, values: dict[str, torch.Tensor] = values
                ) -> None:
                    values[site] = hidden.detach().clone()

                handles.append(tap.attach(record))
            handles += _tap_attention(block, values)
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _tap_attention(
    block: nn.Module, values: dict[str, torch.Tensor]
) -> list[torch.utils.hooks.RemovableHandle]:
    """Keep what the attention and its output projection give: they must be the same."""
    attention, projection = _first(_sublayers(block), _ATTENTION), _projection(block)
    if attention is None or projection is None or find_post_norm(block) is not None:
        return []

    def keep(name: str) -> Callable[[torch.Tensor], None]:
        def record(hidden: torch.Tensor) -> None:
            values[name] = hidden.detach().clone()

        return record

    return [
        Tap(attention).attach(keep(_ATTENDED)),
        Tap(projection).attach(keep(_PROJECTED)),
    ]


def check_sites(network: nn.Module, blocks: Sequence[nn.Module], *, sites: Sequence[str]) -> None:
    """Raise InvalidInputError where a site of ``sites`` is not there in every block.

    Names prove nothing, so one short forward pass does: the stream grows by exactly what is
    called ``attn_out`` and ``mlp_out`` (ENGINES 4), or is the norm of that sum, and the attention
    gives what its output projection makes of ``attn_heads``. In models whose sublayers run in
    parallel there is no ``resid_mid``; where a sublayer's output is scaled before it is added, its
    site is refused.
    """
    if set(sites) <= {"resid_pre", "resid_post"}:
        return
    there = proven_sites(network, blocks)
    missing = [site for site in sites if site not in there]
    if missing:
        msg = (
            f"{type(network).__name__} has no site {', '.join(missing)}; it has {', '.join(there)}"
        )
        raise InvalidInputError(msg)


@torch.inference_mode()
def proven_sites(network: nn.Module, blocks: Sequence[nn.Module]) -> list[str]:
    """Return the sites that hold in every block what they should, in the order of the stream."""
    # Weights that are kept on a disk are on no device until their module runs.
    places = (p.device for p in network.parameters() if p.device.type != "meta")
    device = next(places, torch.device("cpu"))
    with tapped(blocks) as seen:
        network(input_ids=torch.arange(1, 6, device=device)[None])
    there = set.intersection(
        *(_proven(values, block) for values, block in zip(seen, blocks, strict=True))
    )
    if find_heads(network, blocks) is None:
        there.discard("attn_heads")
    order = ("resid_pre", "attn_heads", "attn_out", "resid_mid", "mlp_out", "resid_post")
    return [site for site in order if site in there]


def _proven(seen: Mapping[str, torch.Tensor], block: nn.Module) -> set[str]:
    """Return the sites of a block that hold what they should."""
    proven = {"resid_pre", "resid_post"} & set(seen)
    pre, mid, post = (seen.get(f"resid_{name}") for name in ("pre", "mid", "post"))
    attention, mlp = seen.get("attn_out"), seen.get("mlp_out")
    encoder = find_post_norm(block)
    if encoder is not None:
        if _is_normed(encoder.after_attention, pre, attention, gives=mid):
            proven |= {"attn_heads", "attn_out", "resid_mid"} & set(seen)
        if _is_normed(encoder.after_mlp, mid, mlp, gives=post):
            proven |= {"mlp_out", "resid_mid"}
        return proven
    attended, projected = seen.get(_ATTENDED), seen.get(_PROJECTED)
    if attended is not None and projected is not None and torch.equal(attended, projected):
        proven |= {"attn_heads"} & set(seen)
    if _grows(pre, mid, attention):
        proven |= {"attn_out", "resid_mid"}
    if _grows(mid, post, mlp):
        proven |= {"mlp_out", "resid_mid"}
    if attention is not None and mlp is not None and _grows(pre, post, attention, mlp):
        proven |= {"attn_out", "mlp_out"}
    return proven


def _is_normed(norm: nn.Module, *terms: torch.Tensor | None, gives: torch.Tensor | None) -> bool:
    """Return whether the norm of the sum of ``terms`` is ``gives``, but for rounding."""
    known = [term for term in terms if term is not None]
    if gives is None or len(known) < len(terms) or any(t.shape != gives.shape for t in known):
        return False
    error = (norm(sum(known)).double() - gives.double()).abs().max()
    return bool(error <= _ROUNDINGS * torch.finfo(gives.dtype).eps * gives.double().abs().max())


def _grows(
    before: torch.Tensor | None, after: torch.Tensor | None, *added: torch.Tensor | None
) -> bool:
    """Return whether ``after`` is ``before`` with ``added``, but for rounding."""
    parts = [before, after, *added]
    if any(part is None or part.shape != (parts[0].shape if parts[0] is not None else None)
           for part in parts):  # fmt: skip
        return False
    known = [part.double() for part in parts if part is not None]
    start, end, *terms = known
    error = (end - start - torch.stack(terms).sum(dim=0)).abs()
    size = torch.stack([part.abs() for part in known]).sum(dim=0)
    dtype = after.dtype if after is not None else torch.float32
    return bool((error <= _ROUNDINGS * torch.finfo(dtype).eps * size).all())
