"""A store that means harm is refused with our own error, before memory is taken."""

import hashlib
import io
import json
import struct

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numcodecs import Blosc

from actlake.schemas import ActlakeError, CorruptError, digest_json
from actlake.store import open_run, verify_run
from actlake.store.codec import encode_chunk
from tests.store.forging import edit, forge, signed
from tests.store.measuring import bounded_memory
from tests.store.small import small_store

FOLDER = "runs/tiny"
DATA = f"{FOLDER}/data.zarr"
CHUNK = "resid_post_mean_response/c/0/0/0"


def read_all(store):
    ds = open_run(store, "tiny", allow_partial=True)
    return {name: ds[name].values for name in [*ds.data_vars, *ds.coords]}


@pytest.fixture(params=[True, False], ids=["sealed", "unsealed"])
def victim(request):
    """A store in memory whose records an attacker may rewrite, digests and all."""
    return small_store(seal=request.param)


def replan(store, change):
    """Change the plan, and make every record that names its id agree."""
    old = store.read_plan_and_id("tiny")[1].encode()
    document = json.loads(store.backend.objects[f"{FOLDER}/plan.json"])
    change(document)
    store.backend.put(f"{FOLDER}/plan.json", json.dumps(document).encode())
    new = hashlib.sha256(store.backend.objects[f"{FOLDER}/plan.json"]).hexdigest().encode()
    for key, data in list(store.backend.objects.items()):
        if key.endswith(".json") and old in data:
            text = data.replace(old, b"sha256:" + new)
            document = json.loads(text)
            store.backend.put(key, signed(document) if "digest" in document else text)


PLANS = {
    "more texts than memory": lambda d: d.update(n_texts=10**15),
    "blocks without end": lambda d: d.update(rows_per_block=1, n_texts=10**8),
    "a row of a terabyte": lambda d: d["model"].update(hidden_size=2**38),
    "tokens without end": lambda d: d.update(n_tokens=2**60),
    "shapes of their own": lambda d: d["arrays"][0].update(shape=[10, 3, 2**50]),
    "a number of 5000 digits": lambda d: d.update(seed=int("9" * 4000)),
    "a layer named twice": lambda d: d.update(layers=[0, 0, 2]),
    "no arrays": lambda d: d.update(arrays=[]),
    "one array twice": lambda d: d["arrays"].append(d["arrays"][0]),
    "an array outside": lambda d: d["arrays"][0].update(name="../../evil"),
    "attributes that rescale": lambda d: d["arrays"][0]["attrs"].update(scale_factor=2.0),
    "attributes that mask": lambda d: d["arrays"][0]["attrs"].update(_FillValue=0),
    "an unknown codec": lambda d: d.update(codec="pickle"),
    "objects": lambda d: d["arrays"][0].update(dtype="object"),
    "ten thousand arrays": lambda d: d.update(
        arrays=[{**d["arrays"][0], "name": f"a{i}"} for i in range(10_000)]
    ),
    "a million layers": lambda d: d.update(layers=list(range(10**6))),
}


@pytest.mark.parametrize("case", PLANS)
def test_a_plan_that_is_absurd_is_refused(victim, case):
    replan(victim, PLANS[case])
    with bounded_memory():
        with pytest.raises(CorruptError):
            open_run(victim, "tiny", allow_partial=True)
        assert not verify_run(victim, "tiny", full=True).ok


RECORDS = ["plan.json", "run.json", "commits/0.json", "seal.json", "data.zarr/zarr.json"]
TEXTS = {
    "nothing": b"",
    "no JSON": b"{",
    "another encoding": '{"a": 1}'.encode("utf-16"),
    "not UTF-8": b'{"a": "\xff"}',
    "half a surrogate pair": b'{"a": "\\ud800"}',
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": -Infinity}',
    "more than a float": b'{"a": 1e999}',
    "a huge integer": b'{"a": ' + b"9" * 4000 + b"}",
    "an endless integer": b'{"a": ' + b"9" * 10**6 + b"}",
    "a key twice": b'{"a": 1, "a": 2}',
    "deep lists": b'{"a": ' + b"[" * 10**5 + b"]" * 10**5 + b"}",
    "deep objects": b'{"a":' * 10**5 + b"1" + b"}" * 10**5,
    "just too deep": b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}",
    "many small values": b'{"a": [' + b"{}," * 10**6 + b"{}]}",
    "100 MB of attributes": b'{"zarr_format": 3, "attributes": {"a": "' + b"x" * 10**8 + b'"}}',
    "a list": b"[]",
    "null": b"null",
    "a text": b'"text"',
}


