"""Results of stages in the store: made on one machine, read on the others.

A result is a folder of files that is found by what it was made from. Its record is created
last, so that a reader sees all of its files or none, and nothing is ever overwritten.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..schemas import (
    CorruptError,
    InvalidInputError,
    ObjectInfo,
    StageResult,
    StorageError,
    digest_json,
)
from ..schemas.errors import ActlakeError
from .backend import check_key
from .clock import now
from .store import Store

__all__ = ["fetch_result", "find_result", "publish_result", "stored_results"]

FILE_BYTES = 2**31  # one file of a result: tables, figures, directions
_RECORD = "result.json"
_CONCURRENCY = 16


def find_result(
    store: Store, made_from: Mapping[str, Any], *, subject: str, stage: str
) -> StageResult | None:
    """Return the record of a result that was made from ``made_from``, None where there is none.

    Raises
    ------
    CorruptError
        If the record cannot be read, or is that of another result.
    """
    digest = digest_json(dict(made_from))
    folder = _folder(subject, stage, digest)
    record = store.read_record(StageResult, f"{folder}/{_RECORD}")
    if record is None:
        return None
    if (record.subject, record.stage, record.made_from_digest) != (subject, stage, digest):
        msg = f"{folder}/{_RECORD} in {store.url} is of another result; remove that folder"
        raise CorruptError(msg)
    return record


def publish_result(
    store: Store,
    folder: Path,
    *,
    subject: str,
    stage: str,
    made_from: Mapping[str, Any],
    actlake: str,
    seconds: float,
) -> StageResult:
    """Store the files below ``folder`` as the result that was made from ``made_from``.

    Where another machine was faster, its result stays and is returned.

    Raises
    ------
    InvalidInputError
        If a file's name cannot be a key, or a file is larger than 2 GiB.
    StorageError
        If the store cannot be written.
    """
    digest = digest_json(dict(made_from))
    target = _folder(subject, stage, digest)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())

    def upload(path: Path) -> ObjectInfo:
        name = path.relative_to(folder).as_posix()
        size = path.stat().st_size
        if size > FILE_BYTES:
            msg = f"{path}: {size} bytes; a file of a result has at most {FILE_BYTES}"
            raise InvalidInputError(msg)
        data = path.read_bytes()
        info = ObjectInfo(key=name, n_bytes=size, sha256=hashlib.sha256(data).hexdigest())
        store.backend.put(_file_key(target, info), data)
        return info

    with ThreadPoolExecutor(_CONCURRENCY) as pool:
        files = tuple(pool.map(upload, paths))
    record = StageResult(
        subject=subject,
        stage=stage,
        made_from=dict(made_from),
        made_from_digest=digest,
        files=files,
        actlake=actlake,
        seconds=round(seconds, 3),
        created_at=now(),
    )
    store.create(f"{target}/{_RECORD}", record.to_json().encode())
    there = find_result(store, made_from, subject=subject, stage=stage)
    if there is None:
        msg = f"{target}/{_RECORD} was stored in {store.url} and is not there; check the server"
        raise StorageError(msg)
    return there


def fetch_result(store: Store, record: StageResult, folder: Path) -> Path:
    """Write the files of a result into ``folder``, which must not hold other files.

    Raises
    ------
    CorruptError
        If a file is missing, or not what was stored. That file is not written; of the others
        some may be, so let a folder count only when this has returned.
    """
    source = _folder(record.subject, record.stage, record.made_from_digest)

    def download(info: ObjectInfo) -> None:
        key = _file_key(source, info)
        if info.n_bytes > FILE_BYTES:
            msg = f"{key} in {store.url} claims {info.n_bytes} bytes; at most {FILE_BYTES} are read"
            raise CorruptError(msg)
        data = store.backend.get(key, max_bytes=info.n_bytes)
        if data is None or hashlib.sha256(data).hexdigest() != info.sha256:
            what = "is missing" if data is None else "is not what was stored"
            msg = f"{key} in {store.url} {what}; remove {source} and run the stage again"
            raise CorruptError(msg)
        path = folder / info.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    with ThreadPoolExecutor(_CONCURRENCY) as pool:
        list(pool.map(download, record.files))
    return folder


def stored_results(store: Store) -> list[StageResult]:
    """Return the records of all results in the store that can be read, by subject and stage."""
    found = []
    for key, _ in store.backend.walk("results"):
        if key.endswith(f"/{_RECORD}") and "/files/" not in key:
            try:
                record = store.read_record(StageResult, key)
            except ActlakeError:
                continue  # who asks for this very result is told
            if record is not None:
                found.append(record)
    return sorted(found, key=lambda r: (r.subject, r.stage, r.created_at))


def _folder(subject: str, stage: str, digest: str) -> str:
    return check_key(f"results/{subject}/{stage}/{digest.removeprefix('sha256:')[:24]}")


def _file_key(folder: str, info: ObjectInfo) -> str:
    """Return a key of its own per content: two makers of one result never mix their files."""
    return check_key(f"{folder}/files/{info.sha256[:16]}/{info.key}")
