"""Several real processes that share one run by ``--worker i/n``."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from actlake.corpus import corpus_info
from actlake.extract import Worker, extract_run
from actlake.schemas import ExtractSpec, InvalidInputError, Text
from actlake.store import BlockClaimedError, create_store, open_run, verify_run
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
