"""Results of stages in the store: whole or not there, never mixed, found by their origin."""

from __future__ import annotations

import pytest

from actlake.schemas import CorruptError, InvalidInputError
from actlake.store import fetch_result, find_result, open_store, publish_result, stored_results
from tests.store.forging import edit

MADE_FROM = {"stage": "patch", "version": 1, "specs": {"seed": 0}, "needs": {}}


def publish(store, folder, *, made_from=MADE_FROM, table=b"rows"):
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    (folder / "table.csv").write_bytes(table)
    (folder / "sub" / "empty").write_bytes(b"")
    return publish_result(
        store, folder, subject="phi-3", stage="patch", made_from=made_from, actlake="1", seconds=2
    )


def find(store, made_from=MADE_FROM):
    return find_result(store, made_from, subject="phi-3", stage="patch")


def test_what_one_machine_made_another_reads(any_store, tmp_path):
    assert find(any_store) is None
    made = publish(any_store, tmp_path / "made")
    found = find(any_store)
    assert found == made
    fetch_result(any_store, found, tmp_path / "fetched")
    assert (tmp_path / "fetched/table.csv").read_bytes() == b"rows"
    assert (tmp_path / "fetched/sub/empty").read_bytes() == b""
    assert find(any_store, MADE_FROM | {"version": 2}) is None
    assert [r.stage for r in stored_results(any_store)] == ["patch"]


def test_the_first_of_two_makers_stays_and_is_whole(any_store, tmp_path):
    first = publish(any_store, tmp_path / "one", table=b"one")
    second = publish(any_store, tmp_path / "two", table=b"two")
    assert second == first
    fetch_result(any_store, second, tmp_path / "fetched")
    assert (tmp_path / "fetched/table.csv").read_bytes() == b"one"


def test_files_that_changed_or_are_gone_are_named(store, tmp_path):
    record = publish(store, tmp_path / "made")
    key = next(key for key, _ in store.backend.walk("results") if key.endswith("table.csv"))
    store.backend.put(key, b"sowr")
    with pytest.raises(CorruptError, match=r"table\.csv .* is not what was stored; remove "):
        fetch_result(store, record, tmp_path / "a")
    store.backend.delete(key)
    with pytest.raises(CorruptError, match=r"table\.csv .* is missing"):
        fetch_result(store, record, tmp_path / "b")


def test_a_record_cannot_lead_out_of_its_folder(store, tmp_path):
    record = publish(store, tmp_path / "made")
    key = next(key for key, _ in store.backend.walk("results") if key.endswith("result.json"))
    edit(store, key, lambda found: found["files"][0].update(key="../../evil"))
    forged = find(store)
    with pytest.raises(InvalidInputError, match="not a plain path below the store"):
        fetch_result(store, forged, tmp_path / "a")
    assert not (tmp_path / "evil").exists()
    edit(store, key, lambda found: found["files"][0].update(key="sub/empty", n_bytes=2**40))
    with pytest.raises(CorruptError, match=f"claims {2**40} bytes"):
        fetch_result(store, find(store), tmp_path / "b")
    edit(store, key, lambda found: found.update(stage="probe"))
    with pytest.raises(CorruptError, match="is of another result"):
        find(store)
    assert record.stage == "patch"


def test_names_that_cannot_be_keys_are_refused(store, tmp_path):
    with pytest.raises(InvalidInputError):
        publish_result(
            store, tmp_path, subject="..", stage="patch", made_from={}, actlake="1", seconds=0
        )


def test_runs_are_as_before_where_results_lie_beside_them(store, tmp_path):
    publish(store, tmp_path / "made")
    again = open_store(store.url)
    assert again.run_ids() == []
