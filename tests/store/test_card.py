"""The card says what lies in a store, in the forms that people and catalogues read."""

import hashlib
import json
import logging
import os
import re
import subprocess
import sys

import mlcroissant
import numpy as np
import pytest
import yaml

from actlake.schemas import InvalidInputError, NotFoundError
from actlake.store import create_store, open_run, pull, write_card
from actlake.store.location import parse_location
from tests.servers import free_port
from tests.store.samples import make_values, write_run
from tests.store.small import fill_store

ARRAY = "resid_post_mean_response"


def text_of(store, key):
    return store.backend.get(key, max_bytes=10**7).decode()


def code_of(card):
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    return code


@pytest.fixture
def filled(store):
    store.plan = fill_store(store)
    return store


def test_the_front_matter_is_what_the_hub_reads(filled):
    write_card(filled, data_license="cc-by-4.0")
    _, front, _ = text_of(filled, "README.md").split("---\n", 2)
    found = yaml.safe_load(front)
    assert found["license"] == "cc-by-4.0"
    assert found["pretty_name"] == "Activations of organism"
    assert found["size_categories"] == ["n<1K"]
    assert found["configs"] == [{"config_name": "demo", "data_files": "corpora/demo/texts.parquet"}]
    write_card(filled, data_license="Our-Own-1.0")
    found = yaml.safe_load(text_of(filled, "README.md").split("---\n", 2)[1])
    assert (found["license"], found["license_name"]) == ("other", "Our-Own-1.0")


def test_data_and_model_licences_stand_apart_and_checksums_are_those_of_the_seal(filled):
    write_run(filled, filled.plan.model_copy(update={"run": "second"}))
    write_card(filled, data_license="cc-by-4.0", model_licenses={"tiny": "llama3"})
    card = text_of(filled, "README.md")
    assert "Data (activations and texts): cc-by-4.0" in card
    assert "| tiny | organism | llama3 |" in card
    assert "| second | organism | not stated |" in card
    for run in ("tiny", "second"):
        assert f"| {run} | {filled.read_seal(run).tree_digest} |" in card


def test_the_loading_snippet_runs(filled, tmp_path):
    write_card(filled, data_license="mit")
    code = code_of(text_of(filled, "README.md"))
    program = f"{code}\nimport numpy as np; np.save({str(tmp_path / 'out.npy')!r}, values)\n"
    subprocess.run([sys.executable, "-c", program], cwd=filled.url, check=True)  # beside the card
    values = make_values(filled.plan)[ARRAY]
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), values[:, 1])


def test_the_loading_snippet_of_a_partial_copy_reads_what_is_there(filled, tmp_path):
    pull(filled, tmp_path / "part", layers=[4])
    part = create_store(tmp_path / "part")
    write_card(part, data_license="mit", url=part.url)
    names = {}
    exec(code_of(text_of(part, "README.md")), names)  # our own code
    np.testing.assert_array_equal(names["values"], make_values(filled.plan)[ARRAY][:, 2])
    assert "partial copy" in text_of(part, "README.md")


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # pandas, to mlcroissant
@pytest.mark.filterwarnings("ignore:.*ConjunctiveGraph.*:DeprecationWarning")
def test_croissant_is_valid_and_its_records_are_the_texts(filled, caplog):
    write_card(filled, data_license="cc-by-4.0")
    with caplog.at_level(logging.WARNING):
        dataset = mlcroissant.Dataset(jsonld=f"{filled.url}/croissant.json")
    issues = dataset.metadata.ctx.issues
    assert not issues.errors
    assert not [w for w in issues.warnings if "citeAs" not in w]  # there is nothing to cite yet
    assert not [r.message for r in caplog.records if "@context" in r.message]
    records = list(dataset.records("texts-demo"))
    texts = filled.read_corpus("demo")[1]
    assert [r["texts-demo/id"].decode() for r in records] == [t.id for t in texts]
    assert [r["texts-demo/response"].decode() for r in records] == [t.response for t in texts]
    for file in dataset.metadata.distribution:
        data = filled.backend.get(file.content_url, max_bytes=10**7)
        assert hashlib.sha256(data).hexdigest() == file.sha256


def test_croissant_vouches_for_the_texts_and_the_manifests(filled):
    write_card(filled, data_license="mit")
    files = json.loads(text_of(filled, "croissant.json"))["distribution"]
    assert {file["@id"] for file in files} == {
        "corpora/demo/texts.parquet",
        "runs/tiny/seal.json",
    }


def test_a_card_names_no_folder_of_this_machine_and_no_credentials(filled, s3_server, tmp_path):
    write_card(filled, data_license="mit")
    for key in ("README.md", "croissant.json"):
        assert str(tmp_path) not in text_of(filled, key)
    remote = create_store(f"{s3_server.url}/card", storage_options=s3_server.options())
    fill_store(remote)
    write_card(remote, data_license="mit")
    for key in ("README.md", "croissant.json"):
        found = text_of(remote, key)
        assert s3_server.secret not in found
        assert f"{s3_server.url}/card" in found
    assert open_run(remote, "tiny").attrs["store_url"] in text_of(remote, "README.md")


def test_names_of_a_hostile_store_are_no_markup(store):
    plan = fill_store(store)
    evil = plan.model.model_copy(update={"name": "<script>x</script>|[a](b)\n---\nlicense: x"})
    write_run(store, plan.model_copy(update={"run": "evil", "model": evil}))
    write_card(store, data_license="mit")
    card = text_of(store, "README.md")
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "mit"
    assert "<script>" not in body
    (row,) = [line for line in body.splitlines() if line.startswith("| evil | ") and "demo" in line]
    assert len(re.findall(r"(?<!\\)\|", row)) == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_license": "my licence"}, "not a licence identifier"),
        ({"data_license": ""}, "not a licence identifier"),
        ({"data_license": "mit", "model_licenses": {"tinny": "mit"}}, "did you mean 'tiny'"),
    ],
)
def test_an_impossible_card_is_refused(filled, options, message):
    with pytest.raises(InvalidInputError, match=message):
        write_card(filled, **options)
    assert filled.backend.size("README.md") is None


def test_a_store_without_runs_has_no_card(store):
    with pytest.raises(NotFoundError, match="no runs"):
        write_card(store, data_license="mit")


def test_a_hub_url_is_parsed():
    found = parse_location("hf://datasets/me/acts/")
    assert (found.scheme, found.root, found.url) == ("hf", "datasets/me/acts", found.url)
    assert found.url == "hf://datasets/me/acts"


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
        timeout=120,
    ).stdout


OPEN_HUB = """
import sys
{before}
from actlake.schemas import StorageError
from actlake.store import open_store
try:
    open_store("hf://datasets/me/acts")
except StorageError as err:
    print(err)
"""


def test_the_hub_without_its_package_is_one_clear_error():
    said = run_python(OPEN_HUB.format(before="sys.modules['huggingface_hub'] = None"))
    assert "cannot open hf://datasets/me/acts" in said
    assert "huggingface_hub" in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.torch  # transformers brings huggingface_hub
def test_the_hub_that_cannot_be_reached_is_one_clear_error():
    port = free_port()
    said = run_python(OPEN_HUB.format(before=""), HF_ENDPOINT=f"http://127.0.0.1:{port}")
    assert "reading store.json at hf://datasets/me/acts failed" in said
    assert len(said.strip().splitlines()) == 1