@pytest.mark.parametrize("case", TEXTS)
@pytest.mark.parametrize("name", RECORDS)
def test_records_that_are_no_records_are_refused(name, case):
    store = small_store(seal=name == "seal.json")
    store.backend.put(f"{FOLDER}/{name}", TEXTS[case])
    with bounded_memory():
        with pytest.raises(CorruptError) as caught:
            open_run(store, "tiny", allow_partial=True)
        assert not verify_run(store, "tiny").ok
    assert len(str(caught.value)) < 4000
    assert str(caught.value).isprintable()


def pipeline(*codecs):
    return lambda d: d.update(codecs=list(codecs))


BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
ARRAYS = {
    "Zarr v2": lambda d: d.update(zarr_format=2),
    "Zarr v3 as a float": lambda d: d.update(shape=[10.0]),
    "a shape of truths": lambda d: d.update(shape=[True]),
    "objects": lambda d: d.update(data_type="object"),
    "a type that is a list": lambda d: d.update(data_type=["int8"]),
    "a type that is an object": lambda d: d.update(data_type={"name": "int8"}),
    "a structure": lambda d: d.update(data_type={"name": "structured", "configuration": {}}),
    "fixed-width text of a gigabyte": lambda d: d.update(
        data_type={"name": "fixed_length_utf32", "configuration": {"length_bytes": 2**30}}
    ),
    "a pickle": pipeline({"name": "numcodecs.pickle"}),
    "a pickle behind bytes": pipeline(BYTES, {"name": "numcodecs.pickle"}, {"name": "crc32c"}),
    "JSON objects": pipeline({"name": "numcodecs.json2"}),
    "gzip": pipeline(BYTES, {"name": "gzip", "configuration": {"level": 1}}, {"name": "crc32c"}),
    "a shard": pipeline({"name": "sharding_indexed", "configuration": {"chunk_shape": [1]}}),
    "big-endian": lambda d: d["codecs"][0].update(configuration={"endian": "big"}),
    "codecs that are text": lambda d: d.update(codecs="blosc"),
    "codecs that are numbers": lambda d: d.update(codecs=[1, 2, 3]),
    "no codecs": lambda d: d.pop("codecs"),
    "a grid of lists": lambda d: d.update(chunk_grid=[]),
    "a grid without chunks": lambda d: d["chunk_grid"].update(configuration=[1]),
    "chunks of nothing": lambda d: d["chunk_grid"].update(configuration={"chunk_shape": [0]}),
    "chunks of text": lambda d: d["chunk_grid"].update(configuration={"chunk_shape": ["10"]}),
    "chunks of 2**62": lambda d: d["chunk_grid"].update(configuration={"chunk_shape": [2**62]}),
    "keys of another form": lambda d: d.update(chunk_key_encoding={"name": "v2"}),
    "dims that are numbers": lambda d: d.update(dimension_names=[1]),
    "dims that are lists": lambda d: d.update(dimension_names=[["text"]]),
    "no dims": lambda d: d.update(dimension_names=None),
    "two dims": lambda d: d.update(shape=[10, 10], dimension_names=["text", "text"]),
    "a longer array": lambda d: d.update(shape=[2**40]),
    "a negative length": lambda d: d.update(shape=[-10]),
    "attributes that mask": lambda d: d.update(attributes={"_FillValue": 1}),
    "attributes that are times": lambda d: d.update(attributes={"units": "days since 1"}),
    "attributes that are a list": lambda d: d.update(attributes=[]),
    "a fill value of text": lambda d: d.update(fill_value="x"),
    "a transformer": lambda d: d.update(storage_transformers=[{"name": "x"}]),
    "an extension": lambda d: d.update(evil={"name": "x"}),
    "a group": lambda d: d.update(node_type="group"),
}


@pytest.mark.parametrize("name", ["label", "resid_post_norm"])
@pytest.mark.parametrize("case", ARRAYS)
def test_metadata_that_is_not_ours_is_refused(name, case):
    store = small_store(seal=False)
    edit(store, f"{DATA}/{name}/zarr.json", ARRAYS[case])
    with bounded_memory():
        with pytest.raises(CorruptError, match=name):
            open_run(store, "tiny")
        assert not verify_run(store, "tiny", full=True).ok


COORDINATES = {
    "a way out": "../../../etc/passwd",
    "a hidden way out": "label/../../x",
    "an absolute path": "/etc/passwd",
    "a list": ["label"],
    "a number": 3,
    "a million": " ".join(f"c{i}" for i in range(10**5)),
    "an array that is not there": "label nothing",
}


