"""Pulling and pushing: objects are checked before they are seen; what was left out raises."""

import numpy as np
import pytest
import xarray as xr

from actlake.corpus import bundled_corpus
from actlake.schemas import (
    AlreadyExistsError,
    IncompleteError,
    InvalidInputError,
    NotFoundError,
    NotPulledError,
    texts_digest,
)
from actlake.store import create_store, open_run, open_store, pull, push, read_catalog, verify_run
from actlake.store.transfer import pulled_keys
from tests.store.copies import objects, serve_folder
from tests.store.samples import (
    ENVIRONMENT,
    block_values,
    make_coords,
    make_plan,
    make_tokens,
    make_values,
    write_run,
)

MEAN, PROMPT = "resid_post_mean_response", "resid_post_last_prompt"
DATA = "runs/tiny/data.zarr"


@pytest.fixture
def here(tmp_path):
    return create_store(tmp_path / "here")


def test_a_whole_pull_is_the_same_run_byte_for_byte(any_store, here):
    plan = make_plan()
    write_run(any_store, plan)
    (done,) = pull(any_store, here)
    assert done.whole
    assert (done.n_copied, done.n_kept) == (len(any_store.read_seal("tiny").objects) - 1, 0)
    assert objects(here) == objects(any_store)
    assert verify_run(here, "tiny").ok
    assert [entry.run for entry in read_catalog(here).runs] == ["tiny"]
    ds = open_run(here, "tiny")
    np.testing.assert_array_equal(ds[MEAN].values, make_values(plan)[MEAN])


def test_a_push_is_a_pull_the_other_way(place, here):
    url, options = place
    write_run(here, make_plan())
    push(here.url, url, storage_options=options)
    there = open_store(url, storage_options=options)
    assert objects(there) == objects(here)
    assert [entry.run for entry in read_catalog(there).runs] == ["tiny"]
    (again,) = push(here.url, url, storage_options=options)
    assert (again.n_copied, again.n_bytes_copied) == (0, 0)


def test_a_layer_that_was_not_pulled_raises_with_the_command_and_is_never_nan(any_store, here):
    plan = make_plan()  # layers 0, 2, 4
    write_run(any_store, plan)
    (done,) = pull(any_store, here, layers=[2], pools=["mean_response"])
    assert not done.whole
    stored = {k for k in objects(here) if f"{MEAN}/c/" in k}
    assert stored == {f"{DATA}/{MEAN}/c/{block}/1/0" for block in range(3)}
    assert not any(PROMPT in key for key in objects(here))
    ds = open_run(here, "tiny")
    assert ds.sizes == open_run(any_store, "tiny").sizes
    values = make_values(plan)
    np.testing.assert_array_equal(ds[MEAN].sel(layer=2).values, values[MEAN][:, 1])
    np.testing.assert_array_equal(ds["resid_post_norm"].values, values["resid_post_norm"])
    what = r"layer 4, block \d of run 'tiny' was not pulled"
    command = "actlake store pull .*--run tiny --layer 4 --pool mean_response"
    with pytest.raises(NotPulledError, match=f"{what}.*{command}"):
        ds[MEAN].sel(layer=4).compute()
    with pytest.raises(NotPulledError, match="last_prompt"):
        ds[PROMPT].compute()
    with pytest.raises(NotPulledError):
        ds[MEAN].mean().compute()
    assert verify_run(here, "tiny").ok
    assert verify_run(here, "tiny", full=True).ok


def test_what_was_pulled_can_be_shown_alone(store, here):
    plan = make_plan()
    write_run(store, plan)
    pull(store, here, layers=[0, 4], pools=["last_prompt"])
    ds = open_run(here, "tiny", pulled_only=True)
    assert list(ds.data_vars) == [PROMPT, "resid_post_norm"]
    assert ds["layer"].values.tolist() == [0, 4]
    values = make_values(plan)
    np.testing.assert_array_equal(ds[PROMPT].values, values[PROMPT][:, [0, 2]])
    np.testing.assert_array_equal(
        ds["resid_post_norm"].values, values["resid_post_norm"][:, [0, 2]]
    )
    whole = open_run(store, "tiny", pulled_only=True)
    xr.testing.assert_identical(whole, open_run(store, "tiny"))


