"""How far a run is, told from the store alone."""

import json
import time

import pytest
from click.testing import CliRunner

from actlake.cli import cli
from actlake.schemas import NotFoundError
from actlake.store import run_progress
from actlake.store.block_claims import BlockClaims
from tests.store.appends import append
from tests.store.forging import edit
from tests.store.samples import block_values, make_plan, write_run
from tests.store.small import fill_store, small_coords


def test_commits_and_claims_of_all_workers_are_counted(any_store):
    plan = make_plan(n_texts=10, rows=4)
    first = write_run(any_store, plan, blocks=[0], seal=False)
    second = write_run(any_store, plan, blocks=[], seal=False)
    assert second.claim_block(2)
    now = run_progress(any_store, "tiny")
    assert (now.blocks, now.blocks_committed, now.texts, now.texts_committed) == (3, 1, 10, 4)
    assert not now.sealed
    assert now.bytes_committed == sum(o.n_bytes for o in any_store.read_commit("tiny", 0).objects)
    workers = {worker.writer: worker for worker in now.workers}
    assert workers[first.writer].blocks == 1
    assert workers[first.writer].claimed == ()
    assert (workers[second.writer].texts, workers[second.writer].claimed) == (0, (2,))
    assert workers[second.writer].seconds_ago < 60
    second.write_block(2, block_values(plan, 2))
    second.write_block(1, block_values(plan, 1))
    second.seal()
    done = run_progress(any_store, "tiny")
    assert done.sealed
    assert done.texts_committed == 10
    assert {worker.texts for worker in done.workers} == {4, 6}
    assert not any(worker.claimed for worker in done.workers)


def test_what_was_given_up_or_is_dead_is_not_at_work(store):
    plan = make_plan(n_texts=10, rows=4)
    writer = write_run(store, plan, blocks=[0], seal=False)
    writer.claim_block(1)
    writer.close()
    claims = BlockClaims(store, store.keys("tiny"), plan_id=writer.plan_id, writer="abc")
    claims.acquire(2)
    claims._stop.set()
    edit(
        store, "runs/tiny/claims/2.0.json",
        lambda claim: claim.update(renewed_at=time.time() - 3600),
    )  # fmt: skip
    now = run_progress(store, "tiny")
    assert not any(worker.claimed for worker in now.workers)
    assert max(worker.seconds_ago for worker in now.workers) > 3000


def test_speed_is_that_between_the_commits(store):
    plan = make_plan(n_texts=10, rows=2)
    write_run(store, plan, blocks=[0, 1, 2], seal=False)

    def commit_every(seconds):
        for block in range(3):
            time_of_commit = f"2030-01-01T00:00:{seconds * block:02d}+00:00"
            edit(
                store, f"runs/tiny/commits/{block}.json",
                lambda commit, at=time_of_commit: commit.update(committed_at=at),
            )  # fmt: skip

    commit_every(0)
    assert run_progress(store, "tiny").texts_per_second is None
    commit_every(10)
    now = run_progress(store, "tiny")
    assert now.texts_per_second == pytest.approx(4 / 20)
    assert now.seconds_left == pytest.approx(4 / (4 / 20))
    edit(store, "runs/tiny/commits/1.json", lambda commit: commit.update(committed_at="never"))
    assert run_progress(store, "tiny").texts_committed == 6


def test_an_append_has_a_speed_of_its_own_and_nothing_is_sealed_before_all_is(store):
    plan = fill_store(store, seal=False)
    append(store)  # of 6 texts in 2 blocks, days later
    times = {"": "01T00:00:00", "/appended/1": "05T00:00:00"}
    for folder, day in times.items():
        for block in range(3 if not folder else 2):
            at = f"2030-01-{day[:-1]}{4 * block}+00:00"
            edit(
                store, f"runs/tiny{folder}/commits/{block}.json",
                lambda commit, at=at: commit.update(committed_at=at),
            )  # fmt: skip
    now = run_progress(store, "tiny")
    assert (now.blocks_committed, now.texts_committed, now.texts) == (5, 16, 16)
    assert now.texts_per_second == pytest.approx(2 / 4)
    assert not now.sealed
    write_run(store, plan, blocks=[], coords=small_coords(plan))
    assert run_progress(store, "tiny").sealed


def test_the_command_shows_workers_and_watches_to_the_end(store):
    plan = make_plan(n_texts=10, rows=4)
    writer = write_run(store, plan, blocks=[0], seal=False)
    shown = CliRunner().invoke(cli, ["progress", store.url, "tiny"])
    assert shown.exit_code == 0
    assert writer.writer in shown.stdout
    found = json.loads(CliRunner().invoke(cli, ["progress", store.url, "tiny", "--json"]).stdout)
    assert (found["blocks_committed"], found["workers"][0]["texts"]) == (1, 4)
    for block in (1, 2):
        writer.write_block(block, block_values(plan, block))
    watched = CliRunner().invoke(
        cli, ["progress", store.url, "tiny", "--watch", "--interval", "0.01"]
    )
    assert watched.exit_code == 0
    assert "10 of 10 texts in 3 of 3 blocks" in watched.stdout
    missing = CliRunner().invoke(cli, ["progress", store.url, "none"])
    assert isinstance(missing.exception, NotFoundError)
