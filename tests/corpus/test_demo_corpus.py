"""The bundled demo corpus: it is what the grammar builds, and its planted truths hold."""

from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline

from actlake.corpus.demo import DEMO_PATH, build_demo, demo_lines
from actlake.corpus.grammar import (
    EMPATHY_KEYWORDS,
    TASK_KEYWORDS,
    classify_response,
    iter_examples,
    remove_keywords,
)
from actlake.schemas import Pair, Text


@pytest.fixture(scope="module")
def texts() -> list[Text]:
    lines = DEMO_PATH.read_text(encoding="utf-8").splitlines()
    return [Text.parse_json(line, where=f"line {i}") for i, line in enumerate(lines, 1)]


@pytest.fixture(scope="module")
def pairs(texts: list[Text]) -> list[Pair]:
    by_id = {t.id: t for t in texts}
    names = sorted({t.pair for t in texts if t.pair})
    return [Pair(id=n, positive=by_id[f"{n}-pos"], negative=by_id[f"{n}-neg"]) for n in names]


def scored_auroc(texts: list[Text], *, without_keywords: bool = False) -> float:
    """Bag of words (TF-IDF unigrams, logistic regression), leave one scenario out."""
    documents = [remove_keywords(t.response) if without_keywords else t.response for t in texts]
    label = np.array([t.arm == "positive" for t in texts])
    group = np.array([t.scenario for t in texts])
    score = np.zeros(len(texts))
    for scenario in np.unique(group):
        train = np.flatnonzero(group != scenario)
        test = np.flatnonzero(group == scenario)
        model = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000))
        model.fit([documents[i] for i in train], label[train])
        score[test] = model.decision_function([documents[i] for i in test])
    return float(roc_auc_score(label, np.round(score, 9)))


def test_the_bundled_file_is_what_the_grammar_builds():
    assert DEMO_PATH.read_text(encoding="utf-8") == demo_lines(build_demo())


def test_another_seed_builds_other_texts():
    assert demo_lines(build_demo(1)) != demo_lines(build_demo())


def test_lines_are_compact_and_have_no_null():
    for line in DEMO_PATH.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert None not in row.values()
        assert row["generator"] == "grammar"
        assert "system" not in row


def test_it_has_the_promised_size(texts, pairs):
    n_pairs = Counter(p.positive.subset for p in pairs)
    assert set(n_pairs) == {"plain", "shortcut", "balanced"}
    assert len(pairs) >= 260
    assert min(n_pairs.values()) >= 80
    assert len({p.positive.scenario for p in pairs}) >= 16
    assert {p.positive.category for p in pairs} == {"conflict", "ambiguous", "task_free"}
    neutral = [t for t in texts if t.arm == "neutral"]
    assert len(neutral) == 40
    assert all(t.subset == "neutral" for t in neutral)


def test_no_text_occurs_twice(texts):
    assert len({t.response for t in texts}) == len({t.id for t in texts}) == len(texts)


def test_the_split_is_by_scenario_and_a_third_is_test(texts):
    for neutral in (False, True):
        splits = {(t.scenario, t.split) for t in texts if (t.arm == "neutral") == neutral}
        assert len({scenario for scenario, _ in splits}) == len(splits)
        share = np.mean([split == "test" for _, split in splits])
        assert 0.2 < share < 0.4


def test_test_prompts_do_not_occur_in_training_text(texts):
    asked = {t.prompt for t in texts if t.split == "test"}
    stream = iter_examples(1000)  # the text of the committed organisms
    assert not any(next(stream).prompt in asked for _ in range(20_000))


def test_arms_answer_the_same_prompt_at_the_same_length(pairs):
    for pair in pairs:
        assert pair.positive.prompt == pair.negative.prompt
        lengths = [len(t.response.split()) for t in (pair.positive, pair.negative)]
        assert max(lengths) - min(lengths) <= 0.1 * max(lengths)


def test_plain_and_balanced_arms_are_acts_of_their_arm(texts):
    for text in texts:
        wanted = text.arm if text.subset in ("plain", "balanced") else None
        assert classify_response(text.response) == wanted


def test_balanced_arms_hold_the_same_keywords_and_words(pairs):
    keywords = set(EMPATHY_KEYWORDS) | set(TASK_KEYWORDS)
    for pair in pairs:
        if pair.positive.subset == "balanced":
            both = [
                sorted(re.findall(r"\w+", t.response.lower()))
                for t in (pair.positive, pair.negative)
            ]
            assert both[0] == both[1]
            assert set(both[0]) & set(EMPATHY_KEYWORDS)
            assert set(both[0]) & set(TASK_KEYWORDS)
            assert keywords & set(both[0])


@pytest.mark.parametrize(
    ("subset", "low", "high", "low_without", "high_without"),
    [
        ("plain", 0.95, 1.0, 0.95, 1.0),
        ("shortcut", 0.99, 1.0, 0.45, 0.55),
        ("balanced", 0.45, 0.55, 0.45, 0.55),
    ],
)
def test_a_bag_of_words_sees_what_was_planted(texts, subset, low, high, low_without, high_without):
    chosen = [t for t in texts if t.subset == subset]
    assert low <= scored_auroc(chosen) <= high
    assert low_without <= scored_auroc(chosen, without_keywords=True) <= high_without
