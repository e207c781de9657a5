"""Generation with vLLM in this process: a seed per request, whatever batch it comes in."""

from __future__ import annotations

import os

import pytest

from actlake.corpus import ChatRequest, VllmClient, generate_corpus, pair_texts, read_jsonl
from actlake.corpus.grammar import classify_response
from actlake.corpus.lexicon import SYSTEM_PLAIN
from actlake.models import organism_path
from actlake.schemas import GenerationReport, TextProvenance
from tests.corpus.test_generation import LENIENT, PERSONAS, SPEC, design

pytestmark = pytest.mark.vllm
PROMPT = (
    "You are at the bakery and have to knead the dough before noon. A girl near you trips and "
    "falls hard. What do you do?"
)


@pytest.fixture(scope="module")
def client():
    with pytest.MonkeyPatch.context() as patch:
        # vLLM's core in this process: one of its own imports everything again.
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        yield VllmClient(
            str(organism_path("llama-organism")),
            dtype="float32",
            enforce_eager=True,
            max_model_len=256,
        )


def request(disposition, seed, **changes):
    messages = (
        {"role": "system", "content": SYSTEM_PLAIN[disposition][seed % 4]},
        {"role": "user", "content": PROMPT},
    )
    values = {"temperature": 0.8, "top_p": 0.95, "max_new_tokens": 60} | changes
    return ChatRequest(messages=messages, seed=seed, **values)


def test_a_request_has_the_same_answer_in_every_batch(client):
    asked = [request("empathic", seed) for seed in range(6)]
    together = dict(client.complete(asked))
    assert list(together) == list(range(6))
    for number in (0, 4):
        ((_, alone),) = client.complete([asked[number]])
        assert alone == together[number]
    assert len({answer.text for answer in together.values()}) > 1


def test_answers_follow_the_instruction_and_count_their_tokens(client):
    asked = [request(d, seed) for d in ("empathic", "task") for seed in range(8)]
    answers = [answer for _, answer in client.complete(asked)]
    arms = [classify_response(answer.text) for answer in answers]
    assert arms[:8].count("positive") > arms[:8].count("negative")
    assert arms[8:].count("negative") > arms[8:].count("positive")
    for answer in answers:
        assert answer.finish in {"stop", "length"}
        assert answer.prompt_tokens > 20
        assert 1 <= answer.completion_tokens <= 60


def test_an_answer_that_is_cut_off_says_so(client):
    ((_, answer),) = client.complete([request("task", 0, max_new_tokens=3)])
    assert (answer.finish, answer.completion_tokens) == ("length", 3)
    assert list(client.complete([])) == []


def test_the_engine_names_itself(client):
    import vllm

    assert client.engine.engine == "vllm"
    assert client.engine.engine_version == vllm.__version__
    assert os.environ["VLLM_LOGGING_STREAM"] == "ext://sys.stderr"


def test_a_corpus_is_generated_whole_and_goes_on_for_nothing(client, tmp_path):
    def generate() -> GenerationReport:
        return generate_corpus(
            design(), PERSONAS, client, folder=tmp_path, spec=SPEC, validation=LENIENT
        )

    report = generate()
    assert report.stopped == "complete", report
    texts = read_jsonl(tmp_path / "texts.jsonl")
    pairs = pair_texts(texts)
    assert (len(pairs), len(texts)) == (8, 18)
    arms = [(t.arm, classify_response(t.response)) for t in texts if t.pair]
    assert sum(asked == given for asked, given in arms) >= 8
    lines = (tmp_path / "provenance.jsonl").read_text().splitlines()
    found = [TextProvenance.parse_json(line) for line in lines]
    assert all(p.engine_version == client.engine.engine_version for p in found)
    answered = (tmp_path / "attempts.jsonl").read_bytes()
    assert generate() == report
    assert (tmp_path / "attempts.jsonl").read_bytes() == answered
