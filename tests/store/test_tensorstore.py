"""docs/store-format.md suffices: a run is read by TensorStore alone, without actlake."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore as ts

from actlake.store import create_store
from tests.store.appends import added_plan, append, joined_values
from tests.store.forging import flip
from tests.store.samples import make_plan, make_tokens, make_values, with_tokens, write_run
from tests.store.small import fill_store, make_texts

HEX = 64


def open_array(run: Path, name: str):
    """Open one array of a run: nothing but the path is told."""
    return ts.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{run}/data.zarr/{name}/"}},
        open=True,
        read=True,
    ).result()


def canonical(value) -> str:
    """Return the JSON text that digests are taken over, as the document spells it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def check_record(data: bytes) -> dict[str, Any]:
    """Check a record's digest by the document's recipe, and return the record."""
    at = data.rindex(b'"digest": "sha256:') + len(b'"digest": "sha256:')
    blank = data[:at] + b"0" * HEX + data[at + HEX :]
    assert sha256(blank) == data[at : at + HEX].decode()
    return dict(json.loads(data))


def committed_rows(run: Path) -> list[tuple[int, int]]:
    """Return the rows that readers may see, by the document's rules."""
    plan_bytes = (run / "plan.json").read_bytes()
    plan_id = "sha256:" + sha256(plan_bytes)
    rows = []
    for path in sorted((run / "commits").iterdir()):
        commit = check_record(path.read_bytes())
        assert commit["plan_id"] == plan_id
        assert path.name == f"{commit['block']}.json"
        rows.append((commit["row_start"], commit["row_stop"]))
    return sorted(rows)


def check_seal(run: Path) -> None:
    """Check the seal, its digests and every object of the run, as the document says."""
    seal = check_record((run / "seal.json").read_bytes())
    plan = json.loads((run / "plan.json").read_bytes())
    plan_id = "sha256:" + sha256((run / "plan.json").read_bytes())
    assert seal["plan_id"] == plan_id
    for info in seal["objects"]:
        data = (run / "data.zarr" / info["key"]).read_bytes()
        assert (len(data), sha256(data)) == (info["n_bytes"], info["sha256"]), info["key"]
    pairs = sorted([info["key"], info["sha256"]] for info in seal["objects"])
    assert seal["tree_digest"] == "sha256:" + sha256(canonical([plan_id, pairs]).encode())
    written = {spec["name"] for spec in plan["arrays"]}
    chunks = [p for p in pairs if p[0].partition("/c/")[0] in written and "/c/" in p[0]]
    assert seal["data_digest"] == "sha256:" + sha256(canonical(chunks).encode())
    records = []
    for block in range(seal["n_blocks"]):
        record = check_record((run / "commits" / f"{block}.json").read_bytes())
        del record["digest"]
        records.append("sha256:" + sha256(canonical(record).encode()))
    assert seal["commits_digest"] == "sha256:" + sha256(canonical(records).encode())


def strings(run: Path, name: str) -> list[str]:
    """Decode a text coordinate by hand: TensorStore does not read Zarr strings."""
    from numcodecs import Blosc

    meta = json.loads((run / "data.zarr" / name / "zarr.json").read_bytes())
    assert [codec["name"] for codec in meta["codecs"]] == ["vlen-utf8", "blosc", "crc32c"]
    data = (run / "data.zarr" / name / "c" / "0").read_bytes()
    plain = bytes(Blosc().decode(data[:-4]))
    count, at, found = int.from_bytes(plain[:4], "little"), 4, []
    for _ in range(count):
        length = int.from_bytes(plain[at : at + 4], "little")
        found.append(plain[at + 4 : at + 4 + length].decode())
        at += 4 + length
    assert at == len(plain)
    return found


@pytest.fixture
def run(tmp_path):
    store = create_store(tmp_path / "store")
    fill_store(store)
    return Path(store.url) / "runs" / "tiny"


def test_values_are_those_that_were_written(run):
    plan = make_plan()
    for name, values in make_values(plan).items():
        array = open_array(run, name)
        assert (array.dtype.name, array.shape) == ("float32", values.shape)
        np.testing.assert_array_equal(array[...].read().result(), values)
        one_layer = array[:, 1].read().result()
        np.testing.assert_array_equal(one_layer, values[:, 1])
        assert array.domain.labels == tuple(
            json.loads((run / "data.zarr" / name / "zarr.json").read_bytes())["dimension_names"]
        )


def test_chunks_are_one_block_of_one_layer(run):
    array = open_array(run, "resid_post_mean_response")
    assert tuple(array.chunk_layout.read_chunk.shape) == (4, 1, 8)
    assert np.isnan(array.fill_value)


def test_numbers_tokens_and_text_are_read_by_the_document(run):
    plan = make_plan()
    np.testing.assert_array_equal(open_array(run, "layer")[...].read().result(), plan.layers)
    tokens = make_tokens(plan)
    offsets = open_array(run, "token_offset")[...].read().result()
    np.testing.assert_array_equal(offsets, tokens["token_offset"])
    ids = open_array(run, "token_id")
    second = ids[int(offsets[1]) : int(offsets[2])].read().result()
    np.testing.assert_array_equal(second, tokens["token_id"][3:6])
    texts = make_texts()
    assert strings(run, "text") == [text.id for text in texts]
    assert strings(run, "arm") == [text.arm for text in texts]


