"""Verifying a run: every stored byte against what was committed and sealed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable

from ..schemas import (
    BlockCommit,
    CorruptError,
    InvalidInputError,
    NotFoundError,
    ObjectInfo,
    RunManifest,
    RunPlan,
    Seal,
    StoreInfo,
    Text,
)
from .blocks import block_keys, place_of_key, rows_of_key
from .catalog import catalog_entry, read_catalog
from .commits import check_commit
from .consistency import continuation_faults, draw, each, repeated_texts, seal_faults
from .contents import Contents, object_limit
from .deciding import read_decision
from .faults import Fault, FaultKind, VerifyReport
from .layout import CATALOG_KEY, METADATA_NAME, STORE_KEY, RunKeys
from .metadata import METADATA_BYTES, STATIC_KEY
from .notes import nonfinite_rows
from .partial import coverage_of, has_key, pulled_key, read_pulled, sealed_root_key, shown_root
from .store import Store
from .stored_coordinates import Statics, read_statics

__all__ = ["Fault", "VerifyReport", "verify_run"]

_SHARED = ("run", "corpus", "model", "tokenizer", "capture", "n_texts", "n_tokens", "seed")


def verify_run(
    store: Store,
    run_id: str,
    *,
    layers: Collection[int] | None = None,
    sample: float | None = None,
    full: bool = False,
    seed: int = 0,
) -> VerifyReport:
    """Fetch the objects of a run and hold their bytes against what was committed and sealed.

    The records (plan, manifest, commits, seal, catalog, ``store.json``, the corpus where the
    store has it), all metadata and all coordinates are always verified whole. Of an unsealed run
    the committed objects are verified; of a partial copy those that were pulled.

    Parameters
    ----------
    store, run_id
        The run, or one of the parts that were appended to it (see ``part_names``).
    layers
        Of the activations only these layers (block indices of the model).
    sample
        Of the activations only this share of the objects, above 0 and at most 1, drawn with
        ``seed``.
    full
        Also decode every chunk: its checksum, its size, finite values in every row (or NaN
        where the commit record notes it) and NaN past the last one, norms that are not negative;
        and hold the coordinates against each other, the plan and the corpus.
    seed
        The seed of the draw.

    Raises
    ------
    NotFoundError
        If there is no such run.
    InvalidInputError
        If a layer is not in the run or ``sample`` is not a share.
    """
    if sample is not None and not 0 < sample <= 1:
        msg = f"sample must be a share above 0 and at most 1, got {sample}"
        raise InvalidInputError(msg)
    try:
        plan, plan_id = store.read_plan_and_id(run_id)
    except CorruptError as err:
        fault = Fault("plan.json", str(err), kind="plan")
        return VerifyReport(run=run_id, sealed=False, n_objects=0, n_bytes=0, faults=(fault,))
    return _Verification(store, plan, plan_id, full=full).report(layers, sample, seed=seed)


class _Verification:
    """One pass over a run; faults are collected, nothing raises for what is damaged."""

    def __init__(self, store: Store, plan: RunPlan, plan_id: str, *, full: bool) -> None:
        self.store, self.plan, self.plan_id, self.full = store, plan, plan_id, full
        self.keys = RunKeys(plan.run)
        self.faults: list[Fault] = []
        self.planned = {key for block in range(plan.n_blocks) for key in block_keys(plan, block)}

    def report(
        self, layers: Collection[int] | None, sample: float | None, *, seed: int
    ) -> VerifyReport:
        plan = self.plan
        chosen = _known_layers(plan, layers)
        self._check_manifest()
        self.faults += continuation_faults(self.store, plan)
        self._check_store()
        seal, is_sealed = self._read_seal()
        commits = self._read_commits()
        self._check_decisions(commits)
        holds = self._coverage()
        partial = holds is not None
        if seal is not None:
            self.faults += seal_faults(plan, self.plan_id, seal=seal, commits=commits)
            objects = self._known(seal.objects)
        else:
            objects = self._known([info for commit in commits for info in commit.objects])
        held = [info for info in objects if holds is None or holds(info.key)]
        statics = read_statics(self.store, plan, self.plan_id, seal=seal, partial=partial)
        data = [info for info in held if info.key in self.planned]
        checked = [info for info in held if info.key not in self.planned]
        if layers is not None:
            data = [info for info in data if self._layer(info.key) in {None, *chosen}]
        checked += draw(data, sample, seed=seed)
        contents = Contents(self.store, plan, statics.documents) if self.full else None
        if contents is not None:
            contents.allow_nan(nonfinite_rows(commits))
        found = each(
            lambda info: self._object(info, contents, partial=partial),
            checked,
            n_threads=8 if self.store.location.is_local else 32,
        )
        self.faults += [fault for fault in found if fault is not None]
        self.faults += statics.faults
        if partial and seal is not None:
            self._check_shown_root()
        there = self._check_strangers(objects, statics)
        if partial and seal is not None:
            # A pull that was killed leaves objects that its record does not name yet.
            rest_keys = there - {info.key for info in held}
            rest = [info for info in objects if info.key in rest_keys]
            self.faults += [f for info in rest if (f := self._object(info, None, partial=True))]
        texts = self._check_corpus()
        if contents is not None:
            self.faults += contents.coordinate_faults(texts)
            self.faults += repeated_texts(self.store, plan, statics.documents)
        self._check_catalog(seal, is_sealed=is_sealed)
        return VerifyReport(
            run=plan.run,
            sealed=is_sealed,
            n_objects=len(checked) + statics.n_objects,
            n_bytes=sum(info.n_bytes for info in checked) + statics.n_bytes,
            faults=_first_of_each_key(self.faults),
        )

    def _fault(self, key: str, reason: object, *, kind: FaultKind) -> None:
        self.faults.append(Fault(key, str(reason), kind=kind))

    # -- records

    def _check_manifest(self) -> None:
        try:
            manifest = self.store.read_record(RunManifest, self.keys.manifest)
        except CorruptError as err:
            self._fault("run.json", err, kind="manifest")
            return
        if manifest is None:
            self._fault("run.json", "missing", kind="manifest")
            return
        plan = self.plan
        planned = {name: getattr(plan, name, None) for name in _SHARED}
        planned |= {"plan_id": self.plan_id, "n_layers": len(plan.layers)}
        planned["hidden_size"] = plan.model.hidden_size
        wrong = [name for name, value in planned.items() if getattr(manifest, name) != value]
        if wrong:
            self._fault("run.json", f"its {', '.join(wrong)} is not the plan's", kind="manifest")

    def _check_store(self) -> None:
        try:
            if self.store.read_record(StoreInfo, STORE_KEY) is None:
                self._fault(STORE_KEY, "missing", kind="store")
        except CorruptError as err:
            self._fault(STORE_KEY, err, kind="store")

    def _read_seal(self) -> tuple[Seal | None, bool]:
        """Return the seal where it can be read, and whether there is one."""
        try:
            seal = self.store.read_seal(self.plan.run)
        except CorruptError as err:
            self._fault("seal.json", err, kind="seal")
            return None, True
        return seal, seal is not None

    def _read_commits(self) -> list[BlockCommit]:
        """Return the readable commit records of the plan; each other one is a fault."""
        plan, commits = self.plan, []
        names = self.store.backend.children(self.keys.commits)
        known = {f"{block}.json" for block in range(plan.n_blocks)}
        for name in names:
            if name not in known:
                self._fault(
                    f"commits/{name}", "no block of the plan has this name", kind="stranger"
                )

        def read(block: int) -> BlockCommit | Fault | None:
            try:
                commit = self.store.read_commit(plan.run, block)
                if commit is not None:
                    check_commit(plan, commit, plan_id=self.plan_id, where=self.store.url)
            except CorruptError as err:
                rows = plan.block_rows(block)
                held = (rows.start, rows.stop)
                return Fault(f"commits/{block}.json", str(err), held, kind="commit")
            return commit

        blocks = sorted(int(name.removesuffix(".json")) for name in names if name in known)
        for found in each(read, blocks, n_threads=16):
            if isinstance(found, Fault):
                self.faults.append(found)
            elif found is not None:
                commits.append(found)
        return commits

    def _check_decisions(self, commits: list[BlockCommit]) -> None:
        """Check what writers decided; a block may have no such record, as in a copy."""
        committed = {commit.block: commit for commit in commits}
        known = {f"{block}.json": block for block in range(self.plan.n_blocks)}
        for name in self.store.backend.children(self.keys.decision(0).rpartition("/")[0]):
            block, reason = known.get(name), None
            if block is None:
                self._fault(f"decisions/{name}", "no block has this name", kind="stranger")
                continue
            try:
                found = read_decision(self.store, self.plan, block, plan_id=self.plan_id)
                if found is not None and committed.get(block, found.commit) != found.commit:
                    reason = "it is not what was committed"
            except CorruptError as err:
                reason = str(err)
            if reason:
                rows = self.plan.block_rows(block)
                held = (rows.start, rows.stop)
                self.faults.append(Fault(f"decisions/{name}", reason, held, kind="decision"))

    def _coverage(self) -> Callable[[str], bool] | None:
        """Return what says of a key whether a partial copy holds it, None for a whole run."""
        plan, name = self.plan, pulled_key(self.plan.run).rpartition("/")[2]
        try:
            record = read_pulled(self.store, plan, self.plan_id)
            if record is None:
                return None
            held = coverage_of(plan, record, where=self.store.url)
        except CorruptError as err:
            self._fault(name, err, kind="pulled")
            return None
        return lambda key: has_key(plan, held, key)

    def _known(self, objects: Iterable[ObjectInfo]) -> list[ObjectInfo]:
        """Return the objects whose keys and sizes can be; each other one is a fault."""
        known = []
        for info in objects:
            limit = object_limit(self.plan, info.key)
            if info.key not in self.planned and not STATIC_KEY.fullmatch(info.key):
                reason = f"it lists the key {repr(info.key)[:100]}, which no run has"
                self._fault("seal.json", reason, kind="seal")
            elif info.n_bytes > limit:
                reason = f"it was committed with {info.n_bytes} bytes, at most {limit} can be"
                self.faults.append(self._object_reason(info.key, reason))
            else:
                known.append(info)
        return known

    # -- objects

    def _object(
        self, info: ObjectInfo, contents: Contents | None, *, partial: bool
    ) -> Fault | None:
        key = self.keys.object(info.key)
        if partial and info.key == METADATA_NAME:
            key = sealed_root_key(self.plan.run)
        reason, data = _object_fault(self.store, key, info)
        is_data = info.key in self.planned
        if contents is not None and data is not None and is_data:
            reason = contents.chunk_fault(info.key, data)
        if reason is None:
            return None
        return self._object_reason(info.key, reason)

    def _object_reason(self, key: str, reason: str) -> Fault:
        """Return the fault of an object, with the rows and the layer that it holds."""
        if key not in self.planned:
            return Fault(key, reason, kind="static")
        return Fault(key, reason, rows_of_key(self.plan, key), self._layer(key))

    def _layer(self, key: str) -> int | None:
        """Return the layer that an object of a block holds, None where it holds all of them."""
        place = place_of_key(self.plan, key)
        if place is None or place.layer is None:
            return None
        return self.plan.layers_of(place.spec)[place.layer]

    def _check_strangers(self, objects: list[ObjectInfo], statics: Statics) -> set[str]:
        """Return the keys inside ``data.zarr``; report those that the run does not have."""
        # A writer that was killed leaves objects of blocks that it did not commit.
        allowed = {info.key for info in objects} | statics.keys | self.planned | {METADATA_NAME}
        folder = self.keys.data + "/"
        there = {key.removeprefix(folder) for key, _ in self.store.backend.walk(self.keys.data)}
        for name in sorted(there - allowed):
            self._fault(name, "it belongs to no array of the run", kind="stranger")
        return there

    # -- what the store has beside the run

    def _check_corpus(self) -> list[Text] | None:
        name = self.plan.corpus
        place = f"corpora/{name}"
        try:
            if not self.store.backend.children(place):
                return None
            info, texts = self.store.read_corpus(name)
        except (CorruptError, NotFoundError) as err:
            self._fault(place, err, kind="corpus")
            return None
        except InvalidInputError:
            return None  # an id that no corpus of a store can have
        if info.texts_digest != self.plan.corpus_digest:
            reason = "these are not the texts that the run was made with"
            self._fault(f"{place}/corpus.json", reason, kind="corpus")
            return None
        return texts

    def _check_catalog(self, seal: Seal | None, *, is_sealed: bool) -> None:
        try:
            catalog = read_catalog(self.store)
        except CorruptError as err:
            self._fault(CATALOG_KEY, err, kind="catalog")
            return
        listed = [entry for entry in catalog.runs if entry.run == self.plan.run]
        if is_sealed and (seal is None or any(fault.kind == "manifest" for fault in self.faults)):
            return
        manifest = self.store.read_manifest(self.plan.run) if seal else None
        entry = catalog_entry(manifest, seal) if manifest and seal else None
        if listed != ([entry] if entry else []):
            reason = f"it does not show run {self.plan.run!r} as it is; sealing again rebuilds it"
            self._fault(CATALOG_KEY, reason, kind="catalog")

    def _check_shown_root(self) -> None:
        """Check the group's document of a partial copy: the sealed one, shortened."""
        plan = self.plan
        try:
            record = read_pulled(self.store, plan, self.plan_id)
            sealed = self.store.backend.get(sealed_root_key(plan.run), max_bytes=METADATA_BYTES)
            shown = self.store.backend.get(
                self.keys.object(METADATA_NAME), max_bytes=METADATA_BYTES
            )
        except CorruptError as err:
            self._fault(METADATA_NAME, err, kind="static")
            return
        if record is None or sealed is None:
            return  # said already
        held = coverage_of(plan, record, where=self.store.url)
        try:
            expected = shown_root(sealed, plan.run, held)
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # its hash is wrong, which was said already
        if shown != expected:
            self._fault(METADATA_NAME, "it does not show what was pulled", kind="static")


