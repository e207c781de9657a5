"""A copy holds nothing that is wrong, whatever the source, the network or a kill did."""

import contextlib
import json
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actlake.schemas import (
    AlreadyExistsError,
    CorruptError,
    NotPulledError,
    Pulled,
)
from actlake.store import create_store, open_run, open_store, pull, push, verify_run
from actlake.store.local import LocalBackend
from actlake.store.partial import coverage_keys, coverage_of, is_whole, to_parts
from tests.store.copies import objects
from tests.store.samples import (
    ENVIRONMENT,
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


@pytest.mark.parametrize("change", ["flip", "cut", "longer", "gone"])
def test_an_object_that_is_not_what_the_manifest_says_never_appears(any_store, here, change):
    write_run(any_store, make_plan())
    key = f"{DATA}/{MEAN}/c/1/2/0"
    data = any_store.backend.get(key, max_bytes=10**6)
    bad = {"flip": bytes([data[0] ^ 1]) + data[1:], "cut": data[:-1], "longer": data + b"x"}
    if change == "gone":
        any_store.backend.delete(key)
    else:
        any_store.backend.put(key, bad[change])
    with pytest.raises(CorruptError, match=f"{key}.*"):
        pull(any_store, here)
    assert key not in objects(here)
    assert here.run_ids() == []
    any_store.backend.put(key, data)  # mended: the pull goes on where it was
    (done,) = pull(any_store, here)
    assert done.whole
    assert done.n_kept > 0
    assert verify_run(here, "tiny").ok


def test_a_damaged_object_of_the_copy_is_fetched_again_and_the_others_are_not(store, here):
    write_run(store, make_plan())
    pull(store, here)
    key = f"{DATA}/{MEAN}/c/1/2/0"
    data = here.backend.get(key, max_bytes=10**6)
    here.backend.put(key, bytes([data[0] ^ 1]) + data[1:])
    assert not verify_run(here, "tiny").ok
    (done,) = pull(store, here)
    assert done.n_copied == 1
    assert verify_run(here, "tiny").ok


class Killed(BaseException):
    """Ends a pull as a kill would."""


class DyingBackend(LocalBackend):
    """A real folder that stops the process's work after so many writes."""

    def __init__(self, location, left):
        super().__init__(location)
        self.left = left
        self.lock = threading.Lock()

    def spend(self):
        with self.lock:
            self.left -= 1
            if self.left < 0:
                raise Killed

    def put(self, key, data):
        self.spend()
        super().put(key, data)

    def create(self, key, data):
        self.spend()
        return super().create(key, data)

    def delete(self, key):
        self.spend()
        super().delete(key)


@settings(max_examples=12, deadline=None)
@given(left=st.integers(0, 75), layers=st.sampled_from([None, [0], [2, 4]]))
def test_a_pull_that_is_killed_anywhere_shows_nothing_wrong_and_goes_on(
    tmp_path_factory, left, layers
):
    folder = tmp_path_factory.mktemp("kill")
    plan = make_plan()
    source, here = create_store(folder / "source"), create_store(folder / "here")
    write_run(source, plan)
    pull(source, here, layers=[4], pools=["last_prompt"])
    here.backend = DyingBackend(here.location, left)
    with contextlib.suppress(Killed):
        pull(source, here, layers=layers, concurrency=3)
    here = open_store(here.url)
    values = make_values(plan)
    ds = open_run(here, "tiny")
    np.testing.assert_array_equal(ds[PROMPT].sel(layer=4).values, values[PROMPT][:, 2])
    for name in (MEAN, PROMPT):
        for index, layer in enumerate(plan.layers):
            try:
                found = ds[name].sel(layer=layer).values
            except NotPulledError:
                continue
            np.testing.assert_array_equal(found, values[name][:, index])
    pull(source, here, layers=layers)
    for layer in plan.layers if layers is None else layers:
        open_run(here, "tiny")[MEAN].sel(layer=layer).compute()
    assert verify_run(here, "tiny").ok


def test_another_run_under_the_same_name_is_never_mixed(store, here):
    write_run(store, make_plan())
    write_run(here, make_plan(hidden=4))
    before = objects(here)
    with pytest.raises(AlreadyExistsError, match="holds another run 'tiny'"):
        push(store, here)
    assert objects(here) == before


def test_the_same_plan_with_other_values_is_never_mixed(store, here):
    plan = make_plan()
    write_run(store, plan)
    writer = here.create_run(
        plan, coords=make_coords(plan), environment=ENVIRONMENT, token_data=make_tokens(plan)
    )
    rows = plan.block_rows(0)
    writer.write_block(0, {n: v[rows] + 1 for n, v in make_values(plan).items()})
    before = objects(here)
    with pytest.raises(AlreadyExistsError, match="committed by another writer"):
        push(store, here)
    assert objects(here) == before


def test_the_records_of_two_writers_are_never_mixed(store, here):
    plan = make_plan()
    write_run(store, plan)
    write_run(here, plan, blocks=[0], seal=False)
    before = objects(here)
    with pytest.raises(AlreadyExistsError, match="committed by another writer"):
        pull(store, here)
    assert objects(here) == before


@pytest.mark.parametrize(
    "key", ["../../../evil", "resid_post_mean_response/c/0/9/0", "/tmp/evil", "a/../../evil"]
)
def test_keys_of_a_hostile_source_reach_nothing(store, here, tmp_path, key):
    write_run(store, make_plan())
    path = "runs/tiny/seal.json"
    seal = json.loads(store.backend.get(path, max_bytes=10**6))
    seal.pop("digest", None)
    seal["objects"][0]["key"] = key
    store.backend.put(path, json.dumps(seal).encode())
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CorruptError):
        pull(store, here)
    assert objects(here) == {}
    assert sorted(tmp_path.rglob("*")) == before


