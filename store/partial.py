"""Partial copies: which objects of a run were pulled, and which were left out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ..schemas import (
    CorruptError,
    NotPulledError,
    Pulled,
    PulledPart,
    RunPlan,
    array_name,
)
from .blocks import place_of_key, spec_keys
from .layout import METADATA_NAME, RunKeys, to_bytes
from .parts import run_of

if TYPE_CHECKING:
    from .store import Store

__all__ = [
    "Coverage",
    "LeftOut",
    "coverage_keys",
    "coverage_of",
    "has_key",
    "is_whole",
    "no_coverage",
    "pool_of",
    "pulled_key",
    "pulled_keys",
    "read_pulled",
    "sealed_root_key",
    "shown_root",
    "to_parts",
]

# By array: dims (layer, block), bool. Arrays whose objects hold all layers have one "layer".
Coverage: TypeAlias = dict[str, np.ndarray[tuple[int, int], np.dtype[np.bool_]]]

PULLED_BYTES = 64 * 2**20


def pulled_key(run: str) -> str:
    """Return the key of the record that makes a run a partial copy."""
    return f"{RunKeys(run).folder}/pulled.json"


def sealed_root_key(run: str) -> str:
    """Return the key, in a partial copy, of the group's metadata as it was sealed.

    The ``zarr.json`` in its place names only the arrays of which something was pulled.
    """
    return f"{RunKeys(run).folder}/sealed.zarr.json"


def read_pulled(store: Store, plan: RunPlan, plan_id: str) -> Pulled | None:
    """Return the record of a partial copy, None where the run is whole.

    Raises
    ------
    CorruptError
        If the record is not of this plan.
    """
    key = pulled_key(plan.run)
    record = store.read_record(Pulled, key, max_bytes=PULLED_BYTES)
    if record is not None and (record.run, record.plan_id) != (plan.run, plan_id):
        msg = (
            f"{key} in {store.url} is of run {record.run!r} and plan {record.plan_id}, expected "
            f"{plan.run!r} and {plan_id}; delete {RunKeys(plan.run).folder} and pull it again"
        )
        raise CorruptError(msg)
    return record


def pulled_keys(store: Store, run_id: str) -> frozenset[str] | None:
    """Return the keys below ``data.zarr`` that blocks wrote and a partial copy holds.

    None where the run is whole. Coordinates and the group's metadata are not among them: they
    are always there. Of an array's ``zarr.json`` see :func:`has_key`.
    """
    plan, plan_id = store.read_plan_and_id(run_id)
    record = read_pulled(store, plan, plan_id)
    if record is None:
        return None
    return frozenset(coverage_keys(plan, coverage_of(plan, record, where=store.url)))


def no_coverage(plan: RunPlan) -> Coverage:
    """Return the coverage of a copy that holds nothing yet."""
    return {
        spec.name: np.zeros((spec.shape[1] if len(spec.shape) == 3 else 1, plan.n_blocks), bool)
        for spec in plan.arrays
    }


def coverage_of(plan: RunPlan, record: Pulled, *, where: str) -> Coverage:
    """Return which objects ``record`` names; raise CorruptError where the plan has no such."""
    held = no_coverage(plan)
    indices = {
        spec.name: {layer: i for i, layer in enumerate(plan.layers_of(spec))}
        for spec in plan.arrays
    }
    for part in record.parts:
        mask = held.get(part.array)
        index = indices.get(part.array, {})
        layers = part.layers
        bad = (
            mask is None
            or (layers is None) != _holds_all_layers(plan, part.array)
            or not set(layers or ()) <= set(index)
            or any(stop > plan.n_blocks for _, stop in part.blocks)
        )
        if mask is None or bad:
            msg = (
                f"{pulled_key(plan.run)} in {where} names objects that the plan does not have "
                f"({part.array!r}); delete {RunKeys(plan.run).folder} and pull it again"
            )
            raise CorruptError(msg)
        for row in [0] if layers is None else [index[layer] for layer in layers]:
            for start, stop in part.blocks:
                mask[row, start:stop] = True
    return held


def to_parts(plan: RunPlan, held: Coverage) -> tuple[PulledPart, ...]:
    """Return the record's parts: of every array, layers of equal blocks together."""
    parts = []
    for spec in plan.arrays:
        groups: dict[tuple[tuple[int, int], ...], list[int]] = {}
        for row, blocks in enumerate(held[spec.name]):
            edges = np.flatnonzero(np.diff(blocks.astype(np.int8), prepend=0, append=0)).tolist()
            if edges:
                spans = tuple(zip(edges[::2], edges[1::2], strict=True))
                groups.setdefault(spans, []).append(row)
        for spans, rows in groups.items():
            known = plan.layers_of(spec)
            layers = tuple(known[i] for i in rows) if len(spec.shape) == 3 else None
            parts.append(PulledPart(array=spec.name, layers=layers, blocks=spans))
    return tuple(parts)


