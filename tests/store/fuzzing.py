"""Seeded damage to every record, document and chunk of a store, by someone who knows the format.

A blind flip dies at the first digest. Here most changes are followed by making every digest
right again, so that the code behind the digests meets them.
"""

from __future__ import annotations

import hashlib
import json
import struct
import time
import traceback
from collections import Counter
from typing import Any

import google_crc32c
import numpy as np

from actlake.schemas import ActlakeError
from actlake.store import (
    apply_repair,
    open_run,
    plan_append,
    plan_repair,
    read_texts,
    verify_run,
)
from actlake.store.catalog import read_catalog
from tests.store.appends import added_plan, append
from tests.store.forging import signed
from tests.store.memory import memory_store
from tests.store.samples import ENVIRONMENT, make_tokens
from tests.store.small import fill_store, small_coords

FOLDER = "runs/tiny"
CASE_SECONDS = 10.0
FIELDS = ("arm", "pair")
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 255, 2**31, 2**40, 2**63, 2**64, 10**19, -(2**63), 0.5, 1e300,
    -0.0, "", "x", "..", "../../x", "/etc/passwd", "NaN", "Infinity", "\x00", "\x1b[31m", "é漢👋",
    "x" * 300, "sha256:" + "0" * 64, "0" * 64, "text", "layer", "hidden", "string", "object",
    "float64", "int64", "numcodecs.pickle", "blosc", [], {}, [[]], [{}], [0], [1, 2, 3], ["text"],
    {"name": "x"}, {"name": "regular"}, {"must_understand": False}, [None] * 50, [2**62] * 3,
    {"a": {"b": {"c": [1]}}}, {"encoding-type": "actlake-seal"}, "data.zarr", "zarr.json",
]  # fmt: skip
RAW = [
    b"", b"{", b"null", b"[]", b"\xff\xfe", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"[" * 5000,
    b'{"a": 1e999}', b'{"a": "\\ud800"}', b'{"encoding-type": "actlake-plan"}',
]  # fmt: skip


