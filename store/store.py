"""A store: runs and corpora below one URL."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from .._version import __version__
from ..schemas import (
    AlreadyExistsError,
    BlockCommit,
    CorpusInfo,
    CorruptError,
    EnvironmentInfo,
    InvalidInputError,
    NotFoundError,
    Pulled,
    Record,
    RunManifest,
    RunPlan,
    Seal,
    StoreInfo,
    Text,
)
from .appending import appended_part
from .backend import Backend, Data
from .catalog import read_catalog
from .clients import open_backend
from .clock import now
from .input_checks import check_plan
from .layout import STORE_KEY, RunKeys
from .location import Location, parse_location
from .metadata import MAX_OBJECTS, check_bounds
from .partial import pulled_key, read_pulled
from .stored_corpora import NAME, RECORD_BYTES, near_known, read_corpus, write_corpus
from .writer import RunWriter

__all__ = ["Store", "create_store", "open_store", "preview_store"]

FIRST_CONTACT_SECONDS = 20.0
SEAL_BYTES = 256 * 2**20  # an entry is about 150 bytes: see MAX_OBJECTS
_RUN = re.compile(NAME.pattern[:-1] + r"(~[1-9]\d{0,2})?$")  # with the number of a part
_RecordT = TypeVar("_RecordT", bound=Record)


def create_store(
    url: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None
) -> Store:
    """Create a store at ``url``, or open the one that is there.

    Whether the server honours create-only PUTs is probed and recorded in ``store.json``.

    Raises
    ------
    StorageError
        If the storage cannot be reached or written.
    """
    location = parse_location(url, storage_options=storage_options)
    backend = open_backend(location)
    found = backend.get(STORE_KEY, max_bytes=RECORD_BYTES, timeout_seconds=FIRST_CONTACT_SECONDS)
    if found is None:
        info = StoreInfo(
            created_at=now(),
            created_by=f"actlake {__version__}",
            create_only=_probe_create_only(backend),
        )
        data = info.to_json().encode()
        if not info.create_only:
            backend.put(STORE_KEY, data)
        elif not backend.create(STORE_KEY, data):
            return open_store(url, storage_options=storage_options)
        return Store(location, backend=backend, info=info)
    return Store(location, backend=backend, info=_parse_store(found, location))


def open_store(
    url: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None
) -> Store:
    """Open the store at ``url``.

    Raises
    ------
    NotFoundError
        If no store lies there.
    StorageError
        If the storage cannot be reached.
    """
    location = parse_location(url, storage_options=storage_options)
    backend = open_backend(location)
    found = backend.get(STORE_KEY, max_bytes=RECORD_BYTES, timeout_seconds=FIRST_CONTACT_SECONDS)
    if found is None:
        msg = (
            f"no store at {location.url}: there is no {STORE_KEY}; check the path (it is the "
            "folder that holds 'runs'), or create the store first"
        )
        raise NotFoundError(msg)
    return Store(location, backend=backend, info=_parse_store(found, location))


def preview_store(
    url: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None
) -> Store:
    """Open the store at ``url``; where there is none, return it empty, as it would be made.

    Nothing is written.

    Raises
    ------
    StorageError
        If the storage cannot be reached.
    """
    try:
        return open_store(url, storage_options=storage_options)
    except NotFoundError:
        location = parse_location(url, storage_options=storage_options)
        info = StoreInfo(created_at=now(), created_by=f"actlake {__version__}", create_only=False)
        return Store(location, backend=open_backend(location), info=info)


class Store:
    """Runs and corpora below one URL; open one with ``open_store`` or ``create_store``."""

    def __init__(self, location: Location, *, backend: Backend, info: StoreInfo) -> None:
        self.location = location
        self.backend = backend
        self.info = info

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    @property
    def url(self) -> str:
        """The store's URL, without secrets."""
        return self.location.url

    # -- what is there

    def run_ids(self) -> list[str]:
        """Return the ids of all created runs, sorted; over plain HTTP those of the catalog.

        Parts that were appended to a run are not among them: see :func:`part_names`.
        """
        if self.location.scheme in {"http", "https"}:
            return [entry.run for entry in read_catalog(self).runs if "~" not in entry.run]
        names = [n for n in self.backend.children("runs") if NAME.fullmatch(n)]
        with ThreadPoolExecutor(8) as pool:
            sizes = list(pool.map(lambda n: self.backend.size(RunKeys(n).manifest), names))
        return [n for n, size in zip(names, sizes, strict=True) if size is not None]

    def corpus_ids(self) -> list[str]:
        """Return the ids of all corpora, sorted; over plain HTTP those of the catalog."""
        if self.location.scheme in {"http", "https"}:
            return list(read_catalog(self).corpora)
        return [n for n in self.backend.children("corpora") if NAME.fullmatch(n)]

    def read_plan(self, run_id: str) -> RunPlan:
        """Return the plan of a run; raise NotFoundError, or CorruptError."""
        return self.read_plan_and_id(run_id)[0]

    def read_plan_and_id(self, run_id: str) -> tuple[RunPlan, str]:
        """Return the plan of a run and the plan id: the hash of the plan's stored bytes."""
        key = self.keys(run_id).plan
        data = self.backend.get(key, max_bytes=RECORD_BYTES)
        if data is None:
            raise self._no_run(run_id)
        plan = self.parse_record(RunPlan, data, key=key)
        check_bounds(plan, where=f"{key} in {self.url}")
        if plan.run != run_id:
            msg = f"{key} in {self.url} is the plan of run {plan.run!r}, expected {run_id!r}"
            raise CorruptError(msg)
        return plan, "sha256:" + hashlib.sha256(data).hexdigest()

    def read_manifest(self, run_id: str) -> RunManifest:
        """Return the manifest of a run; raise NotFoundError, or CorruptError."""
        manifest = self.read_record(RunManifest, self.keys(run_id).manifest)
        if manifest is None:
            raise self._no_run(run_id)
        return manifest

    def read_seal(self, run_id: str) -> Seal | None:
        """Return the seal of a run, None where it is not sealed."""
        return self.read_record(Seal, self.keys(run_id).seal, max_bytes=SEAL_BYTES)

    def read_pulled(self, run_id: str) -> Pulled | None:
        """Return the record of what a partial copy of a run holds, None where it is whole."""
        plan, plan_id = self.read_plan_and_id(run_id)
        return read_pulled(self, plan, plan_id)

    def read_commits(self, run_id: str) -> list[BlockCommit]:
        """Return the commit records of a run in block order; raise CorruptError."""
        blocks = self.committed_blocks(run_id)
        if blocks and blocks[-1] >= MAX_OBJECTS:
            msg = f"run {run_id!r} in {self.url} has a commit record of block {blocks[-1]}"
            raise CorruptError(msg)
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda block: self.read_commit(run_id, block), blocks))
        return [commit for commit in found if commit is not None]

    def committed_blocks(self, run_id: str) -> list[int]:
        """Return the committed blocks of a run, sorted, from one listing."""
        names = self.backend.children(self.keys(run_id).commits)
        return sorted(int(m[1]) for n in names if (m := re.fullmatch(r"(\d{1,12})\.json", n)))

    def read_commit(self, run_id: str, block: int) -> BlockCommit | None:
        """Return one commit record, None where the block is not committed."""
        key = self.keys(run_id).commit(block)
        commit = self.read_record(BlockCommit, key)
        if commit is not None and commit.block != block:
            msg = f"{key} in {self.url} is the record of block {commit.block}"
            raise CorruptError(msg)
        return commit

    # -- corpora

    def write_corpus(self, info: CorpusInfo, texts: Sequence[Text]) -> None:
        """Write a corpus, or do nothing where the same texts are there already.

        Raises
        ------
        AlreadyExistsError
            If other texts lie under this id.
        InvalidInputError
            If the number of texts is not what ``info`` says.
        """
        write_corpus(self, info, texts)

    def read_corpus(self, corpus_id: str) -> tuple[CorpusInfo, list[Text]]:
        """Return a corpus: its info and its texts; raise NotFoundError, or CorruptError."""
        return read_corpus(self, corpus_id)

    # -- writing

    def create_run(
        self,
        plan: RunPlan,
        *,
        coords: Mapping[str, np.ndarray[Any, Any]],
        environment: EnvironmentInfo,
        token_data: Mapping[str, np.ndarray[Any, Any]] | None = None,
    ) -> RunWriter:
        """Create a run, or resume the run of the same plan.

        Parameters
        ----------
        plan
            Everything that is fixed before the first forward pass.
        coords
            One-dimensional arrays over the texts by name, among them ``text`` (the ids);
            ``layer`` defaults to the plan's layers.
        environment
            The software and hardware that writes.
        token_data
            ``token_id`` (token,) and ``token_offset`` (text + 1,); where given,
            ``token_response`` and ``token_special`` (token,) bool, and ``token_start`` and
            ``token_stop`` (token,) int32: [start, stop) in the characters of the response, −1
            of a token that holds none of them.

        Raises
        ------
        AlreadyExistsError
            If another plan, or other coordinates, lie under this run id.
        InvalidInputError
            If plan and coordinates do not fit each other. Nothing was written.
        """
        if plan.continues is not None:
            msg = f"run {plan.run!r} is a part of another run: append it with append_run"
            raise InvalidInputError(msg)
        return self._create(plan, coords, environment, token_data=token_data)

    def append_run(
        self,
        plan: RunPlan,
        *,
        coords: Mapping[str, np.ndarray[Any, Any]],
        environment: EnvironmentInfo,
        token_data: Mapping[str, np.ndarray[Any, Any]] | None = None,
    ) -> RunWriter:
        """Append texts to a run as a part of it, or resume an append that was begun.

        Nothing that the run has is touched, whether it is sealed or not. Readers see the new
        texts once their part is sealed, and until then the run as it was.

        Parameters
        ----------
        plan
            The plan of the new texts alone, under the name of the run: everything but the texts,
            the blocks and the batches as the run has it. The writer's plan is this one with the
            name of the part.
        coords, environment, token_data
            See :meth:`create_run`.

        Raises
        ------
        NotFoundError
            If there is no such run.
        AlreadyExistsError
            If the run was made with another model, tokenizer, capture, or other arrays (the keys
            are named), if it has some of the texts already (they are named), or if an append of
            other texts was begun and is not finished.
        InvalidInputError
            If plan and coordinates do not fit each other. Nothing was written.
        """
        part = appended_part(self, plan, ids=[str(name) for name in coords.get("text", ())])
        return self._create(part, coords, environment, token_data=token_data)

    def _create(
        self,
        plan: RunPlan,
        coords: Mapping[str, np.ndarray[Any, Any]],
        environment: EnvironmentInfo,
        *,
        token_data: Mapping[str, np.ndarray[Any, Any]] | None,
    ) -> RunWriter:
        if self.backend.size(pulled_key(plan.run)) is not None:
            msg = (
                f"run {plan.run!r} in {self.url} is a partial copy, nothing is extracted into it; "
                "pull the rest of it, or give this run another id"
            )
            raise AlreadyExistsError(msg)
        check_plan(plan)
        try:
            check_bounds(plan, where=f"run {plan.run!r}")
        except CorruptError as err:
            raise InvalidInputError(str(err)) from err
        return RunWriter.create(
            self, plan, coords=coords, environment=environment, token_data=token_data or {}
        )

    def create(self, key: str, data: Data) -> bool:
        """Store an object only if none is there; return whether this call stored it.

        On a server that ignores the condition this checks and then writes: safe as long as no
        two workers write the same key, which the static split of blocks guarantees.
        """
        if self.info.create_only:
            return self.backend.create(key, data)
        if self.backend.size(key) is not None:
            return False
        self.backend.put(key, data)
        return True

    def keys(self, run_id: str) -> RunKeys:
        """Return the keys of a run; raise InvalidInputError for an impossible id."""
        if not _RUN.fullmatch(run_id):
            msg = f"{run_id!r} cannot be a run id; expected letters, digits and . _ - + @"
            raise InvalidInputError(msg)
        return RunKeys(run_id)

    def read_record(
        self, record: type[_RecordT], key: str, *, max_bytes: int = RECORD_BYTES
    ) -> _RecordT | None:
        """Return the record under ``key``, None where there is none; raise CorruptError."""
        data = self.backend.get(key, max_bytes=max_bytes)
        return None if data is None else self.parse_record(record, data, key=key)

    def parse_record(self, record: type[_RecordT], data: bytes, *, key: str) -> _RecordT:
        """Return the record that ``data``, read from ``key``, holds; raise CorruptError."""
        return _parse_record(record, data, where=f"{key} in {self.url}")

    def _no_run(self, run_id: str) -> NotFoundError:
        near = near_known(run_id, self.run_ids(), kind="runs")
        return NotFoundError(f"no run {run_id!r} in {self.url}{near}")


def _parse_store(data: bytes, location: Location) -> StoreInfo:
    return _parse_record(StoreInfo, data, where=f"{STORE_KEY} in {location.url}")


def _parse_record(record: type[_RecordT], data: bytes, *, where: str) -> _RecordT:
    """Return a record of the store; what cannot be read is corrupt, a newer version is not."""
    try:
        return record.parse_stored(data, where=where)
    except InvalidInputError as err:
        raise CorruptError(str(err)) from err


def _probe_create_only(backend: Backend) -> bool:
    """Return whether a second create-only PUT of one key is refused, as it must be."""
    key = f"probe-{uuid.uuid4().hex}"
    try:
        return backend.create(key, b"1") and not backend.create(key, b"2")
    except NotImplementedError:
        return False
    finally:
        backend.delete(key)
