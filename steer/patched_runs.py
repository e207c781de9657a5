"""Many patched runs of one contrast in few forward passes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..extract import LoadedModel, find_blocks, unwrap_hidden
from ..schemas import InvalidInputError, Place
from .aligned import COMPLETIONS, AlignedCase
from .costs import PatchCost
from .intervention import Intervention, intervene
from .positions import Positions
from .scoring import CPU_BATCH_TOKENS

__all__ = [
    "CaseOutcome",
    "CleanRuns",
    "Patch",
    "capture_runs",
    "first_column",
    "run_patches",
    "weigh_patches",
]

Write = Callable[["CleanRuns", int, np.ndarray], torch.Tensor]


@dataclass(frozen=True)
class Patch:
    """One write into one run: layer ``layer`` holds what ``write`` says at ``place``.

    ``write`` takes the clean runs, the completion's index and the mask of touched columns, and
    returns states (column, hidden), of which only the touched columns are used.
    """

    into: str
    layer: int
    place: Place
    write: Write


@dataclass(frozen=True)
class CleanRuns:
    """Residual streams of a contrast's runs as they are without a patch, float32.

    ``kept`` maps (role, completion) to (layer, column, hidden), columns from ``start`` on;
    ``layers`` says which layers these are.
    """

    kept: Mapping[tuple[str, int], torch.Tensor]
    layers: tuple[int, ...]
    start: int
    case: AlignedCase

    def states(self, role: str, completion: int, layer: int) -> torch.Tensor:
        """Return (column, hidden) of all columns; zeros before the first that any patch needs."""
        found = self.kept[role, completion][self.layers.index(layer)].float()
        out = found.new_zeros(self.case.n_columns, found.shape[-1])
        out[self.start : self.start + len(found)] = found
        return out


@dataclass(frozen=True)
class CaseOutcome:
    """Log-probabilities of the completions of one contrast.

    ``clean`` per role and ``patched`` (patch, 2) are sums over the tokens of the positive and the
    negative completion, ``n_tokens`` their numbers; ``change`` (patch,) is the root mean square
    over touched tokens of the norm of what was written less what was there.
    """

    clean: Mapping[str, np.ndarray]
    patched: np.ndarray
    change: np.ndarray
    n_tokens: np.ndarray

    def differences(self, *, outcome: str) -> tuple[dict[str, float], np.ndarray]:
        """Return positive minus negative, of the clean runs and (patch,) of the patched ones."""
        per = self.n_tokens if outcome == "mean" else np.ones(2)
        clean = {role: float(v[0] / per[0] - v[1] / per[1]) for role, v in self.clean.items()}
        return clean, self.patched[:, 0] / per[0] - self.patched[:, 1] / per[1]


@dataclass(frozen=True)
class _Batch:
    """Rows (patch, completion) that one pass runs, from column ``start`` on."""

    start: int
    rows: tuple[tuple[int, int], ...]


def first_column(case: AlignedCase, place: Place) -> int:
    """Return the first column whose result a patch at ``place`` can change, or that is scored."""
    touched = np.concatenate([np.flatnonzero(case.columns(place, c)) for c in (0, 1)])
    if not touched.size:
        msg = f"contrast {case.contrast.id!r} has no token at position {place!r}"
        raise InvalidInputError(msg)
    # The token before the completion predicts its first: it is run whatever is patched.
    return min(int(touched.min()), case.n_prompt - 1)


def _plan_batches(
    case: AlignedCase, patches: Sequence[Patch], *, batch_tokens: int
) -> list[_Batch]:
    starts = [first_column(case, patch.place) for patch in patches]
    order = sorted(
        ((p, c) for p in range(len(patches)) for c in (0, 1)),
        key=lambda row: (starts[row[0]], patches[row[0]].layer, row),
    )
    batches: list[_Batch] = []
    rows: list[tuple[int, int]] = []
    for row in order:
        start = starts[row[0]]
        full = rows and (
            starts[rows[0][0]] != start or (len(rows) + 1) * (case.n_columns - start) > batch_tokens
        )
        if full:
            batches.append(_Batch(starts[rows[0][0]], tuple(rows)))
            rows = []
        rows.append(row)
    if rows:
        batches.append(_Batch(starts[rows[0][0]], tuple(rows)))
    return batches


def weigh_patches(
    case: AlignedCase, patches: Sequence[Patch], *, batch_tokens: int = CPU_BATCH_TOKENS
) -> PatchCost:
    """Return what :func:`run_patches` would run, without running it."""
    batches = _plan_batches(case, patches, batch_tokens=batch_tokens)
    n_roles, last = len(case.prompts), 0
    cost = PatchCost()
    for i, batch in enumerate(batches):
        if batch.start > last:
            cost += PatchCost(1, n_roles, n_roles * (batch.start - last))
            last = batch.start
        if i == 0:
            cost += PatchCost(1, 2 * n_roles, 2 * n_roles * (case.n_columns - batch.start))
        n_rows = len(batch.rows)
        cost += PatchCost(1, n_rows, n_rows * (case.n_columns - batch.start))
    return cost


class _Prefix:
    """The cache of every role's prompt up to a column that only moves on."""

    def __init__(self, loaded: LoadedModel, case: AlignedCase) -> None:
        self.loaded = loaded
        self.roles = tuple(case.prompts)
        self.ids = torch.from_numpy(np.stack([case.prompts[r] for r in self.roles])).long()
        self.cache: Any = None
        self.stop = 0

    def advance(self, stop: int) -> None:
        if stop <= self.stop:
            return
        device = self.loaded.device
        n = len(self.roles)
        self.cache = self.loaded.backbone(
            input_ids=self.ids[:, self.stop : stop].to(device),
            attention_mask=torch.ones(n, stop, dtype=torch.long, device=device),
            position_ids=torch.arange(self.stop, stop, device=device).expand(n, -1),
            past_key_values=self.cache,
            use_cache=True,
        ).past_key_values
        self.stop = stop

    def take(self, rows: Sequence[int]) -> Any:  # caches have no common type  # noqa: ANN401
        """Return a cache of its own for a batch whose rows begin as these roles do."""
        if self.cache is None:
            return None
        taken = copy.deepcopy(self.cache)
        taken.batch_select_indices(torch.tensor(rows, device=self.loaded.device))
        return taken