def coverage_keys(plan: RunPlan, held: Coverage) -> Iterable[str]:
    """Yield the keys below ``data.zarr`` of the objects that ``held`` covers."""
    for spec in plan.arrays:
        mask = held[spec.name]
        for block in np.flatnonzero(mask.any(axis=0)).tolist():
            for key, layer, _ in spec_keys(plan, spec, block):
                if mask[layer or 0, block]:
                    yield key


def has_key(plan: RunPlan, held: Coverage, key: str) -> bool:
    """Return whether a partial copy holds the object of a manifest under ``key``.

    What no block wrote is always there, but an array's metadata only with some of its objects.
    """
    name, _, rest = key.partition("/")
    mask = held.get(name)
    if mask is None:
        return True
    if rest == METADATA_NAME:
        return bool(mask.any())
    place = place_of_key(plan, key)
    return place is None or bool(mask[place.layer or 0, place.block])


def is_whole(plan: RunPlan, held: Coverage, *, blocks: Iterable[int] | None = None) -> bool:
    """Return whether every object of the run, or of ``blocks``, is covered."""
    chosen = slice(None) if blocks is None else sorted(blocks)
    return all(bool(held[spec.name][:, chosen].all()) for spec in plan.arrays)


@dataclass(frozen=True)
class LeftOut:
    """What a partial copy lacks; it answers for each object with the command that fetches it."""

    plan: RunPlan
    held: Coverage = field(repr=False)
    where: str
    source: str

    def refuse(self, key: str) -> None:
        """Raise NotPulledError where the object under ``key`` was left out."""
        if has_key(self.plan, self.held, key):
            return
        place = place_of_key(self.plan, key)
        name, layers, what = key.partition("/")[0], [], "its metadata"
        if place is not None:
            what = f"block {place.block}"
        if place is not None and place.layer is not None:
            layers = [self.plan.layers_of(place.spec)[place.layer]]
            what = f"layer {layers[0]}, {what}"
        pools = [pool_of(self.plan)[name]] if name in pool_of(self.plan) else []
        hint = self.hint(layers=layers, pools=pools)
        msg = f"{name}, {what} of run {self.plan.run!r} was not pulled; {hint}"
        raise NotPulledError(msg)

    def hint(self, *, layers: Iterable[int] = (), pools: Iterable[str] = ()) -> str:
        """Return the command that pulls ``layers`` and ``pools`` too (none: all)."""
        options = [f"--run {run_of(self.plan.run)}", *(f"--layer {n}" for n in layers)]
        options += [f"--pool {pool}" for pool in pools]
        return (
            f"run: actlake store pull {self.source or 'SOURCE'} {self.where} {' '.join(options)} "
            "(open_run with pulled_only=True shows what is here)"
        )


def pool_of(plan: RunPlan) -> Mapping[str, str]:
    """Return the pool of every pooled array of the plan, by the array's name; or ``tokens``."""
    names = {spec.name for spec in plan.arrays}
    return {
        array_name(site, pool): pool
        for site in plan.capture.sites
        for pool in (*plan.capture.pools, "tokens")
        if array_name(site, pool) in names
    }


def _holds_all_layers(plan: RunPlan, name: str) -> bool:
    return any(spec.name == name and len(spec.shape) == 2 for spec in plan.arrays)


def shown_root(root: bytes, run: str, held: Coverage) -> bytes:
    """Return the group's document as readers other than actlake see it in a partial copy.

    They would read NaN where an object is missing: arrays of which nothing was pulled are left
    out, and an attribute says that layers or rows are missing of the others.
    """
    document = json.loads(root)
    gone = {name for name, mask in held.items() if not mask.any()}
    inline = document["consolidated_metadata"]["metadata"]
    document["consolidated_metadata"]["metadata"] = {
        name: part for name, part in inline.items() if name not in gone
    }
    document["attributes"]["partial_copy"] = (
        f"not all objects of run {run} are here: readers other than actlake show NaN for those "
        "that are missing; see pulled.json beside data.zarr"
    )
    return to_bytes(document)