def test_an_object_that_claims_to_be_huge_is_not_fetched(store, here):
    write_run(store, make_plan(), blocks=[0], seal=False)
    path = "runs/tiny/commits/0.json"
    commit = json.loads(store.backend.get(path, max_bytes=10**6))
    commit.pop("digest", None)
    commit["objects"][0]["n_bytes"] = 2**50
    store.backend.put(path, json.dumps(commit).encode())
    with pytest.raises(CorruptError):
        pull(store, here)
    assert here.run_ids() == []


def test_a_record_of_parts_that_cannot_be_is_refused(store, here):
    write_run(store, make_plan())
    pull(store, here, layers=[2])
    record = here.read_record(Pulled, "runs/tiny/pulled.json")
    part = record.parts[0].model_copy(update={"layers": (3,)})
    forged = record.model_copy(update={"parts": (part,)})
    here.backend.put("runs/tiny/pulled.json", forged.to_json().encode())
    with pytest.raises(CorruptError, match="names objects that the plan does not have"):
        open_run(here, "tiny")


@settings(deadline=None)
@given(data=st.data())
def test_the_record_of_parts_says_exactly_which_objects_are_there(data):
    plan = make_plan(n_texts=data.draw(st.integers(1, 20)), rows=data.draw(st.integers(1, 5)))
    bits = st.lists(st.booleans(), min_size=plan.n_blocks, max_size=plan.n_blocks)
    held = {
        spec.name: np.array([data.draw(bits) for _ in range(3 if len(spec.shape) == 3 else 1)])
        for spec in plan.arrays
    }
    record = Pulled(run="tiny", plan_id=plan.fingerprint(), parts=to_parts(plan, held))
    again = coverage_of(plan, Pulled.parse_json(record.to_json()), where="here")
    for name, mask in held.items():
        np.testing.assert_array_equal(again[name], mask)
    n_held = sum(int(mask.sum()) for mask in held.values())
    assert len(set(coverage_keys(plan, again))) == n_held
    assert is_whole(plan, again) == all(mask.all() for mask in held.values())
