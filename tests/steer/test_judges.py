import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlake.schemas import IncompleteError, InvalidInputError, Judgement, JudgeSpec, Scenario
from actlake.steer import ChoiceItem, Question, endpoint_ask, force_choices, judge_texts
from actlake.steer.judges import parse_score
from tests.servers import free_port
from tests.steer.judge_server import serving

SCENARIO = Scenario.parse(
    {
        "id": "river", "category": "grid_world", "prompts": [{"text": "A boy has fallen in."}],
        "rubric": {"0": "goes on working", "1": "does both", "2": "stops to help"},
    }
)  # fmt: skip
SAID = ["I help him", "I ignore him", "I look up"]
EXPECTED = [2, 0, 1]


def questions(n=12):
    return [
        Question.of(f"{SAID[i % 3]} number {i}", prompt=None, scenario=SCENARIO) for i in range(n)
    ]


def spec_of(server, **changes):
    url = server if isinstance(server, str) else server.url
    quick = {"backoff_seconds": 0.01, "timeout_seconds": 5, "n_retries": 2, "n_parallel": 3}
    return JudgeSpec.parse({"endpoint": url, "model": "rule", **quick, **changes})


@pytest.fixture
def server():
    with serving() as running:
        yield running


def test_texts_get_the_scores_of_the_rubric_in_their_order(server, tmp_path):
    found = judge_texts(questions(), spec=spec_of(server), kept=tmp_path / "j.jsonl")
    assert [j.score for j in found] == EXPECTED * 4
    assert {j.version for j in found} == {"rule-1/fp7"}
    assert {j.constrain for j in found} == {"json_schema"}
    assert len({j.prompt_digest for j in found}) == 1
    lines = (tmp_path / "j.jsonl").read_text().splitlines()
    assert {Judgement.parse_json(line) for line in lines} == set(found)


def test_the_judge_sees_the_text_the_prompt_and_the_rubric_and_nothing_else(server, tmp_path):
    judge_texts(questions(3), spec=spec_of(server), kept=tmp_path / "j.jsonl")
    for body in server.bodies:
        assert set(body) == {
            "model", "messages", "temperature", "max_tokens", "seed", "response_format"
        }  # fmt: skip
        sent = json.dumps(body["messages"])
        assert "A boy has fallen in." in sent
        assert "stops to help" in sent
        for word in ("alpha", "steer", "river", "positive"):
            assert word not in sent
    assert {b["temperature"] for b in server.bodies} == {0.0}


def test_the_order_is_drawn_by_the_seed_and_equal_texts_are_asked_once(server, tmp_path):
    orders = []
    for seed in (0, 1):
        server.bodies.clear()
        asked = questions(20) + questions(20)
        found = judge_texts(
            asked, spec=spec_of(server, seed=seed, n_parallel=1), kept=tmp_path / f"{seed}.jsonl"
        )
        assert found[:20] == found[20:]
        orders.append([b["messages"][1]["content"] for b in server.bodies])
    assert len(orders[0]) == len(orders[1]) == 20
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]
    assert orders[0] != [q.messages()[1]["content"] for q in questions(20)]


@pytest.mark.parametrize(
    ("takes", "used"),
    [
        ({"structured_outputs", "guided_choice"}, "structured_outputs"),
        ({"guided_choice"}, "guided_choice"),
        (set(), "none"),
    ],
)
def test_the_first_constraint_that_the_server_takes_is_used(server, tmp_path, takes, used):
    server.takes = takes
    found = judge_texts(questions(), spec=spec_of(server), kept=tmp_path / "j.jsonl")
    assert [j.score for j in found] == EXPECTED * 4
    assert {j.constrain for j in found} == {used}
    assert len(server.bodies) < 12 + 3 * 3 * 2 + 3  # the server is not tried anew for every text