@torch.inference_mode()
def run_patches(
    loaded: LoadedModel,
    case: AlignedCase,
    patches: Sequence[Patch],
    *,
    batch_tokens: int = 16384,
    states: Mapping[tuple[str, str], np.ndarray] | None = None,
) -> CaseOutcome:
    """Return what each patch does to the log-probabilities of the completions.

    Every run is scored once without a patch, and its states are kept for all patches. Tokens
    before the first that a patch touches are run once per prompt: their keys and values are
    shared by the rows of all patches, which differ in layer, position and content.

    Parameters
    ----------
    batch_tokens
        Upper bound of rows x longest row of a pass; on a CPU 2048 at most.
    states
        States to use in place of captured ones (from a store's token arrays, say):
        (role, ``positive`` or ``negative``) to (layer, token, hidden) of every layer and every
        token of prompt and completion.

    Raises
    ------
    InvalidInputError
        If a position has no token, a layer does not exist, or given states have another shape.
    """
    if loaded.device.type == "cpu":
        batch_tokens = min(batch_tokens, CPU_BATCH_TOKENS)
    n_layers = loaded.info.n_layers
    beyond = sorted({p.layer for p in patches if not 0 <= p.layer < n_layers})
    if beyond or not patches:
        what = f"layers {beyond} do not exist" if patches else "there is no patch to run"
        msg = f"{what}; {loaded.info.name} has layers 0 to {n_layers - 1}"
        raise InvalidInputError(msg)
    batches = _plan_batches(case, patches, batch_tokens=batch_tokens)
    prefix = _Prefix(loaded, case)
    prefix.advance(batches[0].start)
    clean, scores = _run_clean(loaded, case, prefix, given=states or {})
    out = np.empty((len(patches), 2))
    change = np.empty((len(patches), 2))
    for batch in batches:
        prefix.advance(batch.start)
        _run_batch(loaded, case, batch, patches, clean, prefix, out=out, change=change)
    n_tokens = np.array([len(ids) for ids in case.completions])
    return CaseOutcome(scores, out, change.mean(axis=1), n_tokens)


@torch.inference_mode()
def capture_runs(
    loaded: LoadedModel, case: AlignedCase, *, place: Place
) -> tuple[CleanRuns, dict[str, np.ndarray]]:
    """Return the states of all runs of a contrast from the first token of ``place`` on.

    With them, per role, the summed log-probabilities (2,) of the completions.
    """
    prefix = _Prefix(loaded, case)
    prefix.advance(first_column(case, place))
    return _run_clean(loaded, case, prefix, given={})