def test_pulling_again_adds_and_in_the_end_nothing_tells_it_from_a_whole_copy(store, here):
    plan = make_plan()
    write_run(store, plan)
    pull(store, here, layers=[0])
    pull(store, here, layers=[2], pools=["mean_response"])
    ds = open_run(here, "tiny")
    values = make_values(plan)
    np.testing.assert_array_equal(ds[MEAN].sel(layer=[0, 2]).values, values[MEAN][:, :2])
    np.testing.assert_array_equal(ds[PROMPT].sel(layer=0).values, values[PROMPT][:, 0])
    with pytest.raises(NotPulledError):
        ds[PROMPT].sel(layer=2).compute()
    assert open_run(here, "tiny", pulled_only=True)["layer"].values.tolist() == [0]
    (done,) = pull(store, here)
    assert done.whole
    assert objects(here) == objects(store)


def finish(writer):
    for block in writer.pending_blocks():
        writer.write_block(block, block_values(writer.plan, block))
    writer.seal()


def with_splits(plan):
    split = np.array(["train"] * 4 + ["test"] * 3 + ["train"] * 3)
    return {**make_coords(plan), "split": split}


def write_split_run(store, plan):
    writer = store.create_run(
        plan, coords=with_splits(plan), environment=ENVIRONMENT, token_data=make_tokens(plan)
    )
    values = make_values(plan)
    for block in range(plan.n_blocks):
        rows = plan.block_rows(block)
        writer.write_block(block, {name: full[rows] for name, full in values.items()})
    writer.seal()


def test_blocks_without_a_row_of_the_split_are_left_out(store, here):
    plan = make_plan()  # blocks of rows 0-3, 4-7, 8-9; the test rows are 4 to 6
    write_split_run(store, plan)
    pull(store, here, splits=["test"])
    full = make_values(plan)[MEAN]
    ds = open_run(here, "tiny")
    np.testing.assert_array_equal(ds[MEAN].isel(text=slice(4, 8)).values, full[4:8])
    with pytest.raises(NotPulledError, match="block 0"):
        ds[MEAN].isel(text=0).compute()
    shown = open_run(here, "tiny", pulled_only=True)
    assert shown["text"].values.tolist() == make_coords(plan)["text"][4:8].tolist()
    np.testing.assert_array_equal(shown[MEAN].values, full[4:8])
    assert "token_id" not in shown.coords  # its offsets are those of all rows
    assert verify_run(here, "tiny").ok
    with pytest.raises(InvalidInputError, match=r"no split 'tset' \(did you mean 'test'\?\)"):
        pull(store, here, splits=["tset"])


def test_rows_of_a_partial_copy_are_refused_by_other_readers_as_far_as_zarr_allows(store, here):
    write_run(store, make_plan())
    pull(store, here, layers=[0], pools=["mean_response"])
    plain = xr.open_zarr(f"{here.url}/{DATA}")
    assert PROMPT not in plain
    assert "NaN" in plain.attrs["partial_copy"]
    assert np.isfinite(plain[MEAN].sel(layer=0).values).all()


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"layers": [1]}, r"has no layers \[1\]; it has \[0, 2, 4\]"),
        ({"pools": ["mean_responses"]}, "did you mean 'mean_response'"),
        ({"splits": ["train"]}, "no coordinate 'split'"),
        ({"concurrency": 0}, "at least 1"),
    ],
)
def test_an_impossible_choice_is_refused_before_anything_is_copied(store, here, choice, message):
    write_run(store, make_plan())
    with pytest.raises(InvalidInputError, match=message):
        pull(store, here, **choice)
    assert set(objects(here)) == set()
    with pytest.raises(NotFoundError, match=r"no run 'tinny'.*did you mean 'tiny'"):
        pull(store, here, runs=["tinny"])
    with pytest.raises(InvalidInputError, match="same store"):
        pull(store, store)


