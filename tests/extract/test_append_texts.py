"""A grown corpus adds its new texts to a run, through the model and through the command line."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from actlake.cli import cli
from actlake.corpus import corpus_info
from actlake.extract import Worker, append_texts, extract_run
from actlake.schemas import (
    AlreadyExistsError,
    CaptureSpec,
    ExtractSpec,
    IncompleteError,
    NotFoundError,
    Text,
)
from actlake.store import create_store, open_run, part_names, read_texts, verify_run
from tests.extract.tiny import tiny_folder

pytestmark = pytest.mark.torch


def make_text(i: int) -> Text:
    return Text(
        id=f"t{i:02d}",
        prompt="the boy has fallen " * (1 + i % 3),
        response="I stop to help " * (1 + i % 5),
        arm="positive" if i % 2 else "negative",
        pair=f"p{i // 2}",
    )


GROWN = [make_text(i) for i in range(20)]
FIRST = GROWN[:4] + GROWN[8:14]  # the new ones come from all over
CAPTURE = CaptureSpec(layers=(0, 2), pools=("mean_response", "last_prompt"))
EXTRACT = ExtractSpec(chunk_size=4, batch_tokens=200, device="cpu", codec="none")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder("llama", tmp_path_factory.mktemp("model") / "tiny-llama")


@pytest.fixture
def store(tmp_path, folder):
    store = create_store(str(tmp_path / "store"))
    extract_run(
        store, FIRST, corpus_info("c", FIRST, title="A corpus"), model=str(folder), run="r",
        capture=CAPTURE, extract=EXTRACT,
    )  # fmt: skip
    return store


def append(store, folder, *, texts=None, extract=None, **options):
    texts = GROWN if texts is None else texts
    return append_texts(
        store, texts, corpus_info("c", texts), model=str(folder), run="r",
        extract=extract, **options,
    )  # fmt: skip


def test_an_appended_run_is_that_of_the_grown_corpus(store, folder):
    done = append(store, folder)
    assert (done.run, done.n_blocks_run, done.seal is not None) == ("r~1", 1, True)
    assert store.read_plan("r~1").codec == "crc32c"  # as the run has it
    extract_run(
        store, GROWN, corpus_info("grown", GROWN), model=str(folder), run="whole",
        capture=CAPTURE, extract=EXTRACT,
    )  # fmt: skip
    grown, whole = open_run(store, "r").compute(), open_run(store, "whole").compute()
    assert sorted(grown["text"].values.tolist()) == [text.id for text in GROWN]
    same = grown.sel(text=whole["text"].values)
    for name in whole.data_vars:
        np.testing.assert_allclose(same[name], whole[name], rtol=5e-5, atol=5e-5)
    for name in ("arm", "pair", "n_tokens", "n_prompt_tokens", "label"):
        np.testing.assert_array_equal(same[name], whole[name])
    for text in whole["text"].values[:5].tolist():
        ids = [_ids(run, text) for run in (grown, whole)]
        np.testing.assert_array_equal(*ids)
    assert all(verify_run(store, name, full=True).ok for name in part_names(store, "r"))


def _ids(run, text: str):
    row = run["text"].values.tolist().index(text)
    start, stop = run["token_offset"].values[row : row + 2]
    return run["token_id"].values[start:stop]


def test_each_part_names_the_corpus_of_its_own_texts(store, folder):
    append(store, folder)
    corpora = store.corpus_ids()
    assert corpora[0] == "c"
    assert corpora[1].startswith("c+")
    info, texts = store.read_corpus(store.read_manifest("r~1").corpus)
    assert {text.id for text in texts} == {t.id for t in GROWN} - {t.id for t in FIRST}
    assert info.n_pairs == 5
    assert {text.id for text in read_texts(store, "r")[1]} == {text.id for text in GROWN}


def test_again_is_nothing_and_more_is_another_part(store, folder):
    append(store, folder)
    done = append(store, folder)
    assert (done.n_blocks_run, done.seal) == (0, store.read_seal("r~1"))
    append(store, folder, texts=[*GROWN, make_text(20)])
    assert part_names(store, "r") == ["r", "r~1", "r~2"]
    assert open_run(store, "r").sizes["text"] == 21
    append(store, folder, texts=[make_text(21)])  # only what is new
    assert open_run(store, "r").sizes["text"] == 22


def test_workers_share_an_append_and_it_resumes(store, folder):
    spec = EXTRACT.model_copy(update={"chunk_size": 3})
    done = append(store, folder, extract=spec, worker=Worker(1, 2))
    assert (done.n_blocks_run, done.missing, done.seal) == (2, (1, 3), None)
    assert open_run(store, "r").sizes["text"] == 10
    with pytest.raises(IncompleteError, match="not finished"):
        append(store, folder, texts=FIRST)
    with pytest.raises(AlreadyExistsError, match="not finished"):
        append(store, folder, texts=GROWN[:-1], extract=spec)
    done = append(store, folder, extract=spec)
    assert (done.n_blocks_run, done.n_blocks_kept) == (2, 2)
    assert open_run(store, "r").sizes["text"] == 20


def test_what_does_not_fit_the_run_is_refused_before_anything_is_written(
    store, folder, tmp_path_factory
):
    with pytest.raises(AlreadyExistsError, match=r"capture.max_tokens \(stored 4096, got 900\)"):
        append(store, folder, capture=CAPTURE.model_copy(update={"max_tokens": 900}))
    other = tiny_folder("llama", tmp_path_factory.mktemp("other") / "tiny-llama", seed=1)
    with pytest.raises(AlreadyExistsError, match=r"model.content_digest \(stored"):
        append(store, other)
    changed = FIRST[0].model_copy(update={"response": "other words"})
    with pytest.raises(AlreadyExistsError, match=r"other words under the ids of 1 .*'t00'"):
        append(store, folder, texts=[changed, *GROWN[1:]])
    with pytest.raises(NotFoundError):
        append_texts(store, GROWN, corpus_info("c", GROWN), model=str(folder), run="x")
    assert part_names(store, "r") == ["r"]
    assert store.corpus_ids() == ["c"]


def test_the_command_appends_with_the_settings_of_the_run(store, folder, tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(t.model_dump(mode="json")) + "\n" for t in GROWN))
    command = ["extract", str(folder), "--corpus", str(path), "--store", store.url]
    command += ["--run", "r", "--append", "--device", "cpu", "--json"]
    plan = json.loads(CliRunner().invoke(cli, [*command, "--dry-run"]).stdout)
    assert (plan["texts"], plan["layers"]) == (10, 2)
    assert part_names(store, "r") == ["r"]
    done = json.loads(CliRunner().invoke(cli, command).stdout)
    assert (done["run"], done["blocks_run"]) == ("r~1", 1)
    assert set(open_run(store, "r").data_vars) == set(open_run(store, "r~1").data_vars)
    again = json.loads(CliRunner().invoke(cli, command).stdout)
    assert again["blocks_run"] == 0
    nothing = json.loads(CliRunner().invoke(cli, [*command, "--dry-run"]).stdout)
    assert nothing == {"run": "r", "texts": 0}
    more = CliRunner().invoke(cli, ["store", "ls", store.url, "--json"])
    assert [row["run"] for row in json.loads(more.stdout)] == ["r", "r~1"]
    verified = CliRunner().invoke(cli, ["store", "verify", store.url, "r", "--json"])
    assert [report["ok"] for report in json.loads(verified.stdout)] == [True, True]
    info = json.loads(CliRunner().invoke(cli, ["store", "info", store.url, "r", "--json"]).stdout)
    assert info["appended"] == ["r~1"]


def test_the_command_refuses_another_capture(store, folder, tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(t.model_dump(mode="json")) + "\n" for t in GROWN))
    command = ["extract", str(folder), "--corpus", str(path), "--store", store.url]
    command += ["--run", "r", "--append", "--device", "cpu", "--pools", "max_abs"]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 1
    said = 'capture.pools (stored ["mean_response", "last_prompt"], got ["max_abs"])'
    assert said in str(done.exception)
