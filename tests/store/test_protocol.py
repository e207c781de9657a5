import hashlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actlake.schemas import (
    AlreadyExistsError,
    IncompleteError,
    InvalidInputError,
    NotFoundError,
)
from actlake.store import create_store, open_run, open_store, verify_run
from actlake.store.block_writer import Progress
from actlake.store.blocks import block_keys
from actlake.store.local import _host
from tests.store.samples import (
    ENVIRONMENT,
    block_values,
    make_coords,
    make_plan,
    make_tokens,
    make_values,
    write_run,
)


def snapshot(store):
    return {key: store.backend.get(key, max_bytes=size) for key, size in store.backend.walk("")}


def test_the_plan_id_is_the_hash_of_the_stored_plan(store):
    plan = make_plan()
    writer = write_run(store, plan, blocks=[], seal=False)
    data = store.backend.get("runs/tiny/plan.json", max_bytes=10**6)
    assert "sha256:" + hashlib.sha256(data).hexdigest() == writer.plan_id == plan.fingerprint()
    assert store.read_plan("tiny") == plan
    assert store.read_manifest("tiny").plan_id == writer.plan_id


def test_resume_does_only_the_missing_blocks_and_ends_the_same(any_store):
    plan = make_plan()
    write_run(any_store, plan, blocks=[1], seal=False)
    before = snapshot(any_store)
    writer = any_store.create_run(
        plan, coords=make_coords(plan), environment=ENVIRONMENT, token_data=make_tokens(plan)
    )
    assert writer.pending_blocks() == [0, 2]
    for block in writer.pending_blocks():
        writer.write_block(block, block_values(plan, block))
    seal = writer.seal()
    after = snapshot(any_store)
    root = "runs/tiny/data.zarr/zarr.json"
    assert all(after[key] == data for key, data in before.items() if key != root)
    other = make_plan("undisturbed")
    whole = write_run(any_store, other).seal()
    assert seal.data_digest == whole.data_digest
    assert {o.key for o in seal.objects} == {o.key for o in whole.objects}
    assert verify_run(any_store, "tiny").ok


def test_another_plan_under_the_same_run_is_refused_by_name_and_changes_nothing(any_store):
    write_run(any_store, make_plan(), blocks=[0], seal=False)
    before = snapshot(any_store)
    other = make_plan(rows=5)
    with pytest.raises(AlreadyExistsError) as caught:
        any_store.create_run(other, coords=make_coords(other), environment=ENVIRONMENT)
    message = str(caught.value)
    assert "rows_per_block (stored 4, got 5)" in message
    assert "\n" not in message
    assert snapshot(any_store) == before


def test_other_coordinates_under_the_same_plan_are_refused(store):
    plan = make_plan()
    write_run(store, plan, blocks=[0], seal=False)
    before = snapshot(store)
    coords = make_coords(plan)
    coords["label"] = 1 - coords["label"]
    with pytest.raises(AlreadyExistsError, match="label/c/0"):
        store.create_run(plan, coords=coords, environment=ENVIRONMENT, token_data=make_tokens(plan))
    assert snapshot(store) == before


def test_a_committed_block_is_never_overwritten(any_store):
    plan = make_plan()
    writer = write_run(any_store, plan, blocks=[0], seal=False)
    first = any_store.read_commit("tiny", 0)
    before = snapshot(any_store)
    noise = {name: values + 1 for name, values in block_values(plan, 0).items()}
    assert writer.write_block(0, noise) == first
    assert snapshot(any_store) == before


def test_sealing_needs_every_block(any_store):
    writer = write_run(any_store, make_plan(), blocks=[0], seal=False)
    with pytest.raises(IncompleteError, match="2 of 3 blocks"):
        writer.seal()
    assert any_store.read_seal("tiny") is None
    assert not writer.is_sealed


def test_sealing_again_returns_the_same_seal_and_mends_the_catalog(store):
    writer = write_run(store, make_plan())
    assert writer.is_sealed
    seal = store.read_seal("tiny")
    store.backend.delete("catalog.json")
    assert write_run(store, make_plan()).seal() == seal
    assert store.backend.size("catalog.json") is not None


