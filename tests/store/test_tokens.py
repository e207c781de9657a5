"""Token arrays: where each token lies, what readers see of it, and every tool that touches it."""

from __future__ import annotations

import time
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from actlake.schemas import CorruptError, IncompleteError, InvalidInputError, NotPulledError
from actlake.store import (
    BlockClaimedError,
    apply_repair,
    create_store,
    open_run,
    plan_repair,
    plan_token_axis,
    pull,
    rows_within_bytes,
    verify_run,
    write_card,
)
from actlake.store.backend import NoSpaceError
from actlake.store.blocks import block_chunks, block_keys, place_of_key, rows_of_key
from actlake.store.input_checks import static_arrays
from actlake.store.layout import to_bytes
from tests.store.forging import edit, flip
from tests.store.memory import memory_store
from tests.store.samples import (
    ENVIRONMENT,
    LENGTHS,
    block_values,
    make_coords,
    make_plan,
    make_tokens,
    make_values,
    with_tokens,
    write_run,
)
from tests.store.small import fill_store, small_coords

NAME = "resid_post_tokens"
MIB = 2**20
POSITIONS = np.concatenate([np.arange(n) for n in LENGTHS[:10]])
TEXTS = np.repeat(np.arange(10), LENGTHS[:10])

lengths_of_texts = st.lists(st.integers(0, 30), min_size=1, max_size=30).filter(any)


@pytest.fixture
def filled(store):
    fill_store(store, tokens=True)
    return store


# -- the layout


@given(lengths=lengths_of_texts, rows=st.integers(1, 40), per_block=st.integers(1, 35))
def test_every_token_lies_in_one_place_and_padding_is_nan(lengths, rows, per_block):
    plan = with_tokens(make_plan(n_texts=len(lengths), rows=per_block), lengths, rows=rows)
    axis = plan.token_axis
    values = make_values(plan)[NAME]
    stored = np.zeros(plan.arrays[-1].shape, dtype=np.float32)
    seen: set[str] = set()
    for block in range(plan.n_blocks):
        chunks = dict(block_chunks(plan, block, block_values(plan, block)))
        assert list(chunks) == block_keys(plan, block)
        assert not seen & set(chunks)  # blocks share no object
        seen |= set(chunks)
        for key, part in chunks.items():
            place = place_of_key(plan, key)
            assert place.block == block
            span = plan.block_rows(block)
            assert rows_of_key(plan, key) == (span.start, span.stop)
            if key.startswith(NAME + "/"):
                chunk, layer, _ = (int(n) for n in key.partition("/c/")[2].split("/"))
                assert (part.shape, place.layer) == ((rows, 1, 8), layer)
                assert np.isnan(part[place.n_rows :]).all()
                assert not np.isnan(part[: place.n_rows]).any()
                stored[chunk * rows : (chunk + 1) * rows, layer] = part[:, 0]
    assert len(seen) == plan.n_objects
    is_token = ~np.isnan(stored).any(axis=(1, 2))
    np.testing.assert_array_equal(stored[is_token], values)
    assert np.isnan(stored[~is_token]).all()
    offsets = make_tokens(plan, lengths)
    static = static_arrays(plan, coords=make_coords(plan, lengths), token_data=offsets)
    found = {array.name: array.values for array in static}
    np.testing.assert_array_equal(found["token_text"] >= 0, is_token)
    text = np.repeat(np.arange(len(lengths)), lengths)
    np.testing.assert_array_equal(found["token_text"][is_token], text)
    position = np.concatenate([np.arange(n) for n in lengths])
    np.testing.assert_array_equal(found["token_position"][is_token], position)
    np.testing.assert_array_equal(found["token_id"][is_token], np.arange(sum(lengths)))
    for name in ("token_text", "token_position", "token_id"):
        assert (found[name][~is_token] == -1).all()
    # Never more than one chunk per block is not full.
    padding = [axis.rows_per_chunk * (d - c) for c, d in pairwise(axis.chunk_edges)]
    assert all(
        p - (b - a) < rows for p, (a, b) in zip(padding, pairwise(axis.token_edges), strict=True)
    )