@pytest.mark.parametrize("case", COORDINATES)
def test_coordinates_that_cannot_be_are_refused(case):
    store = small_store(seal=False)
    found = COORDINATES[case]
    edit(store, f"{DATA}/zarr.json", lambda d: d["attributes"].update(coordinates=found))
    with bounded_memory():
        with pytest.raises(CorruptError):
            open_run(store, "tiny")
        assert not verify_run(store, "tiny").ok


@pytest.mark.parametrize(
    "key", ["../../../x", "/etc/passwd", "a/../../b", "", "x\0y", "label/c/-1"]
)
def test_keys_that_lead_out_of_the_store_are_never_read(victim, key):
    name = "seal.json" if victim.read_seal("tiny") else "commits/0.json"
    edit(victim, f"{FOLDER}/{name}", lambda d: d["objects"][0].update(key=key))
    asked = []
    read = victim.backend.get
    victim.backend.get = lambda key, **kwargs: asked.append(key) or read(key, **kwargs)
    assert not verify_run(victim, "tiny").ok
    with pytest.raises(CorruptError):
        read_all(victim)
    assert all(part not in {"..", "", "."} for found in asked for part in found.split("/"))


def with_crc(packed):
    return packed + struct.pack("<I", google_crc32c.value(packed))


def blosc_of(plain, *, size=4, name="zstd"):
    return bytes(Blosc(cname=name, clevel=1, shuffle=1, typesize=size).encode(plain))


def header(packed, **changes):
    fields = dict(
        zip(
            ("version", "versionlz", "flags", "typesize", "nbytes", "blocksize", "cbytes"),
            struct.unpack_from("<BBBBIII", packed),
            strict=True,
        )
    )
    return struct.pack("<BBBBIII", *(fields | changes).values()) + packed[16:]


GOOD = blosc_of(np.zeros((4, 1, 8), dtype=np.float32).tobytes())
LONG = blosc_of(np.random.default_rng(0).bytes(128))
CHUNKS = {
    "empty": b"",
    "only a checksum": with_crc(b""),
    "half a header": with_crc(GOOD[:9]),
    "a terabyte of zeros": with_crc(blosc_of(b"\0" * 2**30)),
    "a header of 4 GB": with_crc(header(GOOD, nbytes=2**32 - 1)),
    "more bytes than there are": with_crc(header(GOOD, cbytes=2**31)),
    "fewer bytes than there are": with_crc(header(GOOD, cbytes=16)),
    "blocks of 4 GB": with_crc(header(GOOD, blocksize=2**32 - 1)),
    "blocks of nothing": with_crc(header(GOOD, blocksize=0)),
    "another codec": with_crc(header(GOOD, flags=0x01)),
    "a real other codec": with_crc(blosc_of(b"\0" * 128, name="lz4")),
    "another type size": with_crc(header(GOOD, typesize=255)),
    "a future version": with_crc(header(GOOD, version=9)),
    "stored as it is, but it is not": with_crc(header(GOOD, flags=0x93)),
    "rubbish behind the header": with_crc(GOOD[:16] + b"\xff" * (len(GOOD) - 16)),
    "one byte too few": with_crc(header(blosc_of(b"\0" * 124))),
    "noise": with_crc(np.random.default_rng(1).bytes(300)),
}


@pytest.mark.parametrize("case", CHUNKS)
def test_chunks_that_lie_are_refused_by_readers_and_found(victim, case):
    forge(victim, CHUNK, CHUNKS[case])
    with bounded_memory():
        with pytest.raises(CorruptError, match=CHUNK):
            open_run(victim, "tiny")["resid_post_mean_response"].values  # noqa: B018
        faults = verify_run(victim, "tiny", full=True).faults
    assert (CHUNK, (0, 4), 0) in {(f.key, f.rows, f.layer) for f in faults}


def strings(*parts):
    return with_crc(blosc_of(b"".join(parts), size=1))


def u32(n):
    return struct.pack("<I", n)


COORDINATE_CHUNKS = {
    "four billion strings": strings(u32(2**32 - 1)),
    "a string of 4 GB": strings(u32(10), u32(2**32 - 1), b"x"),
    "fewer strings than texts": strings(u32(9), *[u32(1) + b"x"] * 9),
    "strings that are cut off": strings(u32(10), *[u32(1) + b"x"] * 9),
    "bytes behind the strings": strings(u32(10), *[u32(1) + b"x"] * 10, b"x"),
    "strings that are not UTF-8": strings(u32(10), *[u32(1) + b"\xff"] * 10),
    "a gigabyte of text": strings(u32(10), *[u32(10**6) + b"x" * 10**6] * 10),
    "nothing": strings(b""),
}


