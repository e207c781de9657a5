"""Activations that are NaN or infinite: found, named, and where asked for recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..schemas import ArraySpec, NumericalError
from .rendering import TokenRow

__all__ = ["Locate", "NonfiniteRows", "Place", "describe", "nonfinite_layers"]

Locate = Callable[[TokenRow, str, int], "int | None"]  # row, site, layer: position of a token
_NAMED = 20  # of a block: each costs a forward pass of one text


@dataclass(frozen=True)
class Place:
    """Where values come from: an array, its layers, and what finds a token."""

    spec: ArraySpec
    layers: Sequence[int]
    locate: Locate

    def position(self, row: TokenRow, layer: int) -> int | None:
        """Return the first token of a text that is not finite at a layer."""
        return self.locate(row, self.spec.attrs["site"], layer)


def nonfinite_layers(values: np.ndarray) -> np.ndarray:
    """Return where ``values`` (row, layer[, hidden]) are not finite, (row, layer) bool."""
    finite = np.isfinite(values).reshape(values.shape[0], values.shape[1], -1)
    return np.asarray(~finite.all(axis=-1))


@dataclass
class NonfiniteRows:
    """What of one block was not finite; :meth:`notes` is what its commit record keeps."""

    rows: set[int] = field(default_factory=set)
    named: list[dict[str, Any]] = field(default_factory=list)

    def blank(
        self,
        values: np.ndarray,
        bad: np.ndarray,
        *,
        rows: Sequence[tuple[int, TokenRow]],
        place: Place,
    ) -> np.ndarray:
        """Return ``values`` whose vectors that are not finite are NaN throughout; note them.

        ``bad`` (row, layer) says which; ``rows`` are the row numbers with their texts.
        """
        for index in np.flatnonzero(bad.any(axis=1)):
            number, row = rows[int(index)]
            if number not in self.rows and len(self.named) < _NAMED:
                layer = place.layers[int(np.argmax(bad[index]))]
                at = place.position(row, layer)
                self.named.append(
                    {"text": row.text.id, "array": place.spec.name, "layer": layer, "position": at}
                )
            self.rows.add(number)
        wide = bad if values.ndim == 2 else bad[..., None]
        return np.where(wide, np.float32(np.nan), values)

    def notes(self) -> dict[str, Any]:
        """Return plain JSON: ``rows`` as [first, stop) of the run, and the first ``texts``."""
        spans: list[list[int]] = []
        for row in sorted(self.rows):
            if spans and spans[-1][1] == row:
                spans[-1][1] = row + 1
            else:
                spans.append([row, row + 1])
        return {"nonfinite": {"rows": spans, "texts": self.named}} if spans else {}


def describe(bad: np.ndarray, *, rows: Sequence[TokenRow], place: Place) -> NumericalError:
    """Return the error that names the first text, layer and token that is not finite."""
    index, at_layer = (int(i) for i in np.argwhere(bad)[0])
    row, layer = rows[index], place.layers[at_layer]
    at = place.position(row, layer)
    where = (
        "at no single token when the text is run alone"
        if at is None
        else f"first at token {at} of {row.n_tokens} (id {row.ids[at]})"
    )
    return NumericalError(
        f"{place.spec.name} of text {row.text.id!r} is not finite at layer {layer}, {where}; "
        f"{int(bad.sum())} text-layers of its batch are not. Use dtype bfloat16 or float32, leave "
        "the text out, or store such vectors as NaN and go on with --nonfinite record"
    )
