"""What is written into pieces of rows, in any order, is what is written into a padded batch."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actlake.extract.flat_pooling import Piece
from actlake.extract.vllm_calls import pack_arrays, unpack_arrays
from actlake.schemas import InvalidInputError
from actlake.steer import Intervention, Positions, plan_positions
from actlake.steer.flat_reads import FlatRead, Reading
from actlake.steer.flat_writes import FlatStep, FlatWrites, Table
from actlake.steer.intervention import _Pass, _write
from actlake.steer.vllm_writes import attach_write, replace_stream

pytestmark = pytest.mark.torch

HIDDEN = 6
OPERATORS = ["add", "project_out", "set", "replace", "swap", "swap_complement"]
CPU = torch.device("cpu")


def padded(lengths, seed):
    """Prompts of unlike tokens, padded on the left."""
    width = max(lengths)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    attended = torch.zeros_like(ids)
    for i, n in enumerate(lengths):
        ids[i, width - n :] = torch.arange(n) + 100 * (i + 1) + seed
        attended[i, width - n :] = 1
    return ids, attended


def unit_rows(generator, *shape):
    q, _ = torch.linalg.qr(torch.randn(*shape[:-2], shape[-1], shape[-2], generator=generator))
    return q.transpose(-1, -2).contiguous()


def intervention(operator, ids, attended, *, phase, seed, site="resid_post", layers=(1,)):
    generator = torch.Generator().manual_seed(seed)
    n, width = ids.shape
    rank = 1 if operator in {"add", "set"} else 2
    of_source = operator in {"replace", "swap", "swap_complement"}
    positions = plan_positions(ids, attended, phase=phase, bos=None)
    by_column = of_source and not positions.generated and seed % 2 == 0
    shape = (n, width, HIDDEN) if by_column else (n, HIDDEN)
    return Intervention(
        operator,
        layers,
        torch.tensor([0.0, 1.0, -2.0, 0.5])[torch.arange(n) % 4],
        positions,
        vectors=None if operator == "replace" else unit_rows(generator, n, rank, HIDDEN),
        source=torch.randn(shape, generator=generator) if of_source else None,
        site=site,
        rows=torch.arange(n) != seed % 5,
    )


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=5),
    st.lists(st.sampled_from(OPERATORS), min_size=1, max_size=3),
    st.sampled_from(["prompt-all", "prompt-last", "response", "all"]),
    st.integers(0, 1000),
)
def test_pieces_in_any_order_are_the_padded_batch(lengths, operators, phase, seed):
    rng = np.random.default_rng(seed)
    ids, attended = padded(lengths, seed)
    n_new = 3
    wanted = [
        intervention(operator, ids, attended, phase=phase, seed=seed + i)
        for i, operator in enumerate(operators)
    ]
    n, width = ids.shape
    hidden = torch.randn(n, width + n_new, HIDDEN, generator=torch.Generator().manual_seed(seed))
    reference = _write(wanted, _Pass(0), hidden)
    plan = FlatWrites.flatten(ids, attended, wanted)
    plan = FlatWrites.from_arrays(unpack_arrays(pack_arrays(plan.arrays())))
    assert plan.rows() == [
        row[real.bool()].tolist() for row, real in zip(ids, attended, strict=True)
    ]
    tables = [Table(write, device=CPU) for write in plan.writes]
    done = [0] * n
    totals = [length + n_new for length in lengths]
    while done != totals:
        # A pass takes a stretch of some rows, in any order.
        pieces, parts, offset = [], [], 0
        for row in rng.permutation(n):
            count = min(int(rng.integers(0, 4)), totals[row] - done[row])
            if count == 0:
                continue
            start = width - lengths[row] + done[row]
            pieces.append(Piece(int(row), done[row], offset, count))
            parts.append((int(row), slice(start, start + count)))
            offset += count
            done[row] += count
        if not pieces:
            continue
        step = FlatStep(plan, pieces, tables=tables)
        stream = torch.cat([hidden[row, span] for row, span in parts])
        found = step.write((1, "resid_post"), stream)
        out, at = (stream, torch.zeros(0, dtype=torch.long)) if found is None else found
        expected = torch.cat([reference[row, span] for row, span in parts])
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
        untouched = torch.ones(len(stream), dtype=torch.bool)
        untouched[at] = False
        assert torch.equal(out[untouched], stream[untouched])
        # What is not touched in the padded batch is not named either.
        changed = torch.cat([(reference != hidden)[row, span] for row, span in parts]).any(dim=-1)
        assert not (changed & untouched).any()
        step.check_fired()


def test_what_a_block_reads_is_written_where_the_one_before_returns_it():
    ids, attended = padded([3, 2], 0)
    given = [
        intervention("add", ids, attended, phase="all", seed=1, site="resid_pre", layers=(0, 2)),
        intervention("set", ids, attended, phase="all", seed=1, site="resid_post", layers=(1,)),
    ]
    plan = FlatWrites.flatten(ids, attended, given)
    assert plan.places() == {(1, "resid_post"): [1, 0], (0, "resid_pre"): [0]}


def test_rows_share_a_salt_only_where_all_that_is_written_is_the_same():
    ids, attended = padded([4, 4, 4, 3], 0)
    ids[1] = ids[0]
    ids[2] = ids[0]
    vector = torch.eye(HIDDEN)[0]

    def salts(strengths, phase="all", vectors=vector, operator="add", layer=1):
        positions = plan_positions(ids, attended, phase=phase)
        return FlatWrites.flatten(
            ids, attended,
            [Intervention(operator, (layer,), torch.tensor(strengths), positions, vectors=vectors)],
        ).salts()  # fmt: skip

    first = salts([1.0, 1.0, 2.0, 0.0])
    assert first[0] == first[1]
    assert first[3] == "unsteered"
    assert len(set(first)) == 3
    others = [
        salts([1.0] * 4, phase="response"),
        salts([1.0] * 4, phase="prompt-last"),
        salts([1.0] * 4, vectors=torch.eye(HIDDEN)[1]),
        salts([1.0] * 4, operator="project_out"),
        salts([1.0] * 4, layer=0),
    ]
    assert len({first[0], *(salt[0] for salt in others)}) == 6
    sources = torch.zeros(4, 4, HIDDEN)
    sources[1, 2] = 1.0  # only row 1 gets another state, at one token
    held = Intervention(
        "replace", (1,), torch.ones(4), plan_positions(ids, attended, phase="prompt-all"),
        source=sources,
    )  # fmt: skip
    by_token = FlatWrites.flatten(ids, attended, [held]).salts()
    assert by_token[0] == by_token[2] != by_token[1]


def test_tokens_that_are_not_the_rows_are_seen():
    ids, attended = padded([3, 2], 0)
    plan = FlatWrites.flatten(ids, attended, [])
    step = FlatStep(plan, [Piece(1, 0, 0, 2), Piece(0, 1, 2, 3)], tables=[])
    tokens = torch.tensor([200, 201, 101, 102, 7])
    positions = torch.tensor([0, 1, 1, 2, 3])
    starts = torch.tensor([0, 2, 5])
    assert not step.mismatch(tokens, positions, starts)
    generated = tokens.clone()
    generated[4] = 9  # behind the prompt: nobody knows it before
    assert not step.mismatch(generated, positions, starts)
    for wrong in (0, 3):
        changed = tokens.clone()
        changed[wrong] += 1
        assert step.mismatch(changed, positions, starts)
    assert step.mismatch(tokens, positions + 1, starts)
    assert step.mismatch(tokens, positions, torch.tensor([0, 3, 5]))


def test_a_place_that_is_not_reached_once_is_an_error():
    ids, attended = padded([2], 0)
    plan = FlatWrites.flatten(
        ids, attended, [intervention("add", ids, attended, phase="all", seed=1)]
    )
    tables = [Table(write, device=CPU) for write in plan.writes]
    step = FlatStep(plan, [Piece(0, 0, 0, 2)], tables=tables)
    with pytest.raises(InvalidInputError, match="reached 0 times"):
        step.check_fired()
    step.write((1, "resid_post"), torch.zeros(2, HIDDEN))
    step.check_fired()
    step.write((1, "resid_post"), torch.zeros(2, HIDDEN))
    with pytest.raises(InvalidInputError, match="reached 2 times"):
        step.check_fired()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sum_of_the_parts_is_what_was_written_and_the_rest_keeps_its_bits(dtype):
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(5, HIDDEN, generator=generator).to(dtype)
    residual = (300 * torch.randn(5, HIDDEN, generator=generator)).to(dtype)
    states = torch.randn(5, HIDDEN, generator=generator).to(dtype)
    at = torch.tensor([1, 3])
    kept = delta.clone(), residual.clone()
    new = replace_stream((torch.arange(5), delta, residual), HIDDEN, lambda _: (states, at))
    assert torch.equal(new[1] + new[2], torch.where(
        torch.isin(torch.arange(5), at)[:, None], states, delta + residual
    ))  # fmt: skip
    others = [0, 2, 4]
    assert torch.equal(new[1][others], delta[others])
    assert torch.equal(new[2][others], residual[others])
    assert torch.equal(delta, kept[0])  # nothing in place
    assert torch.equal(residual, kept[1])
    assert replace_stream((delta, residual), HIDDEN, lambda _: None) is None


def test_a_finer_residual_holds_the_sum():
    delta = torch.ones(2, HIDDEN, dtype=torch.bfloat16)
    residual = torch.full((2, HIDDEN), 1 / 3)
    states = torch.full((2, HIDDEN), 1 / 7)
    new = replace_stream((delta, residual), HIDDEN, lambda _: (states, torch.tensor([0, 1])))
    assert torch.equal(new[0] + new[1], states)
    assert [part.dtype for part in new] == [torch.bfloat16, torch.float32]


class _Two(torch.nn.Module):
    """A block as vLLM's: it takes and returns two parts, and its norm adds them in place."""

    def __init__(self):
        super().__init__()
        self.self_attn = torch.nn.Linear(HIDDEN, HIDDEN)
        self.mlp = torch.nn.Linear(HIDDEN, HIDDEN)

    def forward(self, delta, residual):
        residual += delta
        added = self.self_attn(residual)
        residual = residual + added
        self.middle = residual.clone()
        return self.mlp(residual), residual


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"])
def test_each_site_of_a_block_in_two_parts_is_written(site):
    torch.manual_seed(0)
    block = _Two().eval()
    given = torch.randn(4, HIDDEN), torch.randn(4, HIDDEN)
    stream = given[0] + given[1]
    states, at = torch.randn(4, HIDDEN), torch.tensor([0, 2])
    seen = []

    def write(hidden):
        seen.append(hidden.clone())
        out = hidden.clone()
        out[at] = states[at]
        return out, at

    def run():
        with torch.inference_mode():
            delta, residual = block(given[0].clone(), given[1].clone())
        return delta + residual, block.middle

    def by_hand(written):
        def put(value, name):
            return value.index_copy(0, at, states[at]) if name == written else value

        pre = put(stream, "resid_pre")
        middle = put(pre + put(block.self_attn(pre), "attn_out"), "resid_mid")
        return put(middle + put(block.mlp(middle), "mlp_out"), "resid_post"), middle

    expected = by_hand(site)
    handles = attach_write(block, site, hidden_size=HIDDEN, write=write)
    for seen_value, wanted in zip(run(), expected, strict=True):
        torch.testing.assert_close(seen_value, wanted.detach(), rtol=1e-5, atol=1e-5)
    assert len(seen) == 1
    for handle in handles:
        handle.remove()
    for seen_value, wanted in zip(run(), by_hand(None), strict=True):
        torch.testing.assert_close(seen_value, wanted.detach(), rtol=1e-5, atol=1e-5)


