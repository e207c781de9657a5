"""The texts that a report holds: whole prompts, of all models alike, within a budget."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlake.analyze.report_page import Page
from actlake.analyze.report_samples import add_samples, choose_samples
from actlake.schemas import InvalidInputError
from tests.analyze.intervention_data import ALPHAS, scored

LABELS = {"phi3-organism": "phi3-organism"}


def page_of(table):
    page = Page(title="t", meta="", version="0")
    add_samples(page, {"scored": table}, LABELS)
    return page


def payload_of(page):
    body = page.sections[-1].body
    start = body.index('id="samples-data">') + len('id="samples-data">')
    return json.loads(body[start : body.index("</script>", start)])


def test_all_texts_are_held_where_they_fit():
    table = scored()
    choice = choose_samples(table)
    assert choice.n_left_out == 0
    pd.testing.assert_frame_equal(choice.rows, table)
    assert f"All {len(table)} texts are here." in page_of(table).sections[-1].body


@given(budget=st.integers(0, 12_000))
def test_a_budget_is_kept_and_prompts_are_whole(budget):
    table = scored(n_prompts=4)
    choice = choose_samples(table, budget=budget)
    assert sum(len(json.dumps(text)) for text in choice.rows["text"]) <= budget
    assert choice.n_left_out == len(table) - len(choice.rows)
    sizes = choice.rows.groupby(["run", "direction", "prompt"]).size()
    assert set(sizes) <= {len(ALPHAS)}
    # Every model is there to the same depth, and the studied direction before the random one.
    n_prompts = choice.rows[choice.rows["direction"] == "diff_means"].groupby("run").size()
    if len(n_prompts):
        assert n_prompts.max() - n_prompts.min() <= len(ALPHAS)
    if (choice.rows["direction"] == "random-0").any():
        assert set(n_prompts) == {4 * len(ALPHAS)}


def test_it_says_how_many_texts_are_left_out():
    long = scored(n_prompts=6).assign(text=lambda t: [f"{i} " * 9000 for i in range(len(t))])
    body = page_of(long).sections[-1].body
    kept = payload_of(page_of(long))
    assert len(kept["texts"]) < len(long)
    assert f"{len(long) - len(kept['samples'])} of {len(long)} texts are left out" in body
    assert len(json.dumps(kept["texts"])) < 1_100_000


def test_texts_and_prompts_are_written_once_and_scores_beside_them():
    table = scored(("phi3-organism",), n_prompts=2, text="the same")
    kept = payload_of(page_of(table))
    assert kept["texts"] == ["the same"]
    assert [name for _, name, _ in kept["prompts"]] == ["plain-000-pos", "plain-001-pos"]
    assert [score["title"] for score in kept["scores"]] == [
        "empathy words", "sentiment", "coherent", "words",
    ]  # fmt: skip
    assert len(kept["samples"]) == len(table)
    run, direction, prompt, alpha, raw, text, *scores = kept["samples"][0]
    assert (run, direction, prompt, alpha, raw, text) == (0, "diff_means", 0, -2, -24, 0)
    assert scores == [pytest.approx(0.1), pytest.approx(-0.2), 0, 12]


def test_a_missing_score_or_strength_is_none_and_never_nan():
    table = scored(("phi3-organism",), n_prompts=1)
    table["sentiment"] = float("nan")
    table["coherent"] = [None, True, True, False, True] * 2
    table["alpha_separation"] = float("nan")
    kept = payload_of(page_of(table))
    assert [score["title"] for score in kept["scores"]] == [
        "empathy words", "coherent", "words",
    ]  # fmt: skip
    assert kept["units"] == ["alpha_raw"]
    assert kept["samples"][0][3] == kept["samples"][0][4] == -24
    assert kept["samples"][0][7] is None


def test_without_texts_there_is_no_section_and_a_foreign_table_is_refused():
    page = Page(title="t", meta="", version="0")
    add_samples(page, {}, LABELS)
    add_samples(page, {"scored": scored().head(0)}, LABELS)
    assert page.sections == []
    with pytest.raises(InvalidInputError, match="lacks the columns"):
        add_samples(page, {"scored": scored().drop(columns="text")}, LABELS)
