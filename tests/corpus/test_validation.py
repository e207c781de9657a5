"""Validation: every check finds its planted defect and names it; a clean corpus passes."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner

from actlake.cli import cli
from actlake.corpus import (
    accepted_texts,
    corpus_info,
    read_jsonl,
    read_scores,
    score_texts,
    validate_corpus,
    write_jsonl,
    write_scenarios,
    write_scores,
)
from actlake.corpus.refusals import find_refusal
from actlake.schemas import InvalidInputError, RubricScore, Text, ValidateSpec
from tests.corpus.made import corpus, pair, scenarios

LENIENT = ValidateSpec(surface_auroc=None, length_auroc=None, leakage_cosine=None, bow_balanced=1.0)
A = "I set the ladder by the window and walk over to the woman. I ask her what she saw."
B = "I set the ladder by the window and walk over to the shelf. I mark down what it held."


def validate(texts, spec=LENIENT, **options):
    return validate_corpus(corpus_info("made", texts), texts, spec=spec, **options)


def reasons(texts, **options):
    """The checks that speak against the last pair or text, which a clean corpus precedes."""
    report = validate([*corpus(), *texts], **options)
    assert all(v.accepted for v in report.verdicts[:-1])
    return report.verdicts[-1].reasons


def test_a_clean_corpus_passes_whole():
    texts = corpus(8, 5)
    report = validate(texts)
    assert report.passed, [c for c in report.checks if not c.passed]
    assert report.n_accepted == report.n_pairs == 40
    assert report.categories == {"task_free": 40}
    assert accepted_texts(texts, report) == texts


def test_the_pair_that_defects_are_planted_in_is_clean():
    assert reasons(pair("x", A, B)) == ()


DEFECTS = {
    "length": pair("x", A + " I nod to her and wait a while by the door.", B),
    "refusal": pair("x", A.replace("I ask her what she saw", "As an AI, I ask what she saw"), B),
    "format": pair("x", A.replace("ladder", "**ladder**"), B),
    "point_of_view": pair("x", A, B.replace("I set", "She set").replace("I mark", "She marks")),
    "coherence": pair("x", A.removesuffix("."), B),
    "category": pair("x", A, B, category="task-free"),
    "overlap": pair("x", A, A),
    "sentiment": pair(
        "x",
        "I hate this horrible awful crying mess. I curse the terrible ugly evil pain.",
        "I love this wonderful happy great place. I cheer a superb lovely kind joy.",
    ),
    "keywords": pair(
        "x",
        "I help, comfort, support, care and listen with warmth, empathy and compassion.",
        "I stack, unfold, rotate, wash and polish with velvet, leather and cardboardish.",
    ),
}


@pytest.mark.parametrize("check", DEFECTS)
def test_a_planted_defect_is_found_by_its_check(check):
    found = {r.check for r in reasons(DEFECTS[check])}
    assert check in found
    assert found <= {check, "overlap"}


def test_a_pair_in_different_formats_is_rejected():
    found = reasons(pair("x", A, B.replace(". ", ".\n", 1)))
    assert [r.check for r in found] == ["format"]
    assert "positive has 1 lines, negative 2" in found[0].message


@pytest.mark.parametrize(
    ("response", "message"),
    [
        ("Too short.", "has 2 words, expected 8 to 400"),
        (A.replace("woman", "{person}"), r"unfilled slot: '\{person\}'"),
        (A.replace("woman", "wo\ufffdman"), "replacement characters"),
        (A.replace("window", "1234567890" * 12),
         "is .*% letters"),
        ("I walk to the door and wait for it. I walk to the door and wait for it.", "twice"),
        ("I go on and on and on and on and on and on to a door.", "repeats 'on and on"),
    ],
)  # fmt: skip
def test_incoherent_text_is_named(response, message):
    texts = [*corpus(), Text(id="n", response=response, category="neutral")]
    (found,) = validate(texts).verdicts[-1].reasons
    assert found.check == "coherence"
    assert re.search(message, found.message)


def test_a_near_duplicate_of_another_pair_is_rejected_and_names_it():
    (found,) = reasons(_copy_of_the_first_pair())
    assert found.check == "near_duplicate"
    assert "x-pos nearly repeats p0-0-pos" in found.message


def _copy_of_the_first_pair():
    first = corpus()[0].response
    other = corpus(1, 1, seed=99)[1].response
    changed = first.replace(first.split()[0], "Velvet", 1)
    n = len(changed)
    while len(other) < n:
        other = other[:-1] + " now."
    return pair("x", changed, other[: n - 1].rstrip(" .,") + ".")


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that request.",
        "As an AI language model, I do not have feelings.",
        "I cannot assist with this.",
        "I am unable to provide that content.",
        "I\u2019m sorry, I can\u2019t continue.",
        "That would go against my guidelines.",
    ],
)
def test_refusals_are_found(text):
    assert find_refusal(text) is not None


@pytest.mark.parametrize(
    "text",
    [
        "I can't leave her here, so I kneel down.",
        "I tell the second patient that I cannot see him yet.",
        "I'm sorry this happened to you, and I stay.",
        "I will not stop the belt for this.",
        "I decline the second cup and go on.",
    ],
)
def test_people_in_stories_do_not_refuse(text):
    assert find_refusal(text) is None


def test_unknown_categories_name_the_nearest():
    (found,) = reasons(pair("x", A, B, category="task-free"))
    assert "unknown category 'task-free' (did you mean 'task_free'?)" in found.message


# -- rubric


def score(name, value):
    return {name: RubricScore(text=name, score=value, judge="gpt-x")}


def test_scores_must_be_two_and_zero():
    texts = corpus()
    report = validate(texts, scores=score("p0-0-pos", 1) | score("p0-1-neg", 0))
    first, second = report.verdicts[:2]
    assert first.reasons[0].message == (
        "gpt-x scored p0-0-pos 1 by the rubric, expected 2 for the positive arm"
    )
    assert second.accepted
    assert second.measures["rubric_negative"] == 0


def test_missing_scores_reject_where_they_are_required():
    spec = LENIENT.model_copy(update={"require_scores": True})
    report = validate(corpus(), spec, scores=score("p0-0-pos", 2) | score("p0-0-neg", None))
    assert [r.message for r in report.verdicts[0].reasons] == ["gpt-x could not score p0-0-neg"]
    assert report.verdicts[1].reasons[0].message == "nobody scored p0-1-pos"
    assert report.n_accepted == 0
    assert not report.passed


def test_scores_of_other_texts_are_refused():
    with pytest.raises(InvalidInputError, match=r"1 scores are of texts that are not .*'foreign'"):
        validate(corpus(), scores=score("foreign", 2))


def test_scenarios_without_a_rubric_reject_their_pairs():
    report = validate(corpus(), scenarios=scenarios()[:5])
    assert report.n_accepted == 20
    assert "scenario 's5' has no rubric" in report.verdicts[-1].reasons[0].message


class Shouter:
    """A judge by rule, which also records what it was shown."""

    name = "shouter"

    def __init__(self):
        self.seen = []

    def score(self, text, scenario):
        self.seen.append((text.arm, text.pair, text.id, scenario.id))
        return 2 if "!" in text.response else 0


def test_a_judge_can_be_plugged_in_and_is_blind(tmp_path):
    judge = Shouter()
    texts = corpus(2, 2, positive=["now!"])
    known = {s.id: s for s in scenarios()}
    write_scores(score_texts(texts, known, judge), tmp_path / "scores.jsonl")
    scores = read_scores(tmp_path / "scores.jsonl")
    assert {s.score for name, s in scores.items() if name.endswith("pos")} == {2}
    assert {s.score for name, s in scores.items() if name.endswith("neg")} == {0}
    assert {seen[:3] for seen in judge.seen} == {("neutral", None, "text")}
    with pytest.raises(InvalidInputError, match="'s0' has no rubric to score by"):
        score_texts(texts, {}, judge)


# -- the corpus as a whole


def checks(texts, **changes):
    report = validate(texts, ValidateSpec(**changes))
    return {c.name: c for c in report.checks}


def test_a_planted_word_fails_the_balanced_half_and_only_there():
    told = corpus(8, 4, positive=["violet"] * 3, negative=["orange"] * 3, subset="balanced")
    found = checks(told)
    assert found["bow_auroc_all"].value == 1.0
    assert not found["bow_auroc_all"].passed
    mixed = [t.model_copy(update={"subset": "plain"}) for t in told]
    assert checks(mixed)["bow_auroc_all"].passed
    both = [*told, *_renamed(corpus(6, 4, seed=5, subset="plain"))]
    found = checks(both)
    assert not found["bow_auroc_balanced"].passed
    assert found["bow_auroc_plain"].bound is None


def _renamed(texts):
    return [t.model_copy(update={"id": "q" + t.id, "pair": f"q{t.pair}"}) for t in texts]


def test_scenarios_that_stand_in_both_splits_are_named():
    texts = corpus()
    texts[0:2] = [t.model_copy(update={"split": "test"}) for t in texts[0:2]]
    found = checks(texts)["scenarios_in_both_splits"]
    assert (found.value, found.note, found.passed) == (1, "s0", False)


def test_a_response_that_leaks_into_the_other_split_is_named():
    texts = corpus()
    train = next(t for t in texts if t.split == "train")
    index = next(i for i, t in enumerate(texts) if t.split == "test" and t.arm == train.arm)
    assert checks(texts, leakage_cosine=0.9)["leakage_cosine"].passed
    leaky = texts[index].model_copy(update={"response": train.response[:-1] + " marble."})
    texts[index] = leaky
    partner = texts[index + 1 if index % 2 == 0 else index - 1]
    assert partner.pair == leaky.pair
    found = checks(texts, duplicate_jaccard=1.0, length_band=1.0, leakage_cosine=0.9)[
        "leakage_cosine"
    ]
    assert not found.passed
    assert found.note == f"{train.id} and {leaky.id}"


def test_openers_that_repeat_fail():
    texts = corpus()
    for i in (0, 2, 4):
        texts[i] = texts[i].model_copy(update={"response": "Lamp first, then " + texts[i].response})
    found = checks(texts, length_band=1.0)
    assert found["opener_repetition_positive"].value == pytest.approx(3 / 24, abs=1e-4)
    assert not found["opener_repetition_positive"].passed
    assert found["opener_repetition_negative"].value == 0


def test_variants_are_left_to_their_originals():
    texts = corpus()
    variants = [
        t.model_copy(update={"id": t.id + "-v", "variant": "keywords_removed", "parent": t.id})
        for t in texts
    ]
    assert validate([*texts, *variants]).verdicts == validate(texts).verdicts


# -- the command


@pytest.fixture
def files(tmp_path):
    texts = corpus(8, 5)
    write_jsonl(texts, tmp_path / "t.jsonl")
    write_scenarios(scenarios(8), tmp_path / "s.jsonl")
    spec = tmp_path / "spec.toml"
    spec.write_text(
        "surface_auroc = 1.0\nlength_auroc = 1.0\nleakage_cosine = 1.0\nbow_balanced = 1.0\n"
    )
    return tmp_path


def run(*args):
    return CliRunner().invoke(cli, ["corpus", "validate", *map(str, args)])


def test_the_command_passes_a_clean_corpus_and_writes_what_is_asked(files):
    done = run(
        files / "t.jsonl", "--scenarios", files / "s.jsonl", "--spec", files / "spec.toml",
        "--report", files / "r.json", "--accepted", files / "a.jsonl",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "40 of 40 accepted" in done.stdout
    assert json.loads((files / "r.json").read_text())["encoding-type"] == "actlake-validation"
    assert read_jsonl(files / "a.jsonl") == read_jsonl(files / "t.jsonl")


def test_the_command_exits_1_with_a_reason_per_pair(files):
    write_jsonl([*corpus(8, 5), *pair("x", A.removesuffix("."), B)], files / "bad.jsonl")
    done = run(files / "bad.jsonl", "--spec", files / "spec.toml", "--accepted", files / "a.jsonl")
    assert done.exit_code == 1
    assert "x-pos ends in the middle of a sentence" in done.stdout
    assert len(read_jsonl(files / "a.jsonl")) == 80
    as_json = run(files / "bad.jsonl", "--spec", files / "spec.toml", "--json")
    value = json.loads(as_json.stdout)
    assert (value["passed"], value["n_accepted"], value["n_pairs"]) == (False, 40, 41)


def test_a_threshold_that_is_misspelt_is_named(files):
    (files / "spec.toml").write_text("lenght_band = 0.2\n")
    done = run(files / "t.jsonl", "--spec", files / "spec.toml")
    assert isinstance(done.exception, InvalidInputError)
    assert "unknown key 'lenght_band' (did you mean 'length_band'?)" in str(done.exception)
    (files / "spec.toml").write_text("words = [9, 3]")
    assert "least (9) is more than the most (3)" in str(
        run(files / "t.jsonl", "--spec", files / "spec.toml").exception
    )
