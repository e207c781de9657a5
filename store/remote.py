"""The storage seam over any fsspec file system: S3 and its like."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ..schemas import StorageError
from .backend import FULL, NoSpaceError, bounded, check_key
from .location import Location

__all__ = ["FsspecBackend"]

_EXISTS_CODES = {"PreconditionFailed", "ConditionalRequestConflict", "412"}
_CHECK = "check the endpoint, the credentials and the bucket name"


class FsspecBackend:
    """Any fsspec file system whose PUT is atomic (every object store's is)."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self._opened: Any = None

    def __reduce__(self) -> tuple[type[FsspecBackend], tuple[Location]]:
        # A Dask worker opens its own connections.
        return type(self), (self.location,)

    @property
    def _fs(self) -> Any:  # fsspec is untyped  # noqa: ANN401
        if self._opened is None:
            import fsspec

            try:
                self._opened = fsspec.filesystem(self.location.scheme, **self.location.options)
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
            raise _explain(err, doing=doing, location=self.location) from err

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

    def put(self, key: str, data: bytes) -> None:
        """PUT the object."""
        with self._errors(f"writing {key}"):
            try:
                self._fs.pipe_file(self._path(key), data)
            except NotImplementedError as err:
                msg = f"{self.location.url} cannot be written to; give a folder or an object store"
                raise StorageError(msg) from err

    def create(self, key: str, data: bytes) -> bool:
        """PUT the object with ``If-None-Match: *`` (or what the file system has for that)."""
        with self._errors(f"creating {key}"):
            try:
                self._fs.pipe_file(self._path(key), data, mode="create")
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
        ("gcsfs.retry", "HttpError"),
        ("azure.core.exceptions", "AzureError"),
    )
    found = [getattr(sys.modules[m], n) for m, n in names if m in sys.modules]
    return (OSError, TimeoutError, ValueError, *found)  # ValueError: a malformed endpoint


def _explain(err: BaseException, *, doing: str, location: Location) -> StorageError:
    """Return the StorageError that says what failed, where, and what to check."""
    code = _error_code(err)
    what = f"{doing} at {location.url} failed"
    said = location.scrub(" ".join(str(err).split()))[:300]
    if code == "NoSuchBucket":
        return StorageError(f"{what}: the bucket does not exist; create it or {_CHECK}")
    if isinstance(err, PermissionError) or code in {"403", "AccessDenied"}:
        return StorageError(
            f"{what}: the server refused the request ({said or code}); check the credentials "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or storage_options), their rights on the "
            "bucket and the bucket name"
        )
    name = type(err).__name__
    if name == "NoCredentialsError":
        return StorageError(
            f"{what}: no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or pass storage_options (anon=True for a public bucket)"
        )
    if isinstance(err, OSError) and err.errno in FULL:
        return NoSpaceError(f"{what}: {said}; free some space and run the same command again")
    if isinstance(err, TimeoutError):
        return StorageError(f"{what}: no answer in time; {_CHECK}, and the network")
    return StorageError(f"{what}: {said or name}; {_CHECK}")