@given(
    mean=st.integers(20, 2000),
    n_texts=st.integers(64, 3000),
    hidden=st.sampled_from([2048, 3072, 4096, 8192]),
    seed=st.integers(0, 9),
)
def test_chunks_of_a_large_run_have_8_to_16_mib(mean, n_texts, hidden, seed):
    lengths = np.random.default_rng(seed).integers(mean // 2, 2 * mean, n_texts).tolist()
    rows = rows_within_bytes(lengths, token_bytes=4 * hidden, block_bytes=512 * MIB)
    axis = plan_token_axis(lengths, layers=[3], hidden=hidden, rows_per_block=rows)
    size = axis.rows_per_chunk * hidden * 4
    largest = max(b - a for a, b in pairwise(axis.token_edges)) * hidden * 4
    assert largest <= 512 * MIB
    if largest >= 16 * MIB:
        assert 8 * MIB <= size <= 16 * MIB
    else:
        assert size <= largest


def test_the_chunk_size_with_the_least_padding_is_taken():
    # Blocks of 3000 tokens: chunks of 1000 rows (of at most 1024) fill up.
    axis = plan_token_axis([300] * 40, layers=[0], hidden=4096, rows_per_block=10)
    assert (axis.rows_per_chunk, axis.n_rows) == (1000, 12_000)


@given(lengths=lengths_of_texts, limit=st.integers(1, 200))
def test_no_block_takes_more_than_is_allowed(lengths, limit):
    rows = rows_within_bytes(lengths, token_bytes=2, block_bytes=limit)
    counts = [sum(lengths[i : i + rows]) for i in range(0, len(lengths), rows)]
    assert max(counts) * 2 <= limit or rows == 1
    more = [sum(lengths[i : i + rows + 1]) for i in range(len(lengths) - rows)]
    assert rows == len(lengths) or max(more) * 2 > limit  # and it is the most


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"lengths": [0, 0]}, "2 texts of 0 tokens"),
        ({"lengths": [3, -1]}, "2 texts of 2 tokens"),
        ({"layers": ()}, "layers"),
        ({"rows": 0}, "rows"),
    ],
)
def test_a_token_axis_that_cannot_be_is_refused(wrong, said):
    given_ = {"lengths": [3, 4], "layers": (0,), "rows": 5, **wrong}
    with pytest.raises(InvalidInputError, match=said):
        plan_token_axis(given_.pop("lengths"), hidden=8, rows_per_block=1, **given_)


def test_a_plan_without_token_arrays_says_nothing_of_them():
    assert b"token_axis" not in to_bytes(make_plan().to_dict())
    plan = with_tokens(make_plan())
    assert type(plan).parse(plan.to_dict()) == plan


# -- what is refused before anything is written


def replaced(plan, **change):
    axis = plan.token_axis.model_copy(update=change)
    return plan.model_copy(update={"token_axis": axis})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p.model_copy(update={"token_axis": None}), "token arrays need a token axis"),
        (lambda p: p.model_copy(update={"arrays": p.arrays[:-1]}), "token arrays need a token"),
        (lambda p: p.model_copy(update={"n_tokens": 40}), "has 39 tokens, expected 40"),
        (lambda p: p.model_copy(update={"rows_per_block": 5}), "has 3 blocks, expected 2"),
        (lambda p: replaced(p, layers=(2, 3)), "token layers must be some of"),
        (lambda p: replaced(p, layers=(4, 2)), "token layers must be some of"),
    ],
)
def test_a_plan_whose_parts_do_not_fit_is_refused(store, change, said):
    plan = change(with_tokens(make_plan()))
    with pytest.raises(InvalidInputError, match=said):
        write_run(store, plan)
    assert store.run_ids() == []


