"""Diversity by oracles: cases whose value is known without the measure."""

from __future__ import annotations

import json
import math
from random import Random

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from actlake.cli import cli
from actlake.corpus import corpus_info, corpus_stats, plot_stats, write_jsonl
from actlake.corpus.diversity import (
    compression_ratio,
    distinct_ngrams,
    mean_jaccard,
    nearest_cosines,
    normalised_entropy,
    opener_repetition,
    vendi_score,
    within_budget,
)
from actlake.schemas import InvalidInputError, StatsSpec
from tests.corpus.made import PLAIN, corpus, scenarios

SPEC = StatsSpec(budget=200, n_draws=3)


def test_vendi_is_one_for_copies_and_the_number_of_texts_that_share_no_word():
    assert vendi_score(["lamp river"] * 9) == pytest.approx(1)
    assert vendi_score(list(PLAIN[:12])) == pytest.approx(12)
    # two groups of copies, of unlike sizes: exp of the entropy of the sizes
    wanted = math.exp(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))
    assert vendi_score(["lamp"] * 3 + ["river"] * 9) == pytest.approx(wanted)


def test_distinct_ngrams_are_counted():
    assert distinct_ngrams([["a", "b", "a", "b"]], 1) == 0.5
    assert distinct_ngrams([["a", "b", "a", "b"]], 2) == pytest.approx(2 / 3)
    assert distinct_ngrams([["a", "b"], ["a", "b"]], 2) == 0.5
    assert distinct_ngrams([["a"]], 2) == 0.0


def test_mean_jaccard_over_pairs():
    assert mean_jaccard(["lamp river", "river lamp", "stone"], n=1) == pytest.approx(1 / 3)
    assert mean_jaccard(["lamp river", "river lamp"], n=2) == 0.0
    assert mean_jaccard(["lamp", "river"], n=2) == 0.0


def test_repetition_compresses():
    rng = Random(0)
    random_words = [[rng.choice(PLAIN) for _ in range(500)]]
    assert compression_ratio([["lamp"] * 500]) > 50 > 5 > compression_ratio(random_words)


def test_entropy_and_openers():
    assert normalised_entropy([5, 5, 5]) == pytest.approx(1)
    assert normalised_entropy([5, 0]) == 0
    assert 0 < normalised_entropy([9, 1]) < 0.5
    assert opener_repetition(["I go to it.", "I go to her.", "We stay.", "So what."]) == 0.5
    assert opener_repetition(["I go out.", "We go out."]) == 0


def test_the_nearest_text_is_found():
    values, nearest = nearest_cosines(["lamp river", "stone"], ["river lamp", "copper"])
    assert values.tolist() == pytest.approx([1, 0])
    assert nearest[0] == 0


@given(st.integers(1, 120), st.integers(0, 5))
def test_a_budget_is_met_exactly(n_words, seed):
    texts = ["lamp river stone"] * 40
    drawn = within_budget(texts, n_words=n_words, seed=seed)
    assert sum(map(len, drawn)) == n_words


def test_a_budget_that_the_texts_cannot_fill_is_refused():
    with pytest.raises(InvalidInputError, match="have 3 words, fewer than the budget of 4"):
        within_budget(["lamp river stone"], n_words=4, seed=0)


def test_the_figures_of_a_corpus():
    texts = corpus(6, 4)
    found = corpus_stats(corpus_info("made", texts), texts, spec=SPEC, scenarios=scenarios(8))
    assert (found.n_pairs, found.n_scenarios, found.n_scenarios_known) == (24, 6, 8)
    assert found.scenario_coverage == 0.75
    assert found.scenario_entropy == 1.0
    assert found.category_entropy == 0.0
    assert sum(cell["n_texts"] for cell in found.cells) == len(texts)
    assert [row.group for row in found.diversity] == ["all", "positive", "negative"]
    assert len(found.nearest_cosines) == sum(t.split == "test" for t in texts)
    assert found.leakage == max(found.nearest_cosines)


def test_copies_lower_every_measure_of_diversity():
    texts = corpus(6, 4)
    same = [t.model_copy(update={"response": texts[i % 4].response}) for i, t in enumerate(texts)]
    rich, poor = (
        corpus_stats(corpus_info("made", t), t, spec=SPEC).diversity[0] for t in (texts, same)
    )
    assert poor.distinct_2 < rich.distinct_2
    assert poor.vendi < rich.vendi
    assert poor.compression > rich.compression
    assert poor.jaccard_2 > rich.jaccard_2
    assert poor.distinct_openers < rich.distinct_openers


def test_too_few_words_leave_the_budgeted_measures_empty():
    texts = corpus(2, 1)
    row = corpus_stats(corpus_info("made", texts), texts).diversity[0]
    assert row.distinct_1 is None
    assert row.vendi is not None


def test_the_command_writes_figures(tmp_path):
    write_jsonl(corpus(6, 4), tmp_path / "t.jsonl")
    for name in ("f.html", "f.svg"):
        done = CliRunner().invoke(
            cli,
            ["corpus", "stats", str(tmp_path / "t.jsonl"), "--budget", "200", "--json",
             "--figure", str(tmp_path / name)],
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["n_pairs"] == 24
    assert "Distinct n-grams in 200 words" in (tmp_path / "f.svg").read_text()
    page = (tmp_path / "f.html").read_text()
    assert "<script src=" not in page.replace("'", '"')
    shown = CliRunner().invoke(cli, ["corpus", "stats", str(tmp_path / "t.jsonl")])
    assert "distinct_2" in shown.stdout or "jaccard_2" in shown.stdout


def test_a_figure_of_another_kind_is_refused(tmp_path):
    texts = corpus(2, 2)
    stats = corpus_stats(corpus_info("made", texts), texts, spec=SPEC)
    with pytest.raises(
        InvalidInputError, match=r"written as .html, .svg, .png or .pdf, got '.doc'"
    ):
        plot_stats(stats, tmp_path / "f.doc")
