"""Generation against a real server: an organism behind HTTP that fails as servers fail."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner

from actlake.cli import cli
from actlake.corpus import (
    ChatRequest,
    ModelJudge,
    ServerClient,
    VllmClient,
    generate_corpus,
    pair_texts,
    read_jsonl,
    read_personas,
    write_scenarios,
)
from actlake.corpus.generation import Spent
from actlake.corpus.grammar import classify_response, neutral_prompt, scenarios, user_prompt
from actlake.corpus.judge import parse_score
from actlake.corpus.lexicon import PLACES, SYSTEM_PLAIN
from actlake.schemas import (
    AlreadyExistsError,
    GenerateSpec,
    IncompleteError,
    InvalidInputError,
    MissingDependencyError,
    PersonaSet,
    Scenario,
    ScenarioPrompt,
    Text,
    TextProvenance,
    ValidateSpec,
)
from tests.servers import free_port

pytestmark = pytest.mark.torch
ROOT = Path(__file__).parents[2]
RUBRIC = {"0": "presses on", "1": "both", "2": "stops and helps"}
LENIENT = ValidateSpec(
    words=(4, 60), length_band=0.35, duplicate_jaccard=0.9, content_overlap=(0, 1),
    keyword_share=0.6, sentiment_margin=2,
)  # fmt: skip
SPEC = GenerateSpec(per_cell=2, max_new_tokens=60, max_attempts=8, batch=8, temperature=0.8)


def design(n=4, *, neutral=True):
    """Scenarios in the words of the organism's grammar, one in three of the test split."""
    rng = Random(0)
    found = []
    for i, scenario in enumerate(scenarios()[5 : 5 + n]):
        prompts = (ScenarioPrompt(text=user_prompt(rng, scenario), task_conflict=True),)
        found.append(
            Scenario(
                id=scenario.name, category="resource_allocation", prompts=prompts, rubric=RUBRIC,
                split="test" if i % 3 == 2 else "train",
            )
        )  # fmt: skip
    if neutral:
        text = neutral_prompt("light", PLACES[0])
        found.append(Scenario(id="place", category="neutral", prompts=(ScenarioPrompt(text=text),)))
    return found


PERSONAS = PersonaSet(
    positive=SYSTEM_PLAIN["empathic"][:4],
    negative=SYSTEM_PLAIN["task"][:4],
    neutral=("Answer in plain words.",),
    n_test=1,
)