def test_an_unfinished_run_is_not_opened_and_a_partial_view_masks_it(any_store):
    plan = make_plan()
    writer = write_run(any_store, plan, blocks=[1], seal=False)
    with pytest.raises(IncompleteError, match="6 of 10 rows"):
        open_run(any_store, "tiny")
    # The objects of an uncommitted block lie there, as a killed writer leaves them.
    writer._blocks._store_objects(0, block_values(plan, 0), Progress("0-0"))
    ds = open_run(any_store, "tiny", allow_partial=True)
    assert ds["committed"].values.tolist() == [4 <= i < 8 for i in range(10)]
    assert ds.attrs["content_digest"] == "unsealed"
    for name, full in make_values(plan).items():
        np.testing.assert_array_equal(ds[name].values[4:8], full[4:8])
        assert np.isnan(ds[name].values[:4]).all()
        assert np.isnan(ds[name].values[8:]).all()


def test_a_complete_but_unsealed_run_opens_as_unsealed(store):
    write_run(store, make_plan(), seal=False)
    assert open_run(store, "tiny").attrs["content_digest"] == "unsealed"
    assert "committed" not in open_run(store, "tiny").coords


def test_a_kill_at_any_write_of_creation_is_mended_by_creating_again(tmp_path):
    """Each prefix of the sequence of objects that creation writes is a possible kill."""
    plan = make_plan()
    whole = create_store(tmp_path / "whole")
    write_run(whole, plan, blocks=[], seal=False)
    final = snapshot(whole)
    order = ["runs/tiny/plan.json", *sorted(k for k in final if "/data.zarr/" in k)]
    for n_written in range(len(order) + 1):
        store = create_store(tmp_path / f"cut-{n_written}")
        for key in order[:n_written]:
            store.backend.put(key, final[key])
        write_run(store, plan)
        assert verify_run(store, "tiny").ok
        now = snapshot(store)
        assert all(
            now[key] == final[key] for key in order if not key.endswith("data.zarr/zarr.json")
        )


def test_leftovers_of_killed_processes_are_ignored_and_removed_on_resume(store):
    plan = make_plan()
    write_run(store, plan, blocks=[0], seal=False)
    folder = store.backend._root / "runs/tiny"
    dead = folder / f"commits/1.json.tmp-{_host()}-999999999-{'0' * 32}"
    live = folder / f"data.zarr/zarr.json.tmp-{_host()}-1-{'0' * 32}"
    for path in (dead, live):
        path.write_text("half a rec")
    assert store.committed_blocks("tiny") == [0]
    write_run(store, plan)
    assert not dead.exists()
    assert live.exists()  # its process lives: it may still be writing
    assert verify_run(store, "tiny").ok


def test_commits_keep_their_notes_and_the_plan(store):
    plan = make_plan()
    writer = write_run(store, plan, blocks=[], seal=False)
    writer.write_block(2, block_values(plan, 2), notes={"largest_deviation": 0.5})
    commit = store.read_commit("tiny", 2)
    assert commit.notes == {"largest_deviation": 0.5}
    assert (commit.row_start, commit.row_stop) == (8, 10)
    assert commit.environment == ENVIRONMENT
    with pytest.raises(InvalidInputError, match="plain JSON"):
        writer.write_block(1, block_values(plan, 1), notes={"bad": float("nan")})
    assert store.committed_blocks("tiny") == [2]


def spoil(arrays, how):
    name = "resid_post_norm"
    if how == "missing":
        del arrays[name]
    elif how == "unknown":
        arrays["other"] = arrays[name]
    elif how == "rows":
        arrays[name] = arrays[name][:-1]
    elif how == "dtype":
        arrays[name] = arrays[name].astype(np.float64)
    return arrays


@pytest.mark.parametrize("how", ["missing", "unknown", "rows", "dtype"])
def test_blocks_that_do_not_fit_the_plan_are_refused(store, how):
    plan = make_plan()
    writer = write_run(store, plan, blocks=[], seal=False)
    before = snapshot(store)
    with pytest.raises(InvalidInputError, match=r"block 0: .*expected"):
        writer.write_block(0, spoil(block_values(plan, 0), how))
    with pytest.raises(InvalidInputError, match="blocks 0 to 2, got 3"):
        writer.write_block(3, block_values(plan, 0))
    assert snapshot(store) == before


