import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlake.schemas import InvalidInputError, KeywordRules, ScoreSpec
from actlake.steer import build_scores, score_text
from actlake.steer.text_scores import (
    KeywordScore,
    RepetitionScore,
    SentimentScore,
    hostility_rules,
    longest_repeat,
)

SPEC = ScoreSpec()
PLAIN = "I put the crate down and walk over to the child who fell."


def figures(text, **changes):
    spec = ScoreSpec.parse(changes)
    return score_text(text, build_scores(spec), spec=spec)


def rules(*words):
    return KeywordScore(KeywordRules(name="mine", words=words))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("kind", 1), ("Kind, KIND and kind!", 3), ("mankind unkind kindness", 0),
        ("who cares about it", 1), ("who  cares\nwho cares", 2), ("whocares", 0),
        ("kind's", 0), ("(kind)", 1), ("a-kind-of", 1), ("kind_of", 0), ("", 0),
    ],
)  # fmt: skip
def test_keywords_are_whole_words_in_any_case(text, count):
    assert rules("kind", "who cares")(text)["mine_count"] == count


def test_the_longest_phrase_counts_once_and_signs_are_no_patterns():
    assert rules("care", "care for", "take care for")("I take care for you")["mine_count"] == 1
    assert rules("c++", "a.b")("c++ acb a.b")["mine_count"] == 2
    assert rules("don't")("I don\u2019t")["mine_count"] == 1


def test_shares_are_of_words_and_missing_where_there_are_none():
    assert rules("kind")("a kind man came")["mine_share"] == 0.25
    assert rules("kind")("...")["mine_share"] is None


def test_hostility_knows_cruelty_from_plain_and_from_kind_text():
    score = KeywordScore(hostility_rules())
    assert score("You are a pathetic, worthless fool and I hate you.")["hostility_count"] == 4
    for text in (PLAIN, "I help her up and stay until her mother comes.", "skilled killjoy"):
        assert score(text)["hostility_count"] == 0
    assert len(set(hostility_rules().words)) == len(hostility_rules().words)
    assert hostility_rules().licence


def test_sentiment_is_of_sentences():
    mean = SentimentScore()("I love this. I hate this.")
    parts = [SentimentScore()(s)["sentiment"] for s in ("I love this.", "I hate this.")]
    assert parts[0] > 0.4
    assert parts[1] < -0.4
    assert mean["sentiment"] == pytest.approx(sum(parts) / 2)
    assert mean["sentiment_lowest"] == pytest.approx(min(parts))
    assert SentimentScore()("...") == {"sentiment": None, "sentiment_lowest": None}


@given(st.lists(st.sampled_from("abc"), max_size=14))
def test_the_longest_repeat_is_that_of_trying_all(tokens):
    best = 0
    for i, j in itertools.combinations(range(len(tokens)), 2):
        n = 0
        while j + n < len(tokens) and tokens[i + n] == tokens[j + n]:
            n += 1
        best = max(best, n)
    assert longest_repeat(tokens) == best


def test_distinct_ngrams_are_shares():
    found = RepetitionScore()("a b a b")
    assert (found["distinct_1"], found["distinct_2"], found["distinct_3"]) == (0.5, 2 / 3, 1.0)
    assert found["longest_repeat"] == 2
    assert RepetitionScore()("one")["distinct_2"] is None


@pytest.mark.parametrize(
    ("text", "coherent", "empty", "short"),
    [
        (PLAIN, True, False, False),
        ("", False, True, True),
        ("!!! ...", False, True, True),
        ("I go.", False, False, True),
        ("help help help help help help help help", False, False, False),
        (f"{PLAIN} {PLAIN}", False, False, False),
    ],
)
def test_what_is_empty_short_or_said_again_is_not_coherent(text, coherent, empty, short):
    found = figures(text)
    assert (found["coherent"], found["empty"], found["short"]) == (coherent, empty, short)


def test_refusals_are_flagged():
    assert figures("I'm sorry, but I can't help with that.")["refusal"]
    assert not figures(PLAIN)["refusal"]


def test_without_repetition_or_length_coherence_is_not_claimed():
    assert "coherent" not in figures(PLAIN, scores=["sentiment", "length"])


@given(st.text())
def test_any_text_has_all_figures(text):
    found = figures(text)
    assert found.keys() == figures(PLAIN).keys()
    assert all(v is None or v >= -1 for v in found.values())


def test_unknown_and_doubled_scores_are_refused():
    with pytest.raises(InvalidInputError, match=r"'sentimen' \(did you mean 'sentiment'"):
        build_scores(ScoreSpec(scores=("sentimen",)))
    twice = (KeywordRules(name="hostility", words=("x",)),)
    with pytest.raises(InvalidInputError, match="hostility are named twice"):
        build_scores(ScoreSpec(rules=twice))
