"""The commands that share a store do what the library does, and say what they did."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from actlake.cli import cli
from actlake.corpus import corpus_info, write_jsonl
from actlake.schemas import ArmNames, NotPulledError, Text
from actlake.store import create_store, import_run, open_run, open_store, prepare_import, pull
from tests.store.samples import make_values
from tests.store.small import fill_store, make_texts

ACTLAKE = str(Path(sys.executable).with_name("actlake"))
ARRAY = "resid_post_mean_response"


def actlake(*args, code=0, **environment):
    """Run a process as a user does."""
    done = subprocess.run(
        [ACTLAKE, *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def invoke(*args):
    """Run a command in this process: the same code, without the start of an interpreter."""
    done = CliRunner().invoke(cli, [str(arg) for arg in args], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def filled(store):
    store.plan = fill_store(store)
    return store


def test_pull_and_push_of_a_layer(filled, s3_server, tmp_path):
    keys = {
        "AWS_ACCESS_KEY_ID": s3_server.key,
        "AWS_SECRET_ACCESS_KEY": s3_server.secret,
        "AWS_ENDPOINT_URL": s3_server.endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    url = f"{s3_server.url}/{tmp_path.name}"
    args = ("store", "push", filled.url, url, "--run", "tiny", "--json")
    (done,) = json.loads(actlake(*args, **keys).stdout)
    assert done["whole"]
    here = tmp_path / "here"
    args = ("store", "pull", url, here, "--layer", 2, "--pool", "mean_response", "--json")
    (done,) = json.loads(actlake(*args, **keys).stdout)
    assert (done["run"], done["whole"]) == ("tiny", False)
    ds = open_run(here, "tiny", pulled_only=True)
    np.testing.assert_array_equal(ds[ARRAY].values, make_values(filled.plan)[ARRAY][:, [1]])
    pull(open_store(url, storage_options=s3_server.options()), here)
    assert open_run(here, "tiny").attrs["content_digest"] == filled.read_seal("tiny").data_digest
    said = actlake("store", "pull", url, here, "--layer", 3, code=2, **keys).stderr
    assert "has no layers [3]" in said


def test_the_command_in_the_error_fetches_what_was_missing(filled, tmp_path):
    here = tmp_path / "here"
    assert "tiny" in invoke("store", "pull", filled.url, here, "--layer", 2)
    assert json.loads(invoke("store", "ls", here, "--json"))[0]["state"] == "sealed, partial copy"
    assert json.loads(invoke("store", "info", here, "tiny", "--json"))["partial_copy"]
    with pytest.raises(NotPulledError) as caught:
        open_run(here, "tiny")[ARRAY].sel(layer=4).compute()
    command = str(caught.value).split("run: actlake ")[1].split(" (open_run")[0]
    invoke(*command.replace("SOURCE", filled.url).split())
    found = open_run(here, "tiny")[ARRAY].sel(layer=4).values
    np.testing.assert_array_equal(found, make_values(filled.plan)[ARRAY][:, 2])


def test_a_probe_takes_the_layers_that_are_here_and_is_done_again_when_there_are_more(tmp_path):
    texts = [
        Text(
            id=f"{arm[:3]}-{k:02d}",
            response="word " * (k + 1),
            arm=arm,
            pair=f"p{k:02d}",
            scenario=f"s{k % 4}",
        )
        for k in range(8)
        for arm in ("positive", "negative")
    ]
    np.save(tmp_path / "acts.npy", np.random.default_rng(0).standard_normal((16, 3, 8), np.float32))
    prepared = prepare_import(
        [tmp_path / "acts.npy"], texts, run="mine", corpus="c", model="m", pool="mean_response"
    )
    far = create_store(tmp_path / "far")
    import_run(far, prepared, texts, info=corpus_info("c", texts, arms=ArmNames()))
    here, out = tmp_path / "here", tmp_path / "out"
    for layers, pulled in (([1], [1]), ([2], [1, 2])):
        pull(far, here, layers=layers)
        invoke("probe", here, "mine", "--out", out, "--random", 9)
        rows = pd.read_parquet(out / "mine" / "probe" / "probe.parquet")
        assert sorted(rows["layer"].dropna().unique()) == pulled
        kept = json.loads((out / "mine" / "probe" / "provenance.json").read_text())["pulled"]
        assert kept["parts"][0]["layers"] == pulled


def test_card(filled):
    license_ = ("--data-license", "cc-by-4.0", "--model-license", "tiny=llama3")
    shown = invoke("store", "card", filled.url, *license_, "--title", "Mine")
    assert shown.splitlines() == [f"{filled.url}/README.md", f"{filled.url}/croissant.json"]
    card = Path(filled.url, "README.md").read_text()
    assert "# Mine" in card
    assert "| tiny | organism | llama3 |" in card
    said = actlake(
        "store", "card", filled.url, "--data-license", "mit", "--model-license", "llama3", code=2
    ).stderr
    assert "expected RUN=LICENSE" in said


@pytest.mark.parametrize("kind", ["npy", pytest.param("pt", marks=pytest.mark.torch)])
def test_import(tmp_path, kind):
    texts = make_texts()
    write_jsonl(texts, tmp_path / "texts.jsonl")
    values = np.random.default_rng(0).standard_normal((len(texts), 4, 8)).astype(np.float32)
    if kind == "npy":
        np.save(tmp_path / "acts.npy", values)
    else:
        import torch

        torch.save(torch.from_numpy(values), tmp_path / "acts.pt")
    args = (
        "store", "import", tmp_path / f"acts.{kind}", "--store", tmp_path / "store",
        "--run", "mine", "--texts", tmp_path / "texts.jsonl", "--model", "me/model",
        "--pool", "last_response", "--layers", "0,4-6", "--json",
    )  # fmt: skip
    understood = json.loads(invoke(*args, "--dry-run"))
    assert understood["arrangement"] == "stacked"
    assert understood["layers"] == [0, 4, 5, 6]
    assert understood["texts"] == len(texts)
    assert not (tmp_path / "store").exists()
    done = json.loads(invoke(*args))
    store = open_store(tmp_path / "store")
    assert done["data_digest"] == store.read_seal("mine").data_digest
    found = open_run(store, "mine")["resid_post_last_response"]
    np.testing.assert_array_equal(found.sel(text=[t.id for t in texts]).values, values)
    invoke("store", "verify", tmp_path / "store", "mine", "--full")


def test_a_pickle_is_one_line(tmp_path):
    write_jsonl(make_texts(), tmp_path / "texts.jsonl")
    np.save(tmp_path / "acts.npy", np.array([{}], dtype=object), allow_pickle=True)
    said = actlake(
        "store", "import", tmp_path / "acts.npy", "--store", tmp_path / "store", "--run", "mine",
        "--texts", tmp_path / "texts.jsonl", "--model", "m", "--pool", "last_response", code=2,
    ).stderr  # fmt: skip
    assert len(said.strip().splitlines()) == 1
    assert "pickles are never loaded" in said
    assert not create_store(tmp_path / "store").run_ids()
