"""Compiled blocks, and the proof that captures from them are those of the blocks as they were."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..schemas import InvalidInputError
from .blocks import find_blocks
from .engine import TransformersEngine
from .planning import PreparedRun
from .rendering import TokenRow

__all__ = ["check_compiled_sites", "compile_blocks", "prove_compiled"]

_AROUND_BLOCKS = ("resid_pre", "resid_post")

# Largest deviation over the largest magnitude: fused kernels round at other places.
_SAME = {torch.float32: 5e-5, torch.float64: 5e-5}
_SAME_HALF = 3e-2


def check_compiled_sites(sites: Sequence[str]) -> None:
    """Raise InvalidInputError for a site inside of the blocks that are compiled.

    Its hook becomes part of what is compiled. It names its layer, so every layer is compiled anew,
    and behind the limit of recompilations (8 by default) the others run uncompiled
    without a word: a run that is slower than an eager one, and whose record is wrong.
    """
    inner = [site for site in sites if site not in _AROUND_BLOCKS]
    if inner:
        msg = (
            f"compile captures around blocks, and {', '.join(inner)} is inside of them; expected "
            f"the sites {', '.join(_AROUND_BLOCKS)}. Leave out --compile, or extract the others in "
            "a run of their own"
        )
        raise InvalidInputError(msg)


def compile_blocks(network: nn.Module, *, backend: str = "inductor") -> None:
    """Compile the ``forward`` of each block in place; what calls it, hooks and all, stays Python.

    Hooks on the modules inside of a block would not: :func:`check_compiled_sites` refuses them.
    """
    for block in find_blocks(network):
        # Batches differ in their shape: one compilation for all of them.
        compiled = torch.compile(block.forward, dynamic=True, backend=backend)
        block.forward = compiled


def prove_compiled(
    engine: TransformersEngine,
    network: nn.Module,
    prepared: PreparedRun,
    *,
    backend: str = "inductor",
) -> None:
    """Compile the blocks of an engine that is ready, and hold one batch against the eager model.

    Raises
    ------
    InvalidInputError
        If the blocks cannot be compiled, a hook does not fire, or captures differ by more than
        rounding.
    """
    rows = _sample(prepared.rows)
    wanted = engine.forward(rows)
    compile_blocks(network, backend=backend)
    kind = type(network).__name__
    try:
        seen = engine.forward(rows)
    except InvalidInputError as err:  # a hook did not fire
        msg = f"{kind}: compiled, it cannot be captured: {err}; leave out --compile"
        raise InvalidInputError(msg) from err
    except Exception as err:
        reason = (str(err).strip().splitlines() or [type(err).__name__])[0]
        msg = f"{kind} cannot be compiled: {reason}; leave out --compile"
        raise InvalidInputError(msg) from err
    limit = _SAME.get(getattr(torch, prepared.plan.model.dtype), _SAME_HALF)
    for name, reference in wanted.items():
        error = _relative(seen[name], reference)
        if not error <= limit:
            msg = (
                f"{kind}: compiled, its {name} is off by {error:.1e}, expected at most "
                f"{limit:.0e}; leave out --compile"
            )
            raise InvalidInputError(msg)


def _sample(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """Return the shortest row, one from the middle and one that is not the longest of all."""
    places = {0, len(rows) // 2, (3 * len(rows)) // 4}
    return [rows[i] for i in sorted(places)]


def _relative(values: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the largest deviation over the largest magnitude; NaN where the two disagree on it."""
    size = float(reference.double().nan_to_num(posinf=0, neginf=0).abs().max())
    error = (values.double() - reference.double()).abs()
    both = ~torch.isfinite(reference) & ~torch.isfinite(values)
    return float(error.masked_fill(both, 0).max()) / (size or 1.0)