def _run_clean(
    loaded: LoadedModel,
    case: AlignedCase,
    prefix: _Prefix,
    *,
    given: Mapping[tuple[str, str], np.ndarray],
) -> tuple[CleanRuns, dict[str, np.ndarray]]:
    layers = tuple(range(loaded.info.n_layers))
    rows = [(r, c) for r in range(len(prefix.roles)) for c in (0, 1)]
    with _captured(loaded, layers) as seen:
        scores = _score(loaded, case, rows, prefix)
    stacked = torch.stack([seen[layer] for layer in layers], dim=1)
    kept = {(prefix.roles[r], c): stacked[i] for i, (r, c) in enumerate(rows)}
    for (role, name), array in given.items():
        completion = COMPLETIONS.index(name)
        n_tokens = case.n_prompt + len(case.completions[completion])
        expected = (len(layers), n_tokens, loaded.info.hidden_size)
        if array.shape != expected:
            msg = (
                f"contrast {case.contrast.id!r}: the states given for {role}, {name}, are "
                f"(layer, token, hidden) {array.shape}, expected {expected}"
            )
            raise InvalidInputError(msg)
        fresh = torch.zeros_like(kept[role, completion], dtype=torch.float32)
        own = torch.from_numpy(np.ascontiguousarray(array[:, prefix.stop :], dtype=np.float32))
        fresh[:, : own.shape[1]] = own.to(fresh.device)
        kept[role, completion] = fresh
    clean = CleanRuns(kept, layers, prefix.stop, case)
    by_role = scores.reshape(len(prefix.roles), 2)
    return clean, dict(zip(prefix.roles, by_role, strict=True))


@contextmanager
def _captured(loaded: LoadedModel, layers: Sequence[int]) -> Iterator[dict[int, torch.Tensor]]:
    """Give what the chosen blocks returned in the last pass, (row, token, hidden)."""
    seen: dict[int, torch.Tensor] = {}
    blocks = find_blocks(loaded.backbone)
    handles = []
    try:
        for layer in layers:

            def record(_module: object, _args: object, output: object, at: int = layer) -> None:
                seen[at] = unwrap_hidden(output).detach().clone()

            handles.append(blocks[layer].register_forward_hook(record))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _run_batch(
    loaded: LoadedModel,
    case: AlignedCase,
    batch: _Batch,
    patches: Sequence[Patch],
    clean: CleanRuns,
    prefix: _Prefix,
    *,
    out: np.ndarray,
    change: np.ndarray,
) -> None:
    n_rows = len(batch.rows)
    source = torch.zeros(n_rows, case.n_columns, loaded.info.hidden_size, device=loaded.device)
    planned = torch.zeros(n_rows, case.n_columns, dtype=torch.bool)
    for i, (p, c) in enumerate(batch.rows):
        patch = patches[p]
        mask = case.columns(patch.place, c)
        where = torch.from_numpy(mask).to(loaded.device)
        written = patch.write(clean, c, mask)[where]
        moved = written - clean.states(patch.into, c, patch.layer)[where]
        change[p, c] = float(moved.double().square().sum(dim=-1).mean().sqrt())
        source[i, where] = written
        planned[i] = torch.from_numpy(mask)
    layers = torch.tensor([patches[p].layer for p, _ in batch.rows])
    writes = [
        Intervention(
            "replace",
            (layer,),
            torch.ones(n_rows),
            Positions(planned),
            source=source,
            rows=layers == layer,
        )
        for layer in sorted(set(layers.tolist()))
    ]
    rows = [(prefix.roles.index(patches[p].into), c) for p, c in batch.rows]
    with intervene(loaded.network, writes):
        scores = _score(loaded, case, rows, prefix)
    for (p, c), score in zip(batch.rows, scores, strict=True):
        out[p, c] = score


def _score(
    loaded: LoadedModel,
    case: AlignedCase,
    rows: Sequence[tuple[int, int]],
    prefix: _Prefix,
) -> np.ndarray:
    """Return the summed log-probability of each row's completion; rows are (role, completion)."""
    device, start, first = loaded.device, prefix.stop, case.n_prompt
    ids = torch.zeros(len(rows), case.n_columns, dtype=torch.long)
    attended = torch.zeros_like(ids)
    for i, (role, c) in enumerate(rows):
        answer = torch.from_numpy(case.completions[c])
        stop = first + len(answer)
        ids[i, :first] = prefix.ids[role]
        ids[i, first:stop] = answer
        attended[i, :stop] = 1
    width = case.n_columns - start
    logits = loaded.network(
        input_ids=ids[:, start:].to(device),
        attention_mask=attended.to(device),
        position_ids=torch.arange(start, start + width, device=device).expand(len(rows), -1),
        past_key_values=prefix.take([role for role, _ in rows]),
        use_cache=start > 0,
        # Logits only where the completion is predicted: the vocabulary is the widest axis.
        logits_to_keep=torch.arange(first - 1 - start, width - 1, device=device),
    ).logits
    targets = ids[:, first:].to(device)
    mask = attended[:, first:].to(device).bool()
    picked = torch.log_softmax(logits.float(), dim=-1).gather(-1, targets[..., None])[..., 0]
    total = torch.where(mask, picked, 0.0).double().sum(dim=1)
    return np.asarray(total.cpu().numpy())
