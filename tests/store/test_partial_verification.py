"""Partial copies verify as what was pulled, and damage in them is found and mended by pulling."""

import numpy as np
import pytest
from click.testing import CliRunner

from actlake.cli import cli
from actlake.store import create_store, open_store, plan_repair, verify_run
from actlake.store.transfer import pull
from tests.store.forging import flip, read
from tests.store.small import fill_store

DATA = "runs/tiny/data.zarr"
CHUNK = f"{DATA}/resid_post_mean_response/c/0/1/0"


@pytest.fixture
def copy(tmp_path):
    store = create_store(tmp_path / "store")
    fill_store(store)
    pull(store.url, tmp_path / "copy", runs=["tiny"], layers=[2], pools=["mean_response"])
    return open_store(tmp_path / "copy")


def test_a_partial_copy_verifies_as_what_was_pulled(copy):
    report = verify_run(copy, "tiny", full=True)
    assert report.faults == ()
    assert report.n_objects < copy.read_seal("tiny").n_objects


def test_every_flip_in_a_partial_copy_is_found(copy):
    rng = np.random.default_rng(3)
    missed = []
    for key, size in sorted(copy.backend.walk("")):
        whole = read(copy, key)
        at, bit = int(rng.integers(size)), int(rng.integers(8))
        flip(copy, key, at=at, bit=bit)
        if verify_run(copy, "tiny").ok:
            missed.append((key, at, bit))
        copy.backend.put(key, whole)
    assert not missed


def test_leftovers_of_a_killed_pull_are_held_against_the_seal(copy, tmp_path):
    key = f"{DATA}/resid_post_last_prompt/c/0/1/0"
    copy.backend.put(key, read(open_store(tmp_path / "store"), key))
    assert verify_run(copy, "tiny", full=True).ok
    flip(copy, key)
    (fault,) = verify_run(copy, "tiny").faults
    assert (fault.key, fault.rows) == ("resid_post_last_prompt/c/0/1/0", (0, 4))


def test_a_damaged_partial_copy_is_mended_by_pulling_again(copy, tmp_path):
    flip(copy, CHUNK)
    repair = plan_repair(copy, "tiny")
    assert (repair.remove, repair.blocks) == ((), ())
    shown = CliRunner().invoke(cli, ["store", "repair", copy.url, "tiny", "--apply"])
    assert "actlake store pull" in shown.stdout
    pull(tmp_path / "store", copy.url, runs=["tiny"], layers=[2], pools=["mean_response"])
    assert verify_run(copy, "tiny", full=True).ok
