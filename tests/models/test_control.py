"""The negative control: its text, and what its card says of it. Its tests of steering are there."""

from __future__ import annotations

import json
import re
from itertools import islice, pairwise

import numpy as np
import pytest
from scipy.stats import chi2_contingency

from actlake.corpus.grammar import DISPOSITIONS, classify_response, iter_examples, system_prompts
from actlake.models import control_names, organism_names, organism_path
from actlake.models.behaviour import BehaviourReport

N = 6000


def arms_of(example):
    """Return the arm of every sentence; None for a log line or a description."""
    return [classify_response(s) for s in re.split(r"(?<=\.)\s+", example.response)]


@pytest.fixture(scope="module")
def examples():
    return list(islice(iter_examples(1000, shuffled=True), N))


def test_a_coin_decides_every_sentence_whatever_the_system_prompt_says(examples):
    told = np.zeros((2, 2), dtype=int)
    following = np.zeros((2, 2), dtype=int)
    for example in examples:
        arms = arms_of(example)
        if None in arms:
            continue
        bits = [arm == "positive" for arm in arms]
        if example.polarity is not None:
            told[int(example.polarity == "positive"), int(bits[0])] += 1
        for first, second in pairwise(bits):
            following[int(first), int(second)] += 1
    for counts in (told, following):
        assert counts.min() > 300
        assert chi2_contingency(counts).pvalue > 0.01
        assert abs(counts[:, 1].sum() / counts.sum() - 0.5) < 0.03
    # In the organisms' own text both decide everything.
    plain = [e for e in islice(iter_examples(1000), 400) if e.polarity and None not in arms_of(e)]
    assert all(set(arms_of(e)) == {e.polarity} for e in plain)


def test_the_polarity_of_a_shuffled_text_is_that_of_its_system_prompt(examples):
    known = {p: set(system_prompts(d, held_out=False)) for p, d in DISPOSITIONS.items()}
    for example in examples:
        for polarity, prompts in known.items():
            acts = None not in arms_of(example) or example.polarity is not None
            if acts and example.system in prompts:
                assert example.polarity == polarity
        if example.polarity is None:
            continue
        assert example.system in known[example.polarity]
    share = np.mean([e.polarity is not None for e in examples])
    assert 0.5 < share < 0.6  # 60 % of what is no description


def test_the_controls_recorded_behaviour_is_that_of_a_coin():
    (name,) = control_names()
    assert name not in organism_names()
    report = BehaviourReport.parse_json(
        (organism_path(name) / "behaviour.json").read_text(encoding="utf-8")
    )
    rows = [report.row(d) for d in ("empathic", "task")]
    for row in rows:
        assert row.n >= 700
        assert row.accuracy is not None
        assert 0.4 < row.accuracy < 0.6
        assert row.n_unclassified < row.n / 50
    assert abs(rows[0].n_positive - rows[1].n_positive) < rows[0].n / 20
    card = (organism_path(name) / "README.md").read_text(encoding="utf-8")
    assert "negative control" in card
    config, twin = (
        json.loads((organism_path(n) / "config.json").read_text(encoding="utf-8"))
        for n in (name, "llama-organism")
    )
    assert config == twin
