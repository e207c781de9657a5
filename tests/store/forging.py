"""Changing a store as an attacker would: every digest made right again."""

from __future__ import annotations

import hashlib
import json

HEX = 64
MARK = b'"digest": "sha256:'


def signed(document) -> bytes:
    """Return a record as bytes that hash to its digest."""
    body = {k: v for k, v in document.items() if k != "digest"}
    data = json.dumps({**body, "digest": "sha256:" + "0" * HEX}, ensure_ascii=False).encode()
    at = data.rfind(MARK) + len(MARK)
    return data[:at] + hashlib.sha256(data).hexdigest().encode() + data[at + HEX :]


def read(store, key) -> bytes:
    data = store.backend.get(key, max_bytes=10**9)
    assert data is not None, key
    return bytes(data)


def edit(store, key, change) -> None:
    """Change the JSON under ``key`` in place, and its digest with it."""
    document = json.loads(read(store, key))
    change(document)
    is_record = isinstance(document, dict) and "digest" in document
    data = signed(document) if is_record else json.dumps(document).encode()
    store.backend.put(key, data)


def flip(store, key, *, at=None, bit=4) -> None:
    """Turn one bit of an object around."""
    data = bytearray(read(store, key))
    data[len(data) // 2 if at is None else at] ^= 1 << bit
    store.backend.put(key, bytes(data))


def forge(store, key, data, *, run="tiny") -> None:
    """Put an object of ``data.zarr`` and make commit records and seal agree with it."""
    folder = f"runs/{run}"
    store.backend.put(f"{folder}/data.zarr/{key}", data)
    found = {"key": key, "n_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def change(document) -> None:
        objects = document["objects"]
        document["objects"] = [found if info["key"] == key else info for info in objects]

    for name in store.backend.children(f"{folder}/commits"):
        edit(store, f"{folder}/commits/{name}", change)
    if store.backend.size(f"{folder}/seal.json") is not None:
        edit(store, f"{folder}/seal.json", change)
