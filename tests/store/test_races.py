"""Two and more writers of the same blocks, on servers of both kinds and on a folder."""

import json
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from actlake.schemas import BlockClaim, CorruptError
from actlake.store import BlockClaimedError, block_claims, create_store, verify_run
from actlake.store.block_writer import Progress
from tests.store.racing import authors, race_plan, writer_values
from tests.store.samples import write_run

SCRIPT = Path(__file__).with_name("racing.py")
HONEST = pytest.mark.parametrize("place", ["local", "moto"], indirect=True)


def writers_of(place, n):
    url, options = place
    plan = race_plan()
    stores = [create_store(url, storage_options=options) for _ in range(n)]
    return plan, stores[0], [write_run(s, plan, blocks=[], seal=False) for s in stores]


def keys_of(store, plan):
    return {key.removeprefix(f"runs/{plan.run}/") for key, _ in store.backend.walk("runs")}


def expire(store, plan, block, generation=0):
    """Make a claim look as if a machine that is gone had made it long ago."""
    key = f"runs/{plan.run}/claims/{block}.{generation}.json"
    claim = store.read_record(BlockClaim, key)
    old = claim.model_copy(update={"machine": "elsewhere", "renewed_at": claim.renewed_at - 10_000})
    store.backend.put(key, old.to_json(indent=None).encode())


@HONEST
def test_of_many_writers_of_a_block_one_commits_and_the_others_are_told(place):
    plan, store, writers = writers_of(place, 4)

    def write(job):
        block, index = job
        try:
            return block, writers[index].write_block(block, writer_values(plan, block, index))
        except BlockClaimedError as err:
            return block, str(err)

    jobs = [(block, index) for block in range(plan.n_blocks) for index in range(4)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(write, jobs))
    for block in range(plan.n_blocks):
        found = [result for b, result in results if b == block]
        commits = {c.writer for c in found if not isinstance(c, str)}
        assert len(commits) == 1
        assert all(
            f"block {block} " in m and "--worker i/n" in m for m in found if isinstance(m, str)
        )
    writers[0].seal()
    assert set(authors(store, plan)) == set(range(plan.n_blocks))
    assert verify_run(store, plan.run).ok
    assert not [key for key in keys_of(store, plan) if key.startswith(("claims", "staged"))]


@HONEST
def test_writers_that_think_each_other_dead_never_mix_their_rows(place, monkeypatch):
    """The worst case: every claim is taken over at once, all write the same keys."""
    monkeypatch.setattr(block_claims.BlockClaims, "_is_over", lambda *_: True)
    plan, store, writers = writers_of(place, 3)

    def write(job):
        block, index = job
        return block, writers[index].write_block(block, writer_values(plan, block, index))

    jobs = [(block, index) for block in range(plan.n_blocks) for index in range(3)]
    looks = []
    stop = threading.Event()

    def look():
        while not stop.is_set():
            looks.append(authors(store, plan))

    reader = threading.Thread(target=look)
    reader.start()
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(write, jobs))
    stop.set()
    reader.join()
    final = authors(store, plan)
    assert set(final) == set(range(plan.n_blocks))
    assert looks
    for seen in looks:  # what was once seen stays
        assert seen.items() <= final.items()
    for block in range(plan.n_blocks):
        assert len({c.writer for b, c in results if b == block}) == 1
    assert verify_run(store, plan.run).ok
    writers[1].seal()
    assert verify_run(store, plan.run).ok
    undisturbed = create_store(place[0] + "-whole", storage_options=place[1])
    write_run(undisturbed, plan, blocks=[], seal=False)
    for block in range(plan.n_blocks):
        write_run(undisturbed, plan, blocks=[], seal=False).write_block(
            block, writer_values(plan, block, 0)
        )
    write_run(undisturbed, plan, blocks=[], seal=True)
    assert keys_of(store, plan) == keys_of(undisturbed, plan)


@HONEST
@pytest.mark.parametrize("stored", [1, 3, 7])
def test_a_suspended_writer_that_wakes_after_it_was_replaced_changes_nothing(
    place, stored, monkeypatch
):
    plan, store, (old, new) = writers_of(place, 2)
    old._blocks._n_threads = 1
    asleep, awake = threading.Event(), threading.Event()
    original, n_stored = old._blocks.store.backend.create, []

    def create(key, data):
        if "/data.zarr/" in key:
            if len(n_stored) == stored:
                asleep.set()
                awake.wait(60)
            n_stored.append(key)
        return original(key, data)

    monkeypatch.setattr(old.store.backend, "create", create)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(old.write_block, 0, writer_values(plan, 0, 1))
        if stored == 7:  # all objects: it fell asleep before the decision, so let it be
            awake.set()
            winner = late.result()
            assert new.write_block(0, writer_values(plan, 0, 2)) == winner
            assert authors(store, plan) == {0: 1}
            return
        assert asleep.wait(60)
        expire(store, plan, 0)
        winner = new.write_block(0, writer_values(plan, 0, 2))
        assert authors(store, plan) == {0: 2}
        awake.set()
        assert late.result() == winner
    assert authors(store, plan) == {0: 2}
    assert verify_run(store, plan.run).ok


@HONEST
def test_a_writer_killed_between_decision_and_commit_is_finished_without_its_values(
    place, monkeypatch
):
    plan, store, (dead, heir) = writers_of(place, 2)
    leftover = writer_values(plan, 0, 3)
    dead._blocks._store_objects(0, leftover, Progress("0-0"))

    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    monkeypatch.setattr("actlake.store.block_writer.finish_block", die)
    with pytest.raises(Killed):
        dead.write_block(0, writer_values(plan, 0, 1))
    monkeypatch.undo()
    assert authors(store, plan) == {}
    assert [key for key in keys_of(store, plan) if key.startswith("staged/")]
    assert heir.claim_block(0) is False
    assert authors(store, plan) == {0: 1}
    assert not [key for key in keys_of(store, plan) if key.startswith(("staged/", "claims/"))]
    assert verify_run(store, plan.run).ok


