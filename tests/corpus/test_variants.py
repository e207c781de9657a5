"""Lexical arms: what is gone is gone, what is left is as it was, and all of it is logged."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from actlake.cli import cli
from actlake.corpus import (
    bundled_lexica,
    check_texts,
    load_lexicon,
    make_variants,
    pair_texts,
    read_jsonl,
    write_jsonl,
)
from actlake.corpus.editing import edit_words
from actlake.corpus.log_odds import rank_words
from actlake.corpus.words import WORD, stop_words, words
from actlake.schemas import InvalidInputError, Lexicon, NotFoundError, VariantSpec
from tests.corpus.made import corpus

KEYWORDS = frozenset().union(*(lexicon.keywords for lexicon in bundled_lexica()))
HELP = ("with a gentle help", "and some care for comfort")
TASK = ("with a strict job", "and some work for budget")


def told(n=6, k=4, **fields):
    return corpus(n, k, positive=HELP, negative=TASK, **fields)


def removed(text, *gone):
    found = [m[0].lower() for m in WORD.finditer(text)]
    return edit_words(text, {i: None for i, w in enumerate(found) if w in gone}, why="keyword")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("I gently lift it.", "I lift it."),
        ("Gently I lift it.", "I lift it."),
        ("I go. Gently we lift it.", "I go. We lift it."),
        ("I lift it gently.", "I lift it."),
        ("I lift it, gently, and go.", "I lift it, and go."),
        ("It is a gently old lamp.", "It is an old lamp."),
        ("It is an oddly gently made lamp.", "It is an oddly made lamp."),
        ("An gently lamp.", "A lamp."),
        ("He said \u201cgently\u201d to her.", "He said \u201c\u201d to her."),
        ("Gently, I lift it.", "I lift it."),
        ("GENTLY", ""),
        ("I go. Gently. We stay.", "I go. We stay."),
    ],
)
def test_seams_are_mended_where_a_word_is_gone(before, after):
    assert removed(before, "gently").text == after


@pytest.mark.parametrize(
    ("before", "table", "after"),
    [
        ("Help me, HELP me, help!", {"help": "reach"}, "Reach me, REACH me, reach!"),
        ("a gentle hand", {"gentle": "open"}, "an open hand"),
        ("An anxious hour", {"anxious": "usual"}, "A usual hour"),
        ("an old man", {"old": "honest"}, "an honest man"),
        ("a kind unicorn", {"kind": "uninteresting"}, "an uninteresting unicorn"),
        ("I care, you help.", {"care": "help", "help": "care"}, "I help, you care."),
        ("She comforts him.", {"comforts": "sits by"}, "She sits by him."),
    ],
)
def test_words_are_replaced_in_one_pass_with_their_case_and_article(before, table, after):
    found = [m[0].lower() for m in WORD.finditer(before)]
    changes = {i: table[w] for i, w in enumerate(found) if w in table}
    assert edit_words(before, changes, why="keyword").text == after


SOME = st.lists(
    st.sampled_from(["lamp", "help", "a", "an", "old", "Care", "river", "gentle", "I", "go"]),
    min_size=1,
    max_size=12,
)
STOPS = st.lists(st.sampled_from([" ", " ", ", ", ". ", "; "]), min_size=12, max_size=12)


@given(SOME, STOPS)
def test_removal_keeps_every_other_word_in_its_order(found, gaps):
    text = "".join(w + g for w, g in zip(found, gaps, strict=False)).rstrip() + "."
    edited = removed(text, "help", "care", "gentle")
    wanted = [w.lower() for w in found if w.lower() not in {"help", "care", "gentle"}]
    same = {"an": "a"}  # articles may agree with another word
    got = [same.get(w, w) for w in words(edited.text)]
    assert got == [same.get(w, w) for w in wanted]
    assert "  " not in edited.text
    for edit in edited.edits:
        assert text[edit.start : edit.end] == edit.before
    n_keywords = len(found) - len(wanted)
    assert sum(e.why == "keyword" for e in edited.edits) == n_keywords


def test_keywords_leave_both_classes_and_nothing_else_does():
    texts = told()
    made = make_variants(texts, spec=VariantSpec(arms=("keywords_removed",)))
    for text, variant in zip(texts, made.texts, strict=True):
        assert not set(words(variant.response)) & KEYWORDS
        left = [w for w in words(text.response) if w not in KEYWORDS]
        assert Counter(w for w in words(variant.response) if w not in {"a", "an"}) == Counter(
            w for w in left if w not in {"a", "an"}
        )
        assert (variant.parent, variant.variant) == (text.id, "keywords_removed")
        assert (variant.arm, variant.pair, variant.split) == (text.arm, text.pair, text.split)
    arms = {t.arm for t, entry in zip(made.texts, made.log, strict=True) if entry.edits}
    assert arms == {"positive", "negative"}


def test_replacements_leave_no_keyword_and_as_many_words():
    texts = told()
    made = make_variants(texts, spec=VariantSpec(arms=("keywords_replaced",)))
    table = {k: v for lexicon in bundled_lexica() for k, v in lexicon.table.items()}
    for text, variant, entry in zip(texts, made.texts, made.log, strict=True):
        assert not set(words(variant.response)) & KEYWORDS
        more = sum(len(table[w].split()) - 1 for w in words(text.response) if w in table)
        assert len(words(variant.response)) == len(words(text.response)) + more
        assert entry.short_by == 0


def test_random_words_are_matched_in_count_and_spare_keywords():
    texts = told()
    made = make_variants(texts, spec=VariantSpec(arms=("random_words_removed",), n_draws=3))
    again = make_variants(texts, spec=VariantSpec(arms=("random_words_removed",), n_draws=3))
    assert made.texts == again.texts
    assert {t.variant for t in made.texts} == {f"random_words_removed-{i:03d}" for i in range(3)}
    by_id = {t.id: t for t in texts}
    for variant, entry in zip(made.texts, made.log, strict=True):
        parent = by_id[variant.parent]
        n_keywords = sum(w in KEYWORDS for w in words(parent.response))
        taken = [e.before.lower() for e in entry.edits if e.why == "random"]
        assert len(taken) + entry.short_by == n_keywords > 0
        assert not set(taken) & (KEYWORDS | stop_words())
    draws = [[t.response for t in made.texts if t.variant.endswith(f"{i}")] for i in range(3)]
    assert draws[0] != draws[1] != draws[2]
    other = make_variants(texts, spec=VariantSpec(arms=("random_words_removed",), seed=7))
    assert [t.response for t in other.texts[: len(texts)]] != draws[0]


def test_random_words_are_of_the_keywords_frequency():
    """Twenty rare and twenty common words beside one common keyword: common ones go."""
    common = ["lamp", "river", "stone"]
    texts = corpus(
        6, 4, positive=["help lamp river stone"] * 3, negative=["help lamp river stone"] * 3
    )
    made = make_variants(texts, spec=VariantSpec(arms=("random_words_removed",)))
    taken = Counter(
        e.before.lower() for entry in made.log for e in entry.edits if e.why == "random"
    )
    n_common = sum(taken[w] for w in common)
    free = Counter(w for t in texts for w in words(t.response) if w not in stop_words() | KEYWORDS)
    share = sum(free[w] for w in common) / free.total()
    assert n_common / taken.total() > share + 0.2


def test_the_data_driven_arm_finds_what_was_planted_and_removes_it():
    texts = corpus(9, 6, positive=["violet"] * 3, negative=["orange"] * 3)
    assert set(rank_words([t for t in texts if t.split == "train"])[:2]) == {"violet", "orange"}
    made = make_variants(texts, spec=VariantSpec(arms=("data_driven",), k_first=2))
    assert made.bow["original"] == 1.0
    assert set(made.removed[:2]) == {"violet", "orange"}
    assert made.sweep[-1].k == len(made.removed)
    assert made.sweep[-1].bow_train <= 0.6
    assert made.reached
    assert not any(set(words(t.response)) & set(made.removed) for t in made.texts)


def test_the_data_driven_words_are_chosen_without_the_test_split():
    texts = corpus(9, 4, positive=["violet"] * 3, negative=["orange"] * 3)
    spoilt = [
        t.model_copy(update={"response": re.sub("violet|orange", "copper", t.response)})
        if t.split == "test"
        else t
        for t in texts
    ]
    spec = VariantSpec(arms=("data_driven",), k_first=2)
    assert make_variants(texts, spec=spec).removed == make_variants(spoilt, spec=spec).removed


def test_a_sweep_that_would_empty_a_text_stops_and_says_so():
    texts = corpus(6, 2, positive=["violet"] * 3, negative=["orange"] * 3)
    spec = VariantSpec(arms=("data_driven",), k_first=16, bow_target=0.5)
    made = make_variants(texts, spec=spec)
    assert all(words(t.response) for t in made.texts)
    assert made.reached == (made.sweep[-1].bow_train <= 0.5)


def test_the_crossed_arm_gives_each_class_the_words_of_the_other():
    texts = told()
    made = make_variants(texts, spec=VariantSpec(arms=("keywords_inserted",)))
    empathy, task = bundled_lexica()
    for text, variant, entry in zip(texts, made.texts, made.log, strict=True):
        lexicon = task if text.arm == "positive" else empathy
        (edit,) = entry.edits
        assert set(words(edit.after)) & lexicon.keywords
        new = (
            text.response[: edit.start].rstrip()
            + " "
            + edit.after
            + " "
            + text.response[edit.end :]
        )
        assert variant.response == new.rstrip()


def test_originals_and_variants_form_one_corpus():
    texts = told()
    made = make_variants(texts)
    check_texts([*texts, *made.texts])
    assert set(made.bow) == {"original"} | {t.variant for t in made.texts}
    for variant in set(made.bow):
        assert len(pair_texts([*texts, *made.texts], variant=variant)) == 24
    assert made.bow["original"] == 1.0
    assert made.bow["keywords_removed"] < 0.7
    with pytest.raises(InvalidInputError, match="has variants already"):
        make_variants([*texts, *made.texts])


def test_a_text_of_keywords_alone_is_named():
    texts = told(3, 1)
    texts[0] = texts[0].model_copy(update={"response": "Help! Care."})
    with pytest.raises(
        InvalidInputError, match="keywords_removed leaves nothing of text 'p0-0-pos'"
    ):
        make_variants(texts, spec=VariantSpec(arms=("keywords_removed",)))


# -- lexica


def test_the_bundled_lexica_share_no_word_and_replace_every_form():
    empathy, task = bundled_lexica()
    assert (empathy.arm, task.arm) == ("positive", "negative")
    assert not empathy.keywords & task.keywords
    for lexicon in (empathy, task):
        assert len(lexicon.keywords) > 150
        assert set(lexicon.table) == lexicon.keywords
        assert all(e.forms[0] != r for e in lexicon.entry for r in e.replacements)
    assert {"help", "care", "support"} <= empathy.keywords


def lexicon(**changes):
    values = {"name": "x", "arm": "positive", "entry": [{"forms": ["help"]}]} | changes
    return Lexicon.parse(values)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"forms": ["help", "helps"], "replacements": ["reach"]}], "2 forms and 1 replacements"),
        ([{"forms": ["help"]}, {"forms": ["help"]}], "holds help in two entries"),
        ([{"forms": ["help out"]}], "more than one word"),
        ([{"forms": ["Help"]}], "pattern"),
        ([{"forms": ["help"], "replacement": ["x"]}], "did you mean 'replacements'"),
    ],
)
def test_a_lexicon_at_odds_with_itself_is_refused(entries, message):
    with pytest.raises(InvalidInputError, match=message):
        lexicon(entry=entries)


def test_replacements_that_are_keywords_are_refused():
    first = lexicon(entry=[{"forms": ["help"], "replacements": ["serve"]}])
    second = lexicon(name="y", arm="negative", entry=[{"forms": ["serve"]}])
    with pytest.raises(InvalidInputError, match="replaces 'help' by 'serve', which is a keyword"):
        make_variants(told(), lexica=[first, second])


def test_lexica_are_read_from_files_or_named(tmp_path):
    (tmp_path / "mine.toml").write_text(
        'name = "m"\narm = "positive"\n[[entry]]\nforms = ["nurse"]'
    )
    assert load_lexicon(tmp_path / "mine.toml").keywords == {"nurse"}
    with pytest.raises(NotFoundError, match=r"no lexicon 'empaty' \(did you mean 'empathy'"):
        load_lexicon("empaty")


# -- the command


def test_the_command_writes_originals_variants_and_the_log(tmp_path):
    write_jsonl(told(), tmp_path / "t.jsonl")
    done = CliRunner().invoke(
        cli,
        ["corpus", "variants", str(tmp_path / "t.jsonl"), "--out", str(tmp_path / "v.jsonl"),
         "--log", str(tmp_path / "log.jsonl"), "--draws", "2", "--json"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    assert len(value["bow_auroc"]) == 9
    texts = read_jsonl(tmp_path / "v.jsonl")
    assert len(texts) == 48 * 9
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {e["text"] for e in entries} == {t.id for t in texts if t.parent}
    bad = CliRunner().invoke(
        cli, ["corpus", "variants", str(tmp_path / "t.jsonl"), "--out", "x", "--arm", "keyword"]
    )
    assert isinstance(bad.exception, InvalidInputError)
