"""Where in a block each site is read, and a check that it is what its name says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from ..schemas import InvalidInputError
from .blocks import unwrap_hidden

__all__ = ["Tap", "check_sites", "find_taps", "proven_sites", "tapped"]

_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_MLP = ("mlp", "block_sparse_moe", "feed_forward", "ffn")
# Norms behind a sublayer: what they give is what is added to the stream (Gemma-2/3, OLMo-2, GLM-4).
_AFTER_MLP = ("post_feedforward_layernorm", "post_mlp_layernorm")
_AFTER_ATTENTION = ("post_self_attn_layernorm", "post_attention_layernorm")
# What reads the stream between the sublayers.
_BEFORE_MLP = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2")
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
    """
    inner = dict(block.named_children())
    taps = {"resid_pre": Tap(block, reads_input=True), "resid_post": Tap(block)}
    attention, mlp = _first(inner, _ATTENTION), _first(inner, _MLP)
    after_mlp = _first(inner, _AFTER_MLP)
    if after_mlp is not None:
        attention = _first(inner, _AFTER_ATTENTION) or attention
    if attention is not None:
        taps["attn_out"] = Tap(attention)
    if mlp is not None:
        taps["mlp_out"] = Tap(after_mlp or mlp)
    between = _first(inner, _BEFORE_MLP)
    if between is not None and between is attention:  # OLMo-2: the MLP has no norm before it
        between = mlp
    if between is not None:
        taps["resid_mid"] = Tap(between, reads_input=True)
    return taps


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
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def check_sites(network: nn.Module, blocks: Sequence[nn.Module], *, sites: Sequence[str]) -> None:
    """Raise InvalidInputError where a site of ``sites`` is not there in every block.

    Names prove nothing, so one short forward pass does: the stream grows by exactly what is
    called ``attn_out`` and ``mlp_out`` (ENGINES 4). In models whose sublayers run in parallel
    there is no ``resid_mid``; where a sublayer's output is scaled before it is added, its site
    is refused.
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
    device = next(network.parameters()).device
    with tapped(blocks) as seen:
        network(input_ids=torch.arange(1, 6, device=device)[None], use_cache=False)
    there = set.intersection(*(_proven(values) for values in seen))
    order = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
    return [site for site in order if site in there]


def _proven(seen: Mapping[str, torch.Tensor]) -> set[str]:
    """Return the sites of a block that hold what they should."""
    proven = {"resid_pre", "resid_post"} & set(seen)
    pre, mid, post = (seen.get(f"resid_{name}") for name in ("pre", "mid", "post"))
    attention, mlp = seen.get("attn_out"), seen.get("mlp_out")
    if _grows(pre, mid, attention):
        proven |= {"attn_out", "resid_mid"}
    if _grows(mid, post, mlp):
        proven |= {"mlp_out", "resid_mid"}
    if attention is not None and mlp is not None and _grows(pre, post, attention, mlp):
        proven |= {"attn_out", "mlp_out"}
    return proven


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
