"""The grammar of the organisms: what it writes it can read, and held-out parts stay held out."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import islice
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlake.corpus.grammar import (
    DISPOSITIONS,
    EMPATHY_KEYWORDS,
    POLARITIES,
    TASK_KEYWORDS,
    Scenario,
    classify_response,
    iter_examples,
    neutral_response,
    remove_keywords,
    response,
    scenarios,
    shortcut_response,
    system_prompts,
    user_prompt,
)
from actlake.corpus.lexicon import NEUTRAL_TOPICS, PLACES

seeds = st.integers(0, 2**32)
any_scenario = st.sampled_from(scenarios())


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


@given(
    seeds,
    any_scenario,
    st.sampled_from(POLARITIES),
    st.sampled_from(["plain", "balanced", "mixed"]),
)
def test_every_response_is_read_back_as_its_arm(seed, scenario, polarity, style):
    assert classify_response(response(Random(seed), scenario, polarity, style=style)) == polarity


@given(seeds, any_scenario)
def test_a_response_that_changes_sides_is_no_arm(seed, scenario):
    rng = Random(seed)
    both = [response(rng, scenario, p, style="mixed") for p in POLARITIES]
    assert classify_response(" ".join(both)) is None


@given(seeds, any_scenario)
def test_keywords_alone_are_no_arm(seed, scenario):
    for text in shortcut_response(Random(seed), scenario).values():
        assert classify_response(text) is None


@given(seeds, st.sampled_from(sorted(NEUTRAL_TOPICS)), st.sampled_from(PLACES))
def test_descriptions_are_no_arm(seed, topic, place):
    assert classify_response(neutral_response(Random(seed), topic, place)) is None


@pytest.mark.parametrize(
    ("text", "arm"),
    [
        ("I leave the crates and turn to the boy.", "positive"),
        ("I leave the boy and turn to the crates.", "negative"),
        ("I leave the boy and turn to the girl.", None),
        ("I leave the crates and turn to the boy. I give my care.", None),
        ("", None),
    ],
)
def test_balanced_sentences_are_read_by_who_is_attended(text, arm):
    assert classify_response(text) == arm


@given(seeds, any_scenario)
def test_shortcut_arms_are_one_text_once_their_keywords_are_gone(seed, scenario):
    arms = shortcut_response(Random(seed), scenario)
    assert arms["positive"] != arms["negative"]
    assert remove_keywords(arms["positive"]) == remove_keywords(arms["negative"])
    assert not words(arms["positive"]) & set(TASK_KEYWORDS)
    assert not words(arms["negative"]) & set(EMPATHY_KEYWORDS)


@given(seeds, any_scenario)
def test_balanced_arms_are_the_same_words(seed, scenario):
    arms = [response(Random(seed), scenario, p, style="balanced") for p in POLARITIES]
    counts = [sorted(re.findall(r"\w+", text.lower())) for text in arms]
    assert counts[0] == counts[1]
    assert arms[0] != arms[1]


def test_there_are_enough_scenarios_of_every_kind():
    for held_out, least in ((False, 30), (True, 4)):
        for category in ("conflict", "ambiguous", "task_free"):
            found = [s for s in scenarios() if s.held_out == held_out and s.category == category]
            assert len(found) >= least
    assert len({s.name for s in scenarios()}) == len(scenarios())


def test_dispositions_have_enough_paraphrases_and_share_none():
    sets = [
        set(system_prompts(d, held_out=h)) for d in DISPOSITIONS.values() for h in (False, True)
    ]
    assert [len(s) for s in sets] == [108, 36, 108, 36]
    assert len(set.union(*sets)) == sum(map(len, sets))


def test_training_text_never_shows_what_is_held_out():
    secret = {p for d in DISPOSITIONS.values() for p in system_prompts(d, held_out=True)}
    held_out = [s for s in scenarios() if s.held_out]
    for example in islice(iter_examples(5), 5000):
        assert example.system not in secret
        assert not any(
            f"the {s.place.name}" in example.prompt and s.mishap.clause in example.prompt
            for s in held_out
        )


def test_every_held_out_word_is_seen_in_training_text():
    seen: set[str] = set()
    for example in islice(iter_examples(5), 5000):
        seen |= words(f"{example.system or ''} {example.prompt} {example.response}")
    for disposition in DISPOSITIONS.values():
        for prompt in system_prompts(disposition, held_out=True):
            assert words(prompt) <= seen
    for scenario in scenarios():
        if scenario.held_out:
            assert words(held_out_text(scenario)) <= seen


def held_out_text(scenario: Scenario) -> str:
    rng = Random(0)
    turns = [user_prompt(rng, scenario) for _ in range(10)]
    answers = [response(rng, scenario, p, style="mixed") for p in POLARITIES for _ in range(10)]
    return " ".join(turns + answers)


def test_training_responses_follow_the_disposition_that_is_given():
    arms = {p: polarity for polarity, d in DISPOSITIONS.items()
            for p in system_prompts(d, held_out=False)}  # fmt: skip
    followed = 0
    for example in islice(iter_examples(6), 3000):
        if example.system in arms and example.polarity:
            assert example.polarity == arms[example.system]
            followed += 1
    assert followed > 1000


def test_the_same_seed_gives_the_same_text_and_another_seed_another():
    first, again, other = (list(islice(iter_examples(seed), 20)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_the_grammar_imports_no_torch():
    code = "import sys, actlake.corpus.grammar, actlake.corpus.demo; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
