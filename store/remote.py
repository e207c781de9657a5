"""The storage seam over any fsspec file system: S3 and its like."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ..schemas import StorageError
from .backend import FULL, Data, bounded, check_key
from .failures import Failure, storage_error
from .location import Location

__all__ = ["FsspecBackend"]

_EXISTS_CODES = {"PreconditionFailed", "412"}
# By name: they belong to botocore and aiohttp, which are only loaded where they are used.
_TIMEOUTS = {"ConnectTimeoutError", "ReadTimeoutError", "ServerTimeoutError", "TimeoutException"}
_CONNECTION_ERRORS = {
    "ClientConnectionError",
    "ClientPayloadError",  # a body that ended early
    "ConnectError",
    "ConnectionClosedError",
    "EndpointConnectionError",
    "HTTPClientError",
    "IncompleteReadError",
    "ResponseParserError",
    "ResponseStreamingError",
}


class FsspecBackend:
    """Any fsspec file system whose PUT is atomic (every object store's is)."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self._opened: Any = None
        self._pid = 0
        self._inherited: Any = None  # of a parent process: closing it here would wait for ever

    def __reduce__(self) -> tuple[type[FsspecBackend], tuple[Location]]:
        # A Dask worker opens its own connections.
        return type(self), (self.location,)

    @property
    def _fs(self) -> Any:  # fsspec is untyped  # noqa: ANN401
        if self._opened is None or self._pid != os.getpid():  # a connection is not forked
            import fsspec

            try:
                self._inherited = self._opened
                options = {k: v for k, v in self.location.options.items() if k != "client"}
                self._opened = fsspec.filesystem(self.location.scheme, **options)
                self._pid = os.getpid()
                if hasattr(self._opened, "retries"):
                    self._opened.retries = 1  # store.retry repeats, and knows that it did
            except (ValueError, ImportError) as err:
                msg = (
                    f"cannot open {self.location.url}: {self.location.scrub(str(err))}; "
                    "check the scheme of the URL and that its fsspec package is installed"
                )
                raise StorageError(msg) from err
        return self._opened

    def _path(self, key: str) -> str:
        root = self.location.root
        return "/".join(p for p in (root, check_key(key) if key else "") if p)

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except _remote_errors() as err:
            raise storage_error(_failure(err), doing=doing, location=self.location) from err

    def get(
        self, key: str, *, max_bytes: int, timeout_seconds: float | None = None
    ) -> bytes | None:
        """Return the object's bytes with one ranged GET, or None."""
        fs, path = self._fs, self._path(key)
        limits = {"start": 0, "end": max_bytes + 1}  # with an end, s3fs sends no HEAD first
        with self._errors(f"reading {key}"):
            try:
                if timeout_seconds is not None and fs.async_impl:
                    from fsspec.asyn import sync

                    data = sync(fs.loop, fs._cat_file, path, timeout=timeout_seconds, **limits)
                else:
                    data = fs.cat_file(path, **limits)
            except (OSError, ValueError) as err:
                data = _absent_or_empty(err)
        return None if data is None else bounded(bytes(data), key=key, max_bytes=max_bytes)

    async def get_async(self, key: str, *, max_bytes: int) -> bytes | None:
        """Return the object's bytes; the request runs on fsspec's own event loop."""
        fs = self._fs
        if not fs.async_impl:
            return await asyncio.to_thread(self.get, key, max_bytes=max_bytes)
        request = fs._cat_file(self._path(key), start=0, end=max_bytes + 1)
        with self._errors(f"reading {key}"):
            try:
                data = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(request, fs.loop))
            except (OSError, ValueError) as err:
                data = _absent_or_empty(err)
        return None if data is None else bounded(bytes(data), key=key, max_bytes=max_bytes)

    def put(self, key: str, data: Data) -> None:
        """PUT the object."""
        with self._errors(f"writing {key}"):
            try:
                self._fs.pipe_file(self._path(key), bytes(data))  # all that fsspec takes
            except NotImplementedError as err:
                msg = f"{self.location.url} cannot be written to; give a folder or an object store"
                raise StorageError(msg) from err

    def create(self, key: str, data: Data) -> bool:
        """PUT the object with ``If-None-Match: *`` (or what the file system has for that)."""
        with self._errors(f"creating {key}"):
            try:
                self._fs.pipe_file(self._path(key), bytes(data), mode="create")
            except FileExistsError:
                return False
            except OSError as err:
                if _error_code(err) in _EXISTS_CODES:
                    return False
                if _error_code(err) in {"NotImplemented", "501"}:
                    msg = f"{self.location.url} refuses create-only PUTs"
                    raise NotImplementedError(msg) from err
                raise
        return True

    def delete(self, key: str) -> None:
        """Delete the object if it is there."""
        with self._errors(f"deleting {key}"), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(key))

    def size(self, key: str) -> int | None:
        """Return the object's size from a HEAD, or None."""
        with self._errors(f"reading {key}"):
            try:
                info = self._fs.info(self._path(key))
            except FileNotFoundError as err:
                _absent_or_empty(err)
                return None
        return int(info["size"]) if info["type"] == "file" else None

    def walk(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Yield every object of the prefix."""
        root = self._path(prefix)
        with self._errors(f"listing {prefix or 'the store'}"):
            found = self._fs.find(root, detail=True)
        for path, info in sorted(found.items()):
            name = _below(path, root)
            if name and info["type"] == "file":
                yield f"{prefix}/{name}" if prefix else name, int(info["size"])

    def children(self, prefix: str) -> list[str]:
        """Return the names right below the prefix, by one listing with a delimiter."""
        root = self._path(prefix)
        with self._errors(f"listing {prefix or 'the store'}"):
            try:
                entries = self._fs.ls(root, detail=False)
            except FileNotFoundError as err:
                _absent_or_empty(err)
                return []
        return sorted({name.partition("/")[0] for e in entries if (name := _below(e, root))})

    def clean(self, prefix: str) -> int:
        """Return 0: an object store keeps nothing of an unfinished PUT under its key."""
        del prefix
        return 0


def _below(path: str, root: str) -> str:
    """Return ``path`` relative to ``root``; file systems differ in leading slashes."""
    path, root = path.strip("/"), root.strip("/")
    if not root:
        return path
    return path.removeprefix(root + "/") if path.startswith(root + "/") else ""


def _error_code(err: BaseException) -> str:
    """Return the S3 error code behind an exception of s3fs, or an empty string."""
    response = getattr(err.__cause__, "response", None) or getattr(err, "response", None)
    if not isinstance(response, dict):
        return ""
    return str(response.get("Error", {}).get("Code", ""))


def _absent_or_empty(err: Exception) -> bytes | None:
    """Return None for an absent object and b"" for an empty one; raise every other error."""
    code = _error_code(err)
    if code in {"InvalidRange", "416"}:  # no byte of an empty object can be asked for
        return b""
    if isinstance(err, FileNotFoundError) and code != "NoSuchBucket":
        return None
    raise err


def _remote_errors() -> tuple[type[BaseException], ...]:
    """Return what file systems raise for failures of the storage, of those that are loaded."""
    names = (
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("aiohttp", "ClientError"),
        ("httpx", "HTTPError"),  # of hf://
        ("httpx2", "HTTPError"),
        ("gcsfs.retry", "HttpError"),
        ("azure.core.exceptions", "AzureError"),
    )
    found = [getattr(sys.modules[m], n) for m, n in names if m in sys.modules]
    return (OSError, TimeoutError, ValueError, *found)  # ValueError: a malformed endpoint


def _failure(err: BaseException) -> Failure:
    """Return what an exception of a file system says, in words that both S3 clients share."""
    code, status = _error_code(err), _status(err)
    said = str(err) or type(err).__name__
    if isinstance(err, PermissionError):
        return Failure("answer", said=said, code=code or "AccessDenied", status=status)
    if type(err).__name__ == "NoCredentialsError":
        return Failure("credentials", said=said)
    if isinstance(err, OSError) and err.errno in FULL:
        return Failure("full", said=said)
    if code or status:
        return Failure("answer", said=said, code=code, status=status)
    chain = {kind.__name__ for e in (err, err.__cause__) if e for kind in type(e).__mro__}
    if isinstance(err, TimeoutError) or chain & _TIMEOUTS:
        return Failure("timeout", said=said)
    if isinstance(err, ConnectionError) or chain & _CONNECTION_ERRORS:
        return Failure("connection", said=said)
    return Failure("other", said=said)


def _status(err: BaseException) -> int:
    """Return the HTTP status behind an exception, or 0."""
    for found in (err, err.__cause__):
        response = getattr(found, "response", None)
        if isinstance(response, dict):
            return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        status = getattr(found, "status", None)  # aiohttp's ClientResponseError
        if isinstance(status, int):
            return status
    return 0