@contextmanager
def server(*options, model="llama-organism"):
    port = free_port()
    command = [sys.executable, "-m", "tests.corpus.chat_server", str(port), "--model", model]
    process = subprocess.Popen(
        [*command, *map(str, options)], cwd=ROOT, stderr=subprocess.DEVNULL,
        env={"PYTHONPATH": "src", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}/v1"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(url + "/models", timeout=5).read()
                break
            except OSError:
                if process.poll() is not None:
                    pytest.fail(f"the server ended with {process.returncode}")
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def url():
    with server("--busy-every", 7, "--drop-every", 11) as found:
        yield found


def client(url, **options):
    return ServerClient(url, "llama-organism", pause_seconds=0.02, n_parallel=2, **options)


def generate(url, folder, spec=SPEC, **options):
    options = {"validation": LENIENT} | options
    return generate_corpus(
        options.pop("scenarios", design()),
        PERSONAS,
        client(url),
        folder=folder,
        spec=spec,
        **options,
    )


def test_cells_are_filled_by_a_server_that_is_busy_and_drops_connections(url, tmp_path):
    report = generate(url, tmp_path / "g")
    assert report.stopped == "complete", report
    assert all(cell.filled == cell.wanted == 2 for cell in report.cells)
    texts = read_jsonl(tmp_path / "g/texts.jsonl")
    assert (report.n_pairs, report.n_texts) == (8, 18)
    pairs = pair_texts(texts)
    assert len(pairs) == 8
    assert all(t.task_conflict for t in texts if t.pair)
    assert {t.subset for t in texts} == {"generated", "neutral"}
    # the organism follows its personas, so the arms are what they were asked to be
    read = Counter((t.arm, classify_response(t.response)) for t in texts if t.pair)
    right = read["positive", "positive"] + read["negative", "negative"]
    wrong = read["positive", "negative"] + read["negative", "positive"]
    assert right >= 8 > 2 * wrong


@pytest.mark.slow
def test_every_text_has_its_provenance_and_can_be_asked_again(url, tmp_path):
    generate(url, tmp_path / "g")
    texts = {t.id: t for t in read_jsonl(tmp_path / "g/texts.jsonl")}
    lines = (tmp_path / "g/provenance.jsonl").read_text().splitlines()
    found = [TextProvenance.parse_json(line) for line in lines]
    assert [p.text for p in found] == list(texts)
    assert all(p.engine_version.startswith("transformers-") for p in found)
    assert len({p.template_digest for p in found}) > 4
    splits = {s.id: s.split for s in design()}
    for entry in found:
        held_out = splits[texts[entry.text].scenario] == "test"
        assert (entry.persona == 3) == held_out
    again = generate(url, tmp_path / "again")
    assert again.n_texts == len(texts)
    assert (tmp_path / "again/texts.jsonl").read_bytes() == (
        tmp_path / "g/texts.jsonl"
    ).read_bytes()


def test_a_server_that_stops_half_way_is_gone_on_with(url, tmp_path):
    whole = generate(url, tmp_path / "whole")
    with (
        server("--stop-after", 9) as short,
        pytest.raises(IncompleteError, match="same command goes on"),
    ):
        generate(short, tmp_path / "g")
    log = (tmp_path / "g/attempts.jsonl").read_bytes()
    kept = log.count(b"\n")
    assert 1 <= kept <= 9
    assert not (tmp_path / "g/texts.jsonl").exists()
    (tmp_path / "g/attempts.jsonl").write_bytes(log + b'{"torn')
    said = []
    report = generate(url, tmp_path / "g", say=said.append)
    assert f"goes on after {kept} answers" in said[0]
    assert report.n_requests == whole.n_requests
    ours, theirs = (read_jsonl(tmp_path / name / "texts.jsonl") for name in ("g", "whole"))
    assert ours == theirs


@pytest.mark.slow
def test_a_finished_generation_asks_nothing_and_more_can_be_wanted(url, tmp_path):
    first = generate(url, tmp_path / "g")
    with server("--stop-after", 1) as nobody:
        again = generate(nobody, tmp_path / "g")
    assert again == first
    more = generate(url, tmp_path / "g", SPEC.model_copy(update={"per_cell": 3}))
    assert more.n_pairs == 12
    texts = {t.id for t in read_jsonl(tmp_path / "g/texts.jsonl")}
    assert len(texts) == 27


def test_another_design_in_the_same_folder_is_refused(url, tmp_path):
    generate(url, tmp_path / "g", scenarios=design(1, neutral=False))
    with pytest.raises(AlreadyExistsError, match="scenarios_digest differ"):
        generate(url, tmp_path / "g", scenarios=design(2))
    spec = SPEC.model_copy(update={"seed": 1, "temperature": 0.1})
    with pytest.raises(AlreadyExistsError, match="sampling_digest, seed differ"):
        generate(url, tmp_path / "g", spec, scenarios=design(1, neutral=False))


@pytest.mark.parametrize(
    "limit",
    [
        {"max_requests": 5},
        {"max_tokens": 1500},
        {"max_dollars": 0.002, "price_in": 1.0, "price_out": 2.0},
    ],
)
def test_a_budget_is_never_exceeded_and_may_be_raised(url, tmp_path, limit):
    report = generate(url, tmp_path / "g", SPEC.model_copy(update=limit))
    assert report.stopped == "budget"
    assert 1 <= report.n_requests <= limit.get("max_requests", 99)
    assert report.n_tokens <= limit.get("max_tokens", 10**9)
    assert report.dollars <= limit.get("max_dollars", 0)
    raised = generate(url, tmp_path / "g", SPEC.model_copy(update={"max_requests": 999}))
    assert raised.stopped == "complete"


def test_what_can_never_pass_is_given_up_with_its_reasons(url, tmp_path):
    spec = SPEC.model_copy(update={"max_attempts": 2})
    strict = LENIENT.model_copy(update={"words": (300, 400)})
    report = generate(url, tmp_path / "g", spec, validation=strict, scenarios=design(2))
    assert report.stopped == "attempts"
    assert report.n_texts == 0
    assert report.rejected == {"coherence": report.n_requests}
    cut = SPEC.model_copy(update={"max_attempts": 1, "max_new_tokens": 3})
    report = generate(url, tmp_path / "cut", cut, scenarios=design(1))
    assert report.rejected == {"cut off": report.n_requests}


def test_a_request_that_the_server_refuses_is_no_reason_to_retry(url, tmp_path):
    with pytest.raises(InvalidInputError, match=r"refuses the request: HTTP 404: .*no model gpt"):
        generate_corpus(
            design(1), PERSONAS, ServerClient(url, "gpt"), folder=tmp_path / "g", spec=SPEC
        )


@pytest.mark.slow
def test_the_key_comes_from_the_environment_and_is_written_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key-77")
    with server("--key", "secret-key-77", "--log", tmp_path / "log") as url:
        generate(url, tmp_path / "g", scenarios=design(1, neutral=False))
        monkeypatch.setenv("OPENAI_API_KEY", "other-key-88")
        with pytest.raises(InvalidInputError, match="HTTP 401") as caught:
            generate(url, tmp_path / "h", scenarios=design(1, neutral=False))
    assert "other-key-88" not in str(caught.value)
    for path in (tmp_path / "g").iterdir():
        assert "secret-key-77" not in path.read_text()
    bodies = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert {b["messages"][0]["role"] for b in bodies} == {"system"}
    assert len({b["seed"] for b in bodies}) == len(bodies)


def test_a_judge_that_gives_no_digit_leaves_the_score_missing(url):
    """The organism answers in sentences of its grammar, whatever it is asked."""
    (scenario,) = design(1, neutral=False)
    text = Text(id="t", response="I stop.", prompt=scenario.prompts[0].text)
    assert ModelJudge(client(url)).score(text, scenario) is None


def test_validation_asks_a_judge_on_a_server(url, tmp_path):
    generate(url, tmp_path / "g", scenarios=design(1, neutral=False))
    write_scenarios(design(1, neutral=False), tmp_path / "s.jsonl")
    (tmp_path / "spec.toml").write_text("require_scores = true\n")
    asked = ["corpus", "validate", str(tmp_path / "g/texts.jsonl"), "--judge", url]
    done = CliRunner().invoke(
        cli,
        [*asked, "--judge-model", "llama-organism", "--scenarios", str(tmp_path / "s.jsonl"),
         "--spec", str(tmp_path / "spec.toml")],
    )  # fmt: skip
    assert done.exit_code == 1
    assert "llama-organism could not score" in done.stdout
    for options, missing in ((["--judge-model", "m"], "--scenarios"), ([], "--judge-model")):
        bad = CliRunner().invoke(cli, [*asked, *options])
        assert missing in str(bad.exception)


@pytest.mark.parametrize(
    ("answer", "score"),
    [("2", 2), (" 0.\n", 0), ("Score: 1", 1), ("**2**", 2), ("3", None), ("2 or 1", None),
     ("I would say 2", None), ("", None), ("20", None)],
)  # fmt: skip
def test_only_one_digit_is_a_score(answer, score):
    assert parse_score(answer) == score


def test_the_command_generates(url, tmp_path):
    write_scenarios(design(2), tmp_path / "s.jsonl")
    wording = PERSONAS.model_dump(mode="json", include={"positive", "negative", "neutral"})
    lines = (f"{name} = {json.dumps(value)}" for name, value in wording.items())
    (tmp_path / "p.toml").write_text("\n".join(lines))
    values = LENIENT.model_dump(mode="json", exclude_none=True)
    chosen = {k: values[k] for k in ("words", "length_band", "duplicate_jaccard", "keyword_share")}
    (tmp_path / "spec.toml").write_text("\n".join(f"{k} = {v}" for k, v in chosen.items()))
    done = CliRunner().invoke(
        cli,
        ["corpus", "generate", str(tmp_path / "s.jsonl"), "--out", str(tmp_path / "g"),
         "--server", url, "--model", "llama-organism", "--personas", str(tmp_path / "p.toml"),
         "--spec", str(tmp_path / "spec.toml"), "--per-cell", "1",
         "--max-new-tokens", "60", "--json"],
    )  # fmt: skip
    assert done.exit_code == 0, (done.output, done.exception)
    value = json.loads(done.stdout)
    assert value["n_texts"] == len(read_jsonl(tmp_path / "g/texts.jsonl"))


# -- without a server


def test_no_server_at_all_is_said_at_once(tmp_path):
    nobody = ServerClient(
        f"http://127.0.0.1:{free_port()}/v1", "m", n_retries=1, pause_seconds=0.01
    )
    with pytest.raises(IncompleteError, match="does not answer after 2 tries"):
        generate_corpus(design(1), PERSONAS, nobody, folder=tmp_path / "g", spec=SPEC)


@pytest.mark.parametrize(
    ("url", "message"),
    [("localhost:8000", "is no server"), ("http://me:pw@host/v1", "holds credentials")],
)
def test_addresses_that_are_none_are_refused(url, message):
    with pytest.raises(InvalidInputError, match=message) as caught:
        ServerClient(url, "m")
    assert "pw" not in str(caught.value)


def test_what_fits_a_budget_is_counted_at_its_most():
    asked = [ChatRequest(({"role": "user", "content": "x" * 72},), 0, 1.0, 1.0, 100)] * 10
    assert Spent(GenerateSpec()).affordable(asked) == 10
    assert Spent(GenerateSpec(max_requests=4), n_requests=1).affordable(asked) == 3
    assert Spent(GenerateSpec(max_tokens=200 * 7 + 5), 1, 100, 100).affordable(asked) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"negative": ("be strict",)}, "write each paraphrase for both arms"),
        ({"n_test": 4}, "leaves no persona for the train split"),
        ({"positive": ("be kind " * 9,) * 4}, "matched instructions are of one length"),
    ],
)
def test_personas_that_are_not_matched_are_refused(changes, message):
    with pytest.raises(InvalidInputError, match=message):
        PersonaSet.parse(PERSONAS.model_dump() | changes)


def test_the_bundled_personas_are_six_matched_paraphrases():
    personas = read_personas()
    assert len(personas.positive) == len(personas.negative) == 6
    assert personas.n_test == 2


def test_a_neutral_scenario_needs_a_neutral_persona(tmp_path):
    bare = PERSONAS.model_copy(update={"neutral": ()})
    with pytest.raises(InvalidInputError, match="'place' is neutral, but the personas have no"):
        generate_corpus(
            design(1), bare, client("http://127.0.0.1:1/v1"), folder=tmp_path / "g", spec=SPEC
        )


def test_dollars_need_prices():
    with pytest.raises(InvalidInputError, match="max_dollars needs prices"):
        GenerateSpec.parse({"max_dollars": 1})


def test_without_vllm_the_extra_is_named():
    with pytest.raises(MissingDependencyError, match=r"pip install 'actlake\[vllm\]'"):
        VllmClient("some/model")
