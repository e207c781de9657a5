"""What patches write: states of another run, parts of them, and placebos of their size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..extract import LoadedModel
from ..schemas import InvalidInputError
from .generated_directions import digest_array
from .operators import apply_operator
from .patched_runs import CleanRuns, Write

__all__ = [
    "NamedWrite",
    "chosen_layers",
    "layered_vectors",
    "name_vector",
    "random_units",
    "write_along",
    "write_full",
    "write_other_layer",
    "write_sized",
]


@dataclass(frozen=True)
class NamedWrite:
    """A write that says what it is: where two identities are equal, so is what they write."""

    identity: tuple[str | int, ...]
    make: Write

    def __call__(self, clean: CleanRuns, completion: int, mask: np.ndarray) -> torch.Tensor:
        """Return the states (column, hidden) to put in place."""
        return self.make(clean, completion, mask)


def name_vector(vector: torch.Tensor) -> str:
    """Return a short digest of a vector's numbers."""
    return digest_array(vector.detach().cpu().numpy(), "<f4")


def chosen_layers(layers: object, *, n_layers: int) -> list[int]:
    """Return the layers of a spec; raise InvalidInputError where one does not exist."""
    chosen: list[int] = list(range(n_layers)) if layers == "all" else list(layers)  # type: ignore[call-overload]
    beyond = [layer for layer in chosen if not 0 <= layer < n_layers]
    if beyond:
        msg = f"layer {beyond[0]} does not exist; there are layers 0 to {n_layers - 1}"
        raise InvalidInputError(msg)
    return chosen


def layered_vectors(
    vectors: np.ndarray | None, *, loaded: LoadedModel, name: str
) -> torch.Tensor | None:
    """Return unit vectors (layer, hidden) of every layer from (hidden,) or (layer, hidden).

    Raises
    ------
    InvalidInputError
        If the shape is not the model's, or a vector is not of length 1.
    """
    if vectors is None:
        return None
    n_layers, hidden = loaded.info.n_layers, loaded.info.hidden_size
    array = np.asarray(vectors, dtype=np.float32)
    if array.shape not in {(hidden,), (n_layers, hidden)}:
        msg = f"{name} has shape {array.shape}, expected ({hidden},) or ({n_layers}, {hidden})"
        raise InvalidInputError(msg)
    array = np.broadcast_to(array, (n_layers, hidden))
    off = np.abs(np.linalg.norm(array, axis=1) - 1)
    if not np.isfinite(array).all() or off.max() > 1e-3:
        msg = f"{name} must be finite and of length 1 in every layer; divide it by its norm"
        raise InvalidInputError(msg)
    return torch.from_numpy(array.copy()).to(loaded.device)


def random_units(n: int, hidden: int, *, seed: int) -> torch.Tensor:
    """Return ``n`` isotropic unit vectors (vector, hidden), the same for every layer."""
    draws = np.random.default_rng(seed).standard_normal((n, hidden))
    draws /= np.linalg.norm(draws, axis=1, keepdims=True)
    return torch.from_numpy(draws.astype(np.float32))


def write_full(role: str, layer: int) -> NamedWrite:
    """Write a run's own states."""
    return NamedWrite(("full", role, layer), lambda clean, c, _mask: clean.states(role, c, layer))


def write_along(
    into: str, donor: str, layer: int, vector: torch.Tensor, *, operator: str = "swap"
) -> NamedWrite:
    """Write the donor's part in the span of ``vector`` (hidden,) or (rank, hidden), or the rest."""
    basis = vector if vector.ndim == 2 else vector[None]

    def write(clean: CleanRuns, c: int, _mask: np.ndarray) -> torch.Tensor:
        state = clean.states(into, c, layer)[None]
        return apply_operator(
            operator,
            state,
            strength=torch.ones(1),
            basis=basis[None].to(state.device),
            source=clean.states(donor, c, layer)[None],
        )[0]

    return NamedWrite((operator, into, donor, layer, name_vector(basis)), write)


def write_sized(
    into: str, donor: str, layer: int, vector: torch.Tensor, *, along: torch.Tensor
) -> NamedWrite:
    """Write a step along ``along`` as long as the swap of the coordinate ``vector`` is."""

    def write(clean: CleanRuns, c: int, _mask: np.ndarray) -> torch.Tensor:
        state = clean.states(into, c, layer)
        delta = (clean.states(donor, c, layer) - state) @ vector.to(state.device)
        return torch.addcmul(state, delta[:, None], along.to(state.device))

    names = (name_vector(vector), name_vector(along))
    return NamedWrite(("sized", into, donor, layer, *names), write)


def write_other_layer(into: str, donor: str, layer: int, other: int) -> NamedWrite:
    """Write the difference of the runs at another layer, as long as the one at this layer is."""

    def write(clean: CleanRuns, c: int, _mask: np.ndarray) -> torch.Tensor:
        state = clean.states(into, c, layer)
        size = (clean.states(donor, c, layer) - state).norm(dim=-1, keepdim=True)
        elsewhere = clean.states(donor, c, other) - clean.states(into, c, other)
        unit = torch.nn.functional.normalize(elsewhere, dim=-1)
        return torch.addcmul(state, unit, size)

    return NamedWrite(("other_layer", into, donor, layer, other), write)