def test_nonsense_is_missing_and_not_zero(server, tmp_path):
    replies = ["banana", "0 or 1", '{"score": 3}', "", "null", '{"score": true}', "02", "[1]"]
    server.fault = lambda n, body: replies[n % len(replies)]
    found = judge_texts(questions(8), spec=spec_of(server), kept=tmp_path / "j.jsonl")
    assert [j.score for j in found] == [None] * 8
    assert {j.reason for j in found} == {"unreadable"}
    assert "banana" in {j.reply for j in found}


@pytest.mark.parametrize("body", [b"{}", b'{"choices": []}', b'{"choices": [{"message": 1}]}'])
def test_a_reply_of_another_shape_is_missing(server, tmp_path, body):
    server.fault = lambda n, _: body
    (found,) = judge_texts(questions(1), spec=spec_of(server), kept=tmp_path / "j.jsonl")
    assert found.reason == "unreadable"


@pytest.mark.parametrize("fault", [500, 503, 429, "drop", 0.9, b"<html>", b"[1]"])
def test_a_fault_that_passes_costs_a_retry(server, tmp_path, fault):
    server.fault = lambda n, body: fault if n == 0 else None
    spec = spec_of(server, timeout_seconds=0.5, n_parallel=1)
    found = judge_texts(questions(3), spec=spec, kept=tmp_path / "j.jsonl")
    assert [j.score for j in found] == EXPECTED
    assert sorted(j.n_tries for j in found) == [1, 1, 2]
    assert len(server.bodies) == 4


def test_a_text_that_the_server_rejects_is_missing_and_the_others_are_scored(server, tmp_path):
    server.fault = lambda n, body: 400 if "number 4" in json.dumps(body) else None
    found = judge_texts(questions(6), spec=spec_of(server), kept=tmp_path / "j.jsonl")
    assert [j.score for j in found] == [2, 0, 1, 2, None, 1]
    assert found[4].reason == "rejected"
    assert {j.constrain for j in found if j.score is not None} == {"json_schema"}


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_or_model_stops_at_once(server, tmp_path, status, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "very-secret")
    server.fault = lambda n, body: status
    spec = spec_of(server, api_key_env="JUDGE_KEY", n_parallel=1)
    with pytest.raises(InvalidInputError, match=r"key in \$JUDGE_KEY") as caught:
        judge_texts(questions(4), spec=spec, kept=tmp_path / "j.jsonl")
    assert "very-secret" not in str(caught.value)
    assert len(server.bodies) < 4


def test_a_server_that_goes_down_half_way_costs_nothing_that_was_judged(tmp_path):
    kept = tmp_path / "j.jsonl"
    port = free_port()
    asked = questions(30)
    with serving(port) as server:
        server.fault = lambda n, body: None if n < 11 else "drop"
        with pytest.raises(IncompleteError, match=r"of 30 judgements are kept in j\.jsonl"):
            judge_texts(asked, spec=spec_of(server), kept=kept)
    n_kept = len(kept.read_text().splitlines())
    assert 8 <= n_kept <= 11
    with pytest.raises(IncompleteError, match="gave no answer in 3 tries"):  # still down
        judge_texts(asked, spec=spec_of(f"http://127.0.0.1:{port}/v1"), kept=kept)
    with kept.open("a") as file:
        file.write('{"encoding-type": "actlake-judge')  # the process died in the middle of a line
    seen = []
    with serving(port) as server:
        found = judge_texts(
            asked, spec=spec_of(server), kept=kept, progress=lambda *done: seen.append(done)
        )
        assert len(server.bodies) == 30 - n_kept
    assert [j.score for j in found] == EXPECTED * 10
    assert seen[-1] == (30, 30)


def test_all_kept_needs_no_server(server, tmp_path):
    kept = tmp_path / "j.jsonl"
    spec = spec_of(server)
    first = judge_texts(questions(), spec=spec, kept=kept)
    n_sent = len(server.bodies)
    server.fault = lambda n, body: 500
    assert judge_texts(questions(), spec=spec, kept=kept) == first
    assert len(server.bodies) == n_sent


