import json
import math
import threading

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from actlake.schemas import CorruptError, InvalidInputError
from actlake.store import rows_per_block
from actlake.store.blocks import block_chunks, block_keys, rows_of_key
from actlake.store.codec import decode_chunk, encode_chunk
from actlake.store.layout import StaticArray, plan_metadata, static_metadata
from tests.store.samples import block_values, make_plan, make_values, write_run

MIB = 2**20


@given(
    n_texts=st.integers(1, 10**7),
    hidden=st.integers(1, 20_000),
    chunk_bytes=st.integers(1024, 64 * MIB),
)
def test_blocks_are_balanced_and_never_larger_than_asked(n_texts, hidden, chunk_bytes):
    rows = rows_per_block(n_texts, hidden, chunk_bytes)
    row_bytes = 4 * hidden
    assert 1 <= rows <= n_texts
    assert rows * row_bytes <= max(chunk_bytes, row_bytes)
    if rows < n_texts and chunk_bytes >= row_bytes:
        most = chunk_bytes // row_bytes
        assert rows >= most / 2
        last = n_texts - rows * (math.ceil(n_texts / rows) - 1)
        assert 0 < last <= rows


@given(n_texts=st.integers(5000, 10**6), hidden=st.sampled_from([2048, 3072, 4096, 8192]))
def test_objects_of_a_large_run_have_8_to_16_mib_by_default(n_texts, hidden):
    size = rows_per_block(n_texts, hidden) * hidden * 4
    assert 8 * MIB - 4 * hidden <= size <= 16 * MIB


def test_a_small_run_is_one_block_unless_rows_are_given():
    assert rows_per_block(260, 128) == 260
    assert rows_per_block(260, 128, rows=64) == 64
    assert rows_per_block(10, 128, rows=64) == 10


@pytest.mark.parametrize("wrong", [{"n_texts": 0}, {"hidden": 0}, {"chunk_bytes": 0}, {"rows": 0}])
def test_sizes_that_are_not_positive_are_refused(wrong):
    sizes = {"n_texts": 10, "hidden": 8, **wrong}
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        rows_per_block(**sizes)


@given(
    n_texts=st.integers(1, 40),
    n_layers=st.integers(1, 4),
    hidden=st.integers(1, 6),
    rows=st.integers(1, 50),
)
def test_blocks_cover_every_value_once(n_texts, n_layers, hidden, rows):
    plan = make_plan(n_texts=n_texts, n_layers=n_layers, hidden=hidden, rows=rows)
    values = make_values(plan)
    rebuilt = {name: np.full_like(full, np.nan) for name, full in values.items()}
    seen = set()
    for block in range(plan.n_blocks):
        chunks = list(block_chunks(plan, block, block_values(plan, block)))
        assert [key for key, _ in chunks] == block_keys(plan, block)
        for key, part in chunks:
            assert key not in seen
            seen.add(key)
            start, stop = rows_of_key(plan, key)
            name, *place = key.replace("/c/", "/").split("/")
            assert np.isnan(part[stop - start :]).all()
            target = rebuilt[name][start:stop]
            if len(place) == 3:
                target[:, int(place[1])] = part[: stop - start, 0]
            else:
                target[:] = part[: stop - start]
    for name, full in values.items():
        np.testing.assert_array_equal(rebuilt[name], full)


@given(
    values=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=300),
)
def test_chunks_survive_encoding(values):
    array = np.array(values, dtype=np.float32)
    back = decode_chunk(encode_chunk(array), dtype="float32", max_bytes=array.nbytes)
    assert back.tobytes() == array.tobytes()


@given(values=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=50))
def test_text_survives_encoding(values):
    data = encode_chunk(np.array(values, dtype=object))
    assert decode_chunk(data, dtype="string", max_bytes=10**6).tolist() == values


def test_a_chunk_that_claims_more_than_expected_is_not_decoded():
    data = encode_chunk(np.zeros(1000, dtype=np.float32))
    with pytest.raises(CorruptError, match="claims 4000 bytes, expected at most 3999"):
        decode_chunk(data, dtype="float32", max_bytes=3999)


@pytest.mark.parametrize("dtype", ["float32", "int64", "int32", "int8", "bool", "string"])
def test_bytes_and_metadata_are_what_zarr_itself_writes(tmp_path, dtype):
    values = np.random.default_rng(0).integers(0, 2, 50)
    values = (
        np.array([f"é{v}" for v in values], object) if dtype == "string" else values.astype(dtype)
    )
    ours = static_metadata(StaticArray("x", "text", values))
    codecs = ours["codecs"][1:]
    array = zarr.create_array(
        tmp_path / "x",
        shape=(50,),
        chunks=(50,),
        dtype=dtype,
        fill_value=ours["fill_value"] if dtype != "float32" else np.nan,
        dimension_names=("text",),
        compressors=codecs,
        config={"write_empty_chunks": True},
    )
    array[:] = values
    theirs = json.loads((tmp_path / "x/zarr.json").read_text())
    assert theirs.pop("storage_transformers", []) == []
    assert theirs == ours
    assert (tmp_path / "x/c/0").read_bytes() == encode_chunk(values)


def test_zarr_reads_the_arrays_of_a_run_with_the_planned_metadata(store, tmp_path):
    plan = make_plan()
    write_run(store, plan, seal=False)
    for name, document in plan_metadata(plan).items():
        array = zarr.open_array(tmp_path / "store/runs/tiny/data.zarr" / name, mode="r")
        assert array.shape == tuple(document["shape"])
        assert array.chunks == (4, 1, 8) if array.ndim == 3 else (4, 3)
        assert np.isnan(array.fill_value)
        np.testing.assert_array_equal(array[:], make_values(plan)[name])


def test_the_same_values_give_the_same_bytes_in_every_thread():
    # Compressible and of many blosc blocks, whose order once depended on blosc's own threads.
    array = np.random.default_rng(0).integers(0, 1445, 200_000).astype(np.int32)
    results = [encode_chunk(array) for _ in range(40)]
    threads = [
        threading.Thread(target=lambda: results.append(encode_chunk(array.copy())))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 44
    assert len(set(map(bytes, results))) == 1
