"""Kill -9 at any moment, run again, and end with the same keys and the same data digest."""

import json
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from actlake.schemas import NotFoundError
from actlake.store import create_store, open_run, verify_run
from tests.store.appends import added_plan, joined_values
from tests.store.samples import make_plan, make_values, write_run
from tests.store.slow_writer import kill_plan
from tests.store.small import fill_store

SCRIPT = Path(__file__).with_name("slow_writer.py")
N_BLOCKS = 30
KILLED_AFTER = (0, 3, 1, 6, 0)  # blocks more than the last time


def start(url, options, *, n_blocks=N_BLOCKS, mode=()):
    command = [sys.executable, str(SCRIPT), url, json.dumps(options), str(n_blocks), *mode]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


def look(store, plan, values):
    """Open the run as it is now: every visible row holds its values, the others none."""
    try:
        ds = open_run(store, "killed", allow_partial=True, chunks=None)
    except NotFoundError:
        return None
    committed = ds["committed"].values
    for name, full in values.items():
        seen = ds[name].values
        np.testing.assert_array_equal(seen[committed], full[committed])
        assert np.isnan(seen[~committed]).all()
    return int(committed.sum())


def kill_after(process, n_blocks, *, seconds):
    """Kill ``process`` a moment after it has reported ``n_blocks`` more blocks."""
    for _ in range(n_blocks):
        process.stdout.readline()
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("place", ["local", "rclone"], indirect=True)
def test_killed_writers_converge(place):
    url, options = place
    plan = kill_plan(N_BLOCKS)
    values = make_values(plan)
    store = create_store(url, storage_options=options)
    rng = random.Random(20)
    kept = []
    for n_blocks in KILLED_AFTER:
        process = start(url, options)
        # By what it has done, not by the clock: a fast machine is not killed too late.
        moment = {"n_blocks": n_blocks, "seconds": rng.uniform(0, 0.01)}
        killer = threading.Thread(target=kill_after, args=(process,), kwargs=moment)
        killer.start()
        while process.poll() is None:
            look(store, plan, values)
            time.sleep(0.02)
        killer.join()
        process.stdout.close()
        process.stderr.close()
        kept.append(look(store, plan, values) or 0)
        before = set(store.committed_blocks("killed"))
        assert len(before) == kept[-1]
    print("rows kept after each kill:", kept)
    assert kept == sorted(kept)
    assert kept[-1] < N_BLOCKS  # every kill came before the end
    last = start(url, options)
    out, err = last.communicate(timeout=60)
    assert last.returncode == 0, err
    assert "sealed" in out
    seal = store.read_seal("killed")
    whole = create_store(url + "-whole", storage_options=options)
    undisturbed = write_run(whole, plan).seal()
    assert seal.data_digest == undisturbed.data_digest
    assert seal.tree_digest == undisturbed.tree_digest
    assert [o.key for o in seal.objects] == [o.key for o in undisturbed.objects]
    names = {key for key, _ in store.backend.walk("runs")}
    assert names == {key for key, _ in whole.backend.walk("runs")}
    assert verify_run(store, "killed").ok
    assert look(store, plan, values) == N_BLOCKS


@pytest.mark.parametrize("place", ["local", "rclone"], indirect=True)
def test_killed_appends_leave_the_run_as_it_was_and_converge(place):
    url, options = place
    store = create_store(url, storage_options=options)
    fill_store(store)
    digest = store.read_seal("tiny").tree_digest
    old = make_values(make_plan())
    for n_blocks in (0, 2, 1):
        process = start(url, options, n_blocks=9, mode=["append"])
        kill_after(process, n_blocks, seconds=0.003)
        process.wait()
        process.stdout.close()
        process.stderr.close()
        run = open_run(store, "tiny", chunks=None)
        for name, values in old.items():
            np.testing.assert_array_equal(run[name].values, values)
    assert 0 < len(store.committed_blocks("tiny~1")) < 9
    out, err = start(url, options, n_blocks=9, mode=["append"]).communicate(timeout=60)
    assert "sealed" in out, err
    run = open_run(store, "tiny")
    for name, values in joined_values(make_plan(), added_plan(n=9, rows=1)).items():
        np.testing.assert_array_equal(run[name].values, values)
    assert store.read_seal("tiny").tree_digest == digest
    assert all(verify_run(store, name, full=True).ok for name in ("tiny", "tiny~1"))
