"""Review: the sheets hide the arms, the answers come back, and agreement has its oracles."""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections import Counter
from random import Random

import krippendorff
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from actlake.cli import cli
from actlake.corpus import (
    corpus_info,
    draw_review,
    fold_review,
    read_answers,
    read_jsonl,
    read_key,
    read_scores,
    review_scores,
    validate_corpus,
    write_jsonl,
    write_review,
)
from actlake.corpus.agreement import alpha_agreement, ordinal_alpha, share_agreement
from actlake.schemas import AlreadyExistsError, InvalidInputError, NotFoundError
from tests.corpus.made import corpus, scenarios


def made(n=8, k=5):
    texts = [
        t.model_copy(
            update={
                "category": "ambiguous" if t.scenario < "s2" else t.category,
                "subset": "balanced" if t.pair.endswith(("0", "2")) else "plain",
            }
        )
        for t in corpus(n, k)
    ]
    return corpus_info("made", texts), texts


# -- the sample


def test_the_sample_is_stratified_and_spread_over_scenarios():
    info, texts = made()
    key = draw_review(info, texts, n=20, seed=1)
    by_pair = {t.pair: t for t in texts}
    drawn = [by_pair[item.pair] for item in key.items]
    assert len({item.pair for item in key.items}) == len({i.item for i in key.items}) == 20
    assert Counter(t.category for t in drawn) == {"task_free": 15, "ambiguous": 5}
    assert max(Counter(t.scenario for t in drawn).values()) <= 3
    assert abs(Counter(t.subset for t in drawn)["balanced"] - 10) <= 2
    assert {item.a for item in key.items} == {"positive", "negative"}
    assert key == draw_review(info, texts, n=20, seed=1)
    assert key != draw_review(info, texts, n=20, seed=2)


@given(st.integers(1, 40))
def test_a_sample_has_the_size_that_is_asked_for(n):
    info, texts = made()
    key = draw_review(info, texts, n=n)
    assert len({item.pair for item in key.items}) == n
    if n > 1:
        assert {t.category for t in texts if t.pair in {i.pair for i in key.items}} == {
            "task_free", "ambiguous",
        }  # fmt: skip


def test_more_than_there_is_cannot_be_drawn():
    info, texts = made(2, 2)
    with pytest.raises(InvalidInputError, match="20 cannot be drawn from 4 pairs"):
        draw_review(info, texts)


# -- the sheets


@pytest.fixture
def drawn(tmp_path):
    info, texts = made()
    texts[0] = texts[0].model_copy(update={"prompt": "=SUM(A1) <script>alert(1)</script> & {x}"})
    texts[1] = texts[1].model_copy(update={"prompt": texts[0].prompt})
    info = corpus_info("made", texts)
    key = draw_review(info, texts, n=40, seed=3)
    paths = write_review(tmp_path / "review", key, texts, scenarios=scenarios(8))
    return info, texts, key, paths


def test_the_sheets_hide_arms_pairs_and_ids(drawn):
    _, texts, key, paths = drawn
    for name in ("sheet.csv", "form.html"):
        content = paths[name].read_text(encoding="utf-8-sig")
        for word in ("positive", "negative", *{t.id for t in texts}, *{t.pair for t in texts}):
            assert word not in content
        for item in key.items:
            assert item.item in content
    assert read_key(paths["key.json"]) == read_key(paths["key.json"].parent) == key


def test_the_form_is_offline_and_escapes_what_texts_say(drawn):
    page = drawn[3]["form.html"].read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; {x}" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "src=" not in page
    assert "default-src 'none'" in page
    assert page.count('type="radio"') == 40 * 8


def test_no_cell_of_the_sheet_is_a_formula(drawn):
    rows = list(csv.DictReader(io.StringIO(drawn[3]["sheet.csv"].read_text("utf-8-sig"))))
    assert len(rows) == 40
    assert any(row["prompt"].startswith("'=SUM") for row in rows)
    assert not any(value.startswith("=") for row in rows for value in row.values())
    assert rows[0]["rubric_2"] == "stops and helps"


def test_a_review_is_not_written_over_another(drawn):
    _, texts, key, paths = drawn
    with pytest.raises(AlreadyExistsError, match="name another folder"):
        write_review(paths["key.json"].parent, key, texts)
    with pytest.raises(NotFoundError, match=r"key.json` of|key.json of"):
        read_key(paths["key.json"].parent / "none")


