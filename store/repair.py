"""Repairing a run: what must be extracted again, what can be made again from what is good."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from ..schemas import (
    BlockCommit,
    BlockDecision,
    CorruptError,
    InvalidInputError,
    RunManifest,
    Seal,
)
from .blocks import block_keys
from .catalog import write_catalog
from .clock import now
from .commits import object_info
from .deciding import read_decision
from .documents import Documents
from .environment import describe_environment
from .faults import Fault, VerifyReport
from .layout import (
    CATALOG_KEY,
    METADATA_NAME,
    STORE_KEY,
    RunKeys,
    group_metadata,
    plan_metadata,
    to_bytes,
)
from .metadata import METADATA_BYTES, parse_document
from .partial import read_pulled
from .repair_plan import RepairPlan
from .run_claim import new_manifest
from .sealing import commits_digest, seal_run
from .store import Store
from .stored_coordinates import Statics, read_statics, read_text_ids
from .verification import verify_run

_FoundT = TypeVar("_FoundT")

__all__ = ["RepairPlan", "apply_repair", "plan_repair"]


def plan_repair(
    store: Store, run_id: str, *, report: VerifyReport | None = None, full: bool = False
) -> RepairPlan:
    """Return what would mend a run; nothing is changed.

    Parameters
    ----------
    report
        What ``verify_run`` found; None verifies now.
    full
        Also decode every chunk, where the run is verified now.

    Raises
    ------
    NotFoundError
        If there is no such run.
    """
    report = report or verify_run(store, run_id, full=full)
    if not report.faults:
        return RepairPlan(run_id, ())
    if any(fault.kind == "plan" for fault in report.faults):
        return RepairPlan(
            run_id,
            report.faults,
            extract_again=True,
            remove=(RunKeys(run_id).plan,),
            by_hand=(
                (
                    "the plan is damaged, and everything is checked against it: the same "
                    "extraction writes the same plan again, then verify the run once more"
                ),
            ),
        )
    return _Repair(store, run_id, report).plan()


def apply_repair(store: Store, repair: RepairPlan) -> Seal | None:
    """Do what ``plan_repair`` planned; return the new seal where the run could be sealed at once.

    Only what is damaged is removed, with the commit records of the blocks to extract again and
    the seal over them; objects of good blocks are never touched. The seal goes first, so that a
    kill at any point leaves an unsealed run that is as readable as before.
    """
    for key in sorted(repair.remove, key=lambda key: not key.endswith("seal.json")):
        store.backend.delete(key)
    for key, data in repair._writes.items():
        store.backend.put(key, data)
    seal = None
    if RunKeys(repair.run).seal in repair.rebuild:
        seal = _seal_again(store, repair.run)
    if CATALOG_KEY in repair.rebuild or seal is not None or repair.remove:
        write_catalog(store)
    return seal


class _Repair:
    """Sorts the faults of one run into what each of them needs."""

    def __init__(self, store: Store, run_id: str, report: VerifyReport) -> None:
        self.store, self.run, self.faults = store, run_id, report.faults
        self.run_plan, self.plan_id = store.read_plan_and_id(run_id)
        self.keys = RunKeys(run_id)
        self.writes: dict[str, bytes] = {}
        self.remove: list[str] = []
        self.by_hand: list[str] = []
        self.seal = _readable(lambda: store.read_seal(run_id))
        self.is_sealed = report.sealed

    def plan(self) -> RepairPlan:
        """Return the plan."""
        by_kind: dict[str, list[Fault]] = {}
        for fault in self.faults:
            by_kind.setdefault(fault.kind, []).append(fault)
        pulled = _readable(lambda: read_pulled(self.store, self.run_plan, self.plan_id))
        if pulled is not None:
            return RepairPlan(
                self.run,
                self.faults,
                pull_from=pulled.source or "SOURCE",
                by_hand=("this is a partial copy: pulling again replaces what is damaged",),
            )
        blocks = self._blocks(by_kind)
        restore = self._statics(by_kind.get("static", []))
        extract_again = bool(blocks or restore)
        rebuilds_seal = bool(by_kind.get("seal") or by_kind.get("commit")) and self.is_sealed
        if by_kind.get("manifest"):
            self.writes[self.keys.manifest] = self._manifest().to_json().encode()
        if by_kind.get("store"):
            self.writes[STORE_KEY] = self.store.info.to_json().encode()
        self._other_faults(by_kind)
        rebuild = [*self.writes]
        if extract_again and self.is_sealed:
            self.remove.append(self.keys.seal)
        elif rebuilds_seal:
            rebuild.append(self.keys.seal)
        if by_kind.get("catalog") and not extract_again:
            rebuild.append(CATALOG_KEY)
        spans = [self.run_plan.block_rows(block) for block in blocks]
        ids = self._text_ids()
        return RepairPlan(
            run=self.run,
            faults=self.faults,
            blocks=tuple(blocks),
            rows=tuple((span.start, span.stop) for span in spans),
            text_ids=tuple(i for span in spans for i in ids[span]),
            extract_again=extract_again,
            remove=tuple(dict.fromkeys(self.remove)),
            rebuild=tuple(rebuild),
            by_hand=tuple(self.by_hand),
            _writes=self.writes,
        )

    def _blocks(self, by_kind: dict[str, list[Fault]]) -> list[int]:
        """Return the blocks to extract again; commit records that a seal can replace are not."""
        size = self.run_plan.rows_per_block
        lost = {fault.rows[0] // size for fault in by_kind.get("chunk", []) if fault.rows}
        for fault in by_kind.get("commit", []):
            block = int(fault.key.removeprefix("commits/").removesuffix(".json"))
            record = self._decided(block) or self._sealed_commit(block)
            if record is None:
                lost.add(block)
            elif block not in lost:
                self.writes[self.keys.commit(block)] = record.to_json(indent=None).encode()
        for fault in by_kind.get("decision", []):
            block = int(fault.key.removeprefix("decisions/").removesuffix(".json"))
            commit = _readable(partial(self.store.read_commit, self.run, block))
            if commit is None:
                self.remove.append(self.keys.decision(block))
            elif block not in lost:
                decision = BlockDecision(commit=commit, staged_in=f"{block}-0")
                data = decision.to_json(indent=None).encode()
                self.writes[self.keys.decision(block)] = data
        for block in sorted(lost):
            self.remove.append(self.keys.commit(block))
            self.remove += self._traces(block)
            for key in (self.keys.commit(block), self.keys.decision(block)):
                self.writes.pop(key, None)
        return sorted(lost)

    def _traces(self, block: int) -> list[str]:
        """Return what the writers of a block left: it would decide about the block again."""
        found = []
        for part in ("claims", "decisions"):
            folder = f"{self.keys.folder}/{part}"
            names = self.store.backend.children(folder)
            found += [f"{folder}/{name}" for name in names if name.partition(".")[0] == str(block)]
        return found

    def _decided(self, block: int) -> BlockCommit | None:
        """Return the commit record of a block as its writer decided on it."""
        decision = _readable(
            lambda: read_decision(self.store, self.run_plan, block, plan_id=self.plan_id)
        )
        return decision.commit if decision else None

    def _sealed_commit(self, block: int) -> BlockCommit | None:
        """Return a commit record of what the seal has of a block, None where it has not all."""
        sealed = {info.key: info for info in self.seal.objects} if self.seal else {}
        keys = block_keys(self.run_plan, block)
        if not all(key in sealed for key in keys):
            return None
        rows = self.run_plan.block_rows(block)
        return BlockCommit(
            plan_id=self.plan_id,
            block=block,
            row_start=rows.start,
            row_stop=rows.stop,
            objects=tuple(sealed[key] for key in keys),
            writer="repair",
            committed_at=now(),
            environment=describe_environment([]),
            notes={"repair": "made again from seal.json; the objects are those of the seal"},
        )

    def _statics(self, faults: list[Fault]) -> list[str]:
        """Return the keys that only the extraction can write again; rebuild the others."""
        sealed = {info.key: info.sha256 for info in self.seal.objects} if self.seal else {}
        candidates = self._candidates()
        restore = []
        for fault in faults:
            key = self.keys.object(fault.key)
            fitting = [
                data
                for data in candidates.get(fault.key, [])
                if not sealed or hashlib.sha256(data).hexdigest() == sealed.get(fault.key)
            ]
            if fitting:
                self.writes[key] = fitting[0]
            elif fault.rows is None:
                restore.append(fault.key)
                self.remove.append(key)
            else:
                self.by_hand.append(
                    f"{fault.key}: {fault.reason}; what was stored is what was committed, so the "
                    "run was written with wrong coordinates: extract it under another id"
                )
        return restore

    def _candidates(self) -> dict[str, list[bytes]]:
        """Return metadata as it must have been, by key below ``data.zarr``."""
        plan = self.run_plan
        found = {f"{n}/{METADATA_NAME}": [to_bytes(d)] for n, d in plan_metadata(plan).items()}
        for seal in (self.seal, None):
            statics = _readable(
                partial(read_statics, self.store, plan, self.plan_id, seal=seal, partial=False)
            )
            documents = statics.documents if statics else {}
            arrays = {name: document for name, document in documents.items() if name}
            arrays = {**self._sealed_documents(), **arrays}
            for name, document in arrays.items():
                found.setdefault(f"{name}/{METADATA_NAME}", []).append(to_bytes(document))
            names = self._coordinates(statics)
            consolidated = {**plan_metadata(plan), **arrays}
            for metadata in (consolidated, None):
                group = group_metadata(
                    plan, plan_id=self.plan_id, coordinates=names, consolidated=metadata
                )
                found.setdefault(METADATA_NAME, []).append(to_bytes(group))
        if self.seal is None and self.is_sealed:
            found[METADATA_NAME].reverse()
        return found

    def _sealed_documents(self) -> Documents:
        """Return the documents of arrays that are still what was sealed."""
        found: Documents = {}
        for info in self.seal.objects if self.seal else ():
            name, _, rest = info.key.partition("/")
            if rest != METADATA_NAME:
                continue
            key = self.keys.object(info.key)
            data = _readable(partial(self.store.backend.get, key, max_bytes=METADATA_BYTES))
            if data is not None and hashlib.sha256(data).hexdigest() == info.sha256:
                document = partial(parse_document, data, where=key, node_type="array")
                if (parsed := _readable(document)) is not None:
                    found[name] = parsed
        return found

    def _coordinates(self, statics: Statics | None) -> list[str]:
        """Return the names of the coordinates, from whatever still tells them."""
        planned = {spec.name for spec in self.run_plan.arrays} | {"text", "layer", ""}
        names = {info.key.partition("/")[0] for info in self.seal.objects} if self.seal else set()
        names |= set(statics.documents) if statics else set()
        return sorted(name for name in names - planned if name != METADATA_NAME)

    def _manifest(self) -> RunManifest:
        commits = [
            commit
            for block in self.store.committed_blocks(self.run)
            if (commit := _readable(partial(self.store.read_commit, self.run, block)))
        ]
        first = min(commits, key=lambda commit: commit.committed_at, default=None)
        return new_manifest(
            self.run_plan,
            plan_id=self.plan_id,
            created_at=first.committed_at if first else now(),
            environment=first.environment if first else describe_environment([]),
        )

    def _other_faults(self, by_kind: dict[str, list[Fault]]) -> None:
        for fault in by_kind.get("stranger", []):
            self.by_hand.append(f"{fault.key} is no part of the run; nothing removes it for you")
        for fault in by_kind.get("pulled", []):
            self.by_hand.append(f"{fault.key}: pull the run again")
        if by_kind.get("corpus"):
            name = self.run_plan.corpus
            self.by_hand.append(
                f"corpus {name!r}: {by_kind['corpus'][0].reason}; remove corpora/{name} and run "
                "the extraction again with the texts as they were (it writes the corpus, and "
                "leaves committed blocks as they are)"
            )

    def _text_ids(self) -> list[str]:
        read_all = partial(read_statics, self.store, self.run_plan, self.plan_id)
        statics = _readable(partial(read_all, seal=self.seal, partial=False))
        if statics is None or "text" not in statics.documents:
            return []
        read = partial(read_text_ids, self.store, self.run_plan, statics.documents)
        return _readable(read) or []


def _seal_again(store: Store, run_id: str) -> Seal:
    """Seal a run whose seal or commit records were damaged, from the objects that lie there."""
    plan, plan_id = store.read_plan_and_id(run_id)
    keys = RunKeys(run_id)
    seal = _readable(lambda: store.read_seal(run_id))
    if seal is not None:
        commits = commits_digest(store.read_commits(run_id))
        seal = seal.model_copy(update={"commits_digest": commits, "sealed_at": now()})
        store.backend.put(keys.seal, seal.to_json(indent=None).encode())
        return seal
    statics = read_statics(store, plan, plan_id, seal=None, partial=False)
    if statics.faults:
        msg = f"run {run_id!r} in {store.url} cannot be sealed again: {statics.faults[0]}"
        raise CorruptError(msg)
    static = [
        object_info(key, store.backend.get(keys.object(key), max_bytes=2**31) or b"")
        for key in sorted(statics.keys - {METADATA_NAME})
    ]
    names = sorted(set(statics.documents) - {spec.name for spec in plan.arrays} - {"text", "layer"})
    group = group_metadata(plan, plan_id=plan_id, coordinates=names, consolidated=statics.documents)
    store.backend.delete(keys.seal)
    return seal_run(store, plan, plan_id=plan_id, static=static, group=to_bytes(group))


def _readable(read: Callable[[], _FoundT]) -> _FoundT | None:
    """Return what ``read`` returns, None where it is damaged."""
    try:
        return read()
    except (CorruptError, InvalidInputError):
        return None