def test_token_data_that_is_not_the_plans_is_refused(store):
    plan = with_tokens(make_plan())
    other = [*LENGTHS[1:10], LENGTHS[0]]
    for token_data, said in (
        ({}, "token_data needs"),
        (make_tokens(plan, other), "does not fit the token_edges"),
        ({**make_tokens(plan), "token_id": -make_tokens(plan)["token_id"]}, "from 0"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            store.create_run(
                plan,
                coords=make_coords(plan),
                environment=ENVIRONMENT,
                token_data=token_data,
            )


def test_a_block_with_the_rows_of_another_is_refused(store):
    plan = with_tokens(make_plan())
    writer = write_run(store, plan, blocks=[], seal=False)
    values = block_values(plan, 0)
    with pytest.raises(InvalidInputError, match=r"expected float32 \(9, 2, 8\)"):
        writer.write_block(0, {**values, NAME: values[NAME][:-1]})


# -- tokens that come piece by piece


def pooled_values(plan, block):
    return {k: v for k, v in block_values(plan, block).items() if k != NAME}


@settings(deadline=None, max_examples=40)
@given(data=st.data(), lengths=lengths_of_texts, rows=st.integers(1, 12), order=st.randoms())
def test_pieces_in_any_order_are_the_same_bytes_as_whole_blocks(data, lengths, rows, order):
    plan = with_tokens(make_plan(n_texts=len(lengths), rows=7), lengths, rows=rows)
    stores = memory_store(), memory_store()
    options = {"coords": make_coords(plan, lengths), "environment": ENVIRONMENT}
    options["token_data"] = make_tokens(plan, lengths)
    whole, pieces = (store.create_run(plan, **options) for store in stores)
    for block in range(plan.n_blocks):
        values = block_values(plan, block)
        whole.write_block(block, values)
        n_tokens = len(values[NAME])
        cuts = data.draw(st.sets(st.integers(0, n_tokens), max_size=6))
        edges = sorted({0, n_tokens, *cuts})
        spans = list(pairwise(edges))
        order.shuffle(spans)
        for start, stop in spans:
            pieces.add_tokens(block, start, {NAME: values[NAME][start:stop]})
        rest = pooled_values(plan, block) if spans else values
        pieces.write_block(block, rest)
    assert whole.seal().tree_digest == pieces.seal().tree_digest


def test_a_chunk_is_stored_when_it_is_full_and_not_before(store):
    plan = with_tokens(make_plan())
    writer = write_run(store, plan, blocks=[], seal=False)
    values = block_values(plan, 1)[NAME]  # 22 tokens: chunks 2 to 6 of 5 rows

    def there():
        folder = "runs/tiny/data.zarr/" + NAME
        return {key.split("/c/")[1] for key, _ in store.backend.walk(folder) if "/c/" in key}

    for start in (0, 11, 4, 9):
        writer.add_tokens(1, start, {NAME: values[start : start + (2 if start == 9 else 4)]})
        values[start] = 7  # they were copied
    for _ in range(2):
        writer._blocks._begun[1].tokens._collect()
    assert there() == {"2/0/0", "2/1/0", "4/0/0", "4/1/0"}  # tokens 0 to 4, and 10 to 14
    with pytest.raises(InvalidInputError, match="8 of 22 tokens were not added, the first is 8"):
        writer.write_block(1, pooled_values(plan, 1))
    assert there() == set()  # of a block that is refused nothing stays
    assert writer.pending_blocks() == [0, 1, 2]


def test_no_tokens_change_nothing_wherever_they_are_added(store):
    plan = with_tokens(make_plan())
    writer = write_run(store, plan, blocks=[0, 2], seal=False)
    values = block_values(plan, 1)[NAME]
    for start in range(len(values)):
        writer.add_tokens(1, start, {NAME: values[start : start + 1]})
        writer.add_tokens(1, start, {NAME: values[:0]})
    writer.write_block(1, pooled_values(plan, 1))
    writer.seal()
    np.testing.assert_array_equal(open_run(store, "tiny")[NAME].values, make_values(plan)[NAME])


@pytest.mark.parametrize(
    ("start", "change", "said"),
    [
        (20, lambda v: {NAME: v[:3]}, "has tokens 0 to 22, got 20 to 23"),
        (-1, lambda v: {NAME: v[:3]}, "got -1 to 2"),
        (3, lambda v: {NAME: v[:3]}, "token 4 was added before"),
        (0, lambda v: {"x": v[:3]}, "expected token arrays"),
        (0, lambda v: {NAME: v[:3, :1]}, r"expected float32 \(3, 2, 8\)"),
        (0, lambda v: {NAME: v[:3].astype(np.float64)}, "is float64"),
    ],
)
def test_tokens_that_do_not_fit_give_the_block_up(store, start, change, said):
    plan = with_tokens(make_plan())
    writer = write_run(store, plan, blocks=[], seal=False)
    values = block_values(plan, 1)[NAME]
    writer.add_tokens(1, 4, {NAME: values[4:6]})
    with pytest.raises(InvalidInputError, match=said):
        writer.add_tokens(1, start, change(values))
    # Another writer can have the block at once, or this one from the start.
    writer.add_tokens(1, 0, {NAME: values})
    writer.write_block(1, pooled_values(plan, 1))
    assert store.committed_blocks("tiny") == [1]


def test_tokens_need_token_arrays_and_a_block_of_the_run(store):
    writer = write_run(store, make_plan(), blocks=[], seal=False)
    with pytest.raises(InvalidInputError, match="without token arrays"):
        writer.add_tokens(0, 0, {})
    writer = write_run(store, with_tokens(make_plan("other")), blocks=[], seal=False)
    with pytest.raises(InvalidInputError, match="has 3 blocks, got 3"):
        writer.add_tokens(3, 0, {})


def test_closing_gives_up_blocks_whose_tokens_were_begun(store):
    plan = with_tokens(make_plan())
    writer = write_run(store, plan, blocks=[], seal=False)
    values = block_values(plan, 0)
    writer.add_tokens(0, 0, {NAME: values[NAME][:7]})
    writer.close()
    assert not [key for key, _ in store.backend.walk("runs/tiny/data.zarr") if NAME + "/c/" in key]
    other = write_run(store, plan, blocks=[0], seal=False)
    assert other.pending_blocks() == [1, 2]
    # What is committed meanwhile is taken as it is.
    writer.add_tokens(0, 0, {NAME: values[NAME]})
    commit = writer.write_block(0, pooled_values(plan, 0))
    assert commit == store.read_commit("tiny", 0)


def test_another_writer_cannot_have_a_block_whose_tokens_are_coming(store):
    plan = with_tokens(make_plan())
    writer = write_run(store, plan, blocks=[], seal=False)
    writer.add_tokens(0, 0, {NAME: block_values(plan, 0)[NAME]})
    other = write_run(store, plan, blocks=[], seal=False)
    with pytest.raises(BlockClaimedError):
        other.add_tokens(0, 0, {NAME: block_values(plan, 0)[NAME]})
    with pytest.raises(BlockClaimedError):
        other.write_block(0, block_values(plan, 0))


class FullStorage:
    """A storage with no room for the objects of one chunk, and slow with those of the next."""

    def __init__(self, inner, *, full: str, slow: str, on_delete=lambda: None) -> None:
        self._inner, self._full, self._slow, self._on_delete = inner, full, slow, on_delete

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def create(self, key, data):
        if self._full in key:
            raise NoSpaceError(key)
        if self._slow in key:
            time.sleep(0.3)
        return self._inner.create(key, data)

    def delete(self, key):
        if "/c/" in key:
            self._on_delete()
        self._inner.delete(key)


def chunks_there(store):
    return [key for key, _ in store.backend.walk("runs/tiny/data.zarr") if NAME + "/c/" in key]


def test_on_a_full_disk_the_claim_is_freed_after_the_objects_are_gone(store):
    plan = with_tokens(make_plan())
    writer = write_run(store, plan, blocks=[], seal=False)
    other = write_run(store, plan, blocks=[], seal=False)
    deleted_under: list[bool] = []

    def note_the_claim():
        try:
            other.claim_block(1)
        except BlockClaimedError:
            deleted_under.append(True)
        else:
            deleted_under.append(False)

    real = store.backend  # tokens 0 to 21 of block 1 are chunks 2 to 6
    store.backend = FullStorage(real, full="/c/4/", slow="/c/5/", on_delete=note_the_claim)
    with pytest.raises(NoSpaceError, match=r"block 1 .* was discarded"):
        writer.add_tokens(1, 0, {NAME: block_values(plan, 1)[NAME]})
    assert len(deleted_under) >= 4
    assert all(deleted_under)
    assert chunks_there(store) == []
    store.backend = real
    assert other.claim_block(1)


def test_on_a_full_disk_no_object_comes_after_those_that_were_removed(store):
    plan = with_tokens(make_plan())
    writer = write_run(store, plan, blocks=[], seal=False)
    store.backend = FullStorage(store.backend, full="/c/5/", slow="/c/6/")
    writer.add_tokens(1, 0, {NAME: block_values(plan, 1)[NAME]})
    with pytest.raises(NoSpaceError, match=r"block 1 .* was discarded"):
        writer.write_block(1, pooled_values(plan, 1))
    assert chunks_there(store) == []


def test_memory_holds_the_chunks_that_are_begun_and_two_more(store):
    """A block of 64 MiB of tokens goes through 8 MiB."""
    lengths = [512] * 16
    plan = make_plan(n_texts=16, rows=16, hidden=512)
    plan = with_tokens(plan, lengths, rows=256)
    values = np.zeros((512, 2, 512), dtype=np.float32)
    writer = store.create_run(
        plan,
        coords=make_coords(plan, lengths),
        environment=ENVIRONMENT,
        token_data=make_tokens(plan, lengths),
    )
    writer.add_tokens(0, 0, {NAME: values})
    tracemalloc.start()
    try:
        for text in range(1, 16):
            writer.add_tokens(0, 512 * text, {NAME: values})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    chunk = 256 * 2 * 512 * 4
    assert peak < 6 * chunk + 2**20 < 16 * chunk
    pools = {
        spec.name: np.zeros((16, *spec.shape[1:]), dtype=np.float32)
        for spec in plan.arrays
        if not spec.is_tokens
    }
    writer.write_block(0, pools)
    assert writer.pending_blocks() == []


# -- reading


@pytest.mark.parametrize("chunks", [{}, "job", None, {"token": 50}])
def test_readers_see_the_tokens_and_nothing_else(filled, chunks):
    plan = with_tokens(make_plan())
    run = open_run(filled, "tiny", chunks=chunks)
    assert run[NAME].dims == ("token", "token_layer", "hidden")
    assert run.sizes["token"] == plan.n_tokens == 39
    np.testing.assert_array_equal(run[NAME].values, make_values(plan)[NAME])
    np.testing.assert_array_equal(run["token_text"].values, TEXTS)
    np.testing.assert_array_equal(run["token_position"].values, POSITIONS)
    np.testing.assert_array_equal(run["token_id"].values, np.arange(39))
    assert run["token_layer"].values.tolist() == [2, 4]
    edges = run["token_offset"].values
    text = run[NAME].isel(token=slice(edges[5], edges[6])).sel(token_layer=4).values
    np.testing.assert_array_equal(text, make_values(plan)[NAME][14:23, 1])
    pooled = make_values(plan)["resid_post_mean_response"]
    np.testing.assert_array_equal(run["resid_post_mean_response"].values, pooled)


def test_chunks_are_stored_ones_or_whole_blocks_and_never_mix_layers(filled):
    by_object = open_run(filled, "tiny")[NAME]
    assert by_object.chunks == ((5, 4, 5, 5, 5, 5, 2, 5, 3), (1, 1), (8,))
    by_block = open_run(filled, "tiny", chunks="job")[NAME]
    assert by_block.chunks == ((9, 22, 8), (1, 1), (8,))


def test_opening_reads_no_token(filled, monkeypatch):
    got: list[str] = []
    real = type(filled.backend).get_async

    async def counted(self, key, *, max_bytes):
        got.append(key)
        return await real(self, key, max_bytes=max_bytes)

    monkeypatch.setattr(type(filled.backend), "get_async", counted)
    run = open_run(filled, "tiny", chunks="job")
    assert not [key for key in got if "/token_" in key and "token_layer" not in key]
    assert not [key for key in got if NAME in key]
    got.clear()
    run[NAME].sel(token_layer=2).data.compute()
    assert len(got) == 9 == len({k for k in got if NAME + "/c/" in k})
    assert all(key.endswith("/0/0") for key in got)  # one layer, not a byte of the other


def test_sixteen_bits_hold_tokens_exactly(store):
    plan = with_tokens(make_plan())
    specs = [
        spec.model_copy(update={"dtype": "bfloat16-bits"}) if spec.is_tokens else spec
        for spec in plan.arrays
    ]
    plan = plan.model_copy(update={"arrays": tuple(specs)})
    write_run(store, plan)
    for chunks in ({}, "job", None):
        found = open_run(store, "tiny", chunks=chunks)[NAME]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found.values, make_values(plan)[NAME])
    assert verify_run(store, "tiny", full=True).ok


def test_any_xarray_reads_the_run_by_what_the_document_says(filled):
    plain = xr.open_zarr(f"{filled.url}/runs/tiny/data.zarr", consolidated=True)
    assert np.isnan(plain[NAME].values[plain["token_text"].values < 0]).all()
    tokens = plain.isel(token=plain["token_text"].values >= 0)
    expected = make_values(with_tokens(make_plan()))[NAME]
    np.testing.assert_array_equal(tokens[NAME].values, expected)
    np.testing.assert_array_equal(tokens["token_text"].values, TEXTS)


def test_uncommitted_tokens_are_refused_or_marked(store):
    plan = with_tokens(make_plan())
    write_run(store, plan, blocks=[1], seal=False)
    with pytest.raises(IncompleteError):
        open_run(store, "tiny")
    run = open_run(store, "tiny", allow_partial=True)
    there = run["token_committed"].values
    np.testing.assert_array_equal(there, (TEXTS >= 4) & (TEXTS < 8))
    np.testing.assert_array_equal(~np.isnan(run[NAME].values).any(axis=(1, 2)), there)


def test_resuming_writes_what_is_missing_and_the_same_seal(store, tmp_path):
    plan = with_tokens(make_plan())
    write_run(store, plan, blocks=[1], seal=False)
    writer = write_run(store, plan, blocks=[0, 2])
    assert writer.pending_blocks() == []
    other = create_store(tmp_path / "other")
    write_run(other, plan)
    assert store.read_seal("tiny").tree_digest == other.read_seal("tiny").tree_digest


# -- verifying and repairing


@pytest.mark.parametrize("seal", [True, False])
def test_a_whole_run_verifies_in_full(store, seal):
    fill_store(store, tokens=True, seal=seal)
    report = verify_run(store, "tiny", full=True)
    assert report.ok, report.faults
    assert report.n_objects > with_tokens(make_plan()).n_objects


def test_a_flipped_bit_is_found_with_its_texts_and_layer_and_mended(filled):
    flip(filled, f"runs/tiny/data.zarr/{NAME}/c/3/1/0")
    (fault,) = verify_run(filled, "tiny").faults
    assert (fault.rows, fault.layer, fault.kind) == ((4, 8), 4, "chunk")
    assert verify_run(filled, "tiny", layers=[2]).ok
    with pytest.raises(CorruptError, match=f"{NAME}/c/3/1/0"):
        open_run(filled, "tiny")[NAME].sel(token_layer=4).values  # noqa: B018
    repair = plan_repair(filled, "tiny")
    assert repair.blocks == (1,)
    apply_repair(filled, repair)
    plan = filled.read_plan("tiny")
    write_run(filled, plan, blocks=[1], coords=small_coords(plan))
    assert verify_run(filled, "tiny", full=True).ok


@pytest.mark.parametrize("name", ["token_text", "token_position", "token_id", "token_layer"])
def test_a_damaged_coordinate_is_found(filled, name):
    flip(filled, f"runs/tiny/data.zarr/{name}/c/0")
    faults = verify_run(filled, "tiny").faults
    assert [fault.key for fault in faults] == [f"{name}/c/0"]


@pytest.mark.parametrize(
    ("name", "place"), [("token_text", 3), ("token_position", 12), ("token_id", 9)]
)
def test_coordinates_that_do_not_fit_the_offsets_are_found(monkeypatch, store, name, place):
    """A writer with wrong coordinates: every hash is right, and only the values say it."""
    from actlake.store import input_checks

    real = input_checks._padded

    def wrong(*args, **kwargs):
        arrays = real(*args, **kwargs)
        next(array for array in arrays if array.name == name).values[place] = 5
        return arrays

    monkeypatch.setattr(input_checks, "_padded", wrong)
    fill_store(store, tokens=True)
    assert verify_run(store, "tiny").ok
    faults = verify_run(store, "tiny", full=True).faults
    assert [(f.key, f"stored row {place}" in f.reason) for f in faults] == [(f"{name}/c/0", True)]


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: plan["token_axis"].update(rows_per_chunk=4),
        lambda plan: plan["token_axis"]["token_edges"].__setitem__(1, 10),
        lambda plan: plan["token_axis"]["chunk_edges"].append(99),
        lambda plan: plan["token_axis"].update(token_edges=[0, 10**19], chunk_edges=[0, 1]),
        lambda plan: plan["token_axis"].update(layers=[2, 6]),
        lambda plan: plan["token_axis"].update(layers=[]),
        lambda plan: plan.pop("token_axis"),
        lambda plan: plan.update(token_axis=None),
        lambda plan: plan["arrays"][-1]["shape"].__setitem__(0, 10**15),
        lambda plan: plan["arrays"][-1].update(dims=["token", "layer", "hidden"]),
        lambda plan: plan["arrays"][-1].update(dims=["token", "hidden", "token_layer"]),
    ],
)
def test_a_forged_token_axis_is_refused(change):
    store = memory_store()
    fill_store(store, tokens=True)
    edit(store, "runs/tiny/plan.json", change)
    with pytest.raises(CorruptError):
        open_run(store, "tiny")
    assert not verify_run(store, "tiny").ok