# -- the answers


def answer_rows(key, *, wrong=(), rejected=(), swap=()):
    for index, item in enumerate(key.items):
        a, b = (2, 0) if item.a == "positive" else (0, 2)
        if index in swap:
            a, b = b, a
        if index in wrong:
            a = b = 1
        verdict = "Reject " if index in rejected else "accept"
        yield {"item": item.item, "score_a": a, "score_b": b, "verdict": verdict, "comment": ""}


def fill(path, rows, delimiter=","):
    rows = list(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_two_raters_are_read_compared_and_folded_in(drawn, tmp_path):
    info, texts, key, _ = drawn
    ann = read_answers(fill(tmp_path / "ann.csv", answer_rows(key)), key)
    bob = read_answers(
        fill(tmp_path / "bob.csv", answer_rows(key, wrong={0}, rejected={1}), ";"), key
    )
    report, kept = fold_review(info, texts, key, answers=[ann, bob])
    found = {a.name: a for a in report.agreement}
    assert found["ann: scores 2 and 0"].value == 1.0
    assert found["ann: scores 2 and 0"].low == pytest.approx(
        0.05 ** (1 / 40) * 0.5 ** (1 / 40), abs=1e-9
    )
    assert found["bob: scores 2 and 0"].value == 39 / 40
    assert found["raters: same verdict"].value == 39 / 40
    assert found["raters"].low < found["raters"].value < 1
    rejected = {v.pair: v.reasons for v in report.verdicts if not v.accepted}
    assert rejected == {
        key.items[0].pair: ("bob scores it 1 and 1, expected 2 and 0",),
        key.items[1].pair: ("bob rejects it",),
    }
    assert {t.pair for t in texts} - {t.pair for t in kept} == set(rejected)


def test_a_swapped_pair_is_seen_through_the_key(drawn, tmp_path):
    info, texts, key, _ = drawn
    ann = read_answers(fill(tmp_path / "ann.csv", answer_rows(key, swap={5})), key)
    report, _ = fold_review(info, texts, key, answers=[ann])
    (bad,) = [v for v in report.verdicts if not v.accepted]
    assert bad.pair == key.items[5].pair
    assert bad.reasons == ("ann scores it 0 and 2, expected 2 and 0",)
    scores = {s.text: s.score for s in review_scores(texts, key, [ann])}
    assert len(scores) == 80
    wrong = [name for name, score in scores.items() if score != (2 if name.endswith("pos") else 0)]
    assert {name.rsplit("-", 1)[0] for name in wrong} == {bad.pair}


BAD = {
    "2 items have no row: 'item-": lambda rows: rows[:-2],
    "1 items are not in this sample: 'item-zzzz'": lambda rows: [
        *rows, rows[0] | {"item": "item-zzzz"},
    ],
    r"ann.csv:42: item 'item-.*' stands twice": lambda rows: [*rows, rows[0]],
    r"ann.csv:2: score_a of .* is '3', expected 0, 1 or 2": lambda rows: [
        rows[0] | {"score_a": "3"}, *rows[1:],
    ],
    "score_b of .* is ''": lambda rows: [rows[0] | {"score_b": ""}, *rows[1:]],
    "is 'ok', expected accept or reject": lambda rows: [rows[0] | {"verdict": "ok"}, *rows[1:]],
    "no column score_b, verdict": lambda rows: [
        {k: row[k] for k in ("item", "score_a")} for row in rows
    ],
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_answers_that_do_not_fit_are_named(drawn, tmp_path, message):
    key = drawn[2]
    with pytest.raises(InvalidInputError, match=message):
        read_answers(fill(tmp_path / "ann.csv", BAD[message](list(answer_rows(key)))), key)


def test_other_encodings_corpora_and_raters_of_one_name_are_refused(drawn, tmp_path):
    info, texts, key, _ = drawn
    (tmp_path / "x.csv").write_bytes(b"item,score_a\n\xff\n")
    with pytest.raises(InvalidInputError, match="not UTF-8"):
        read_answers(tmp_path / "x.csv", key)
    ann = read_answers(fill(tmp_path / "ann.csv", answer_rows(key)), key)
    with pytest.raises(InvalidInputError, match="one rater or more, under different names"):
        fold_review(info, texts, key, answers=[ann, ann])
    with pytest.raises(InvalidInputError, match="drawn from other texts"):
        fold_review(corpus_info("made", texts[2:]), texts[2:], key, answers=[ann])


# -- agreement


@given(
    st.integers(2, 4).flatmap(
        lambda n: st.lists(
            st.lists(st.sampled_from([0.0, 1.0, 2.0, np.nan]), min_size=n, max_size=n),
            min_size=2,
            max_size=12,
        )
    )
)
def test_alpha_is_that_of_the_reference_implementation(units):
    ratings = np.array(units).T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            wanted = krippendorff.alpha(ratings, level_of_measurement="ordinal")
        except ValueError:
            wanted = np.nan
    value = ordinal_alpha(ratings)
    if value is None:
        pairable = [u for u in ratings.T if np.isfinite(u).sum() > 1]
        assert len({v for u in pairable for v in u if np.isfinite(v)}) < 2
    else:
        assert value == pytest.approx(wanted)


def test_alpha_is_one_for_agreement_and_about_none_for_chance():
    ratings = np.array([[0, 1, 2, 0, 1], [0, 1, 2, 0, 1]], dtype=float)
    assert ordinal_alpha(ratings) == 1
    chance = np.random.default_rng(0).integers(0, 3, size=(2, 4000)).astype(float)
    assert abs(ordinal_alpha(chance)) < 0.05
    assert ordinal_alpha(np.ones((2, 5))) is None
    # one level off costs less than two
    near, far = ratings.copy(), ratings.copy()
    near[1, 2], far[1, 2] = 1, 0
    assert ordinal_alpha(near) > ordinal_alpha(far)


def test_twenty_of_twenty_is_still_only_83_percent():
    assert share_agreement("x", 20, 20).low == pytest.approx(0.832, abs=1e-3)
    assert share_agreement("x", 0, 20).high == pytest.approx(1 - 0.832, abs=1e-3)


def test_the_interval_of_alpha_covers_what_it_should():
    """Of 60 pairs, raters agree by design; the truth is alpha of a very long series."""
    rng = np.random.default_rng(0)

    def draw(n):
        truth = rng.integers(0, 3, size=2 * n)
        other = np.where(rng.random(2 * n) < 0.8, truth, rng.integers(0, 3, size=2 * n))
        return np.stack([truth, other]).astype(float)

    target = ordinal_alpha(draw(40_000))
    inside = 0
    for seed in range(60):
        found = alpha_agreement(
            "x", draw(60), np.repeat(np.arange(60), 2), n_bootstrap=300, seed=seed
        )
        inside += found.low <= target <= found.high
    assert inside >= 51


def test_agreement_without_variation_says_why_it_has_no_value():
    found = alpha_agreement("x", np.ones((2, 4)), [0, 0, 1, 1], n_bootstrap=10)
    assert found.value is None
    assert "all ratings are the same" in found.note
    perfect = alpha_agreement("x", np.array([[0.0, 2, 0, 2]] * 2), [0, 0, 1, 1], n_bootstrap=10)
    assert perfect.value == 1
    assert "no disagreement" in perfect.note


# -- the commands


def test_the_commands_draw_and_read(tmp_path):
    _, texts = made()
    write_jsonl(texts, tmp_path / "t.jsonl")
    run = CliRunner().invoke
    done = run(
        cli, ["corpus", "review", "draw", str(tmp_path / "t.jsonl"), "--out", str(tmp_path / "r")]
    )
    assert done.exit_code == 0, done.output
    key = read_key(tmp_path / "r")
    wrong = {Random(0).randrange(20)}
    fill(tmp_path / "ann.csv", answer_rows(key, rejected=wrong))
    done = run(
        cli,
        ["corpus", "review", "read", str(tmp_path / "t.jsonl"), str(tmp_path / "ann.csv"),
         "--key", str(tmp_path / "r"), "--accepted", str(tmp_path / "a.jsonl"),
         "--scores", str(tmp_path / "s.jsonl"), "--report", str(tmp_path / "r.json")],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "19 of 20 pairs accepted" in done.stdout
    kept = read_jsonl(tmp_path / "a.jsonl")
    assert len(kept) == len(texts) - 2
    assert json.loads((tmp_path / "r.json").read_text())["raters"] == ["ann"]
    scores = read_scores(tmp_path / "s.jsonl")
    report = validate_corpus(corpus_info("t", texts), texts, scores=scores)
    assert all("rubric" not in {r.check for r in v.reasons} for v in report.verdicts)
