from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlake.extract.batching import order_texts, pack_batches
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


@given(lengths=LENGTHS)
def test_batches_are_as_dense_as_rows_of_one_length_allow(lengths):
    batches = pack_batches(lengths, batch_tokens=600)
    for left, right in pairwise(batches):
        assert max(lengths[i] for i in left) <= min(lengths[i] for i in right)
        # The next row would not have fitted.
        assert (len(left) + 1) * lengths[right[0]] > 600


@given(st.permutations([Text(id=f"t{i}", response="x" * (1 + i % 3)) for i in range(7)]))
def test_row_order_depends_on_the_texts_alone(texts):
    ordered = [t.id for t in order_texts(texts)]
    assert ordered == ["t0", "t3", "t6", "t1", "t4", "t2", "t5"]
