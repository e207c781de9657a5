"""What an intervention does to a hidden state: five ways to write, one function each."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from ..schemas import InvalidInputError

__all__ = ["Operator", "apply_operator", "check_operator"]

Operator = Literal["add", "project_out", "set", "replace", "swap", "swap_complement"]

_OF_SOURCE = {"replace", "swap", "swap_complement"}
_ORTHONORMAL = 1e-3  # the most that a basis may deviate: float32 directions are good to 1e-6


def check_operator(
    operator: str, *, basis: torch.Tensor | None, source: torch.Tensor | None
) -> None:
    """Raise InvalidInputError where an operator lacks what it works with.

    ``basis`` (row, rank, hidden) holds the directions; ``source`` the states to write.
    """
    if operator not in get_args(Operator):
        msg = f"operator {operator!r} is unknown; expected one of {', '.join(get_args(Operator))}"
        raise InvalidInputError(msg)
    if (operator in _OF_SOURCE) != (source is not None):
        needs = "needs" if operator in _OF_SOURCE else "takes no"
        msg = f"operator {operator!r} {needs} source states"
        raise InvalidInputError(msg)
    if operator == "replace":
        return
    if basis is None:
        msg = f"operator {operator!r} needs a direction"
        raise InvalidInputError(msg)
    if operator in {"add", "set"} and basis.shape[1] != 1:
        msg = f"operator {operator!r} takes one direction per row, got {basis.shape[1]}"
        raise InvalidInputError(msg)
    if operator == "add":  # any vector can be added
        return
    gram = basis.double() @ basis.double().transpose(1, 2)
    error = float((gram - torch.eye(basis.shape[1], dtype=torch.float64)).abs().max())
    if error > _ORTHONORMAL:
        msg = (
            f"operator {operator!r} needs orthonormal directions, these deviate by {error:.2g}; "
            "divide by the norm, or orthonormalise them"
        )
        raise InvalidInputError(msg)


def apply_operator(
    operator: str,
    hidden: torch.Tensor,
    *,
    strength: torch.Tensor,
    basis: torch.Tensor | None,
    source: torch.Tensor | None,
) -> torch.Tensor:
    """Return what is written in place of ``hidden`` (row, token, hidden), in float32.

    With h the state, V the rows of ``basis`` (row, rank, hidden), s the source's state
    and a the row's strength:

    - ``add``: h + a v
    - ``project_out``: h - a VᵀV h; a = 1 removes the coordinate, 2 mirrors it
    - ``set``: h + (a - v·h) v: the coordinate becomes a
    - ``replace``: h + a (s - h); with a = 1 s itself, bit by bit
    - ``swap``: h + a VᵀV (s - h): the source's coordinate, the base's rest
    - ``swap_complement``: h + a (s - h - VᵀV (s - h)): the base's coordinate, the source's rest

    ``swap`` is the interchange of a coordinate of Geiger et al. (2106.02997), with rank above one
    that of a subspace.
    """
    state = hidden.float()
    a = strength.to(hidden.device, torch.float32)[:, None, None]
    v = None if basis is None else basis.to(hidden.device, torch.float32)
    if operator == "add":
        return state + a * _known(v)
    if operator == "project_out":
        return state - a * _project(state, _known(v))
    if operator == "set":
        v = _known(v)
        return state + (a - state @ v.transpose(1, 2)) * v
    wanted = _known(source).to(hidden.device, torch.float32)
    delta = wanted - state
    if operator == "swap":
        return state + a * _project(delta, _known(v))
    if operator == "swap_complement":
        return state + a * (delta - _project(delta, _known(v)))
    # The difference of two floats, added again, need not give the second.
    return torch.where(a == 1, wanted.expand_as(state), state + a * delta)


def _project(states: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Return the part of ``states`` (row, token, hidden) in the span of ``basis``."""
    return (states @ basis.transpose(1, 2)) @ basis


def _known(tensor: torch.Tensor | None) -> torch.Tensor:
    if tensor is None:
        msg = "an operator was applied without its direction or source; see check_operator"
        raise InvalidInputError(msg)
    return tensor
