import errno
import hashlib
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actlake.schemas import CorruptError, InvalidInputError, StorageError
from actlake.steer import KeptRows

KEY = ["condition", "pair"]
MADE = {"model": {"name": "m", "layers": 4}, "positions": "all"}


def rows(numbers):
    return pd.DataFrame(
        [{"condition": f"c{n % 3}", "pair": f"p{n}", "value": n / 7} for n in numbers],
        columns=[*KEY, "value"],
    )


@settings(max_examples=30, deadline=None)
@given(parts=st.lists(st.lists(st.integers(0, 30), min_size=1, unique=True), max_size=6))
def test_what_was_committed_is_read_once_whatever_the_parts(tmp_path_factory, parts):
    folder = tmp_path_factory.mktemp("kept")
    for part in parts:
        KeptRows(folder, key=KEY, made_with=MADE).commit(rows(part))
    kept = KeptRows(folder, key=KEY, made_with=MADE)
    wanted = sorted({n for part in parts for n in part})
    found = kept.read()
    assert sorted(found["pair"]) == sorted(f"p{n}" for n in wanted)
    if wanted:
        expected = rows(wanted).sort_values(KEY, ignore_index=True)
        pd.testing.assert_frame_equal(found, expected)
    todo = kept.missing(rows(range(31)))
    assert set(todo["pair"]) == {f"p{n}" for n in range(31)} - set(found["pair"])


def test_a_part_without_its_record_is_made_again_and_a_record_is_never_written_over(tmp_path):
    kept = KeptRows(tmp_path, key=KEY, made_with=MADE)
    kept.commit(rows([1, 2]))
    (record,) = (tmp_path / "commits").iterdir()
    told = json.loads(record.read_text())
    part = tmp_path / told["part"]
    assert hashlib.sha256(part.read_bytes()).hexdigest() == told["sha256"]
    # Another process made the same rows with other bits: the first ones stay.
    kept.commit(rows([1, 2]).assign(value=9.0))
    assert kept.read()["value"].max() < 1
    # Killed between the part and its record:
    record.unlink()
    assert kept.read().empty
    kept.commit(rows([1, 2]))
    assert len(kept.read()) == 2


def test_changed_bytes_are_refused(tmp_path):
    kept = KeptRows(tmp_path, key=KEY, made_with=MADE)
    kept.commit(rows([1]))
    (part,) = tmp_path.glob("*.parquet")
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    with pytest.raises(CorruptError, match="is not what was committed"):
        kept.read()
    part.unlink()
    with pytest.raises(CorruptError, match="0 bytes of"):
        kept.read()


def test_a_folder_of_something_else_is_refused(tmp_path):
    KeptRows(tmp_path, key=KEY, made_with=MADE)
    with pytest.raises(InvalidInputError, match="made with another positions"):
        KeptRows(tmp_path, key=KEY, made_with={**MADE, "positions": "response"})
    with pytest.raises(InvalidInputError, match="holds texts made with another positions"):
        KeptRows(
            tmp_path, key=KEY, made_with={**MADE, "positions": "response"}, noun="texts",
            read_only=True,
        )  # fmt: skip
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot be kept"):
        KeptRows(tmp_path / "file", key=KEY, made_with=MADE)


def test_asking_what_a_folder_holds_makes_nothing(tmp_path):
    folder = tmp_path / "kept"
    asked = KeptRows(folder, key=KEY, made_with=MADE, read_only=True)
    assert asked.read().empty
    assert len(asked.missing(rows([1, 2]))) == 2
    assert not folder.exists()
    KeptRows(folder, key=KEY, made_with=MADE).commit(rows([1]))
    assert asked.missing(rows([1, 2]))["pair"].tolist() == ["p2"]


def test_writers_of_the_same_rows_at_once_leave_each_row_once(tmp_path):
    ready = threading.Barrier(4)

    def write(writer):
        kept = KeptRows(tmp_path, key=KEY, made_with=MADE)
        ready.wait()
        for n in range(8):
            # Parts of the same rows, and of rows that the other writers have in other parts.
            kept.commit(rows([n, n + 1 + writer % 2]).assign(value=float(writer)))

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(write, writer) for writer in range(4)]:
            done.result()
    kept = KeptRows(tmp_path, key=KEY, made_with=MADE)
    found = kept.read()
    assert sorted(found["pair"]) == sorted(f"p{n}" for n in range(10))
    pd.testing.assert_frame_equal(found, kept.read())
    records = [json.loads(path.read_text()) for path in (tmp_path / "commits").iterdir()]
    assert len(records) == 16
    assert not [path for path in tmp_path.rglob("*") if ".tmp-" in path.name]


def test_without_hard_links_rows_are_kept_all_the_same(tmp_path, monkeypatch):
    def refuse(*_args, **_options):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    KeptRows(tmp_path, key=KEY, made_with=MADE).commit(rows([1, 2]))
    assert len(KeptRows(tmp_path, key=KEY, made_with=MADE).read()) == 2