def test_a_second_claim_is_refused_in_one_clear_line_and_writes_nothing(place):
    plan, store, (first, second) = writers_of(place, 2)
    assert first.claim_block(2)
    before = keys_of(store, plan)
    with pytest.raises(BlockClaimedError) as caught:
        second.write_block(2, writer_values(plan, 2, 2))
    message = str(caught.value)
    for part in ("block 2 of run 'race'", store.url, "of this machine", "--worker i/n"):
        assert part in message
    assert "\n" not in message
    assert keys_of(store, plan) == before
    first.write_block(2, writer_values(plan, 2, 1))
    assert second.claim_block(2) is False
    assert authors(store, plan) == {2: 1}


def test_a_claim_of_another_machine_is_a_lease(place):
    plan, store, (first, second) = writers_of(place, 2)
    assert first.claim_block(1)
    key = f"runs/{plan.run}/claims/1.0.json"
    claim = store.read_record(BlockClaim, key).model_copy(update={"machine": "elsewhere"})
    store.backend.put(key, claim.to_json(indent=None).encode())
    with pytest.raises(BlockClaimedError, match=r"another machine .*wait \d+ s if it is dead"):
        second.claim_block(1)
    expire(store, plan, 1)
    assert second.claim_block(1)
    with pytest.raises(BlockClaimedError):  # a third comes too late
        write_run(store, plan, blocks=[], seal=False).claim_block(1)


def test_claims_are_renewed_and_freed(store, monkeypatch):
    plan = race_plan()
    writer = write_run(store, plan, blocks=[], seal=False)
    writer.claim_block(0)
    expire(store, plan, 0)
    writer._blocks.claims.renew()
    other = write_run(store, plan, blocks=[], seal=False)
    with pytest.raises(BlockClaimedError):
        other.claim_block(0)
    writer.close()
    assert other.claim_block(0)
    other.write_block(0, writer_values(plan, 0, 1))
    assert not [key for key in keys_of(store, plan) if key.startswith("claims/")]


def test_a_claim_dies_with_its_process(store):
    plan = race_plan()
    code = (
        "import sys; from tests.store.racing import *; from actlake.store import open_store\n"
        "w = write_run(open_store(sys.argv[1]), race_plan(), blocks=[], seal=False)\n"
        "w.claim_block(0); print('claimed', flush=True); sys.stdin.readline()"
    )
    write_run(store, plan, blocks=[], seal=False)
    process = subprocess.Popen(
        [sys.executable, "-c", code, store.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2], text=True,
    )  # fmt: skip
    with process:
        assert process.stdout.readline() == "claimed\n"
        writer = write_run(store, plan, blocks=[], seal=False)
        with pytest.raises(BlockClaimedError, match=f"process {process.pid} of this machine"):
            writer.claim_block(0)
        process.kill()
        process.wait()
    assert writer.claim_block(0)


def test_a_server_without_create_only_finds_a_mixed_block_at_once(s3_server):
    """There only disjoint blocks are promised; the second writer says what to do."""
    url, options = f"{s3_server.url}/mixed", s3_server.options()
    plan, _, (ours, rival) = writers_of((url, options), 2)
    store_objects = ours._blocks._store_objects

    def store_after_the_rival(*args, **kwargs):
        rival._blocks._write_claimed(
            0, writer_values(plan, 0, 2), notes={}, progress=Progress("0-0")
        )
        return store_objects(*args, **kwargs)

    ours._blocks._store_objects = store_after_the_rival
    with pytest.raises(CorruptError, match=r"delete runs/race/commits/0\.json"):
        ours.write_block(0, writer_values(plan, 0, 1))


@pytest.mark.parametrize("shares", [("1/1", "1/1", "1/1"), ("1/2", "2/2", "2/2")])
def test_processes_that_share_a_run_end_with_one_sealed_run(place, shares, request):
    url, options = place
    plan = race_plan()
    store = create_store(url, storage_options=options)
    if not store.info.create_only:
        shares = ("1/3", "2/3", "3/3")  # only the static split is promised there
    write_run(store, plan, blocks=[], seal=False)
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), url, json.dumps(options), str(i + 1), share],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i, share in enumerate(shares)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert all("is being written by process" in m for m in json.loads(out.splitlines()[-1]))
    final = authors(store, plan)
    assert set(final) == set(range(plan.n_blocks))
    assert store.read_seal(plan.run) is not None
    assert verify_run(store, plan.run).ok
    print("blocks by writer:", Counter(final.values()))


def test_a_worker_whose_values_differ_each_time_resumes_after_a_kill(place, monkeypatch):
    """Leftovers of other values at every key: the usual state after a kill on a GPU."""
    plan, store, (dead, heir) = writers_of(place, 2)
    for block in range(plan.n_blocks):
        values = writer_values(plan, block, 9)
        dead._blocks._store_objects(block, values, Progress(f"{block}-0"))
    assert authors(store, plan) == {}
    for block in heir.pending_blocks():
        heir.write_block(block, writer_values(plan, block, 1))
    heir.seal()
    assert set(authors(store, plan).values()) == {1}
    assert verify_run(store, plan.run).ok
    assert np.all([not key.startswith("staged") for key in keys_of(store, plan)])
