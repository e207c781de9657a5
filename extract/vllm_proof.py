"""Reading the residual stream where vLLM keeps it in two parts, and proving that it is it.

vLLM's blocks return (delta, residual) and their norms add the two: the stream is the sum.
Norms add in place, so a tensor is read at once, or copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..schemas import InvalidInputError
from .sites import Tap, find_taps

__all__ = ["Proof", "find_parts", "hook_stream", "join_parts"]

_ORDER = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
# Relative deviation of a norm that adds its two parts itself from one of their sum.
_SAME = {torch.float32: 1e-4, torch.float64: 1e-4}
_SAME_HALF = 3e-2
_ROUNDINGS = 8  # of the model's type, that a sum of a few terms may be off by


def hook_stream(
    tap: Tap, hidden_size: int, record: Callable[[torch.Tensor], None], *, lenient: bool = False
) -> torch.utils.hooks.RemovableHandle:
    """Call ``record`` with the stream (token, hidden) at every forward of a tap's module.

    A module that holds no stream is an error, or with ``lenient`` says nothing.
    """

    def read(values: Iterable[object]) -> None:
        try:
            held = list(values)
            hidden = join_parts(held, find_parts(held, hidden_size))
        except InvalidInputError:
            if lenient:
                return
            raise
        record(hidden)

    if tap.reads_input:
        return tap.module.register_forward_pre_hook(
            lambda _m, args, kwargs: read((*args, *kwargs.values())), with_kwargs=True
        )
    return tap.module.register_forward_hook(
        lambda _m, _args, output: read(output if isinstance(output, tuple) else (output,))
    )


def find_parts(values: Sequence[object], hidden_size: int) -> list[int]:
    """Return which of ``values`` are the one or two parts (token, hidden) of the stream.

    Models that vLLM has from transformers keep a batch axis of one.
    """
    found = [
        i
        for i, v in enumerate(values)
        if isinstance(v, torch.Tensor)
        and v.is_floating_point()
        and (v.ndim == 2 or (v.ndim == 3 and v.shape[0] == 1))
        and v.shape[-1] == hidden_size
    ]
    if not 1 <= len(found) <= 2:
        msg = f"expected one or two tensors (token, {hidden_size}) of the stream, got {len(found)}"
        raise InvalidInputError(msg)
    return found


def join_parts(values: Sequence[Any], found: Sequence[int]) -> torch.Tensor:
    """Return the stream (token, hidden): the sum of its parts.

    In the model's own type: that is how its norms add them.
    """
    parts = [v[0] if v.ndim == 3 else v for v in (values[i] for i in found)]
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]  # type: ignore[no-any-return]


class Proof:
    """What one short forward pass shows of a model's sites."""

    def __init__(self, model: nn.Module, blocks: Sequence[nn.Module], *, hidden_size: int) -> None:
        self._model = model
        self._blocks = blocks
        self._hidden_size = hidden_size
        self._seen: list[dict[str, torch.Tensor]] = [{} for _ in blocks]
        self._around: dict[str, torch.Tensor] = {}  # what the modules beside the blocks read
        self._output: torch.Tensor | None = None

    def attach(self) -> list[torch.utils.hooks.RemovableHandle]:
        """Put hooks on all candidates; return the handles."""
        handles = []
        for block, seen in zip(self._blocks, self._seen, strict=True):
            for site, tap in find_taps(block).items():
                record = _keeper(seen, site)
                handles.append(hook_stream(tap, self._hidden_size, record, lenient=True))
        for name, module in self._beside().items():
            record = _keeper(self._around, name)
            tap = Tap(module, reads_input=True)
            handles.append(hook_stream(tap, self._hidden_size, record, lenient=True))

        def keep_output(_module: nn.Module, _args: object, output: object) -> None:
            if isinstance(output, torch.Tensor):
                self._output = output.detach().clone()

        handles.append(self._model.register_forward_hook(keep_output))
        return handles

    @property
    def output(self) -> torch.Tensor | None:
        """What the model returned in the pass."""
        return self._output

    def sites(self) -> list[str]:
        """Return the sites that every block has, in the order of the stream.

        ``resid_pre`` and ``resid_post`` are proven by the chain: what a block returns is what the
        next one reads, and the final norm of what the last one returns is the model's output
        (ENGINES 1). The others by growth.

        Raises
        ------
        InvalidInputError
            If the chain does not hold: then nothing that we read is the stream.
        """
        silent = [i for i, seen in enumerate(self._seen) if "resid_post" not in seen]
        if silent or self._output is None:
            msg = (
                f"{len(silent)} of {len(self._blocks)} blocks did not run in a trial pass (first: "
                f"{silent[:1] or 'none, but the model gave no tensor'}); hooks do not fire in "
                "compiled or graph-captured models"
            )
            raise InvalidInputError(msg)
        for i, (before, after) in enumerate(zip(self._seen[:-1], self._seen[1:], strict=True)):
            if not torch.equal(before["resid_post"], after["resid_pre"]):
                msg = f"block {i} does not return what block {i + 1} reads: not a residual stream"
                raise InvalidInputError(msg)
        self._check_final_norm(self._seen[-1]["resid_post"], self._output)
        there = set.intersection(*(_holding(seen) for seen in self._seen))
        return [site for site in _ORDER if site in there]

    def _check_final_norm(self, last: torch.Tensor, output: torch.Tensor) -> None:
        tried = []
        for name, module in self._beside().items():
            read = self._around.get(name)
            if read is None or not torch.equal(read, last):
                continue
            with torch.inference_mode():
                normed = module(last.clone())
            normed = normed[0] if isinstance(normed, tuple) else normed
            error = float((normed - output).abs().max() / output.abs().max())
            if error <= _SAME.get(last.dtype, _SAME_HALF):
                return
            tried.append(f"{name} is off by {error:.1e}")
        msg = (
            "the model's output is not a norm of what its last block returns "
            f"({'; '.join(tried) or 'no module reads it'}): vLLM's {type(self._model).__name__} "
            "cannot be captured; use the transformers engine"
        )
        raise InvalidInputError(msg)

    def _beside(self) -> dict[str, nn.Module]:
        """Return the modules beside the list of blocks: embedding, final norm."""
        for parent in self._model.modules():
            children = dict(parent.named_children())
            if any(
                isinstance(child, nn.ModuleList) and self._blocks[0] in list(child)
                for child in children.values()
            ):
                return {n: c for n, c in children.items() if not isinstance(c, nn.ModuleList)}
        return {}


def _holding(seen: Mapping[str, torch.Tensor]) -> set[str]:
    """Return the sites of a block that hold what they should: the stream grows by what is added."""

    def grows(before: str, after: str, *added: str) -> bool:
        if not {before, after, *added} <= set(seen):
            return False
        parts = [seen[site].double() for site in (before, *added)]
        size = torch.stack([part.abs() for part in parts]).sum(dim=0) + seen[after].abs()
        error = (seen[after].double() - torch.stack(parts).sum(dim=0)).abs()
        return bool((error <= _ROUNDINGS * torch.finfo(seen[after].dtype).eps * size).all())

    there = {"resid_pre", "resid_post"}
    if grows("resid_pre", "resid_mid", "attn_out"):
        there |= {"attn_out", "resid_mid"}
    if grows("resid_mid", "resid_post", "mlp_out"):
        there |= {"mlp_out", "resid_mid"}
    if grows("resid_pre", "resid_post", "attn_out", "mlp_out"):
        there |= {"attn_out", "mlp_out"}
    return there


def _keeper(into: dict[str, torch.Tensor], name: str) -> Callable[[torch.Tensor], None]:
    def keep(hidden: torch.Tensor) -> None:
        into[name] = hidden.detach().clone()

    return keep