def _object_fault(store: Store, key: str, info: ObjectInfo) -> tuple[str | None, bytes | None]:
    """Return what is wrong with a stored object, and its bytes where nothing is."""
    try:
        data = store.backend.get(key, max_bytes=info.n_bytes)
    except CorruptError:
        return f"larger than the {info.n_bytes} bytes that were committed", None
    if data is None:
        return "missing", None
    if len(data) != info.n_bytes:
        return f"{len(data)} bytes, {info.n_bytes} were committed", None
    if hashlib.sha256(data).hexdigest() != info.sha256:
        return "its sha256 is not the committed one", None
    return None, data


def _known_layers(plan: RunPlan, layers: Collection[int] | None) -> set[int]:
    unknown = sorted(set(layers or ()) - set(plan.layers))
    if unknown:
        msg = f"run {plan.run!r} has no layers {unknown}; it has {list(plan.layers)}"
        raise InvalidInputError(msg)
    return set(layers or ())


def _first_of_each_key(faults: list[Fault]) -> tuple[Fault, ...]:
    """Return one fault per object, the first that was found; of the seal all."""
    found: dict[tuple[str, str], Fault] = {}
    for fault in faults:
        found.setdefault((fault.key, fault.reason if fault.kind == "seal" else ""), fault)
    return tuple(found.values())
