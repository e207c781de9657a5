"""Pieces of texts in any order and size give what one padded batch gives."""

import typing

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actlake.extract.capture import PooledCapture
from actlake.extract.engine import pad_rows
from actlake.extract.flat_pooling import FlatRows, Piece
from actlake.extract.vllm_calls import pack_arrays, unpack_arrays
from actlake.extract.vllm_engine import expect_rows
from actlake.schemas import InvalidInputError, Pool
from tests.extract.test_capture import token_row

pytestmark = pytest.mark.torch

POOLS = typing.get_args(Pool)
HIDDEN, PLACES = 5, 3
CPU = torch.device("cpu")
LENGTHS = st.lists(
    st.tuples(st.integers(2, 9), st.integers(1, 9)), min_size=1, max_size=5, unique=True
)


def texts(lengths):
    return [token_row(f"t{i}", p, r, seed=i) for i, (p, r) in enumerate(lengths)]


def expected(rows):
    """What a worker is told, after its journey as bytes."""
    flat, outputs = expect_rows(rows, pools=POOLS, bos_id=1)
    arrays = unpack_arrays(pack_arrays(flat.arrays()))
    return FlatRows.expected(arrays, places=PLACES, hidden=HIDDEN), outputs


def stream(row, place):
    """The activations of one row at one place, (token, hidden)."""
    rng = np.random.default_rng([place, *row.ids.tolist()])
    return torch.from_numpy(rng.normal(size=(row.n_tokens, HIDDEN)).astype(np.float32)) * 10


def run(flat, rows, pieces, *, ids=None, positions=None, starts=None, places=range(PLACES)):
    """One forward pass over pieces (row, start, stop), in their order."""
    labels, offset = [], 0
    for row, start, stop in pieces:
        labels.append(Piece(row, start, offset, stop - start))
        offset += stop - start
    step = flat.step(labels, device=CPU)
    joined = np.concatenate([rows[r].ids[a:b] for r, a, b in pieces])
    where = np.concatenate([np.arange(a, b) for _, a, b in pieces])
    begins = [piece.offset for piece in labels]
    step.expect(
        torch.from_numpy(joined if ids is None else ids),
        torch.from_numpy(where if positions is None else positions),
        torch.tensor([*begins, offset] if starts is None else starts),
    )
    for place in places:
        step.record(place, torch.cat([stream(rows[r], place)[a:b] for r, a, b in pieces]))
    flat.add(step)


def padded(rows):
    """Every pool and norm, as a padded batch gives them in one forward pass."""
    _, _, masks = pad_rows(rows, pad_id=0, bos_id=1)
    longest = max(row.n_tokens for row in rows)
    blocks = [torch.nn.Identity() for _ in range(PLACES)]
    capture = PooledCapture(blocks, sites=("resid_post",), layers=range(PLACES), pools=POOLS)

    def network():
        for place, block in enumerate(blocks):
            hidden = torch.full((len(rows), longest, HIDDEN), torch.nan)
            for i, row in enumerate(rows):
                hidden[i, : row.n_tokens] = stream(row, place)
            block(hidden)

    with capture.attached():
        capture.run(network, {}, masks)
        return {name: values.numpy() for name, values in capture.take().items()}


def passes_of(lengths, rng):
    """Forward passes over pieces of texts, as continuous batching might make them."""
    total = np.array([p + r for p, r in lengths])
    done = np.zeros_like(total)
    while (done < total).any():
        waiting = rng.permutation(np.flatnonzero(done < total))
        pieces = []
        for i in waiting[: rng.integers(1, len(waiting) + 1)].tolist():
            if rng.integers(6) == 0:
                done[i] = 0  # preempted: it begins again
            stop = int(rng.integers(done[i] + 1, total[i] + 1))
            pieces.append((i, int(done[i]), stop))
            done[i] = stop
        yield pieces


@settings(deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 2**32))
def test_pieces_in_any_order_give_the_pools_of_one_padded_batch(lengths, seed):
    rows = texts(lengths)
    flat, outputs = expected(rows)
    for pieces in passes_of(lengths, np.random.default_rng(seed)):
        run(flat, rows, pieces)
    flat.check_whole()
    wanted = padded(rows)
    for name, (kind, index) in outputs.items():
        seen = flat.taken(kind, index, slice(0, PLACES)).transpose(1, 0, 2)
        seen = seen[..., 0] if kind == "norm" else seen
        np.testing.assert_allclose(
            seen, wanted[f"resid_post_{name}"], rtol=2e-5, atol=2e-5, err_msg=name
        )


@pytest.fixture
def two():
    rows = texts([(4, 3), (2, 6)])
    return rows, expected(rows)[0]


def test_generated_tokens_behind_a_text_are_left_out(two):
    rows, flat = two
    run(flat, rows, [(0, 0, 7), (1, 0, 8)])
    before = flat.taken("mean", 0, slice(0, PLACES)).copy()
    step = flat.step([Piece(0, 7, 0, 1), Piece(1, 8, 1, 1)], device=CPU)
    for place in range(PLACES):
        step.record(place, torch.full((2, HIDDEN), 1e6))
    flat.add(step)
    flat.check_whole()
    assert np.array_equal(flat.taken("mean", 0, slice(0, PLACES)), before)


def test_a_piece_that_skips_tokens_is_refused(two):
    rows, flat = two
    run(flat, rows, [(0, 0, 2)])
    with pytest.raises(InvalidInputError, match="row 0: expected position 2 next, got 3"):
        run(flat, rows, [(0, 3, 7)])
    with pytest.raises(InvalidInputError, match="row 1: expected position 0 next, got 4"):
        run(flat, rows, [(1, 4, 8)])


def test_other_tokens_or_positions_than_the_texts_own_are_an_error(two):
    rows, flat = two
    swapped = np.concatenate([rows[1].ids[:3], rows[0].ids[:3]])
    with pytest.raises(InvalidInputError, match=r"rows \[0, 1\] ran other token ids"):
        run(flat, rows, [(0, 0, 3), (1, 0, 3)], ids=swapped)
    with pytest.raises(InvalidInputError, match="ran other positions"):
        run(flat, rows, [(0, 0, 3)], positions=np.arange(1, 4))
    with pytest.raises(InvalidInputError, match="ran other beginnings"):
        run(flat, rows, [(0, 0, 3), (1, 0, 3)], starts=[0, 2, 6])


def test_a_hook_that_does_not_fire_once_is_an_error(two):
    rows, flat = two
    with pytest.raises(InvalidInputError, match="1 of 3 captures fired 0 times"):
        run(flat, rows, [(0, 0, 3)], places=(0, 2))
    with pytest.raises(InvalidInputError, match="1 of 3 captures fired 2 times"):
        run(flat, rows, [(0, 0, 3)], places=(0, 1, 1, 2))


def test_rows_that_did_not_run_to_their_end_are_an_error(two):
    rows, flat = two
    run(flat, rows, [(0, 0, 7), (1, 0, 5)])
    with pytest.raises(InvalidInputError, match=r"1 of 2 rows .* row 1: 5 of 8 tokens"):
        flat.check_whole()


def test_a_block_that_ran_fewer_tokens_than_its_batch_has_is_an_error(two):
    _, flat = two
    step = flat.step([Piece(0, 0, 0, 3)], device=CPU)
    with pytest.raises(InvalidInputError, match="ran 2 tokens, its batch has 3"):
        step.record(0, torch.zeros(2, HIDDEN))
