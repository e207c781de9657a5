"""Verification finds every changed bit, whatever it lies in, and says what is at fault."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from actlake.cli import cli
from actlake.schemas import CorruptError, InvalidInputError
from actlake.store import create_store, open_store, verify_run
from actlake.store.codec import encode_chunk
from tests.store.forging import edit, flip, forge, read
from tests.store.memory import memory_store
from tests.store.small import fill_store, small_store

DATA = "runs/tiny/data.zarr"
CHUNK = "resid_post_mean_response/c/2/1/0"  # the last block: rows 8 and 9, two rows of padding


def keys_of(store):
    return sorted(key for key, _ in store.backend.walk(""))


def test_a_whole_store_has_no_fault(any_store):
    fill_store(any_store)
    for full in (False, True):
        report = verify_run(any_store, "tiny", full=full)
        assert report.faults == ()
        assert report.n_bytes == any_store.read_seal("tiny").n_bytes
        assert report.n_objects == any_store.read_seal("tiny").n_objects


@pytest.mark.parametrize("sealed", [True, False])
def test_a_hundred_flipped_bits_of_a_hundred_are_found(sealed):
    store = small_store(seal=sealed)
    keys = keys_of(store)
    whole = dict(store.backend.objects)
    rng = np.random.default_rng(7)
    missed = []
    draws = [keys[i % len(keys)] for i in range(max(100, len(keys)))]  # every object at least once
    for key in draws:
        store.backend.objects = dict(whole)
        at, bit = int(rng.integers(len(whole[key]))), int(rng.integers(8))
        flip(store, key, at=at, bit=bit)
        if verify_run(store, "tiny").ok:
            missed.append((key, at, bit))
    assert not missed
    assert len(draws) >= 100


@pytest.mark.slow
@pytest.mark.parametrize("sealed", [True, False])
def test_bits_all_over_every_record_are_found(sealed):
    store = memory_store()
    fill_store(store, seal=sealed, n_texts=4, n_layers=1, hidden=2)
    whole = dict(store.backend.objects)
    missed = []
    for key, data in whole.items():
        if key.endswith("texts.parquet") or "/c/" in key:
            continue  # hashed whole: one bit is like another
        for at in range(0, len(data), 5):
            store.backend.objects = dict(whole)
            flip(store, key, at=at, bit=at % 8)
            if verify_run(store, "tiny").ok:
                missed.append((key, at))
    assert not missed


@pytest.mark.parametrize("sealed", [True, False])
def test_what_is_missing_longer_shorter_or_strange_is_found(sealed):
    store = small_store(seal=sealed)
    whole = dict(store.backend.objects)
    needed = [k for k in whole if not k.startswith("corpora/") and k != "catalog.json"]
    for key in needed:
        longer, shorter = whole[key] + b"\0", whole[key][:-1]
        for change in ({key: longer}, {key: shorter}, {}):
            store.backend.objects = {**{k: v for k, v in whole.items() if k != key}, **change}
            if not change and key.endswith(("plan.json", "seal.json", "/0.json", "/1.json")):
                continue  # a run without them is another run: not created, unsealed, incomplete
            if not change and ("/decisions/" in key or (not sealed and "/commits/" in key)):
                continue
            assert not verify_run(store, "tiny").ok, (key, change)
    for stranger in (
        "x",
        ".zarray",
        "resid_post_norm/.zarray",
        "label/c/1",
        "resid_post_norm/c/9/0",
    ):
        store.backend.objects = {**whole, f"{DATA}/{stranger}": b"x"}
        (fault,) = verify_run(store, "tiny").faults
        assert (fault.key, fault.kind) == (stranger, "stranger")
    store.backend.objects = {**whole, "runs/tiny/commits/x.json": b"x"}
    assert [f.key for f in verify_run(store, "tiny").faults] == ["commits/x.json"]


def test_a_missing_commit_or_corpus_file_of_a_sealed_run_is_found():
    store = small_store()
    whole = dict(store.backend.objects)
    for key in ("runs/tiny/commits/1.json", "corpora/demo/corpus.json", "catalog.json"):
        store.backend.objects = {k: v for k, v in whole.items() if k != key}
        assert verify_run(store, "tiny").faults, key


def forged_chunk(values):
    """Return a change of the last block's chunk: what a wrong writer would have committed."""

    def change(store):
        forge(store, CHUNK, encode_chunk(values))

    return change


