"""Interventions on rows that lie behind one another, in pieces, in any order.

An engine with continuous batching runs (token, hidden) tensors without a batch axis. What an
intervention says of the rows and columns of a padded batch is said here of rows and positions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch

from ..extract.flat_pooling import Piece
from ..schemas import InvalidInputError
from .flat_reads import FlatRead, Reading
from .intervention import Intervention
from .operators import apply_operator

__all__ = ["FlatStep", "FlatWrite", "FlatWrites", "Table"]

_NOTHING = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class FlatWrite:
    """One intervention: whose tokens it touches, and with what.

    ``touched`` (token,) bool says it of the prompts' tokens, ``generated`` (row,) bool of those
    behind them. Rows that share a direction or a state share it here too: ``basis_of`` (row,)
    counts in ``basis`` (_, rank, hidden), ``source_of`` (row,) or ``source_at`` (token,) in
    ``source`` (_, hidden).
    """

    operator: str
    site: str
    layers: tuple[int, ...]
    strengths: np.ndarray
    touched: np.ndarray
    generated: np.ndarray
    basis: np.ndarray | None = None
    basis_of: np.ndarray = field(default_factory=lambda: _NOTHING)
    source: np.ndarray | None = None
    source_of: np.ndarray = field(default_factory=lambda: _NOTHING)
    source_at: np.ndarray = field(default_factory=lambda: _NOTHING)

    @classmethod
    def flatten(cls, wanted: Intervention, real: np.ndarray) -> FlatWrite:
        """Return an intervention on a padded batch; ``real`` (row, column) bool are its tokens."""
        n_rows = len(real)
        rows = wanted.touched_rows.cpu().numpy()
        planned = wanted.positions.planned.cpu().numpy() & rows[:, None]
        held: dict[str, np.ndarray] = {}
        if wanted.basis is not None:
            basis = wanted.basis.float().cpu().numpy()
            table, index = _shared(basis)
            held["basis"] = table
            held["basis_of"] = np.resize(index, n_rows)  # one for all, or one each
        if wanted.source is not None:
            source = wanted.source.float().cpu().numpy()
            by_row = source.ndim == 2
            chosen = source if by_row else source[planned & real]
            held["source"], index = _shared(chosen)
            if by_row:
                held["source_of"] = index
            else:
                at = np.zeros(real.shape, dtype=np.int64)
                at[planned & real] = index
                held["source_at"] = at[real]
        return cls(
            operator=wanted.operator,
            site=wanted.site,
            layers=tuple(wanted.layers),
            strengths=wanted.strengths.float().cpu().numpy(),
            touched=planned[real],
            generated=rows & wanted.positions.generated,
            **held,
        )

    def places(self) -> list[tuple[int, str]]:
        """Return the (layer, site) that are written.

        What a block reads is what the one before it returns: it is written there, since a block
        may be given it in two parts.
        """
        if self.site != "resid_pre":
            return [(layer, self.site) for layer in self.layers]
        return [(layer - 1, "resid_post") if layer else (0, "resid_pre") for layer in self.layers]


def _shared(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct members of ``values`` (_, ...), and which of them each one is."""
    numbers: dict[bytes, int] = {}
    index = [numbers.setdefault(value.tobytes(), len(numbers)) for value in values]
    _, firsts = np.unique(np.array(index, dtype=np.int64), return_index=True)
    return values[firsts], np.array(index, dtype=np.int64)


