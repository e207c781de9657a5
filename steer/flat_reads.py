"""What is read off rows that lie behind one another, in pieces: norms and projections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ..schemas import InvalidInputError

__all__ = ["FlatRead", "Reading"]

_HEAD = "read/"


@dataclass(frozen=True)
class FlatRead:
    """What is read behind block ``layer``, before anything is written there.

    ``vectors`` (direction, hidden) are what the states of the ``touched`` (token,) bool of the
    prompts are multiplied with.
    """

    layer: int
    vectors: np.ndarray
    touched: np.ndarray

    @property
    def place(self) -> tuple[int, str]:
        """The (layer, site) that is read."""
        return self.layer, "resid_post"

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all of it as named arrays."""
        return {
            f"{_HEAD}layer": np.array([self.layer]),
            f"{_HEAD}vectors": self.vectors,
            f"{_HEAD}touched": self.touched,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> FlatRead | None:
        """Return what :meth:`arrays` gave, None where it is not among them."""
        if f"{_HEAD}layer" not in arrays:
            return None
        return cls(
            int(arrays[f"{_HEAD}layer"][0]), arrays[f"{_HEAD}vectors"], arrays[f"{_HEAD}touched"]
        )


class Reading:
    """The values that are read, as passes bring them; a token that is run again is read again."""

    def __init__(self, read: FlatRead, *, device: torch.device) -> None:
        self.read, self.device = read, device
        self._slots = np.cumsum(read.touched) - 1
        self._vectors = torch.from_numpy(read.vectors).to(device)
        shape = int(read.touched.sum()), 1 + len(read.vectors)
        self._values = torch.full(shape, torch.nan, device=device)

    def slots(self, tokens: np.ndarray) -> torch.Tensor:
        """Return where the values of touched tokens (token,) belong."""
        return torch.from_numpy(self._slots[tokens]).to(self.device)

    def record(self, states: torch.Tensor, slots: torch.Tensor) -> None:
        """Keep the values of ``states`` (token, hidden)."""
        wide = states.float()
        self._values[slots, 0] = wide.norm(dim=-1)
        self._values[slots, 1:] = wide @ self._vectors.T

    def values(self) -> np.ndarray:
        """Return (touched token, 1 + direction) float32: norms, then products.

        Raises
        ------
        InvalidInputError
            If a token was never run.
        """
        found = self._values.cpu().numpy()
        unseen = int(np.isnan(found[:, 0]).sum())
        if unseen:
            msg = (
                f"{unseen} of {len(found)} tokens were not run; tokens from a cache are not read: "
                "open the engine without prefix_caching"
            )
            raise InvalidInputError(msg)
        return found
