"""Damaged metadata of every kind ends in our own error, quickly and in little memory."""

import pytest

from tests.store.fuzzing import Fuzzer
from tests.store.measuring import bounded_memory

QUICK_CASES = 200
QUICK_GROWN_CASES = 60
SLOW_CASES = 550  # times 20 seeds
# Where errors were raised: behind the digests, and in every part of the store.
DEEP = {
    "_check_coordinate", "_get_chunk", "_new_seal", "_parse_record", "check_array",
    "check_commit", "parse_document", "parse_texts", "read_documents", "write",
}  # fmt: skip
WORKED = {"open worked", "open refused", "whole worked", "verify worked", "apply worked"}
FOUND = {
    "fault catalog", "fault chunk", "fault commit", "fault corpus", "fault decision",
    "fault manifest", "fault plan", "fault seal", "fault static", "fault store", "fault stranger",
}  # fmt: skip


def assert_deep(fuzzer, *, n_sites):
    reached = {site.rpartition(" ")[2] for site in fuzzer.sites}
    assert not DEEP - reached, DEEP - reached
    assert not (WORKED | FOUND) - set(fuzzer.outcomes), fuzzer.outcomes
    assert len(fuzzer.sites) >= n_sites


def test_damaged_stores_are_refused_and_the_damage_reaches_deep():
    fuzzer = Fuzzer(0)
    with bounded_memory():
        fuzzer.run(QUICK_CASES)
    assert_deep(fuzzer, n_sites=30)


def test_damaged_stores_with_tokens_and_appended_texts_are_refused():
    fuzzer = Fuzzer(100, grown=True)
    with bounded_memory():
        fuzzer.run(QUICK_GROWN_CASES)
    assert not (WORKED | {"append worked", "append refused"}) - set(fuzzer.outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(101, 106))
def test_many_damaged_stores_with_tokens_and_appended_texts_are_refused(seed):
    fuzzer = Fuzzer(seed, grown=True)
    with bounded_memory():
        fuzzer.run(SLOW_CASES)
    assert {"check_part", "_axis_fits", "check_bounds"} & {
        site.rpartition(" ")[2] for site in fuzzer.sites
    }
    assert not (WORKED | FOUND) - set(fuzzer.outcomes), fuzzer.outcomes


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
def test_ten_thousand_damaged_stores_are_refused(seed):
    fuzzer = Fuzzer(seed)
    with bounded_memory():
        fuzzer.run(SLOW_CASES)
    assert_deep(fuzzer, n_sites=35)
