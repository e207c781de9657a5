"""The storage seam over obstore: S3 without a HEAD before each GET, outside Python's lock."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..schemas import CorruptError, StorageError
from .backend import Backend, Data, TransientError, check_key
from .failures import Failure, storage_error
from .location import Location
from .s3_options import obstore_settings

if TYPE_CHECKING:
    from obstore.store import S3Store

__all__ = ["ObstoreBackend"]

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_SAID = re.compile(r"<Message>(.*?)</Message>", re.DOTALL)
_NO_RETRIES = {  # store.retry repeats, and knows that it did
    "max_retries": 0,
    "retry_timeout": timedelta(seconds=1),
    "backoff": {},
}


class ObstoreBackend:
    """An S3 bucket through obstore. Make one only where ``obstore_settings`` is not None."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self._opened: S3Store | None = None

    def __reduce__(self) -> tuple[Callable[[Location], Backend], tuple[Location]]:
        # A Dask worker opens its own connections, and may have been forked.
        from .clients import s3_backend

        return s3_backend, (self.location,)

    @property
    def _store(self) -> S3Store:
        if self._opened is None:
            self._opened = self._open(timeout_seconds=60)
        return self._opened

    def _open(self, *, timeout_seconds: float) -> S3Store:
        from obstore.store import S3Store

        settings = obstore_settings(self.location)
        if settings is None:
            msg = (
                f"{self.location.url}: these options cannot be given to obstore any more; "
                "set ACTLAKE_S3_CLIENT=s3fs"
            )
            raise StorageError(msg)
        settled: dict[str, Any] = {
            "region": settings.region,
            "virtual_hosted_style_request": settings.virtual_hosted,
        }
        if settings.endpoint:
            settled["endpoint"] = settings.endpoint
        if settings.credentials is None:
            settled["skip_signature"] = True
        else:
            settled["credential_provider"] = settings.credentials
        return S3Store(
            settings.bucket,
            prefix=settings.prefix or None,
            client_options={
                "allow_http": True,  # the endpoint says which
                "connect_timeout": timedelta(seconds=min(4, timeout_seconds)),
                "read_timeout": timedelta(seconds=timeout_seconds),
                "timeout": timedelta(seconds=max(timeout_seconds, 600)),
            },
            retry_config=_NO_RETRIES,  # type: ignore[arg-type]
            **settled,
        )

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError, ValueError) as err:
            # The server's answer alone: obstore's text goes on with its own internals.
            raise storage_error(_failure(err), doing=doing, location=self.location) from None

    def get(
        self, key: str, *, max_bytes: int, timeout_seconds: float | None = None
    ) -> bytes | None:
        """Return the object's bytes with one GET; its size is known before the body is read."""
        store = self._store
        if timeout_seconds is not None:
            # Settings are a client's, not a request's; this one is used for the first contact.
            store = self._open(timeout_seconds=max(0.1, timeout_seconds))
        with self._errors(f"reading {key}"):
            try:
                found = store.get(check_key(key))
            except FileNotFoundError as err:
                _absent(err)
                return None
            self._check_size(found.meta["size"], key=key, max_bytes=max_bytes)
            data = found.bytes().to_bytes()
        return self._whole(data, found.meta["size"], key=key)

    async def get_async(self, key: str, *, max_bytes: int) -> bytes | None:
        """Return the object's bytes, without blocking the event loop."""
        with self._errors(f"reading {key}"):
            try:
                found = await self._store.get_async(check_key(key))
            except FileNotFoundError as err:
                _absent(err)
                return None
            self._check_size(found.meta["size"], key=key, max_bytes=max_bytes)
            data = (await found.bytes_async()).to_bytes()
        return self._whole(data, found.meta["size"], key=key)

    def _check_size(self, size: int, *, key: str, max_bytes: int) -> None:
        if size > max_bytes:
            msg = (
                f"{key} in {self.location.url} has {size} bytes, expected at most {max_bytes}; "
                "it was not read"
            )
            raise CorruptError(msg)

    def _whole(self, data: bytes, size: int, *, key: str) -> bytes:
        if len(data) != size:
            msg = f"reading {key} at {self.location.url}: got {len(data)} of {size} bytes"
            raise TransientError(msg)
        return data

    def put(self, key: str, data: Data) -> None:
        """PUT the object."""
        with self._errors(f"writing {key}"):
            self._store.put(check_key(key), data, use_multipart=False)

    def create(self, key: str, data: Data) -> bool:
        """PUT the object with ``If-None-Match: *``."""
        from obstore.exceptions import AlreadyExistsError, NotSupportedError

        with self._errors(f"creating {key}"):
            try:
                self._store.put(check_key(key), data, mode="create", use_multipart=False)
            except AlreadyExistsError as err:
                if _failure(err).status == 409:  # two at once, undecided: to be repeated
                    raise
                return False
            except NotSupportedError as err:
                msg = f"{self.location.url} refuses create-only PUTs"
                raise NotImplementedError(msg) from err
        return True

    def delete(self, key: str) -> None:
        """Delete the object if it is there."""
        with self._errors(f"deleting {key}"):
            try:
                self._store.delete(check_key(key))
            except FileNotFoundError as err:
                _absent(err)

    def size(self, key: str) -> int | None:
        """Return the object's size from a HEAD, or None."""
        with self._errors(f"reading {key}"):
            try:
                return int(self._store.head(check_key(key))["size"])
            except FileNotFoundError as err:
                _absent(err)
                return None

    def walk(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Yield every object of the prefix."""
        where = check_key(prefix) if prefix else None
        with self._errors(f"listing {prefix or 'the store'}"):
            pages = list(self._store.list(where))
        found = ((entry["path"], int(entry["size"])) for page in pages for entry in page)
        yield from sorted((path, size) for path, size in found if not path.endswith("/"))

    def children(self, prefix: str) -> list[str]:
        """Return the names right below the prefix, by one listing with a delimiter."""
        where = check_key(prefix) if prefix else None
        with self._errors(f"listing {prefix or 'the store'}"):
            found = self._store.list_with_delimiter(where)
        paths = [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]
        start = len(prefix) + 1 if prefix else 0
        return sorted({name for path in paths if (name := path[start:].strip("/"))})

    def clean(self, prefix: str) -> int:
        """Return 0: an object store keeps nothing of an unfinished PUT under its key."""
        del prefix
        return 0


def _absent(err: Exception) -> None:
    """Raise ``err`` again where not the object but its bucket is absent."""
    if _failure(err).code == "NoSuchBucket":
        raise err


def _failure(err: BaseException) -> Failure:
    """Return what an exception of obstore says, in words that both S3 clients share."""
    text = str(err)
    status, code, said = (pattern.search(text) for pattern in (_STATUS, _CODE, _SAID))
    if status:
        return Failure(
            "answer",
            said=said[1] if said else f"HTTP status {status[1]}",
            code=code[1] if code else "",
            status=int(status[1]),
        )
    head = text.partition("\n")[0]
    if isinstance(err, TimeoutError) or re.search(r"time(d )?out|TimedOut|Elapsed", text):
        return Failure("timeout", said=head)
    if "HTTP error" in text or "error sending request" in text or "error decoding" in text:
        return Failure("connection", said=head)
    return Failure("other", said=head)