def padded(**changes):
    values = np.full((4, 1, 8), np.nan, dtype=np.float32)
    values[:2] = 1
    values[changes.get("rows", slice(0, 0))] = changes.get("value", 1)
    return values


FORGED = {
    "a NaN in a row": (forged_chunk(padded(rows=1, value=np.nan)), "not finite, the first is 9"),
    "an infinite value": (forged_chunk(padded(rows=0, value=np.inf)), "not finite, the first is 8"),
    "values past the end": (forged_chunk(padded(rows=3, value=0)), "past the last row"),
    "a smaller chunk": (forged_chunk(padded()[:3]), "would decode to 96 bytes, expected 128"),
    "another type": (forged_chunk(padded().astype(np.float64)[:2]), "4-byte values"),
    "no codec": (lambda s: forge(s, CHUNK, b"x" * 40), "checksum"),
    "a negative norm": (
        lambda s: forge(s, "resid_post_norm/c/0/0", encode_chunk(-np.ones((4, 3), np.float32))),
        "negative norm in row 0",
    ),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_full_verification_decodes_what_hashes_cannot_judge(case):
    change, reason = FORGED[case]
    store = small_store()
    change(store)
    quick = {f.kind for f in verify_run(store, "tiny").faults}
    assert "chunk" not in quick  # every hash was forged too
    faults = [f for f in verify_run(store, "tiny", full=True).faults if f.kind == "chunk"]
    assert [reason in f.reason for f in faults] == [True]
    assert faults[0].rows is not None


FORGED_COORDINATES = {
    "label": (np.ones(10, dtype=np.int8), "that of the arm"),
    "arm": (np.array(["positive"] * 10), "corpus says something else"),
    "text": (np.array(["text-é0000"] * 10), "stands twice"),
    "n_tokens": (np.full(10, 4, dtype=np.int32), "distance of the token offsets"),
    "n_chars": (np.full(10, 4, dtype=np.int32), "corpus says something else"),
    "layer": (np.arange(3, dtype=np.int32), "plan's layers"),
    "token_offset": (np.arange(11, dtype=np.int64), "rise from 0 to 30"),
}


@pytest.mark.parametrize("name", FORGED_COORDINATES)
def test_coordinates_are_held_against_plan_and_corpus(name):
    values, reason = FORGED_COORDINATES[name]
    store = small_store()
    forge(store, f"{name}/c/0", encode_chunk(values))
    found = [f for f in verify_run(store, "tiny", full=True).faults if f.kind == "static"]
    assert any(reason in f.reason for f in found), found


def test_an_object_that_claims_an_absurd_size_is_not_fetched():
    store = small_store()

    def change(document):
        document["objects"][5]["n_bytes"] = 10**18

    edit(store, "runs/tiny/seal.json", change)
    reasons = " ".join(f.reason for f in verify_run(store, "tiny").faults)
    assert "with 1000000000000000000 bytes, at most" in reasons


def run_command(*args):
    return CliRunner().invoke(cli, ["store", *args])


def test_the_command_names_faults_and_takes_all_runs(tmp_path):
    url = str(tmp_path / "store")
    store = create_store(url)
    fill_store(store)
    fill_store(store, run="other")
    whole = run_command("verify", url, "--json")
    assert whole.exit_code == 0
    assert {run["run"]: run["ok"] for run in json.loads(whole.stdout)} == {
        "other": True,
        "tiny": True,
    }
    flip(store, f"{DATA}/{CHUNK}")
    assert run_command("verify", url, "tiny", "--layer", "0").exit_code == 0
    damaged = run_command("verify", url, "tiny", "--full", "--sample", "1")
    assert damaged.exit_code == 1
    assert f"{CHUNK}: rows 8 to 9, layer 2: " in damaged.stdout
    share = run_command("verify", url, "--sample", "2")
    assert isinstance(share.exception, InvalidInputError)


def test_a_changed_record_is_refused_by_every_reader(store):
    fill_store(store)
    for key, text in (("run.json", b"202"), ("seal.json", b"202"), ("commits/0.json", b"test")):
        data = read(store, f"runs/tiny/{key}")
        at = data.index(text)
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        store.backend.put(f"runs/tiny/{key}", changed)
        with pytest.raises(CorruptError, match="do not hash to its digest"):
            read_record(open_store(store.url), key)


def read_record(store, key):
    if key == "run.json":
        return store.read_manifest("tiny")
    return store.read_seal("tiny") if key == "seal.json" else store.read_commit("tiny", 0)