@dataclass(frozen=True)
class FlatWrites:
    """The prompts of a batch one behind another, and what is written while they run.

    ``ids`` (token,) holds the rows of ``bounds`` (row + 1,); ``read`` is what is read meanwhile.
    """

    ids: np.ndarray
    bounds: np.ndarray
    writes: tuple[FlatWrite, ...]
    read: FlatRead | None = None

    @classmethod
    def flatten(
        cls, ids: torch.Tensor, attended: torch.Tensor, interventions: Sequence[Intervention]
    ) -> FlatWrites:
        """Return the interventions on a padded batch (row, column)."""
        real = attended.bool().cpu().numpy()
        return cls(
            ids=ids.cpu().numpy()[real].astype(np.int64),
            bounds=np.cumsum([0, *real.sum(axis=1)]),
            writes=tuple(FlatWrite.flatten(wanted, real) for wanted in interventions),
        )

    def rows(self) -> list[list[int]]:
        """Return the token ids of each row."""
        return [part.tolist() for part in np.split(self.ids, self.bounds[1:-1])]

    def salts(self) -> list[str]:
        """Return for each row a name of its prompt and all that is written into it.

        Rows that nothing touches have one name, whatever their prompts: their keys and values
        are the model's own. Others share only with rows that are the same to the last bit.
        """
        tables = [
            [_digests(table) for table in (write.basis, write.source)] for write in self.writes
        ]
        out = []
        for row, (start, stop) in enumerate(zip(self.bounds[:-1], self.bounds[1:], strict=True)):
            parts = [
                _salt(write, row, slice(start, stop), digests)
                for write, digests in zip(self.writes, tables, strict=True)
                if write.touched[start:stop].any() or write.generated[row]
            ]
            prompt = self.ids[start:stop].tobytes()
            name = hashlib.sha256(b"".join([prompt, *parts])).hexdigest()
            out.append(name if parts else "unsteered")
        return out

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all of it as named arrays."""
        out = {"ids": self.ids, "bounds": self.bounds}
        words = []
        for i, write in enumerate(self.writes):
            words.append({"operator": write.operator, "site": write.site, "layers": write.layers})
            for part in fields(write):
                value = getattr(write, part.name)
                if isinstance(value, np.ndarray):
                    out[f"{i}/{part.name}"] = value
        out |= {} if self.read is None else self.read.arrays()
        return out | {"words": np.frombuffer(json.dumps(words).encode(), dtype=np.uint8)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> FlatWrites:
        """Return what :meth:`arrays` gave."""
        writes = []
        for i, words in enumerate(json.loads(arrays["words"].tobytes())):
            head = f"{i}/"
            parts: dict[str, Any] = {
                n.removeprefix(head): a for n, a in arrays.items() if n.startswith(head)
            }
            writes.append(FlatWrite(**parts, **{**words, "layers": tuple(words["layers"])}))
        return cls(arrays["ids"], arrays["bounds"], tuple(writes), FlatRead.from_arrays(arrays))

    def places(self) -> dict[tuple[int, str], list[int]]:
        """Return which writes each (layer, site) has, in the order in which they act.

        A place that is read alone has none.
        """
        out: dict[tuple[int, str], list[int]] = {}
        # What a block returned is written before what the next one reads.
        order = sorted(range(len(self.writes)), key=lambda i: self.writes[i].site == "resid_pre")
        for i in order:
            for place in self.writes[i].places():
                out.setdefault(place, []).append(i)
        if self.read is not None:
            out.setdefault(self.read.place, [])
        return out


def _digests(table: np.ndarray | None) -> list[bytes]:
    return [] if table is None else [hashlib.sha256(entry.tobytes()).digest() for entry in table]


def _salt(write: FlatWrite, row: int, span: slice, digests: list[list[bytes]]) -> bytes:
    """Return what one write does to one row, as bytes of a known structure."""
    bases, sources = digests
    touched = write.touched[span]
    by_token = write.source_at[span][touched] if len(write.source_at) else _NOTHING
    used = [*write.source_of[row : row + 1], *by_token]
    parts = [
        json.dumps([write.operator, write.site, write.layers]).encode(),
        write.strengths[row].tobytes(),
        touched.tobytes(),
        write.generated[row].tobytes(),
        bases[write.basis_of[row]] if bases else b"",
        *(sources[i] for i in used),
    ]
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


class FlatStep:
    """One forward pass: where its tokens belong, and what is written into which of them."""

    def __init__(
        self,
        plan: FlatWrites,
        pieces: Sequence[Piece],
        *,
        tables: Sequence[Table],
        reading: Reading | None = None,
    ) -> None:
        self.pieces = tuple(pieces)
        self.fired: dict[tuple[int, str], int] = dict.fromkeys(plan.places(), 0)
        device = tables[0].device if tables else torch.device("cpu")
        counts = np.array([piece.count for piece in pieces], dtype=np.int64)
        owner = np.repeat(np.arange(len(counts)), counts)
        within = np.arange(counts.sum()) - (np.cumsum(counts) - counts)[owner]
        rows = np.array([piece.row for piece in pieces], dtype=np.int64)[owner]
        at = np.array([piece.offset for piece in pieces], dtype=np.int64)[owner] + within
        position = np.array([piece.start for piece in pieces], dtype=np.int64)[owner] + within
        in_prompt = position < np.diff(plan.bounds)[rows]
        token = np.where(in_prompt, plan.bounds[rows] + position, 0)
        self._expected = (at, position, at[in_prompt], plan.ids[token[in_prompt]])
        self._chosen: list[tuple[Table, _Selected]] = []
        self.n_writes = 0  # tokens x layers that this pass changes
        for write, table in zip(plan.writes, tables, strict=True):
            mask = np.where(in_prompt, write.touched[token], write.generated[rows])
            self.n_writes += int(mask.sum()) * len(write.layers)
            chosen = _Selected(*(torch.from_numpy(a[mask]).to(device) for a in (at, rows, token)))
            self._chosen.append((table, chosen))
        self._reading = reading
        if reading is not None:
            mask = in_prompt & reading.read.touched[token]
            self._read_at = torch.from_numpy(at[mask]).to(reading.device)
            self._read_slots = reading.slots(token[mask])
        self._of_place = {
            place: [i for i in writes if len(self._chosen[i][1].at)]
            for place, writes in plan.places().items()
        }

    def mismatch(
        self, ids: torch.Tensor, positions: torch.Tensor, starts: torch.Tensor
    ) -> torch.Tensor:
        """Return whether other tokens run than the rows', as a bool on the device."""
        at, position, at_prompt, prompt = self._expected
        wrong = []
        for seen, where, wanted in ((positions, at, position), (ids, at_prompt, prompt)):
            index, ours = (torch.from_numpy(a).to(seen.device) for a in (where, wanted))
            wrong.append((seen[index].long() != ours).any())
        offsets = torch.tensor([p.offset for p in self.pieces], device=starts.device)
        wrong.append(~torch.isin(offsets, starts.long()).all().to(positions.device))
        return torch.stack(wrong).any()

    def check_fired(self) -> None:
        """Raise InvalidInputError where a place was not reached exactly once (ENGINES 8)."""
        for (layer, site), n in self.fired.items():
            if n != 1:
                msg = (
                    f"{site} of layer {layer} was reached {n} times in one forward pass, expected "
                    "once; hooks do not fire in compiled or graph-captured models"
                )
                raise InvalidInputError(msg)

    def write(
        self, place: tuple[int, str], stream: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return ``stream`` (token, hidden) as the writes of a place leave it, and where they were.

        None where no token of this pass is touched: then nothing may change, not one bit.
        """
        self.fired[place] += 1
        if self._reading is not None and place == self._reading.read.place:
            self._reading.record(stream[self._read_at], self._read_slots)
        writes = [self._chosen[i] for i in self._of_place[place]]
        if not writes:
            return None
        out = stream.clone()
        for table, chosen in writes:
            out[chosen.at] = table.apply(out[chosen.at], chosen)
        if len(writes) == 1:
            return out, writes[0][1].at
        return out, torch.unique(torch.cat([chosen.at for _, chosen in writes]))


@dataclass(frozen=True)
class _Selected:
    """Tokens of a pass: their places in it, their rows, their places among the prompts' tokens."""

    at: torch.Tensor
    rows: torch.Tensor
    tokens: torch.Tensor


class Table:
    """What one write works with, on the device."""

    def __init__(self, write: FlatWrite, *, device: torch.device) -> None:
        def put(array: np.ndarray | None) -> torch.Tensor | None:
            return None if array is None else torch.from_numpy(array).to(device)

        self.device = device
        self._operator = write.operator
        self._strengths = torch.from_numpy(write.strengths).to(device)
        self._basis, self._source = put(write.basis), put(write.source)
        self._basis_of, self._source_of = put(write.basis_of), put(write.source_of)
        self._source_at = put(write.source_at)

    def apply(self, states: torch.Tensor, chosen: _Selected) -> torch.Tensor:
        """Return what is written in place of ``states`` (token, hidden), in their type."""
        basis, source = self._basis, self._source
        if basis is not None and len(basis) > 1 and self._basis_of is not None:
            basis = basis[self._basis_of[chosen.rows]]
        if source is not None and self._source_of is not None and self._source_at is not None:
            by_row = len(self._source_of) > 0
            number = self._source_of[chosen.rows] if by_row else self._source_at[chosen.tokens]
            source = source[number][:, None]
        written = apply_operator(
            self._operator,
            states[:, None],
            strength=self._strengths[chosen.rows],
            basis=basis,
            source=source,
        )
        return written[:, 0].to(states.dtype)