# -- copying and sharing


def test_a_whole_copy_is_a_whole_run(filled, tmp_path):
    (done,) = pull(filled, tmp_path / "copy")
    assert done.whole
    copy = create_store(tmp_path / "copy")
    assert verify_run(copy, "tiny", full=True).ok
    assert copy.read_seal("tiny") == filled.read_seal("tiny")


def test_layers_and_pools_of_token_arrays_are_copied_alone(filled, tmp_path):
    there = tmp_path / "copy"
    pull(filled, there, layers=[4], pools=["tokens"])
    copy = create_store(there)
    assert verify_run(copy, "tiny", full=True).ok
    seen = open_run(copy, "tiny", pulled_only=True)
    assert set(seen.data_vars) == {NAME, "resid_post_norm"}
    assert seen["token_layer"].values.tolist() == [4]
    expected = make_values(with_tokens(make_plan()))[NAME]
    np.testing.assert_array_equal(seen[NAME].values[:, 0], expected[:, 1])
    whole = open_run(copy, "tiny")
    with pytest.raises(NotPulledError, match=r"layer 2, block . .*--layer 2 --pool tokens"):
        whole[NAME].sel(token_layer=2).values  # noqa: B018
    pull(filled, there, layers=[0])  # no token array has it: only pools come
    seen = open_run(copy, "tiny", pulled_only=True)
    assert seen.sizes["token_layer"] == 1
    (done,) = pull(filled, there)
    assert done.whole
    assert verify_run(copy, "tiny", full=True).ok


