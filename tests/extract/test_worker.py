"""Several real processes that share one run by ``--worker i/n``."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from actlake.cli import cli
from actlake.corpus import corpus_info
from actlake.extract import Worker, extract_run
from actlake.extract.worker import local_device
from actlake.schemas import ExtractSpec, InvalidInputError, Text
from actlake.store import (
    BlockClaimedError,
    create_store,
    open_run,
    run_progress,
    verify_run,
)
from tests.extract.tiny import tiny_folder
from tests.extract.worker_claim import claim_in_other_process

pytestmark = pytest.mark.torch

TEXTS = [
    Text(id=f"t{i:02d}", prompt="the boy has fallen " * (1 + i % 3), response="I stop to help",
         arm="positive" if i % 2 else "negative", pair=f"p{i // 2}")
    for i in range(24)
]  # fmt: skip
INFO = corpus_info("c", TEXTS)
SPEC = ExtractSpec(chunk_size=3, batch_tokens=200, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder("llama", tmp_path_factory.mktemp("model") / "tiny-llama")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "pairs.jsonl"
    path.write_text("".join(json.dumps(t.model_dump(mode="json")) + "\n" for t in TEXTS))
    return path


def extract(store, folder, **options):
    return extract_run(store, TEXTS, INFO, model=str(folder), run="r", extract=SPEC, **options)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_block_has_one_worker(count):
    shares = [Worker(index, count).blocks(range(20)) for index in range(1, count + 1)]
    assert sorted(block for share in shares for block in share) == list(range(20))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "a/b", "1/2/3", "-1/2", "1 /2"])
def test_workers_that_cannot_be_are_refused(text):
    with pytest.raises(InvalidInputError, match=r"worker"):
        Worker.parse(text)


SLURM = {
    "SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "7",
    "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_STEP": "2",
}  # fmt: skip
STEP = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Worker(6, 8, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Worker(1, 1)),
        (SLURM, Worker(3, 4)),
        ({**SLURM, "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "2"}, Worker(1, 2)),
        (STEP, Worker(4, 8, 1)),
        ({**SLURM, **STEP}, Worker(2 * 8 + 3 + 1, 32, 1)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", **SLURM}, Worker(3, 4)),  # no srun
    ],
)
def test_launchers_say_which_worker_a_process_is(environment, expected):
    assert Worker.from_environment(environment) == expected


@pytest.mark.parametrize("sizes", [(1, 1), (3, 1), (2, 4)])
def test_the_workers_of_an_array_are_all_of_them_once(sizes):
    n_array, n_tasks = sizes
    found = []
    for task in range(n_array):
        for rank in range(n_tasks):
            given = {
                "SLURM_ARRAY_TASK_ID": str(10 + task), "SLURM_ARRAY_TASK_MIN": "10",
                "SLURM_ARRAY_TASK_MAX": str(9 + n_array), "SLURM_ARRAY_TASK_COUNT": str(n_array),
                "SLURM_STEP_NUM_TASKS": str(n_tasks), "SLURM_PROCID": str(rank),
                "SLURM_LOCALID": str(rank),
            }  # fmt: skip
            found.append(Worker.from_environment(given))
    assert sorted(w.index for w in found) == list(range(1, n_array * n_tasks + 1))
    assert {w.count for w in found} == {n_array * n_tasks}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "neither torchrun"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK is 'x'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "no worker 3/2"),
        ({**SLURM, "SLURM_ARRAY_TASK_COUNT": "3"}, "ids have gaps"),
        ({**SLURM, "SLURM_ARRAY_TASK_ID": "4"}, "ids have gaps"),
        ({"SLURM_ARRAY_TASK_ID": "1"}, "SLURM_ARRAY_TASK_MIN is ''"),
    ],
)
def test_launchers_that_say_nonsense_are_refused(environment, message):
    with pytest.raises(InvalidInputError, match=message):
        Worker.from_environment(environment)


def test_each_worker_of_a_machine_has_its_own_gpu():
    worker = Worker(6, 8, 1)
    assert local_device("auto", worker, n_devices=4) == "cuda:1"
    assert local_device("cuda", worker, n_devices=4) == "cuda:1"
    assert local_device("cuda:3", worker, n_devices=4) == "cuda:3"  # asked for by name
    assert local_device("auto", worker, n_devices=1) == "auto"  # the launcher chose
    assert local_device("auto", Worker(6, 8), n_devices=4) == "auto"
    assert local_device("cpu", worker, n_devices=0) == "cpu"
    with pytest.raises(InvalidInputError, match="number 5 of its machine, which has 4 GPUs"):
        local_device("auto", Worker(5, 8, 4), n_devices=4)


def test_the_shard_plan_shares_every_text_out_and_starts_an_array(tmp_path, folder, corpus):
    command = ["extract", str(folder), "--corpus", str(corpus), "--store", str(tmp_path / "a b")]
    command += [
        "--run",
        "r",
        "--chunk-size",
        "3",
        "--device",
        "cpu",
        "--layers",
        "0-1",
        "--truncate",
    ]
    done = CliRunner().invoke(cli, [*command, "--shard-plan", "3", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [w["blocks"] for w in found["workers"]] == [3, 3, 2]
    assert sum(w["texts"] for w in found["workers"]) == len(TEXTS)
    assert sum(w["share"] for w in found["workers"]) == pytest.approx(1, abs=1e-3)
    assert not (tmp_path / "a b").exists()
    *sbatch, wrapped = shlex.split(found["slurm"])
    assert "--array=1-3" in sbatch
    words = shlex.split(wrapped)
    assert words[-2:] == ["--worker", "auto"]
    # What an array task would run is this command.
    task = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "3",
            "SLURM_ARRAY_TASK_COUNT": "3"}  # fmt: skip
    done = CliRunner().invoke(cli, [*words[1:], "--json"], env=task)
    assert json.loads(done.stdout)["blocks_missing"] == [0, 2, 3, 5, 6]
    shown = CliRunner().invoke(cli, [*command, "--shard-plan", "3"]).stdout
    assert shown.splitlines()[1].split()[:3] == ["1/3", "3", "9"]
    assert "sbatch" in shown


def test_torchrun_starts_workers_that_share_a_run(tmp_path, folder, corpus):
    store = str(tmp_path / "store")
    actlake = str(Path(sys.executable).with_name("actlake"))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--no-python", "--nproc-per-node=2",
         "--master-port=0",
         "--", actlake, "extract", str(folder), "--corpus", str(corpus), "--store",
         store, "--run", "r", "--chunk-size", "3", "--device", "cpu", "--worker", "auto"],
        capture_output=True, text=True, timeout=200, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert verify_run(create_store(store), "r").ok
    found = run_progress(create_store(store), "r")
    assert found.sealed
    assert sorted(worker.blocks for worker in found.workers) == [4, 4]


def test_ctrl_c_says_what_is_committed_and_that_the_command_goes_on(tmp_path, folder, corpus):
    store = tmp_path / "store"
    command = [
        str(Path(sys.executable).with_name("actlake")), "extract", str(folder), "--corpus",
        str(corpus), "--store", str(store), "--run", "r", "--chunk-size", "1", "--device", "cpu",
        "--batch-tokens", "1", "--json",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A suite started in the background of a shell hands on an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    commits = store / "runs/r/commits"
    while process.poll() is None and not (commits.is_dir() and list(commits.glob("*.json"))):
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    n_done = len(create_store(store).committed_blocks("r"))
    assert 0 < n_done < len(TEXTS)
    assert f"r: interrupted; {n_done} of {len(TEXTS)} blocks are committed and stay" in err
    assert "The same command again goes on" in err
    again = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert (again["blocks_kept"], again["blocks_run"]) == (n_done, len(TEXTS) - n_done)
    assert verify_run(create_store(store), "r").ok


def test_the_last_worker_seals_and_the_others_say_what_is_missing(tmp_path, folder):
    store = create_store(tmp_path / "store")
    first = extract(store, folder, worker=Worker(1, 2))
    assert first.seal is None
    assert first.missing == (1, 3, 5, 7)
    assert (first.n_blocks, first.n_blocks_run, first.n_blocks_kept) == (8, 4, 0)
    again = extract(store, folder, worker=Worker(1, 2))
    assert (again.n_blocks_run, again.n_blocks_kept) == (0, 4)
    last = extract(store, folder, worker=Worker(2, 2))
    assert last.seal is not None
    assert last.missing == ()
    whole = extract(create_store(tmp_path / "whole"), folder)
    assert last.seal.data_digest == whole.seal.data_digest


def test_a_block_of_another_living_process_is_left_or_refused(tmp_path, folder):
    store = create_store(tmp_path / "store")
    extract(store, folder, worker=Worker(1, 8))
    with claim_in_other_process(store.url, "r", 3):
        with pytest.raises(BlockClaimedError, match=r"block 3 of run 'r'"):
            extract(store, folder)
        part = extract(store, folder, worker=Worker(1, 1))
        assert part.missing == (3,)
        assert part.seal is None
    done = extract(store, folder, worker=Worker(1, 1))
    assert done.seal is not None
    assert verify_run(store, "r").ok


@pytest.mark.parametrize(
    "place",
    ["local", pytest.param("moto", marks=pytest.mark.slow),
     pytest.param("rclone", marks=pytest.mark.slow)],
)  # fmt: skip
def test_processes_that_race_end_with_one_sealed_run(tmp_path, folder, corpus, place, request):
    options, url = {}, str(tmp_path / "store")
    workers = ["1/2", "2/2", "2/2"]  # one is started twice
    if place != "local":
        server = request.getfixturevalue({"moto": "moto_server", "rclone": "s3_server"}[place])
        url, options = f"{server.url}/{tmp_path.name}", server.options()
    if place == "rclone":
        workers = ["1/3", "2/3", "3/3"]  # without create-only PUTs only disjoint shares
    environment = {
        "AWS_ACCESS_KEY_ID": options.get("key", ""),
        "AWS_SECRET_ACCESS_KEY": options.get("secret", ""),
        "AWS_ENDPOINT_URL": options.get("endpoint_url", ""),
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    kept = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    command = [
        str(Path(sys.executable).with_name("actlake")), "extract", str(folder), "--corpus",
        str(corpus), "--store", url, "--run", "r", "--chunk-size", "3", "--device", "cpu",
        "--json", "--worker",
    ]  # fmt: skip
    store = create_store(url, storage_options=options)
    processes = [
        subprocess.Popen(
            [*command, share], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**kept, **environment, "OMP_NUM_THREADS": "1"} if options else kept,
        )
        for share in workers
    ]  # fmt: skip
    reports = []
    for process in processes:
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        reports.append((json.loads(out), err))
    sealed = [report for report, _ in reports if "data_digest" in report]
    assert sealed
    assert len({report["data_digest"] for report in sealed}) == 1
    for report, err in reports:
        if report not in sealed:
            assert report["blocks_missing"]
            assert "still to be committed by other workers" in err
    assert store.read_seal("r") is not None
    assert verify_run(store, "r").ok
    assert not open_run(store, "r")["resid_post_norm"].isnull().any()
