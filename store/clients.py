"""Which client reaches a location: the one choice behind the storage seam."""

from __future__ import annotations

import importlib.util
import os
import sys
import weakref

from ..schemas import InvalidInputError
from .backend import Backend
from .local import LocalBackend
from .location import Location
from .retry import RetryingBackend

__all__ = ["CLIENT_VARIABLE", "open_backend", "s3_backend", "s3_client"]

CLIENT_VARIABLE = "ACTLAKE_S3_CLIENT"
_CLIENTS = ("obstore", "s3fs")
_USING_OBSTORE: weakref.WeakSet[RetryingBackend] = weakref.WeakSet()
_FORKED: list[int] = []  # not empty in a forked child of a process that had loaded obstore


def open_backend(location: Location) -> Backend:
    """Return the backend for ``location``; nothing is contacted yet.

    Raises
    ------
    InvalidInputError
        If the S3 client that is asked for is not one of those known.
    """
    if location.is_local:
        return LocalBackend(location)
    if location.scheme in {"s3", "s3a"} and s3_client(location) == "obstore":
        backend = RetryingBackend(s3_backend(location))
        _USING_OBSTORE.add(backend)
        return backend
    from .remote import FsspecBackend

    return RetryingBackend(FsspecBackend(location))


def s3_backend(location: Location) -> Backend:
    """Return the obstore backend, or in a forked child, where obstore hangs, that of s3fs."""
    if _FORKED:
        from .remote import FsspecBackend

        return FsspecBackend(location)
    from .obstore import ObstoreBackend

    return ObstoreBackend(location)


def s3_client(location: Location) -> str:
    """Return the S3 client that ``location`` gets: ``obstore`` or ``s3fs``.

    The storage option ``client`` wins over the environment variable ACTLAKE_S3_CLIENT; the
    default is the faster one (docs/s3-clients.md). Options that obstore has no word for are
    honoured by s3fs.
    """
    wanted = location.options.get("client") or os.environ.get(CLIENT_VARIABLE) or _CLIENTS[0]
    if wanted not in _CLIENTS:
        msg = f"the S3 client {str(wanted)[:40]!r} is not known; expected obstore or s3fs"
        raise InvalidInputError(msg)
    if wanted == "s3fs" or _FORKED or importlib.util.find_spec("obstore") is None:
        return "s3fs"
    from .s3_options import obstore_settings

    return "obstore" if obstore_settings(location) else "s3fs"


def _after_fork() -> None:
    """Give up obstore in a forked child: the threads of its runtime stayed in the parent."""
    if "obstore" in sys.modules:
        _FORKED.append(os.getpid())
        for backend in list(_USING_OBSTORE):
            backend.inner = s3_backend(backend.location)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
