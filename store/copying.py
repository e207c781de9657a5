"""One run on its way from a store to another: what is copied, checked, and in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from ..schemas import (
    AlreadyExistsError,
    BlockCommit,
    CorpusInfo,
    CorruptError,
    IncompleteError,
    InvalidInputError,
    Pulled,
    RunManifest,
    Seal,
    texts_digest,
)
from .backend import check_key
from .codec import crc_matches
from .commits import check_commit
from .corpora import parse_texts
from .documents import chunk_limits
from .layout import METADATA_NAME
from .metadata import METADATA_BYTES
from .partial import (
    Coverage,
    coverage_keys,
    coverage_of,
    is_whole,
    no_coverage,
    pulled_key,
    read_pulled,
    sealed_root_key,
    shown_root,
    to_parts,
)
from .run_claim import OBJECT_BYTES
from .selection import SourceRun
from .store import SEAL_BYTES, Store
from .stored_corpora import CORPUS_BYTES, RECORD_BYTES

__all__ = ["RunCopy", "Transfer"]

_Done = Callable[[int, int], None]


@dataclass(frozen=True)
class Transfer:
    """What a pull or push did with one run; bytes are those of objects below ``data.zarr``."""

    run: str
    whole: bool
    n_copied: int
    n_kept: int
    n_bytes_copied: int


class RunCopy:
    """One run on its way from a store to another.

    The order makes an interruption harmless: ``pulled.json`` comes first and says what is
    complete, records and coordinates follow, then objects, and last the new ``pulled.json``, or
    none where everything is here now.
    """

    def __init__(
        self,
        run: SourceRun,
        target: Store,
        wanted: Coverage,
        *,
        concurrency: int,
        on_object: _Done,
    ) -> None:
        self.run = run
        self.plan = run.plan
        self.source = run.store.backend
        self.target = target
        self.wanted = wanted
        self.concurrency = concurrency
        self.on_object = on_object
        self.keys = target.keys(run.plan.run)
        self.limits = chunk_limits(run.documents)
        folder = self.keys.data
        found = target.backend.walk(folder)
        self.sizes = {key.removeprefix(folder + "/"): size for key, size in found}

    def copy(self) -> Transfer:
        """Copy the run; return what was done."""
        self.target.backend.clean(self.keys.folder)
        before = self._before()
        wanted = self.wanted
        held = {name: mask | wanted[name] for name, mask in before.items()} if before else wanted
        ordinary = before is None and self.target.backend.size(self.keys.manifest) is not None
        if ordinary and not is_whole(self.plan, wanted, blocks=self.run.blocks):
            self._check_ordinary()
        if not ordinary:
            self._write_pulled(before if before is not None else no_coverage(self.plan))
        self._copy_corpus()
        self._copy_json(self.keys.plan, lambda data: _sha256(data) == self.run.plan_id[7:])
        copied = kept = n_bytes = 0
        jobs = [*self._static_jobs(held), *self._chunk_jobs()]
        for done, size in enumerate(self._in_parallel(jobs), start=1):
            copied += size is not None
            kept += size is None
            n_bytes += size or 0
            self.on_object(done, len(jobs))
        blocks = {*self.run.blocks, *self.target.committed_blocks(self.plan.run)}
        whole = ordinary or is_whole(self.plan, held, blocks=blocks)
        if self.run.seal is not None:
            self._write_root(held, whole=whole)
        self._copy_records()
        if not whole:
            self._write_pulled(held)
        else:
            self.target.backend.delete(pulled_key(self.plan.run))
            self.target.backend.delete(sealed_root_key(self.plan.run))
        return Transfer(self.plan.run, whole, copied, kept, n_bytes)

    def _before(self) -> Coverage | None:
        """Return what a partial copy in the target holds; refuse another run of that name."""
        if self.target.backend.size(self.keys.plan) is None:
            record = self.target.read_record(Pulled, pulled_key(self.plan.run))
            there = None if record is None else record.plan_id
        else:
            there = self.target.read_plan_and_id(self.plan.run)[1]
            record = None
        if there not in {None, self.run.plan_id}:
            raise self._other(how=f"plan {there}, expected {self.run.plan_id}")
        if there is not None:
            record = read_pulled(self.target, self.plan, self.run.plan_id)
        seal, mine = self.target.read_seal(self.plan.run), self.run.seal
        if seal is not None and (mine is None or seal.tree_digest != mine.tree_digest):
            raise self._other(how=f"sealed as {seal.tree_digest}")
        if seal is None:
            for block in self.target.committed_blocks(self.plan.run):
                theirs = self.target.read_commit(self.plan.run, block)
                ours = self.run.store.read_commit(self.plan.run, block)
                if ours is not None and theirs != ours:
                    raise self._other(how=f"block {block} was committed by another writer")
        return None if record is None else coverage_of(self.plan, record, where=self.target.url)

    def _other(self, *, how: str) -> AlreadyExistsError:
        run, url = self.plan.run, self.target.url
        return AlreadyExistsError(
            f"{url} holds another run {run!r} than {self.run.store.url} ({how}); choose another "
            f"target, or delete {self.keys.folder} there"
        )

    def _check_ordinary(self) -> None:
        """Raise where parts would be copied into a run that its writer has not finished."""
        if self.target.read_seal(self.plan.run) is None:
            msg = (
                f"run {self.plan.run!r} in {self.target.url} is an extraction that is not "
                "finished; copy all layers and pools of it, or choose another target"
            )
            raise IncompleteError(msg)

    # -- what is copied

    def _copy_corpus(self) -> None:
        """Copy the corpus where the source has it and the target has not."""
        folder = f"corpora/{self.plan.corpus}"
        key, table = check_key(f"{folder}/corpus.json"), f"{folder}/texts.parquet"
        data = self.source.get(key, max_bytes=RECORD_BYTES)
        info = self.run.store.read_record(CorpusInfo, key)
        if data is None or info is None:
            return
        there = self.target.read_record(CorpusInfo, key)
        if there is not None:
            if there.texts_digest != info.texts_digest:
                msg = (
                    f"{self.target.url} holds other texts under corpus {info.id!r}; choose "
                    "another target"
                )
                raise AlreadyExistsError(msg)
            return
        where = f"{table} in {self.run.store.url}"
        texts = self.source.get(table, max_bytes=CORPUS_BYTES) or b""
        found = parse_texts(texts, where=where, n_texts=info.n_texts)
        if texts_digest(found) != info.texts_digest:
            msg = f"{where} holds other texts than its corpus.json says"
            raise CorruptError(msg)
        self.target.backend.put(table, texts)
        self.target.create(key, data)

    def _copy_json(
        self, key: str, is_right: Callable[[bytes], bool], *, max_bytes: int = RECORD_BYTES
    ) -> None:
        """Copy a record, byte for byte, where it is not there yet."""
        if self.target.backend.size(key) is not None:
            return
        data = self.source.get(key, max_bytes=max_bytes)
        try:
            right = data is not None and is_right(data)
        except InvalidInputError:  # not such a record at all
            right = False
        if data is None or not right:
            msg = f"{key} in {self.run.store.url} is not what the run says of it; verify that store"
            raise CorruptError(msg)
        self.target.create(key, data)

    def _copy_records(self) -> None:
        """Copy commit records, seal and manifest; by then their objects are there.

        A sealed run keeps all commit records, since its seal covers them.
        """
        wanted = self.wanted.values()
        blocks = self.run.blocks
        if self.run.seal is None:
            blocks = [b for b in blocks if any(mask[:, b].any() for mask in wanted)]
        for _ in self._in_parallel([(self._commit_job, block) for block in blocks]):
            pass
        where = self.run.store.url
        if self.run.seal is not None:

            def is_seal(data: bytes) -> bool:
                return Seal.parse_json(data, where=where) == self.run.seal

            self._copy_json(self.keys.seal, is_seal, max_bytes=SEAL_BYTES)

        def is_manifest(data: bytes) -> bool:
            return RunManifest.parse_json(data, where=where).plan_id == self.run.plan_id

        self._copy_json(self.keys.manifest, is_manifest)

    def _commit_job(self, block: int) -> None:
        where = self.run.store.url

        def is_commit(data: bytes) -> bool:
            commit = BlockCommit.parse_json(data, where=where)
            check_commit(self.plan, commit, plan_id=self.run.plan_id, where=where)
            return commit.block == block and all(
                self.run.objects.get(info.key) == info for info in commit.objects
            )

        self._copy_json(self.keys.commit(block), is_commit)

    def _static_jobs(self, held: Coverage) -> Iterator[tuple[Callable[..., Any], Any]]:
        """Yield the copies of metadata and coordinates, but for the sealed group's document."""
        planned = {spec.name for spec in self.plan.arrays}
        for key in self.run.static_keys:
            name = key.partition("/")[0]
            if key == METADATA_NAME and self.run.seal is not None:
                continue
            if self.run.seal is not None and name in planned and not held[name].any():
                continue
            yield self._static_job, key

    def _chunk_jobs(self) -> Iterator[tuple[Callable[..., Any], Any]]:
        for key in coverage_keys(self.plan, self.wanted):
            yield self._object_job, key

    # -- one object

    def _object_job(self, key: str) -> int | None:
        """Copy an object of the manifest; return its size, None where it was there already."""
        info = self.run.objects[key]
        limit = METADATA_BYTES
        if not key.endswith(METADATA_NAME):
            # Codecs add a few bytes to what they cannot shrink.
            limit = min(OBJECT_BYTES, 2 * self.limits[key.partition("/")[0]] + 4096)
        full = check_key(self.keys.object(key))
        if info.n_bytes > limit:
            msg = f"{full} in {self.run.store.url} claims {info.n_bytes} bytes, at most {limit}"
            raise CorruptError(msg)
        if self.sizes.get(key) == info.n_bytes:
            there = self.target.backend.get(full, max_bytes=info.n_bytes)
            if there is not None and _sha256(there) == info.sha256:
                return None
        data = self.source.get(full, max_bytes=info.n_bytes)
        wrong = None
        if data is None:
            wrong = "is missing"
        elif len(data) != info.n_bytes:
            wrong = f"has {len(data)} bytes, expected {info.n_bytes}"
        elif _sha256(data) != info.sha256:
            wrong = "does not hash to what its manifest says"
        if data is None or wrong:
            msg = f"{full} in {self.run.store.url} {wrong}; it was not copied: verify that store"
            raise CorruptError(msg)
        self.target.backend.put(full, data)
        return len(data)

    def _static_job(self, key: str) -> int | None:
        """Copy metadata or a coordinate: by the manifest, or as checked where none is yet."""
        if key in self.run.objects:
            return self._object_job(key)
        full = check_key(self.keys.object(key))
        name = key.partition("/")[0]
        limit = METADATA_BYTES if key.endswith(METADATA_NAME) else 2 * self.limits[name] + 4096
        if key in self.sizes:
            return None
        data = self.source.get(full, max_bytes=limit)
        is_metadata = key.endswith(METADATA_NAME)
        if data is None or (not is_metadata and not crc_matches(data)):
            wrong = "is missing" if data is None else "does not match its checksum"
            msg = f"{full} in {self.run.store.url} {wrong}; it was not copied: verify that store"
            raise CorruptError(msg)
        self.target.backend.put(full, data)
        return len(data)

    def _in_parallel(self, jobs: Iterable[tuple[Callable[..., Any], Any]]) -> Iterator[Any]:
        """Yield the jobs' results; never more than ``concurrency`` objects are held."""
        waiting: set[Future[Any]] = set()
        with ThreadPoolExecutor(self.concurrency) as pool:
            try:
                for function, argument in jobs:
                    waiting.add(pool.submit(function, argument))
                    if len(waiting) >= 2 * self.concurrency:
                        ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                        yield from (future.result() for future in ready)
                yield from (future.result() for future in waiting)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    # -- the record of what is there

    def _write_pulled(self, held: Coverage) -> None:
        source = self.run.store.location
        record = Pulled(
            run=self.plan.run,
            plan_id=self.run.plan_id,
            source="" if source.is_local else source.url,
            parts=to_parts(self.plan, held),
        )
        data = record.to_json(indent=None).encode()
        self.target.backend.put(pulled_key(self.plan.run), data)

    def _write_root(self, held: Coverage, *, whole: bool) -> None:
        """Put the sealed document of the group in place, or beside it in a partial copy."""
        info = self.run.objects[METADATA_NAME]
        root = self.source.get(self.run.root_key, max_bytes=METADATA_BYTES)
        if root is None or _sha256(root) != info.sha256:
            msg = f"{self.run.root_key} in {self.run.store.url} is not what was sealed"
            raise CorruptError(msg)
        shown = root
        if not whole:
            self.target.backend.put(sealed_root_key(self.plan.run), root)
            shown = shown_root(root, self.plan.run, held)
        self.target.backend.put(self.keys.object(METADATA_NAME), shown)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