def test_positions_of_one_batch_do_not_fit_another():
    ids, attended = padded([3, 2], 0)
    planned = Positions(torch.ones(2, 3, dtype=torch.bool))
    held = Intervention("add", (0,), torch.ones(2), planned, vectors=torch.ones(HIDDEN))
    plan = FlatWrites.flatten(ids, attended, [held])
    assert plan.writes[0].touched.tolist() == [True] * 5  # padding is nobody's token


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=5), st.booleans(), st.integers(0, 1000))
def test_what_is_read_in_pieces_is_what_the_rows_hold_before_they_are_written(lengths, also, seed):
    rng = np.random.default_rng(seed)
    ids, attended = padded(lengths, seed)
    real = attended.bool()
    wanted = [intervention("add", ids, attended, phase="all", seed=seed)] if also else []
    touched = torch.from_numpy(rng.random(int(real.sum())) < 0.6).numpy()
    vectors = rng.standard_normal((3, HIDDEN)).astype(np.float32)
    plan = FlatWrites.flatten(ids, attended, wanted)
    plan = dataclasses.replace(plan, read=FlatRead(1, vectors, touched))
    plan = FlatWrites.from_arrays(unpack_arrays(pack_arrays(plan.arrays())))
    reading = Reading(plan.read, device=CPU)
    assert reading.read.place in plan.places()
    if touched.any():
        with pytest.raises(InvalidInputError, match="tokens were not run"):
            reading.values()
    hidden = torch.randn(int(real.sum()), HIDDEN, generator=torch.Generator().manual_seed(seed))
    bounds, done = np.cumsum([0, *lengths]), [0] * len(lengths)
    tables = [Table(write, device=CPU) for write in plan.writes]
    n_again = 2
    while done != lengths or n_again:
        if done == lengths:  # preempted: a row begins again
            done[int(rng.integers(len(done)))] = 0
            n_again -= 1
        pieces, parts, offset = [], [], 0
        for row in rng.permutation(len(lengths)):
            count = min(int(rng.integers(0, 4)), lengths[row] - done[row])
            if count:
                pieces.append(Piece(int(row), done[row], offset, count))
                start = bounds[row] + done[row]
                parts.append(hidden[start : start + count])
                done[row] += count
                offset += count
        if pieces:
            step = FlatStep(plan, pieces, tables=tables, reading=reading)
            step.write(reading.read.place, torch.cat(parts))
            step.check_fired()
    chosen = hidden[torch.from_numpy(touched)]
    expected = torch.cat([chosen.norm(dim=-1)[:, None], chosen @ torch.from_numpy(vectors).T], 1)
    np.testing.assert_allclose(reading.values(), expected.numpy(), rtol=1e-5, atol=1e-6)
