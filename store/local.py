"""The storage seam over a folder of this machine."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..schemas import StorageError
from .backend import FULL, Data, NoSpaceError, bounded, check_key
from .location import Location

__all__ = ["LocalBackend"]

_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
_TEMPORARY = re.compile(r"\.tmp-(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{32}$")


class LocalBackend:
    """A folder. Objects are written beside their place, synced, and moved there."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self._root = Path(location.root)

    def _path(self, key: str) -> Path:
        return self._root / check_key(key) if key else self._root

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            what = f"{doing} at {self.location.url} failed: {err.strerror or err}"
            if err.errno in FULL:
                msg = f"{what}; free some space and run the same command again"
                raise NoSpaceError(msg) from err
            msg = f"{what}; check that the folder exists, its permissions and the disk"
            raise StorageError(msg) from err

    def get(
        self, key: str, *, max_bytes: int, timeout_seconds: float | None = None
    ) -> bytes | None:
        """Return the file's bytes, or None; ``timeout_seconds`` has no meaning here."""
        del timeout_seconds
        with self._errors(f"reading {key}"):
            try:
                with self._path(key).open("rb") as file:
                    data = file.read(max_bytes + 1)
            except (FileNotFoundError, NotADirectoryError):
                return None
        return bounded(data, key=key, max_bytes=max_bytes)

    async def get_async(self, key: str, *, max_bytes: int) -> bytes | None:
        """Return the file's bytes, read in a thread."""
        return await asyncio.to_thread(self.get, key, max_bytes=max_bytes)

    def put(self, key: str, data: Data) -> None:
        """Write a temporary file, sync it and move it into place."""
        with self._errors(f"writing {key}"):
            temporary, path = self._write_beside(key, data)
            try:
                temporary.replace(path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
            _sync_folder(path.parent)

    def create(self, key: str, data: Data) -> bool:
        """Write a temporary file, sync it and hard-link it to its name, if that name is free.

        Raises
        ------
        NotImplementedError
            If the file system has no hard links: then nothing is create-only here.
        """
        with self._errors(f"creating {key}"):
            temporary, path = self._write_beside(key, data)
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError as err:
                if err.errno in _NO_HARD_LINKS:
                    msg = f"{self.location.url} has no hard links"
                    raise NotImplementedError(msg) from err
                raise
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(path.parent)
            return True

    def _write_beside(self, key: str, data: Data) -> tuple[Path, Path]:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.tmp-{_host()}-{os.getpid()}-{uuid.uuid4().hex}")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return temporary, path

    def delete(self, key: str) -> None:
        """Remove the file if it is there."""
        with self._errors(f"deleting {key}"):
            self._path(key).unlink(missing_ok=True)

    def size(self, key: str) -> int | None:
        """Return the file's size, or None."""
        with self._errors(f"reading {key}"):
            try:
                return self._path(key).stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    def walk(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Yield every file but temporary ones."""
        for path in self._files(prefix):
            if not _TEMPORARY.search(path.name):
                with suppress(FileNotFoundError):  # removed since the folder was read
                    yield path.relative_to(self._root).as_posix(), path.stat().st_size

    def _files(self, prefix: str) -> Iterator[Path]:
        with self._errors(f"listing {prefix or 'the store'}"):
            for folder, _, names in os.walk(self._path(prefix)):
                for name in sorted(names):
                    yield Path(folder) / name

    def children(self, prefix: str) -> list[str]:
        """Return the names in the folder, without temporary files."""
        with self._errors(f"listing {prefix or 'the store'}"):
            try:
                names = [entry.name for entry in self._path(prefix).iterdir()]
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted(n for n in names if not _TEMPORARY.search(n))

    def clean(self, prefix: str) -> int:
        """Remove temporary files whose process on this machine is gone."""
        n_removed = 0
        for path in self._files(prefix):
            match = _TEMPORARY.search(path.name)
            if match and match["host"] == _host() and not _is_alive(int(match["pid"])):
                path.unlink(missing_ok=True)
                n_removed += 1
        return n_removed


def _sync_folder(folder: Path) -> None:
    """Make a new name survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _host() -> str:
    return uuid.uuid5(uuid.NAMESPACE_DNS, socket.gethostname()).hex[:8]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