class Fuzzer:
    """Damages a small store, uses it in every way, and counts what happened.

    With ``grown`` the run has token arrays, and texts were appended to it.
    """

    def __init__(self, seed: int, *, grown: bool = False) -> None:
        self.rng = np.random.default_rng(seed)
        self.names = ["tiny", "tiny~1"] if grown else ["tiny"]
        self.stores = {}
        for sealed in (True, False):
            store = memory_store()
            blocks = None if sealed else [0, 1]
            shape = {"n_layers": 2, "hidden": 4}
            plan = fill_store(
                store, seal=sealed, blocks=blocks, fields=FIELDS, n_texts=6, tokens=grown,
                token_layers=(2,), **shape,
            )  # fmt: skip
            if grown:
                added = added_plan(6, 3, tokens=True, token_layers=(2,), **shape)
                append(store, added, 6, seal=sealed)
            self.stores[sealed] = store, plan, dict(store.backend.objects)
        self.sites: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()

    def run(self, n_cases: int) -> None:
        for _ in range(n_cases):
            self.case()

    def case(self) -> None:
        sealed = bool(self.rng.random() < 0.6)
        store, plan, whole = self.stores[sealed]
        store.backend.objects = dict(whole)
        for _ in range(int(self.rng.integers(1, 3))):
            self.damage(store)
        damaged = dict(store.backend.objects)
        started = time.monotonic()
        try:
            self.use(store, plan)
        except Exception as err:
            changed = {k: v[:2000] for k, v in damaged.items() if whole.get(k) != v}
            message = f"{type(err).__name__}: {err}; changed {changed}"
            raise AssertionError(message) from err
        assert time.monotonic() - started < CASE_SECONDS

    # -- damage

    def damage(self, store) -> None:
        rng, objects = self.rng, store.backend.objects
        keys = sorted(objects)
        kinds = (
            [key for key in keys if key.endswith(".json") and "data.zarr" not in key],
            [key for key in keys if key.endswith("zarr.json")],
            [key for key in keys if not key.endswith(".json")],
        )
        key = str(rng.choice(kinds[rng.choice(3, p=(0.5, 0.25, 0.25))] or keys))
        draw = rng.random()
        if draw < 0.03:
            del objects[key]
        elif draw < 0.06:
            objects[key] = RAW[rng.integers(len(RAW))]
        elif draw < 0.10:
            objects[key] = self.scramble(objects[key])
        elif draw < 0.12:
            objects[f"{key}{rng.choice(['x', '/x', '.json'])}"] = objects[key]
        elif key.endswith(".json"):
            self.edit(store, key)
        else:
            self.put(store, key, self.chunk(objects[key]))

    def scramble(self, data: bytes) -> bytes:
        rng = self.rng
        at = int(rng.integers(len(data) + 1))
        how = rng.integers(4)
        if how == 0 and data:
            changed = bytearray(data)
            changed[min(at, len(data) - 1)] ^= 1 << int(rng.integers(8))
            return bytes(changed)
        if how == 1:
            return data[:at]
        if how == 2:
            return data[:at] + rng.bytes(int(rng.integers(1, 20))) + data[at:]
        return data[:at] + data[max(0, at - 30) :]

    def chunk(self, data: bytes) -> bytes:
        """Return a chunk with another header or body, and a right checksum."""
        rng, packed = self.rng, bytearray(data[:-4])
        if rng.random() < 0.5 and len(packed) >= 16:
            fields = list(struct.unpack_from("<BBBBIII", packed))
            index = int(rng.integers(len(fields)))
            width = 8 if index < 4 else 32
            fields[index] = int(rng.choice([0, 1, 2, 16, 128, 2**width - 1, fields[index] + 1]))
            widths = (8, 8, 8, 8, 32, 32, 32)
            fields = [field % 2**bits for field, bits in zip(fields, widths, strict=True)]
            struct.pack_into("<BBBBIII", packed, 0, *fields)
        else:
            packed = bytearray(self.scramble(bytes(packed)))
        return bytes(packed) + struct.pack("<I", google_crc32c.value(bytes(packed)))

    def edit(self, store, key: str) -> None:
        """Change a record somewhere inside, and mostly everything that must agree with it."""
        rng = self.rng
        try:
            document = json.loads(store.backend.objects[key])
        except (ValueError, RecursionError):
            return
        is_digested = isinstance(document, dict) and "digest" in document
        for _ in range(int(rng.integers(1, 3))):
            document = self.mutate(document)
        if rng.random() < 0.1:
            store.backend.objects[key] = json.dumps(document).encode()
            return
        if is_digested and isinstance(document, dict):
            data = signed(document)
        else:
            data = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
        self.put(store, key, data)

    def mutate(self, document):
        rng = self.rng
        places = list(_places(document))
        if not places:
            return document
        parent, name = places[rng.integers(len(places))]
        value = VALUES[rng.integers(len(VALUES))]
        how = rng.random()
        if how < 0.15:
            del parent[name]
        elif how < 0.25:
            if isinstance(parent, dict):
                parent[f"{name}x"] = value
            else:
                parent.append(parent[name])
        elif how < 0.45 and isinstance(parent[name], int):
            parent[name] = parent[name] + int(rng.choice([-1, 1, 2, 1000, 2**31]))
        elif how < 0.55:
            other, place = places[rng.integers(len(places))]
            parent[name] = json.loads(json.dumps(other[place]))
        else:
            parent[name] = json.loads(json.dumps(value))
        return document

    def put(self, store, key: str, data: bytes) -> None:
        """Put an object and make plan ids, hashes and digests agree with it again."""
        objects = store.backend.objects
        old = objects[key]
        objects[key] = data
        if self.rng.random() < 0.1:
            return
        pairs = [(hashlib.sha256(old).hexdigest(), hashlib.sha256(data).hexdigest())]
        if "data.zarr/" in key:
            pairs.append(
                (
                    f'"n_bytes": {len(old)}, "sha256": "{pairs[0][1]}"',
                    f'"n_bytes": {len(data)}, "sha256": "{pairs[0][1]}"',
                )
            )
        for name, record in list(objects.items()):
            if not name.endswith(".json") or name == key:
                continue
            text = record
            for before, after in pairs:
                text = text.replace(before.encode(), after.encode())
            if text != record:
                try:
                    document = json.loads(text)
                except (ValueError, RecursionError):
                    continue
                digested = isinstance(document, dict) and "digest" in document
                objects[name] = signed(document) if digested else text

    # -- use

    def use(self, store, plan) -> None:
        """Do everything that a store is for; our own errors are the only ones allowed."""
        self.attempt("catalog", lambda: read_catalog(store))
        self.attempt("corpus", lambda: store.read_corpus("demo"))
        partial = bool(self.rng.random() < 0.6)
        self.attempt(
            "open" if partial else "whole",
            lambda: _read(open_run(store, "tiny", allow_partial=partial, chunks=None)),
        )
        for name in self.names:
            self.mend(store, name)
        self.attempt("resume", lambda: self.resume(store, plan))
        if len(self.names) > 1:
            self.attempt("texts", lambda: read_texts(store, "tiny"))
            self.attempt("append", lambda: plan_append(store, "tiny"))

    def mend(self, store, name: str) -> None:
        report = self.attempt("verify", lambda: verify_run(store, name, full=True))
        if report is not None:
            kinds = {fault.kind for fault in report.faults} or {"none"}
            self.outcomes.update(f"fault {kind}" for kind in kinds)
            repair = self.attempt("plan", lambda: plan_repair(store, name, report=report))
            if repair is not None:
                self.attempt("apply", lambda: apply_repair(store, repair))

    def resume(self, store, plan) -> None:
        writer = store.create_run(
            plan,
            coords=small_coords(plan, FIELDS),
            environment=ENVIRONMENT,
            token_data=make_tokens(plan),
        )
        if not writer.pending_blocks():
            writer.seal()

    def attempt(self, what: str, action):
        try:
            found = action()
        except ActlakeError as err:
            message = str(err)
            assert message.isprintable(), message
            assert len(message) < 5000, len(message)
            frames = traceback.extract_tb(err.__traceback__)
            ours = [frame for frame in frames if "/actlake/" in frame.filename]
            for frame in ours[-2:]:
                place = frame.filename.rpartition("/actlake/")[2]
                self.sites[f"{place}:{frame.lineno} {frame.name}"] += 1
            self.outcomes[f"{what} refused"] += 1
            return None
        self.outcomes[f"{what} worked"] += 1
        return found


def _read(dataset) -> None:
    for name in [*dataset.data_vars, *dataset.coords]:
        dataset[name].values  # noqa: B018


def _places(value):
    """Yield (parent, key) of everything inside a JSON value."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        return
    for name, part in items:
        yield value, name
        yield from _places(part)