@pytest.mark.parametrize("case", COORDINATE_CHUNKS)
def test_coordinates_that_lie_are_refused(victim, case):
    forge(victim, "arm/c/0", COORDINATE_CHUNKS[case])
    with bounded_memory():
        with pytest.raises(CorruptError, match="arm/c/0"):
            open_run(victim, "tiny")
        verify_run(victim, "tiny", full=True)


def test_coordinates_that_swell_together_are_refused(victim, monkeypatch):
    swollen = strings(u32(10), *[u32(40_000) + b"x" * 40_000] * 10)
    for name in ("arm", "pair", "split"):
        forge(victim, f"{name}/c/0", swollen)
    read_all(victim)
    monkeypatch.setattr("actlake.store.committed.COORDINATE_BYTES", 10**6)
    monkeypatch.setattr("actlake.store.committed.MOST_SHRUNK", 4)
    with pytest.raises(CorruptError, match="would decode from"):
        open_run(victim, "tiny")


def test_a_long_text_does_not_widen_all_others(victim):
    ids = np.array(["x" * 900_000, *(f"t{i}" for i in range(9))], dtype=object)
    forge(victim, "pair/c/0", encode_chunk(ids))
    with bounded_memory():
        pairs = open_run(victim, "tiny")["pair"]
    assert pairs.values[0] == "x" * 900_000


def test_a_seal_that_leaves_an_object_out_does_not_read_as_missing(victim):
    name = "seal.json" if victim.read_seal("tiny") else "commits/0.json"

    def change(document):
        document["objects"] = [o for o in document["objects"] if o["key"] != CHUNK]

    edit(victim, f"{FOLDER}/{name}", change)
    with pytest.raises(CorruptError):
        open_run(victim, "tiny", allow_partial=True)


def test_a_commit_of_a_block_that_no_plan_has_is_refused(victim):
    if victim.read_seal("tiny"):
        return
    for block in (3, 10**11):
        name = f"{FOLDER}/commits/{block}.json"
        victim.backend.put(name, victim.backend.objects[f"{FOLDER}/commits/0.json"])
        edit(victim, name, lambda d, block=block: d.update(block=block))
        with bounded_memory(), pytest.raises(CorruptError):
            open_run(victim, "tiny")
        victim.backend.delete(name)


def parquet(table, **options):
    out = io.BytesIO()
    pq.write_table(table, out, **options)
    return out.getvalue()


FIELDS = [
    "id", "response", "prompt", "system", "arm", "pair", "scenario", "category", "generator",
    "split", "subset", "variant", "parent",
]  # fmt: skip


def columns(n, **changes):
    found = {name: pa.array(["train" if name == "split" else "x"] * n) for name in FIELDS}
    return pa.table(found | changes)


CORPORA = {
    "not Parquet": b"PAR1" + b"\0" * 100 + b"PAR1",
    "nothing": b"",
    "more rows than texts": parquet(columns(10**6), compression="zstd"),
    "text of a gigabyte": parquet(
        columns(10, response=pa.array(["x" * 10**8] * 10)), compression="zstd"
    ),
    "other columns": parquet(pa.table({"a": ["x"]})),
    "numbers": parquet(columns(10, response=pa.array(range(10)))),
    "ten thousand columns": parquet(pa.table({f"c{i}": ["x"] for i in range(10_000)})),
    "a footer of 2 GB": b"PAR1" + b"\0" * 50 + struct.pack("<I", 2**31 - 1) + b"PAR1",
}


@pytest.mark.parametrize("case", CORPORA)
def test_a_corpus_that_swells_is_refused(case):
    store = small_store()
    data = CORPORA[case]
    store.backend.put("corpora/demo/texts.parquet", data)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    edit(store, "corpora/demo/corpus.json", lambda d: d.update(file_digest=digest))
    with bounded_memory(), pytest.raises(CorruptError):
        store.read_corpus("demo")


def test_ids_that_lead_elsewhere_are_refused(store):
    for name in ("..", "../x", "a/b", "", "x\n", "x\0", "a" * 300):
        with pytest.raises(ActlakeError):
            open_run(store, name)
        with pytest.raises(ActlakeError):
            store.read_corpus(name)


def test_messages_hold_no_control_characters(victim):
    evil = "\x1b[31mred\n"
    replan(victim, lambda d: d.update({evil: 1}))
    with pytest.raises(CorruptError) as caught:
        open_run(victim, "tiny")
    assert str(caught.value).isprintable()
    assert digest_json("x") not in str(caught.value)