def test_tokens_are_read_by_the_document(tmp_path):
    store = create_store(tmp_path / "store")
    fill_store(store, tokens=True)
    run = Path(store.url) / "runs" / "tiny"
    check_seal(run)
    expected = make_values(with_tokens(make_plan()))["resid_post_tokens"]
    plan = json.loads((run / "plan.json").read_bytes())
    axis = plan["token_axis"]
    array = open_array(run, "resid_post_tokens")
    assert array.domain.labels == ("token", "token_layer", "hidden")
    assert tuple(array.chunk_layout.read_chunk.shape) == (axis["rows_per_chunk"], 1, 8)
    assert open_array(run, "token_layer")[...].read().result().tolist() == axis["layers"]
    # By the coordinates: rows of no text are padding.
    text = open_array(run, "token_text")[...].read().result()
    position = open_array(run, "token_position")[...].read().result()
    offsets = open_array(run, "token_offset")[...].read().result()
    stored = array[...].read().result()
    np.testing.assert_array_equal(stored[text >= 0], expected)
    assert np.isnan(stored[text < 0]).all()
    np.testing.assert_array_equal(position[text == 5], np.arange(offsets[6] - offsets[5]))
    # By the plan alone: the tokens of the second block.
    first = axis["chunk_edges"][1] * axis["rows_per_chunk"]
    start, stop = axis["token_edges"][1:3]
    block = array[first : first + stop - start].read().result()
    np.testing.assert_array_equal(block, expected[start:stop])


def test_appended_texts_are_read_by_the_document(tmp_path):
    store = create_store(tmp_path / "store")
    fill_store(store)
    append(store)
    append(store, added_plan(16, 2), 16)
    append(store, added_plan(18, 1), 18, seal=False)
    run = Path(store.url) / "runs" / "tiny"
    parts, before = [run], run
    while (part := run / "appended" / str(len(parts)) / "seal.json").exists():
        plan = json.loads((part.parent / "plan.json").read_bytes())
        assert plan["run"] == f"tiny~{len(parts)}"
        plan_id = "sha256:" + sha256((before / "plan.json").read_bytes())
        assert plan["continues"] == {"plan_id": plan_id, "run": "tiny"}
        parts.append(before := part.parent)
    assert len(parts) == 3  # the last one is not sealed yet
    for part in parts:
        check_seal(part)
    name = "resid_post_mean_response"
    found = np.concatenate([open_array(part, name)[...].read().result() for part in parts])
    expected = joined_values(make_plan(), added_plan(), added_plan(16, 2))[name]
    np.testing.assert_array_equal(found, expected)
    texts = [text for part in parts for text in strings(part, "text")]
    assert texts == [text.id for text in make_texts(18)]


def test_the_seal_and_every_object_verify_by_the_document(run):
    check_seal(run)


def test_the_digest_of_the_texts_follows_the_document(run):
    import pyarrow.parquet as pq

    plan = json.loads((run / "plan.json").read_bytes())
    folder = run.parents[1] / "corpora" / plan["corpus"]
    info = check_record((folder / "corpus.json").read_bytes())
    assert info["file_digest"] == "sha256:" + sha256((folder / "texts.parquet").read_bytes())
    head = {"encoding-type": "actlake-text", "encoding-version": "1"}
    rows = sorted(pq.read_table(folder / "texts.parquet").to_pylist(), key=lambda row: row["id"])
    lines = [canonical({**head, **row}) + "\n" for row in rows]
    assert plan["corpus_digest"] == "sha256:" + sha256("".join(lines).encode())


@pytest.mark.parametrize("name", ["commits/1.json", "data.zarr/label/c/0", "plan.json"])
def test_the_recipe_finds_a_flipped_bit(run, name):
    path = run / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises((AssertionError, ValueError)):
        check_seal(run)


def test_a_flipped_bit_of_a_chunk_is_refused_by_tensorstore_itself(run, tmp_path):
    store = create_store(tmp_path / "store")
    flip(store, "runs/tiny/data.zarr/resid_post_norm/c/0/0")
    with pytest.raises(ValueError, match="Digest mismatch"):
        open_array(run, "resid_post_norm")[...].read().result()


def test_uncommitted_rows_are_known_and_read_as_nan(tmp_path):
    store = create_store(tmp_path / "store")
    plan = make_plan()
    write_run(store, plan, blocks=[1], seal=False)
    run = Path(store.url) / "runs" / "tiny"
    assert committed_rows(run) == [(4, 8)]
    seen = open_array(run, "resid_post_last_prompt")[...].read().result()
    assert np.isnan(np.delete(seen, slice(4, 8), axis=0)).all()
    expected = make_values(plan)["resid_post_last_prompt"]
    np.testing.assert_array_equal(seen[4:8], expected[4:8])


@pytest.mark.parametrize("codec", ["blosc-zstd-1-shuffle+crc32c", "crc32c"])
def test_sixteen_bit_patterns_and_uncompressed_runs_are_read(tmp_path, codec):
    store = create_store(tmp_path / "store")
    plan = make_plan()
    specs = [
        spec.model_copy(update={"dtype": "bfloat16-bits"}) if len(spec.shape) == 3 else spec
        for spec in plan.arrays
    ]
    plan = plan.model_copy(update={"arrays": tuple(specs), "codec": codec})
    write_run(store, plan)
    run = Path(store.url) / "runs" / "tiny"
    check_seal(run)
    name = "resid_post_mean_response"
    array = open_array(run, name)
    assert array.dtype.name == "uint16"
    attributes = json.loads((run / "data.zarr" / name / "zarr.json").read_bytes())["attributes"]
    assert attributes["bits_of"] == "bfloat16"
    wide = (array[...].read().result().astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(wide, make_values(plan)[name])


def test_this_file_reads_without_actlake():
    source = Path(__file__).read_text(encoding="utf-8")
    readers = source[source.index("def open_array") : source.index("@pytest.fixture")]
    assert not re.search(r"actlake\.|create_store|open_run", readers)
