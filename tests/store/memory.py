"""The storage seam over a dict: for tests that open a store thousands of times."""

from __future__ import annotations

from collections.abc import Iterator

from actlake.schemas import StoreInfo
from actlake.store import Store
from actlake.store.backend import Data, bounded, check_key
from actlake.store.clock import now
from actlake.store.location import Location


class MemoryBackend:
    """Objects in a dict, which a test may swap for another."""

    def __init__(self, objects: dict[str, bytes] | None = None) -> None:
        self.location = Location(url="memory://tests", scheme="memory", root="tests")
        self.objects = dict(objects or {})

    def get(
        self, key: str, *, max_bytes: int, timeout_seconds: float | None = None
    ) -> bytes | None:
        data = self.objects.get(check_key(key))
        return None if data is None else bounded(data, key=key, max_bytes=max_bytes)

    async def get_async(self, key: str, *, max_bytes: int) -> bytes | None:
        return self.get(key, max_bytes=max_bytes)

    def put(self, key: str, data: Data) -> None:
        self.objects[check_key(key)] = bytes(data)

    def create(self, key: str, data: Data) -> bool:
        if key in self.objects:
            return False
        self.put(key, data)
        return True

    def delete(self, key: str) -> None:
        self.objects.pop(check_key(key), None)

    def size(self, key: str) -> int | None:
        data = self.objects.get(check_key(key))
        return None if data is None else len(data)

    def walk(self, prefix: str) -> Iterator[tuple[str, int]]:
        folder = f"{check_key(prefix)}/" if prefix else ""
        found = [(key, len(data)) for key, data in self.objects.items() if key.startswith(folder)]
        yield from sorted(found)

    def children(self, prefix: str) -> list[str]:
        folder = f"{check_key(prefix)}/" if prefix else ""
        below = {key.removeprefix(folder) for key in self.objects if key.startswith(folder)}
        return sorted({name.partition("/")[0] for name in below})

    def clean(self, prefix: str) -> int:
        return 0


class MemoryStore(Store):
    """A store in a dict."""

    backend: MemoryBackend


def memory_store() -> MemoryStore:
    """Return a new store that lives in memory."""
    backend = MemoryBackend()
    info = StoreInfo(created_at=now(), created_by="tests", create_only=True)
    backend.put("store.json", info.to_json().encode())
    return MemoryStore(backend.location, backend=backend, info=info)
