"""Outcomes of patches over contrasts: kept one by one, so that a sweep can be interrupted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd

from ..extract import LoadedModel
from ..schemas import InvalidInputError, digest_json
from .aligned import COMPLETIONS, AlignedCase
from .costs import PatchCost, Trial
from .kept import KeptRows
from .patched_runs import (
    CaseOutcome,
    Patch,
    first_column,
    run_patches,
    weigh_patches,
)
from .writes import NamedWrite

__all__ = ["PatchOutcomes", "Progress", "States", "run_conditions", "weigh_conditions"]

Progress: TypeAlias = Callable[[int, int], None]
States: TypeAlias = Mapping[str, Mapping[tuple[str, str], np.ndarray]]

_KEY = ["contrast_digest", "condition"]
_PATCHES_PER_PART = 256  # what an interruption can lose of one contrast
_ROLES = ("base", "source")
_Figures: TypeAlias = tuple[float, float, float]  # log-probs of both completions, and the change


@dataclass(frozen=True)
class PatchOutcomes:
    """Outcomes of every patch in every contrast.

    ``clean`` per role (contrast, 2) and ``patched`` (patch, contrast, 2) are the summed
    log-probabilities of the positive and the negative completion, ``n_tokens`` (contrast, 2)
    their tokens, ``change`` (patch, contrast) what was written less what was there.
    """

    clean: Mapping[str, np.ndarray]
    patched: np.ndarray
    change: np.ndarray
    n_tokens: np.ndarray

    def differences(self, *, outcome: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return positive minus negative: (contrast,) per clean role, (patch, contrast) patched.

        ``outcome`` is ``mean`` per token of a completion, or ``total``.
        """
        per = self.n_tokens if outcome == "mean" else np.ones_like(self.n_tokens)
        clean = {role: v[:, 0] / per[:, 0] - v[:, 1] / per[:, 1] for role, v in self.clean.items()}
        return clean, self.patched[..., 0] / per[:, 0] - self.patched[..., 1] / per[:, 1]


