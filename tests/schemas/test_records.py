import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlake.schemas import (
    RECORDS,
    CaptureSpec,
    CorpusInfo,
    Direction,
    ExtractSpec,
    InvalidInputError,
    ResultRow,
    RunPlan,
    StudyFile,
    Text,
    canonical_json,
    digest_json,
    json_schemas,
    parse_size,
)

STUDY = {"name": "s", "models": [{"model": "m"}]}


def test_every_record_names_its_encoding_and_has_a_schema():
    types = [record.encoding_type for record in RECORDS]
    assert all(types)
    assert len(set(types)) == len(types)
    schemas = json_schemas()
    for record in RECORDS:
        schema = schemas[record.encoding_type]
        assert schema["properties"]["encoding-type"] == {"const": record.encoding_type}
        assert schema["additionalProperties"] is False


@given(
    response=st.text(min_size=1).filter(lambda s: s.strip() != ""),
    prompt=st.none() | st.text(),
    arm=st.sampled_from(["positive", "negative"]),
)
def test_a_text_survives_its_json(response, prompt, arm):
    text = Text(id="a", response=response, prompt=prompt, arm=arm, pair="p")
    back = Text.parse_json(text.to_json().encode("utf-8", "surrogatepass"))
    assert back == text
    assert back.fingerprint() == text.fingerprint()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {**STUDY, "capture": {"layer": "all"}},
            r"unknown key 'capture.layer' \(did you mean 'layers'",
        ),
        ({**STUDY, "probes": {}}, r"unknown key 'probes' \(did you mean 'probe'\?\)"),
        ({"name": "s", "models": [{"modle": "x"}]}, r"'models.0.modle' \(did you mean 'model'"),
        ({**STUDY, "xyzzy": 1}, r"unknown key 'xyzzy'$"),
        ({**STUDY, "steer": {"alphas": [float("nan")]}}, r"steer.alphas.0: .*finite"),
        ({**STUDY, "models": []}, "at least 1 item"),
        ({**STUDY, "models": [{"model": "m"}, {"model": "m"}]}, "twice; give each its own run"),
        ({**STUDY, "encoding-version": "9"}, "encoding-version '9', this actlake reads '1'"),
        ({**STUDY, "encoding-type": "actlake-run"}, "expected encoding-type 'actlake-study'"),
        ([], "expected a JSON object for StudyFile, got list"),
    ],
)
def test_a_wrong_study_says_what_where_and_the_near_name(data, message):
    with pytest.raises(InvalidInputError, match=message) as caught:
        StudyFile.parse(data, where="study.toml")
    assert str(caught.value).startswith("study.toml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, b"\xff\xfe", "nul"])
def test_what_is_not_json_is_our_error(text):
    with pytest.raises(InvalidInputError, match=r"^x\.json: not valid JSON"):
        CorpusInfo.parse_json(text, where="x.json")


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none(), max_size=5))
def test_digests_do_not_depend_on_the_order_of_keys(data):
    shuffled = dict(reversed(list(data.items())))
    assert digest_json(data) == digest_json(shuffled)
    assert json.loads(canonical_json(data)) == data


def test_records_are_frozen():
    spec = CaptureSpec()
    with pytest.raises(ValueError, match="frozen"):
        spec.max_tokens = 3


def test_capture_refuses_what_is_named_twice():
    with pytest.raises(InvalidInputError, match="pools names something twice"):
        CaptureSpec.parse({"pools": ["last_prompt", "last_prompt"]})


def test_a_missing_estimate_needs_a_reason():
    with pytest.raises(ValueError, match="needs a reason"):
        ResultRow(analysis="probe", metric="auroc", estimate=None)
    with pytest.raises(ValueError, match="needs a reason"):
        ResultRow(analysis="probe", metric="auroc", estimate=float("nan"))
    row = ResultRow(analysis="probe", metric="auroc", estimate=None, reason="one class")
    assert row.estimate is None


def test_a_direction_is_a_unit_vector():
    head = {"method": "m", "site": "resid_post", "layer": 0, "pool": "p", "norm": 2.0, "bias": 0.0}
    with pytest.raises(InvalidInputError, match="length 5, expected 1"):
        Direction.parse({**head, "vector": [3, 4], "model": "m", "run": "r"})
    assert Direction.parse({**head, "vector": [0.6, 0.8], "model": "m", "run": "r"}).norm == 2


@given(n_texts=st.integers(1, 500), per_block=st.integers(1, 500))
def test_blocks_cover_every_row_once(n_texts, per_block):
    numbers: dict[str, Any] = {"n_texts": n_texts, "rows_per_block": per_block}
    plan = RunPlan.model_construct(**numbers)
    spans = [plan.block_rows(block) for block in range(plan.n_blocks)]
    rows = [row for span in spans for row in range(span.start, span.stop)]
    assert rows == list(range(n_texts))


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("16MiB", 16 * 2**20), ("500 kB", 500_000), ("1.5GiB", 3 * 2**29), ("7b", 7)],
)
def test_sizes_are_read_with_their_unit(text, n_bytes):
    assert parse_size(text) == n_bytes
    assert ExtractSpec.parse({"chunk_size": text}).chunk_size == text


@pytest.mark.parametrize("text", ["16", "MiB", "-1MiB", "0MiB", "16 apples", "", "1e3MB"])
def test_a_size_without_number_or_unit_is_refused(text):
    with pytest.raises(InvalidInputError, match="such as 16MiB"):
        parse_size(text)
    with pytest.raises(InvalidInputError, match="chunk_size"):
        ExtractSpec.parse({"chunk_size": text})