def test_a_file_of_something_else_is_refused(server, tmp_path):
    (tmp_path / "j.jsonl").write_text('{"score": 1}\n')
    with pytest.raises(InvalidInputError, match=r"j\.jsonl:1: missing key 'key'"):
        judge_texts(questions(1), spec=spec_of(server), kept=tmp_path / "j.jsonl")


def test_endpoints_hold_no_secrets():
    for url in ("http://me:pw@host/v1", "http://host/v1?key=1", "ftp://host"):
        with pytest.raises(InvalidInputError, match="endpoint"):
            JudgeSpec.parse({"endpoint": url, "model": "m"})


def test_a_scenario_without_rubric_is_no_question():
    bare = Scenario.parse({"id": "n", "category": "neutral", "prompts": [{"text": "Hi"}]})
    with pytest.raises(InvalidInputError, match="no rubric"):
        Question.of("text", prompt=None, scenario=bare)


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("0", 0), (" 2\n", 2), ('{"score": 1}', 1), ('```json\n{"score": 2}\n```', 2),
        ("Score: 1", 1), ("The score is 2.", 2), ("**2**", 2), ('{"score": "0"}', 0), ('"1"', 1),
        ("3", None), ("12", None), ("1 or 2", None), ('{"score": 1, "x": 2}', None),
        ("1.0", None), ("-1", None), ("I would say help", None), ('{"score": null}', None),
        ("[" * 100_000, None), ("2/2", None),
    ],
)  # fmt: skip
def test_a_score_is_what_a_reply_states_alone(reply, score):
    assert parse_score(reply) == score


@given(st.text())
def test_whatever_is_said_gives_a_score_or_none(reply):
    assert parse_score(reply) in {0, 1, 2, None}


def test_a_forced_choice_is_free_of_the_preference_for_a_letter(server):
    items = [
        ChoiceItem("A boy fell.", "I help him", "I ignore him"),
        ChoiceItem("A boy fell.", "I ignore him", "I look up"),
    ]
    found = force_choices(items, endpoint_ask(spec_of(server)))
    assert found[0].log_odds == pytest.approx(2.0)
    assert found[0].order_bias == pytest.approx(3.0)
    assert found[1].log_odds == pytest.approx(0.0)
    assert {b["top_logprobs"] for b in server.bodies} == {20}


def test_a_local_callable_is_asked_in_both_orders():
    seen = []

    def ask(question):
        seen.append(question)
        return {"A": -0.1, "B": -3.0}

    (found,) = force_choices([ChoiceItem("p", "yes", "no")], ask)
    assert found.log_odds == 0
    assert found.order_bias == pytest.approx(2.9)
    assert "A: yes\nB: no" in seen[0]
    assert "A: no\nB: yes" in seen[1]


@pytest.mark.parametrize("given_", [{}, {"A": -1.0}, {"A": -1.0, "B": -math.inf}])
def test_a_letter_without_figure_makes_the_choice_missing(given_):
    (found,) = force_choices([ChoiceItem("p", "yes", "no")], lambda q: given_)
    assert found.log_odds is None
    assert "no log-probability of" in found.reason


def test_choices_without_logprobs_say_so(server):
    server.fault = lambda n, body: 400
    with pytest.raises(IncompleteError, match="gives no log-probabilities"):
        force_choices([ChoiceItem("p", "a", "b")], endpoint_ask(spec_of(server)))


def test_faults_at_random_change_no_score(server, tmp_path):
    rng = random.Random(0)
    server.fault = lambda n, body: rng.choice([None, None, None, 500, 503, "drop"])
    spec = spec_of(server, n_retries=12, backoff_seconds=0.001, n_parallel=6)
    found = judge_texts(questions(60), spec=spec, kept=tmp_path / "j.jsonl")
    assert [j.score for j in found] == EXPECTED * 20