def test_of_an_unsealed_run_the_committed_blocks_are_copied(any_store, here):
    plan = make_plan()
    writer = write_run(any_store, plan, blocks=[0, 2], seal=False)
    (done,) = pull(any_store, here)
    assert done.whole
    full = make_values(plan)[MEAN]
    with pytest.raises(IncompleteError, match="4 of 10 rows"):
        open_run(here, "tiny")
    ds = open_run(here, "tiny", allow_partial=True)
    assert ds["committed"].values.tolist() == [True] * 4 + [False] * 4 + [True] * 2
    np.testing.assert_array_equal(ds[MEAN].values[:4], full[:4])
    assert verify_run(here, "tiny").ok
    finish(writer)
    pull(any_store, here)
    assert objects(here) == objects(any_store)
    assert verify_run(here, "tiny").ok


def test_parts_of_an_unsealed_run_become_parts_of_the_sealed_one(store, here):
    plan = make_plan()
    writer = write_run(store, plan, blocks=[0], seal=False)
    pull(store, here, layers=[2])
    ds = open_run(here, "tiny", allow_partial=True)
    np.testing.assert_array_equal(ds[MEAN].sel(layer=2).values[:4], make_values(plan)[MEAN][:4, 1])
    with pytest.raises(NotPulledError):
        ds[MEAN].sel(layer=0).compute()
    assert verify_run(here, "tiny").ok
    finish(writer)
    pull(store, here, layers=[2])
    ds = open_run(here, "tiny", pulled_only=True)
    np.testing.assert_array_equal(ds[MEAN].values, make_values(plan)[MEAN][:, [1]])
    assert verify_run(here, "tiny").ok


def test_parts_are_not_copied_into_a_run_that_holds_whole_blocks(store, here):
    plan = make_plan()
    writer = write_run(store, plan, blocks=[0], seal=False)
    pull(store, here)
    finish(writer)
    with pytest.raises(IncompleteError, match="copy all layers and pools"):
        pull(store, here, layers=[2])
    pull(store, here)
    assert verify_run(here, "tiny").ok


def test_nothing_is_extracted_into_a_partial_copy(store, here):
    plan = make_plan()
    write_run(store, plan)
    pull(store, here, layers=[2])
    with pytest.raises(AlreadyExistsError, match="partial copy"):
        write_run(here, plan)


def test_a_partial_copy_can_be_copied_on(store, here, tmp_path):
    plan = make_plan()
    write_run(store, plan)
    pull(store, here, layers=[2, 4])
    pull(here, tmp_path / "third")
    third = open_run(tmp_path / "third", "tiny", pulled_only=True)
    np.testing.assert_array_equal(third[MEAN].values, make_values(plan)[MEAN][:, 1:])
    assert verify_run(open_store(tmp_path / "third"), "tiny").ok
    with pytest.raises(NotPulledError, match=r"partial copy without all.*--layer 0"):
        pull(here, tmp_path / "fourth", layers=[0])


def test_the_corpus_travels_with_its_runs(any_store, here):
    info, texts = bundled_corpus("demo")
    any_store.write_corpus(info, texts)
    plan = make_plan().model_copy(update={"corpus": info.id})
    write_run(any_store, plan)
    pull(any_store, here, layers=[2])
    assert here.read_corpus(info.id) == any_store.read_corpus(info.id)
    assert texts_digest(here.read_corpus(info.id)[1]) == info.texts_digest


def test_pulled_keys_name_the_objects_and_are_none_of_a_whole_run(store, here):
    write_run(store, make_plan())
    pull(store, here, layers=[2])
    assert pulled_keys(store, "tiny") is None
    keys = pulled_keys(here, "tiny")
    there = {key for key in objects(here) if "/c/" in key and "resid" in key}
    assert there == {f"{DATA}/{key}" for key in keys}


def test_progress_counts_every_object(store, here):
    write_run(store, make_plan())
    seen = []
    pull(store, here, on_object=lambda done, total: seen.append((done, total)))
    assert seen == [(i, len(seen)) for i in range(1, len(seen) + 1)]


def test_a_sealed_run_is_pulled_from_a_host_without_listing(store, here, tmp_path):
    write_run(store, make_plan())
    with serve_folder(tmp_path) as url:
        pull(f"{url}/store", here, layers=[2])
        pull(f"{url}/store", here)
    assert objects(here) == objects(store)
