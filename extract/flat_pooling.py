"""Pooling where rows of many texts lie behind one another, in pieces, in any order.

An engine with continuous batching runs (token, hidden) tensors without a batch axis: pieces of
several texts, each a stretch of its positions. What they sum to is kept here per text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..schemas import InvalidInputError

__all__ = ["FlatRows", "Piece", "Step"]


@dataclass(frozen=True)
class Piece:
    """``count`` tokens of ``row`` from position ``start``, which lie at ``offset`` of a batch."""

    row: int
    start: int
    offset: int
    count: int


@dataclass
class FlatRows:
    """Texts that are expected, and what was captured of them so far.

    ``ids`` (token,) int32 holds the texts of ``bounds`` (row + 1,) behind one another and ``masks``
    (mask, token) bool what the pools read; ``means``, ``maxima`` and ``norms`` are numbers of
    masks, ``picks`` (row, pick) the positions of the pools of one token. ``places`` counts the
    captures of one forward pass, in the order of its layers.

    Arrays of results are (of its kind, place, row, hidden) float32; norms have a hidden of 1.
    """

    ids: np.ndarray
    bounds: np.ndarray
    masks: np.ndarray
    means: np.ndarray
    maxima: np.ndarray
    norms: np.ndarray
    picks: np.ndarray
    places: int
    hidden: int
    n_steps: int = 0
    n_recomputed: int = 0
    results: dict[str, np.ndarray] = field(init=False)
    seen: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        n = len(self.bounds) - 1
        kinds = {"mean": self.means, "max": self.maxima, "pick": self.picks.T, "norm": self.norms}
        self.results = {
            kind: np.zeros(
                (len(of), self.places, n, 1 if kind == "norm" else self.hidden), dtype=np.float32
            )
            for kind, of in kinds.items()
        }
        self.seen = np.zeros(n, dtype=np.int64)

    @classmethod
    def expected(cls, arrays: Mapping[str, np.ndarray], *, places: int, hidden: int) -> FlatRows:
        """Return rows from the arrays that :meth:`arrays` gave."""
        return cls(**dict[str, Any](arrays), places=places, hidden=hidden)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what is expected, without what was captured."""
        names = ("ids", "bounds", "masks", "means", "maxima", "norms", "picks")
        return {name: getattr(self, name) for name in names}

    def length(self, row: int) -> int:
        """Return the tokens of a row."""
        return int(self.bounds[row + 1] - self.bounds[row])

    def step(self, pieces: Sequence[Piece], *, device: torch.device) -> Step:
        """Return the sums of one forward pass over ``pieces``, still empty.

        A text that begins again was preempted: what was captured of it is forgotten. Positions
        behind a text's end are left out, those of a token that was generated.

        Raises
        ------
        InvalidInputError
            If a piece does not begin where the text's last one ended.
        """
        kept = []
        for piece in pieces:
            n = self.length(piece.row)
            if piece.start >= n:
                continue
            if piece.start == 0 and self.seen[piece.row]:
                self.n_recomputed += 1
                self.seen[piece.row] = 0
                for values in self.results.values():
                    values[:, :, piece.row] = 0
            if piece.start != self.seen[piece.row]:
                msg = (
                    f"row {piece.row}: expected position {self.seen[piece.row]} next, got "
                    f"{piece.start}; tokens from a cache are not captured"
                )
                raise InvalidInputError(msg)
            count = min(piece.count, n - piece.start)
            kept.append(Piece(piece.row, piece.start, piece.offset, count))
        return Step(self, kept, device=device)

    def add(self, step: Step) -> None:
        """Add a forward pass that is over.

        Raises
        ------
        InvalidInputError
            If a hook did not fire exactly once, or the tokens that ran are not the texts'.
        """
        step.check()
        rows = [piece.row for piece in step.pieces]
        if not rows:
            return
        found = {kind: values.cpu().numpy() for kind, values in step.sums.items()}
        for kind in ("mean", "norm"):
            self.results[kind][:, :, rows] += found[kind]
        largest = self.results["max"]
        largest[:, :, rows] = np.maximum(largest[:, :, rows], found["max"])
        for i, (pick, row) in enumerate(step.picked):
            self.results["pick"][pick, :, row] = found["pick"][:, i]
        for piece in step.pieces:
            self.seen[piece.row] += piece.count
        self.n_steps += 1

    def check_whole(self) -> None:
        """Raise InvalidInputError where a token of a row was not captured."""
        lengths = np.diff(self.bounds)
        short = np.flatnonzero(self.seen != lengths)
        if len(short):
            row = int(short[0])
            msg = (
                f"{len(short)} of {len(lengths)} rows were not captured whole; row {row}: "
                f"{self.seen[row]} of {lengths[row]} tokens"
            )
            raise InvalidInputError(msg)

    def taken(self, kind: str, index: int, places: slice) -> np.ndarray:
        """Return one pool of some places, (place, row, hidden) float32.

        The mean over no token is NaN, as it is where a batch is pooled at once.
        """
        values = self.results[kind][index, places]
        if kind not in {"mean", "norm"}:
            return values
        mask = self.masks[(self.means if kind == "mean" else self.norms)[index]]
        counts = np.add.reduceat(mask.astype(np.float32), self.bounds[:-1])
        with np.errstate(invalid="ignore"):
            return values / counts[:, None]