def run_conditions(
    loaded: LoadedModel,
    cases: Sequence[AlignedCase],
    patches: Sequence[Patch],
    *,
    batch_tokens: int,
    states: States | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> PatchOutcomes:
    """Return the outcome of every patch in every contrast.

    A condition is one patch in one contrast. With a folder, conditions are committed part by part
    (:class:`~actlake.steer.KeptRows`); those that are there are not run again, whichever analysis
    made them, so the same call goes on after an interruption and one with more layers, arms or
    contrasts adds to what is there.

    Parameters
    ----------
    states
        See :func:`~actlake.steer.sweep_patches`.
    progress
        Called with the conditions that are done and all of them.

    Raises
    ------
    InvalidInputError
        As :func:`~actlake.steer.run_patches`; if the folder holds outcomes of another model, or a
        patch does not say what it writes.
    StorageError
        If a part cannot be written.
    """
    n_patches, total = len(patches), len(patches) * len(cases)
    found = PatchOutcomes(
        clean={role: np.empty((len(cases), 2)) for role in _ROLES},
        patched=np.empty((n_patches, len(cases), 2)),
        change=np.empty((n_patches, len(cases))),
        n_tokens=np.array([[len(ids) for ids in case.completions] for case in cases]),
    )
    kept = None if folder is None else _Kept(loaded, folder, patches)
    done = 0
    for i, case in enumerate(cases):
        given = (states or {}).get(case.contrast.id)
        todo = list(range(n_patches)) if kept is None else kept.lacking(kept.of(case, given))
        done += n_patches - len(todo)
        if progress is not None:
            progress(done, total)
        for chosen in _parts(case, patches, todo, is_kept=kept is not None):
            outcome = run_patches(
                loaded,
                case,
                [patches[k] for k in chosen],
                batch_tokens=batch_tokens,
                states=given,
            )
            for role in _ROLES:
                found.clean[role][i] = outcome.clean[role]
            found.patched[chosen, i], found.change[chosen, i] = outcome.patched, outcome.change
            if kept is not None:
                kept.commit(case, given, chosen, outcome)
            done += len(chosen)
            if progress is not None:
                progress(done, total)
        if kept is not None:
            kept.fill(found, i, kept.of(case, given))
    return found


def weigh_conditions(
    loaded: LoadedModel,
    cases: Sequence[AlignedCase],
    patches: Sequence[Patch],
    *,
    batch_tokens: int,
    states: States | None = None,
    folder: Path | None = None,
) -> PatchCost:
    """Return what :func:`run_conditions` would run, less what the folder holds."""
    kept = None if folder is None else _Kept(loaded, folder, patches, read_only=True)
    cost = PatchCost()
    for case in cases:
        given = (states or {}).get(case.contrast.id)
        todo = list(range(len(patches)))
        if kept is not None:
            todo = kept.lacking(kept.of(case, given))
        own = PatchCost()
        for chosen in _parts(case, patches, todo, is_kept=kept is not None):
            own += weigh_patches(case, [patches[k] for k in chosen], batch_tokens=batch_tokens)
        run = partial(
            _try, loaded, case, [patches[k] for k in todo], batch_tokens=batch_tokens, given=given
        )
        trial = Trial(own.n_tokens, run, most=_PATCHES_PER_PART)
        cost += own + PatchCost(
            n_conditions=len(todo), n_kept=len(patches) - len(todo), trials=(trial,)
        )
    return cost


def _try(
    loaded: LoadedModel,
    case: AlignedCase,
    patches: Sequence[Patch],
    rng: np.random.Generator,
    size: int,
    *,
    batch_tokens: int,
    given: Mapping[tuple[str, str], np.ndarray] | None,
) -> int:
    """Run some of the patches of a contrast and return their tokens."""
    start = int(rng.integers(max(1, len(patches) - size + 1)))
    chosen = [patches[k] for k in _order(case, patches, range(len(patches)))[start : start + size]]
    run_patches(loaded, case, chosen, batch_tokens=batch_tokens, states=given)
    return weigh_patches(case, chosen, batch_tokens=batch_tokens).n_tokens


def _parts(
    case: AlignedCase, patches: Sequence[Patch], todo: Sequence[int], *, is_kept: bool
) -> Iterator[list[int]]:
    """Yield the patches that are run, and committed, together."""
    if not is_kept:
        if todo:
            yield list(todo)
        return
    order = _order(case, patches, todo)
    for start in range(0, len(order), _PATCHES_PER_PART):
        yield order[start : start + _PATCHES_PER_PART]


def _order(case: AlignedCase, patches: Sequence[Patch], todo: Sequence[int]) -> list[int]:
    """Return patches in the order in which they share most: the prompt before their token."""
    starts = {place: first_column(case, place) for place in {patches[k].place for k in todo}}
    return sorted(todo, key=lambda k: (starts[patches[k].place], patches[k].layer, k))


class _Kept:
    """The outcomes that a folder holds, by contrast and condition."""

    def __init__(
        self,
        loaded: LoadedModel,
        folder: Path,
        patches: Sequence[Patch],
        *,
        read_only: bool = False,
    ) -> None:
        self.names = [_name(patch) for patch in patches]
        made_with = {"model": loaded.info.model_dump(mode="json")}
        self.kept = KeptRows(
            folder, key=_KEY, made_with=made_with, noun="outcomes", read_only=read_only
        )
        table = self.kept.read()
        self.rows: dict[str, dict[str, _Figures]] = {}
        if len(table):
            columns = [*_KEY, *COMPLETIONS, "change_norm"]
            for digest, name, *figures in table[columns].itertuples(index=False, name=None):
                self.rows.setdefault(digest, {})[name] = (figures[0], figures[1], figures[2])

    def of(
        self, case: AlignedCase, given: Mapping[tuple[str, str], np.ndarray] | None
    ) -> dict[str, _Figures]:
        return self.rows.get(_contrast_digest(case, given), {})

    def lacking(self, known: Mapping[str, _Figures]) -> list[int]:
        return [k for k, name in enumerate(self.names) if name not in known]

    def fill(self, found: PatchOutcomes, i: int, known: Mapping[str, _Figures]) -> None:
        figures = np.array([known[name] for name in self.names])
        found.patched[:, i], found.change[:, i] = figures[:, :2], figures[:, 2]
        for role in _ROLES:
            found.clean[role][i] = known[f"clean {role}"][:2]

    def commit(
        self,
        case: AlignedCase,
        given: Mapping[tuple[str, str], np.ndarray] | None,
        chosen: Sequence[int],
        outcome: CaseOutcome,
    ) -> None:
        digest = _contrast_digest(case, given)
        known = self.rows.setdefault(digest, {})
        # Every part runs the clean prompts again and rounds in its own way: the first ones stay.
        fresh: dict[str, _Figures] = {
            name: (float(v[0]), float(v[1]), 0.0)
            for role, v in outcome.clean.items()
            if (name := f"clean {role}") not in known
        }
        for k, both, change in zip(chosen, outcome.patched, outcome.change, strict=True):
            fresh[self.names[k]] = (float(both[0]), float(both[1]), float(change))
        records = [
            {
                "contrast_digest": digest,
                "condition": name,
                "pair": case.contrast.id,
                **dict(zip((*COMPLETIONS, "change_norm"), figures, strict=True)),
            }
            for name, figures in fresh.items()
        ]
        self.kept.commit(pd.DataFrame.from_records(records))
        known.update(fresh)


def _name(patch: Patch) -> str:
    """Return what tells a condition from every other of the same contrast."""
    if not isinstance(patch.write, NamedWrite):
        msg = (
            f"a patch into {patch.into!r} at layer {patch.layer} is a bare function, which does "
            "not say what it writes; outcomes are kept of writes of actlake.steer.writes alone"
        )
        raise InvalidInputError(msg)
    return json.dumps([patch.into, patch.layer, patch.place, *patch.write.identity])


def _contrast_digest(case: AlignedCase, given: Mapping[tuple[str, str], np.ndarray] | None) -> str:
    """Return the digest of a contrast's tokens, and of the states that are used in their place."""
    states = {
        "/".join(key): hashlib.sha256(
            np.ascontiguousarray(array, dtype="<f4").tobytes()
        ).hexdigest()
        for key, array in (given or {}).items()
    }
    return digest_json(
        {
            "prompts": {role: ids.tolist() for role, ids in case.prompts.items()},
            "completions": [ids.tolist() for ids in case.completions],
            "shared": case.shared,
            "bos": case.bos,
            "states": states,
        }
    )[:23]
