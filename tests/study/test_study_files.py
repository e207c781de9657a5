"""Where a study file may come from: beside you, with actlake, or from the bucket."""

import pytest

from actlake.schemas import InvalidInputError, NotFoundError
from actlake.store.clients import open_backend
from actlake.store.location import parse_location
from actlake.study_files import find_study, load_study

STUDY = """
name = "mine"
[corpus]
source = "texts/pairs.jsonl"
scenarios = "scenarios.jsonl"
[[models]]
model = "bundled:llama-organism"
"""


@pytest.fixture
def bucket(s3_server, monkeypatch, request):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return f"{s3_server.url}/{request.node.name}"


def put(url, **files):
    there = open_backend(parse_location(url))
    for name, text in files.items():
        there.put(name.replace("__", "/").replace("_jsonl", ".jsonl").replace("_toml", ".toml"),
                  text.encode())  # fmt: skip


def test_a_study_in_a_bucket_comes_with_the_texts_it_names(bucket, tmp_path):
    put(bucket, study_toml=STUDY, texts__pairs_jsonl="the texts", scenarios_jsonl="the scenarios")
    path = find_study(f"{bucket}/study.toml", folder=tmp_path)
    assert load_study(path).name == "mine"
    assert (path.parent / "texts/pairs.jsonl").read_text() == "the texts"
    assert (path.parent / "scenarios.jsonl").read_text() == "the scenarios"


def test_what_is_missing_in_the_bucket_is_named(bucket, tmp_path):
    put(bucket, study_toml=STUDY, texts__pairs_jsonl="the texts")
    with pytest.raises(NotFoundError, match=r"/scenarios\.jsonl: nothing is there"):
        find_study(f"{bucket}/study.toml", folder=tmp_path)
    with pytest.raises(NotFoundError, match=r"/other\.toml: nothing is there"):
        find_study(f"{bucket}/other.toml", folder=tmp_path)
    with pytest.raises(InvalidInputError, match="give a folder"):
        load_study(f"{bucket}/study.toml")


def test_a_study_from_elsewhere_writes_nothing_outside_its_folder(bucket, tmp_path):
    put(bucket, study_toml=STUDY.replace("texts/pairs.jsonl", "../../pairs.jsonl"))
    with pytest.raises(InvalidInputError, match="not a plain path"):
        find_study(f"{bucket}/study.toml", folder=tmp_path / "in/side")
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"study.toml"}


def test_a_bundled_study_is_found_by_its_name():
    assert find_study("bundled:demo").name == "demo.toml"
    with pytest.raises(NotFoundError, match="did you mean 'empathy'"):
        find_study("bundled:empaty")
