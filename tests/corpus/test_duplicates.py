"""Near-duplicates: what MinHash finds is what comparing all pairs finds."""

from __future__ import annotations

import itertools
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from actlake.corpus.duplicates import find_near_duplicates, highest_jaccard, shingles
from tests.corpus.made import PLAIN, response


def exact(texts, *, n):
    sets = [shingles(text, n) for text in texts]
    for (i, a), (j, b) in itertools.combinations(enumerate(sets), 2):
        yield i, j, len(a & b) / len(a | b)


def edited(rng, text, n_changes):
    found = text.split()
    for _ in range(n_changes):
        found[rng.randrange(len(found))] = rng.choice(PLAIN)
    return " ".join(found)


def test_minhash_finds_what_all_pairs_find():
    rng = Random(0)
    texts = [response(rng, n=6) for _ in range(120)]
    texts += [edited(rng, texts[i], i % 8) for i in range(60)]
    wanted = {(i, j) for i, j, value in exact(texts, n=3) if value >= 0.6}
    found = find_near_duplicates(texts, threshold=0.6)
    assert len(wanted) > 20
    assert {(d.first, d.second) for d in found} <= wanted  # each was computed exactly
    assert len(found) >= 0.97 * len(wanted)


def test_the_same_text_is_found_whatever_its_case_and_punctuation():
    found = find_near_duplicates(["I go to the old door.", "Other words stand here.",
                                  "i GO, to the old door!"], threshold=1.0)  # fmt: skip
    assert [(d.first, d.second, d.jaccard) for d in found] == [(0, 2, 1.0)]


def test_no_text_and_short_texts_are_no_fault():
    assert find_near_duplicates([], threshold=0.5) == []
    assert [(d.first, d.second) for d in find_near_duplicates(["Go.", "Go!", "No."], threshold=0.5)
            ] == [(0, 1)]  # fmt: skip


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=9), min_size=2, max_size=7))
def test_the_highest_jaccard_is_that_of_all_pairs(letters):
    texts = [" ".join(found) for found in letters]
    # shingles() makes a short text one shingle; here such a text has no n-gram at all
    values = [v for i, j, v in exact(texts, n=2) if len(letters[i]) > 1 and len(letters[j]) > 1]
    best = highest_jaccard(texts, n=2)
    assert (best.jaccard if best else 0.0) == max([*values, 0.0])
