"""Whatever fails, at whatever moment: readers see whole blocks, and running again converges."""

import os
from collections import Counter

import pytest

from actlake.store.local import LocalBackend
from actlake.store.location import parse_location
from tests.store.faults import AFTER, BEFORE, MemoryBackend, World

N_SLOW = int(os.environ.get("ACTLAKE_FAULT_SCHEDULES", "600"))


def run(seed, storage, *, honest=True, rate=0.06, tokens=False):
    world = World(seed, storage, honest=honest, rate=rate, tokens=tokens)
    try:
        world.run()
    except BaseException as err:
        err.add_note(f"schedule {seed}, honest={honest}: {dict(world.counts)}")
        raise
    return world.counts


def local(tmp_path, seed):
    return LocalBackend(parse_location(tmp_path / f"store-{seed}"))


def test_schedules_of_faults_over_memory():
    counts = Counter()
    for seed in range(16):
        counts += run(seed, MemoryBackend(), rate=0.08)
    # A schedule that injects nothing shows nothing.
    assert all(counts[fault] for fault in (*BEFORE, *AFTER)), counts
    assert counts["interrupted"]
    assert counts["thought dead"]
    assert counts["delivered again"]


def test_schedules_of_faults_over_a_folder(tmp_path):
    for seed in range(1000, 1002):
        run(seed, local(tmp_path, seed))


def test_schedules_of_faults_with_tokens_that_come_piece_by_piece(tmp_path):
    for seed in range(3000, 3006):
        run(seed, MemoryBackend(), tokens=True)
    run(3006, local(tmp_path, 3006), tokens=True)
    run(3007, MemoryBackend(), honest=False, tokens=True)


def test_schedules_of_faults_over_a_server_without_create_only():
    for seed in range(2000, 2005):
        run(seed, MemoryBackend(), honest=False)


@pytest.mark.slow
def test_the_schedules_find_a_writer_that_overwrites(monkeypatch):
    """The harness itself: with the protection taken out, it must find mixed rows."""

    def overwrite(store, key, data):
        store.backend.put(key, data)
        return True

    monkeypatch.setattr("actlake.store.block_writer.is_ours", overwrite)

    def run_all():
        for seed in range(200):
            run(seed, MemoryBackend())

    with pytest.raises(AssertionError):
        run_all()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_schedules_of_faults(tmp_path):
    counts = Counter()
    for seed in range(10_000, 10_000 + N_SLOW):
        if seed % 6 == 0:
            counts += run(seed, local(tmp_path, seed))
        else:
            tokens = seed % 6 in {2, 5}
            counts += run(seed, MemoryBackend(), honest=seed % 6 != 1, tokens=tokens)
    print(N_SLOW, "schedules:", dict(counts))
    assert all(counts[fault] for fault in (*BEFORE, *AFTER)), counts