def test_pools_are_copied_without_the_tokens(filled, tmp_path):
    pull(filled, tmp_path / "copy", pools=["last_prompt"])
    seen = open_run(tmp_path / "copy", "tiny", pulled_only=True)
    assert set(seen.data_vars) == {"resid_post_last_prompt", "resid_post_norm"}
    names = {path.name for path in Path(f"{tmp_path}/copy/runs/tiny/data.zarr").iterdir()}
    assert NAME not in names


@pytest.mark.parametrize("chunks", [{}, "job", None])
def test_some_blocks_keep_their_tokens(store, tmp_path, chunks):
    plan = with_tokens(make_plan())
    coords = {**make_coords(plan), "split": np.array(["train"] * 4 + ["test"] * 4 + ["train"] * 2)}
    write_run(store, plan, coords=coords)
    pull(store, tmp_path / "copy", splits=["train"])
    seen = open_run(tmp_path / "copy", "tiny", pulled_only=True, chunks=chunks)
    kept = (TEXTS < 4) | (TEXTS >= 8)
    np.testing.assert_array_equal(seen[NAME].values, make_values(plan)[NAME][kept])
    np.testing.assert_array_equal(seen["token_id"].values, np.arange(39)[kept])
    lengths = np.array(LENGTHS[:10])[[0, 1, 2, 3, 8, 9]]
    np.testing.assert_array_equal(np.diff(seen["token_offset"].values), lengths)
    np.testing.assert_array_equal(seen["token_text"].values, np.repeat(np.arange(6), lengths))
    assert seen["text"].values[4] == coords["text"][8]


def test_the_card_shows_a_small_array_and_its_snippet_runs(filled, tmp_path):
    write_card(filled, data_license="cc-by-4.0")
    readme = Path(f"{filled.url}/README.md").read_text()
    assert 'run["resid_post_mean_response"].sel(layer=2)' in readme
    pull(filled, tmp_path / "copy", pools=["tokens"], layers=[4])
    copy = create_store(tmp_path / "copy")
    write_card(copy, data_license="cc-by-4.0")
    readme = Path(f"{copy.url}/README.md").read_text()
    assert f'run["{NAME}"].sel(token_layer=4)' in readme