BAD_COORDS = {
    "no text": ({"text": None}, "need 'text'"),
    "doubled ids": ({"text": np.array(["a"] * 10)}, "distinct strings"),
    "short": ({"label": np.zeros(9, dtype=np.int8)}, r"shape \(9,\), expected \(10,\)"),
    "objects": ({"arm": np.array([1, "a"] * 5, dtype=object)}, "mixes text with 1"),
    "times": ({"arm": np.zeros(10, dtype="datetime64[s]")}, "has type datetime64"),
    "taken": ({"resid_post_norm": np.zeros(10)}, "cannot name coordinates"),
    "a path": ({"../x": np.zeros(10)}, "cannot name coordinates"),
    "layers": ({"layer": np.array([0, 1, 2])}, "not the plan's"),
    "essays": ({"arm": np.array(["x" * 200_000] * 10)}, "texts belong in the corpus"),
}


@pytest.mark.parametrize("case", BAD_COORDS)
def test_coordinates_that_do_not_fit_are_refused_before_anything_is_written(store, case):
    change, message = BAD_COORDS[case]
    plan = make_plan()
    coords = {k: v for k, v in {**make_coords(plan), **change}.items() if v is not None}
    before = snapshot(store)
    with pytest.raises(InvalidInputError, match=message):
        store.create_run(plan, coords=coords, environment=ENVIRONMENT)
    assert snapshot(store) == before


@pytest.mark.parametrize(
    "offsets", [np.arange(11) * 2, np.arange(11)[::-1] * 3, np.r_[0, 5, 4, np.arange(3, 11) * 3]]
)
def test_token_offsets_that_do_not_fit_are_refused(store, offsets):
    plan = make_plan()
    tokens = {**make_tokens(plan), "token_offset": offsets}
    with pytest.raises(InvalidInputError, match="token_offset"):
        store.create_run(plan, coords=make_coords(plan), environment=ENVIRONMENT, token_data=tokens)


def test_plans_that_contradict_themselves_are_refused(store):
    plan = make_plan()
    wrong = plan.model_copy(update={"n_texts": 11})
    with pytest.raises(InvalidInputError, match=r"shape \(10, 3, 8\), expected \(11, 3, 8\)"):
        store.create_run(wrong, coords=make_coords(plan), environment=ENVIRONMENT)
    assert store.run_ids() == []


def test_what_is_not_there_is_named_with_what_is(store, tmp_path):
    write_run(store, make_plan("llama-demo"))
    with pytest.raises(NotFoundError, match="did you mean 'llama-demo'"):
        open_run(store, "lama-demo")
    with pytest.raises(NotFoundError, match=r"no store\.json|check the path"):
        open_store(tmp_path / "elsewhere")
    with pytest.raises(InvalidInputError, match="cannot be a run id"):
        open_run(store, "../secrets")


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_order_of_blocks_and_interruptions_converges(tmp_path_factory, data):
    n_texts, rows = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
    plan = make_plan(n_texts=n_texts, rows=rows)
    store = create_store(tmp_path_factory.mktemp("any") / "s")
    writer = write_run(store, plan, blocks=[], seal=False)
    while pending := writer.pending_blocks():
        action = data.draw(st.sampled_from(["commit", "objects only", "new writer"]))
        block = data.draw(st.sampled_from(pending))
        if action == "commit":
            writer.write_block(block, block_values(plan, block))
        elif action == "objects only":
            for key in block_keys(plan, block)[:2]:
                store.backend.put(f"runs/tiny/data.zarr/{key}", b"torn")
        else:
            writer = write_run(store, plan, blocks=[], seal=False)
        ds = open_run(store, "tiny", allow_partial=True)
        seen = ds["resid_post_norm"].values
        assert np.isnan(seen[~ds["committed"].values]).all()
        assert np.isfinite(seen[ds["committed"].values]).all()
    seal = writer.seal()
    fresh = create_store(tmp_path_factory.mktemp("whole") / "s")
    assert seal.data_digest == write_run(fresh, plan).seal().data_digest
    assert verify_run(store, "tiny").ok
