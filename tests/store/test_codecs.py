"""What a run may choose about its bytes: uncompressed, and 16-bit floats as bit patterns."""

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st

from actlake.schemas import AlreadyExistsError, CorruptError, InvalidInputError
from actlake.store import create_store, open_run, verify_run
from actlake.store.bits import from_bits, to_bits
from actlake.store.layout import RunKeys
from tests.store.samples import (
    ENVIRONMENT,
    block_values,
    make_coords,
    make_plan,
    make_tokens,
    make_values,
    write_run,
)


def choose(plan, *, codec="blosc-zstd-1-shuffle+crc32c", dtype="float32"):
    """Return the plan with another codec, and its (text, layer, hidden) arrays as ``dtype``."""
    arrays = [
        {**spec.to_dict(), "dtype": dtype if len(spec.shape) == 3 else "float32"}
        for spec in plan.arrays
    ]
    return type(plan).parse({**plan.to_dict(), "codec": codec, "arrays": arrays})


@pytest.mark.parametrize("codec", ["crc32c", "blosc-zstd-1-shuffle+crc32c"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16-bits"])
@pytest.mark.parametrize("chunks", [{}, None])
def test_every_choice_reads_back_as_the_same_float32(store, codec, dtype, chunks):
    plan = choose(make_plan(), codec=codec, dtype=dtype)
    write_run(store, plan)
    ds = open_run(store, "tiny", chunks=chunks)
    for name, full in make_values(plan).items():
        assert ds[name].dtype == np.float32
        np.testing.assert_array_equal(ds[name].values, full)
        np.testing.assert_array_equal(ds[name].sel(layer=2).values, full[:, 1])
    assert verify_run(store, "tiny").ok


def test_bits_are_half_the_memory_and_readable_without_actlake(store):
    plan = choose(make_plan(), codec="crc32c", dtype="bfloat16-bits")
    write_run(store, plan)
    plain = xr.open_zarr(f"{store.url}/runs/tiny/data.zarr")["resid_post_last_prompt"]
    assert plain.dtype == np.uint16
    assert plain.attrs["bits_of"] == "bfloat16"
    wide = (plain.values.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(wide, make_values(plan)["resid_post_last_prompt"])
    keys = RunKeys("tiny")
    chunk = store.backend.size(keys.object("resid_post_last_prompt/c/0/0/0"))
    assert chunk == 2 * 4 * 8 + 4  # two bytes x rows x hidden, and the checksum


def test_rows_that_are_missing_are_nan_in_bits_as_well(store):
    plan = choose(make_plan(), dtype="bfloat16-bits")
    write_run(store, plan, blocks=[0, 2], seal=False)
    ds = open_run(store, "tiny", allow_partial=True)
    values = ds["resid_post_mean_response"].values
    assert np.isnan(values[4:8]).all()
    assert np.isfinite(values[:4]).all()
    last = zarr.open_array(f"{store.url}/runs/tiny/data.zarr/resid_post_mean_response", mode="r")
    assert last.metadata.fill_value == 0x7FC0


def test_values_that_would_be_rounded_are_refused_and_nothing_is_written(store):
    plan = choose(make_plan(), dtype="bfloat16-bits")
    writer = store.create_run(
        plan,
        coords=make_coords(plan),
        environment=ENVIRONMENT,
        token_data=make_tokens(plan),
    )
    values = block_values(plan, 0)
    values["resid_post_last_prompt"][1, 2, 3] = 1 + 2**-20
    with pytest.raises(InvalidInputError, match="not exactly bfloat16"):
        writer.write_block(0, values)
    assert store.committed_blocks("tiny") == []
    assert not list(store.backend.walk("runs/tiny/data.zarr/resid_post_last_prompt/c"))


def test_a_flipped_bit_of_an_uncompressed_chunk_is_found(store, tmp_path):
    plan = choose(make_plan(), codec="crc32c")
    write_run(store, plan)
    path = tmp_path / "store/runs/tiny/data.zarr/resid_post_mean_response/c/1/2/0"
    data = bytearray(path.read_bytes())
    data[5] ^= 4
    path.write_bytes(data)
    with pytest.raises(CorruptError, match="does not match its checksum"):
        open_run(store, "tiny")["resid_post_mean_response"].compute()
    assert [fault.rows for fault in verify_run(store, "tiny").faults] == [(4, 8)]


@pytest.mark.parametrize("dtype", ["bfloat16-bits", "float16-bits"])
@given(bits=st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=64))
def test_bit_patterns_survive_both_ways(dtype, bits):
    stored = np.array(bits, dtype=np.uint16)
    values = from_bits(stored, dtype)
    assert values.dtype == np.float32
    back = to_bits(values, dtype)
    numbers = ~np.isnan(values)
    np.testing.assert_array_equal(back[numbers], stored[numbers])
    assert np.isnan(from_bits(back, dtype))[~numbers].all()


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("bfloat16-bits", 1 + 2**-8), ("float16-bits", 70000.0), ("float16-bits", 1 + 2**-11)],
)
def test_nothing_is_rounded(dtype, value):
    with pytest.raises(InvalidInputError, match="not exactly"):
        to_bits(np.array([1.0, value], dtype=np.float32), dtype)


def test_a_plan_with_another_codec_is_another_plan(tmp_path):
    store = create_store(tmp_path / "s")
    write_run(store, make_plan())
    with pytest.raises(AlreadyExistsError, match="codec"):
        write_run(store, choose(make_plan(), codec="crc32c"))
