"""The bundled corpus of empathy against task focus: what it promises, and its own bar."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import pytest

from actlake.corpus import (
    bundled_corpus,
    bundled_scenarios,
    corpus_stats,
    draw_review,
    pair_texts,
    validate_corpus,
)
from actlake.corpus.words import FIRST_PERSON, words
from actlake.schemas import CATEGORIES, NotFoundError, ValidateSpec

SIX = {c for c in CATEGORIES if c != "neutral"}


@pytest.fixture(scope="module")
def bundled():
    return bundled_corpus("empathy")


@pytest.fixture(scope="module")
def pairs(bundled):
    return pair_texts(bundled[1])


def test_it_says_what_it_is(bundled):
    info, texts = bundled
    assert info.licence == "CC-BY-4.0"
    assert "a language model wrote it" in info.provenance
    assert "no human has reviewed it yet" in info.provenance
    assert (info.arms.positive, info.arms.negative) == ("empathic", "task_focused")
    assert {t.generator for t in texts} == {"language-model"}


def test_it_has_the_promised_size(bundled, pairs):
    assert len(pairs) >= 200
    assert len({p.positive.scenario for p in pairs}) >= 40
    assert {p.positive.category for p in pairs} == SIX
    assert sum(t.arm == "neutral" for t in bundled[1]) >= 80
    grid = {p.positive.scenario for p in pairs if p.positive.category == "grid_world"}
    assert len(grid) >= 5
    subsets = Counter(p.positive.subset for p in pairs)
    assert set(subsets) == {"plain", "balanced"}
    assert subsets["balanced"] >= 0.45 * len(pairs)


def test_conflict_and_empathy_are_crossed_in_many_scenarios(pairs):
    cells = defaultdict(set)
    for pair in pairs:
        assert pair.positive.task_conflict is not None
        cells[pair.positive.scenario].add(pair.positive.task_conflict)
    assert sum(found == {True, False} for found in cells.values()) >= 20
    free = {p.positive.task_conflict for p in pairs if p.positive.category == "task_free"}
    assert free == {False}


def test_every_scenario_has_its_rubric_and_its_prompts(pairs):
    found = {s.id: s for s in bundled_scenarios("empathy")}
    assert set(found) == {p.positive.scenario for p in pairs}
    for pair in pairs:
        scenario = found[pair.positive.scenario]
        assert scenario.rubric
        assert scenario.category == pair.positive.category
        assert scenario.split == pair.positive.split
        prompts = {(p.text, p.task_conflict) for p in scenario.prompts}
        assert (pair.positive.prompt, pair.positive.task_conflict) in prompts
    assert bundled_scenarios("demo") is None
    with pytest.raises(NotFoundError, match="no bundled corpus 'empaty'"):
        bundled_scenarios("empaty")


def test_the_split_is_by_scenario_and_stratified(pairs):
    by_category = defaultdict(dict)
    for pair in pairs:
        split = by_category[pair.positive.category].setdefault(
            pair.positive.scenario, pair.positive.split
        )
        assert split == pair.positive.split
    for splits in by_category.values():
        assert 0.15 <= Counter(splits.values())["test"] / len(splits) <= 0.45


def test_it_passes_its_own_bar(bundled):
    info, texts = bundled
    report = validate_corpus(info, texts, scenarios=bundled_scenarios("empathy"))
    assert report.passed, [c for c in report.checks if not c.passed]
    assert report.n_accepted == report.n_pairs
    assert report.n_neutral_accepted == report.n_neutral, [
        v for v in report.verdicts if not v.accepted
    ]
    found = {c.name: c.value for c in report.checks}
    assert found["bow_auroc_balanced"] <= 0.8
    assert found["length_auroc_all"] <= 0.6
    assert report.spec == ValidateSpec()


def test_responses_are_first_person_prose_of_one_paragraph(pairs):
    for pair in pairs:
        for text in (pair.positive, pair.negative):
            assert "\n" not in text.response
            assert set(words(text.response)) & FIRST_PERSON
            assert not re.search(r"[*#`_\u2022]", text.response)


def test_it_is_diverse_and_a_review_can_be_drawn(bundled):
    info, texts = bundled
    stats = corpus_stats(info, texts, scenarios=bundled_scenarios("empathy"))
    assert stats.scenario_coverage == 1.0
    assert stats.category_entropy > 0.95
    everything = stats.diversity[0]
    assert everything.distinct_2 > 0.7
    assert everything.vendi > 100
    key = draw_review(info, texts)
    by_pair = {t.pair: t.category for t in texts}
    assert {by_pair[item.pair] for item in key.items} == SIX
