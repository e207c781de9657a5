"""Contrasts of a study: spread over scenarios, under personas of equal length."""

from __future__ import annotations

import pytest

from actlake.corpus import bundled_corpus, pair_texts
from actlake.corpus.grammar import system_prompts
from actlake.extract import load_model
from actlake.schemas import InvalidInputError, StudyContrasts
from actlake.study_contrasts import choose_contrasts, spread_pairs

pytestmark = pytest.mark.torch
UNEQUAL = {"source": "Be kind.", "base": "You are a strict and brisk worker."}


@pytest.fixture(scope="module")
def loaded():
    return load_model("bundled:llama-organism", weights=False)


@pytest.fixture(scope="module")
def pairs():
    return pair_texts(bundled_corpus("demo")[1])


def personas(n=3):
    both = (system_prompts(d, held_out=True) for d in ("empathic", "task"))
    equal = [(a, b) for a, b in zip(*both, strict=True) if a.startswith("Put")]
    return [{"source": a, "base": b} for a, b in equal[:n]]


def test_pairs_are_spread_over_scenarios_and_personas(loaded, pairs):
    spec = StudyContrasts.parse({"personas": personas(), "n": 6, "subsets": ["plain"]})
    cases = choose_contrasts(loaded, pairs, spec=spec)
    assert len(cases) == 6
    scenarios = [case.contrast.scenario for case in cases]
    held_out = {p.positive.scenario for p in pairs if p.positive.split == "test"}
    assert set(scenarios) <= held_out
    assert len(set(scenarios)) == min(6, len(held_out))
    assert {case.contrast.source for case in cases} == {p["source"] for p in personas()}


def test_a_persona_of_unequal_length_gives_way_to_the_next(loaded, pairs):
    spec = StudyContrasts.parse({"personas": [UNEQUAL, *personas(1)], "n": 4})
    cases = choose_contrasts(loaded, pairs, spec=spec)
    assert [case.contrast.source for case in cases] == [personas(1)[0]["source"]] * 4
    with pytest.raises(InvalidInputError, match="the same words in another order"):
        choose_contrasts(loaded, pairs, spec=StudyContrasts.parse({"personas": [UNEQUAL]}))


def test_what_no_pair_is_of_is_named(pairs):
    with pytest.raises(InvalidInputError, match=r"split 'test' and subsets .'nowhere'"):
        spread_pairs(pairs, split="test", subsets=["nowhere"])