class Step:
    """The sums of one forward pass, on the device: (of its kind, place, piece, hidden) float32."""

    def __init__(self, rows: FlatRows, pieces: Sequence[Piece], *, device: torch.device) -> None:
        self.pieces = tuple(pieces)
        self.picked: list[tuple[int, int]] = []  # (pick, row) in the order of sums["pick"]
        self._fired = [0] * rows.places
        self._wrong: list[torch.Tensor] = []
        self._device = device
        self.n_tokens = sum(piece.count for piece in self.pieces)
        at, owner, flat = _spread(self.pieces, rows.bounds)
        self._at = at
        self._positions = (
            flat - rows.bounds[np.array([p.row for p in self.pieces], dtype=int)][owner]
        )
        self._ids = rows.ids[flat]
        self._selected = {
            kind: [self._select(mask, at, owner) for mask in rows.masks[np.ix_(numbers, flat)]]
            for kind, numbers in (("mean", rows.means), ("max", rows.maxima), ("norm", rows.norms))
        }
        where = []
        for piece in self.pieces:
            for pick, position in enumerate(rows.picks[piece.row]):
                if piece.start <= position < piece.start + piece.count:
                    self.picked.append((pick, piece.row))
                    where.append(piece.offset + int(position) - piece.start)
        self._picks = torch.tensor(where, dtype=torch.long, device=device)
        m, hidden = len(self.pieces), rows.hidden
        shapes = {
            "mean": (len(rows.means), rows.places, m, hidden),
            "max": (len(rows.maxima), rows.places, m, hidden),
            "norm": (len(rows.norms), rows.places, m, 1),
            "pick": (rows.places, len(where), hidden),
        }
        self.sums = {kind: torch.zeros(shape, device=device) for kind, shape in shapes.items()}

    def expect(self, ids: torch.Tensor, positions: torch.Tensor, starts: torch.Tensor) -> None:
        """Note whether what runs is what was expected; :meth:`check` raises.

        The comparison stays on the device: nothing waits for it here.
        """
        at = torch.from_numpy(self._at).to(self._device)
        for seen, wanted in ((ids, self._ids), (positions, self._positions)):
            theirs = seen.to(self._device)[at].long()
            ours = torch.from_numpy(wanted.astype(np.int64)).to(self._device)
            self._wrong.append((theirs != ours).any())
        offsets = torch.tensor([p.offset for p in self.pieces], device=self._device)
        self._wrong.append(~torch.isin(offsets, starts.to(self._device).long()).all())

    def record(self, place: int, hidden: torch.Tensor) -> None:
        """Pool the stream (token, hidden) of one place."""
        self._fired[place] += 1
        if not self.pieces:
            return
        if len(hidden) <= int(self._at.max()):
            msg = f"a block ran {len(hidden)} tokens, its batch has {int(self._at.max()) + 1}"
            raise InvalidInputError(msg)
        values = hidden.float()
        norms = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
        for kind, source in (("mean", values), ("norm", norms)):
            for i, (at, owner) in enumerate(self._selected[kind]):
                self.sums[kind][i, place].index_add_(0, owner, source[at])
        for i, (at, owner) in enumerate(self._selected["max"]):
            index = owner[:, None].expand(-1, values.shape[1])
            self.sums["max"][i, place].scatter_reduce_(0, index, values[at].abs(), "amax")
        self.sums["pick"][place] = values[self._picks]

    def check(self) -> None:
        """Raise InvalidInputError where hooks or tokens are not those expected."""
        silent = [place for place, n in enumerate(self._fired) if n != 1]
        if silent:
            msg = (
                f"{len(silent)} of {len(self._fired)} captures fired "
                f"{self._fired[silent[0]]} times in one forward pass, expected once; hooks do not "
                "fire in compiled or graph-captured models"
            )
            raise InvalidInputError(msg)
        if self._wrong and bool(torch.stack(self._wrong).any()):
            names = ("token ids", "positions", "beginnings")
            bad = [n for n, wrong in zip(names, self._wrong, strict=True) if bool(wrong)]
            rows = [piece.row for piece in self.pieces]
            msg = f"a forward pass over rows {rows} ran other {' and '.join(bad)} than theirs"
            raise InvalidInputError(msg)

    def _select(
        self, mask: np.ndarray, at: np.ndarray, owner: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the places in the batch that a mask reads, and the piece of each."""
        return (
            torch.from_numpy(at[mask]).to(self._device),
            torch.from_numpy(owner[mask]).to(self._device),
        )


def _spread(
    pieces: Sequence[Piece], bounds: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of every token its place in the batch, its piece, and its place in ``ids``."""
    counts = [piece.count for piece in pieces]
    owner = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(sum(counts)) - np.repeat(np.cumsum([0, *counts[:-1]])[: len(counts)], counts)
    offsets = np.array([piece.offset for piece in pieces], dtype=np.int64)
    firsts = np.array([bounds[p.row] + p.start for p in pieces], dtype=np.int64)
    return offsets[owner] + within, owner, firsts[owner] + within
