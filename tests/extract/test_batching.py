import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlake.extract.batching import PASS_TOKENS, order_texts, pack_batches
from actlake.schemas import Text

pytestmark = pytest.mark.torch  # the room imports torch, this module does not need it

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=80)


@given(lengths=LENGTHS, budget=st.integers(1, 2000))
def test_batches_hold_every_row_once_within_the_budget(lengths, budget):
    batches = pack_batches(lengths, batch_tokens=budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        cost = len(batch) * max(lengths[i] for i in batch)
        assert cost <= budget or len(batch) == 1


def cheapest(lengths, budget):
    """The least cost over all ways to cut a list into batches, by trying each."""
    if not lengths:
        return 0
    costs = []
    for n in range(1, len(lengths) + 1):
        padded = n * max(lengths[:n])
        if padded <= budget or n == 1:
            costs.append(padded + PASS_TOKENS + cheapest(lengths[n:], budget))
    return min(costs)


@pytest.mark.parametrize("keeps_order", [True, False])
@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=9), budget=st.integers(1, 2000))
def test_no_other_batches_of_these_rows_cost_less(keeps_order, lengths, budget):
    batches = pack_batches(lengths, batch_tokens=budget, keeps_order=keeps_order)
    cost = sum(len(b) * max(lengths[i] for i in b) + PASS_TOKENS for b in batches)
    assert cost == cheapest(lengths if keeps_order else sorted(lengths), budget)
    ordered = [lengths[i] for batch in batches for i in batch]
    assert ordered == (lengths if keeps_order else sorted(lengths))


def test_rows_of_one_length_fill_their_batches():
    assert [len(b) for b in pack_batches([10] * 64, batch_tokens=160)] == [16] * 4


def test_a_few_long_rows_do_not_pad_the_short_ones():
    batches = pack_batches([*[10] * 60, *[250] * 4], batch_tokens=16384)
    assert [len(batch) for batch in batches] == [60, 4]


@given(st.permutations([Text(id=f"t{i}", response="x" * (1 + i % 3)) for i in range(7)]))
def test_row_order_depends_on_the_texts_alone(texts):
    ordered = [t.id for t in order_texts(texts)]
    assert ordered == ["t0", "t3", "t6", "t1", "t4", "t2", "t5"]
