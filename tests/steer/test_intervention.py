import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actlake.extract import find_blocks
from actlake.extract.sites import tapped
from actlake.schemas import InvalidInputError
from actlake.steer import Intervention, Positions, intervene, plan_positions
from tests.extract.tiny import CONFIGS, tiny_model

pytestmark = pytest.mark.torch

IDS = torch.randint(2, 1024, (3, 9), generator=torch.Generator().manual_seed(0))
ALL = torch.ones(3, 9, dtype=torch.bool)
# A steered row may choose other experts, and then its neighbours' products are summed in another
# order: within a batch, rows of these models are equal but for rounding.
MIXTURES = {"mixtral", "gpt_oss"}
SOURCE = torch.randn(3, 9, 32, generator=torch.Generator().manual_seed(5))


def unit_vectors(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(*shape, generator=generator)
    if drawn.ndim == 3:
        return torch.linalg.qr(drawn.transpose(1, 2)).Q.transpose(1, 2).contiguous()
    return torch.nn.functional.normalize(drawn, dim=-1)


def addition(layer=1, alphas=(0.0, 3.0, -3.0), positions=ALL, seed=0, **parts):
    parts = {"vectors": unit_vectors(3, 32, seed=seed), **parts}
    return Intervention("add", (layer,), torch.tensor(alphas), Positions(positions), **parts)


def logits(model, ids=IDS):
    with torch.inference_mode():
        return model(ids, use_cache=False).logits


def states(model, run, site="resid_post"):
    """Return one site of every block in a pass; hooks that come later look behind earlier ones."""
    with tapped(find_blocks(model.base_model)) as seen:
        run()
    return [block[site] for block in seen]


@pytest.mark.parametrize("name", CONFIGS)
def test_alpha_zero_is_bitwise_no_hook_and_other_alphas_are_not(name):
    model = tiny_model(name)
    plain = logits(model)
    with intervene(model, [addition(alphas=(0.0, 0.0, 0.0))]):
        assert torch.equal(logits(model).view(torch.int32), plain.view(torch.int32))
    with intervene(model, [addition()]):
        steered = logits(model)
    if name in MIXTURES:
        torch.testing.assert_close(steered[0], plain[0], rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(steered[0].view(torch.int32), plain[0].view(torch.int32))
    assert not torch.allclose(steered[1], plain[1])
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize(
    "parts",
    [
        {"operator": "add", "vectors": unit_vectors(32)},
        {"operator": "project_out", "vectors": unit_vectors(3, 2, 32)},
        {"operator": "replace", "source": SOURCE},
        {"operator": "swap", "source": SOURCE, "vectors": unit_vectors(3, 32)},
        {"operator": "swap_complement", "source": SOURCE, "vectors": unit_vectors(3, 32)},
        {"operator": "set", "vectors": unit_vectors(32), "rows": torch.zeros(3, dtype=torch.bool)},
    ],
    ids=lambda parts: parts["operator"],
)
@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"])
def test_no_operator_touches_a_row_of_strength_zero_at_any_site(parts, site):
    model = tiny_model("llama")
    plain = logits(model)
    idle = Intervention(
        layers=(0, 2), strengths=torch.zeros(3), positions=Positions(ALL), site=site, **parts
    )
    with intervene(model, [idle]):
        assert torch.equal(logits(model).view(torch.int32), plain.view(torch.int32))


@pytest.mark.parametrize("name", CONFIGS)
def test_only_the_layer_asked_for_changes_and_by_exactly_what_was_asked(name):
    model = tiny_model(name)
    positions = ALL.clone()
    positions[:, :4] = False
    wanted = addition(positions=positions)
    before = states(model, lambda: logits(model))
    with intervene(model, [wanted]):
        after = states(model, lambda: logits(model))
    assert torch.equal(after[0], before[0])
    change = after[1] - before[1]
    assert torch.equal(change[:, :4], torch.zeros_like(change[:, :4]))
    expected = (wanted.strengths[:, None] * wanted.vectors)[:, None].expand(-1, 5, -1)
    torch.testing.assert_close(change[:, 4:], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "resid_mid", "mlp_out"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "olmo2"])
def test_every_site_is_written_where_it_is_read(name, site):
    model = tiny_model(name)
    before = states(model, lambda: logits(model), "resid_post")
    wanted = addition(alphas=(2.0, 2.0, 2.0), site=site)
    with intervene(model, [wanted]):
        after = states(model, lambda: logits(model), "resid_post")
    change = (after[1] - before[1]).norm(dim=-1)
    assert torch.equal(after[0], before[0])
    assert bool((change > 0.1).all())
    if site == "mlp_out":  # the last that a block adds: the stream changes by just that
        torch.testing.assert_close(change, torch.full_like(change, 2.0), rtol=1e-4, atol=1e-4)


def test_the_middle_of_the_stream_and_what_attention_adds_to_it_are_one_place_to_add_to():
    model = tiny_model("llama")
    outs = []
    for site in ("attn_out", "resid_mid"):
        with intervene(model, [addition(site=site)]):
            outs.append(logits(model))
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-5, atol=1e-5)


def test_projecting_out_leaves_no_coordinate_and_setting_leaves_the_one_asked_for():
    model = tiny_model("llama")
    v = unit_vectors(32)
    gone = Intervention("project_out", (1,), torch.ones(3), Positions(ALL), vectors=v)
    fixed = Intervention("set", (1,), torch.tensor([0.0, 2.5, -1.0]), Positions(ALL), vectors=v)
    for wanted, expected in ((gone, torch.zeros(3)), (fixed, fixed.strengths)):
        with intervene(model, [wanted]):
            coordinate = states(model, lambda: logits(model))[1] @ v
        torch.testing.assert_close(
            coordinate, expected[:, None].expand(-1, 9), rtol=1e-5, atol=1e-5
        )


def test_what_was_removed_at_one_block_comes_back_unless_every_write_is_edited():
    model = tiny_model("llama")
    v = states(model, lambda: logits(model))[1][0, 4]
    v = v / v.norm()
    plan = {"strengths": torch.ones(3), "positions": Positions(ALL), "vectors": v}
    once = [Intervention("project_out", (1,), **plan)]
    layers = tuple(range(len(find_blocks(model.base_model))))
    everywhere = [
        Intervention("project_out", (0,), site="resid_pre", **plan),
        *(Intervention("project_out", layers, site=s, **plan) for s in ("attn_out", "mlp_out")),
    ]
    found = []
    for wanted in (once, everywhere):
        with intervene(model, wanted):
            found.append([(h @ v).abs().max().item() for h in states(model, lambda: logits(model))])
    assert found[0][1] < 1e-5
    assert max(found[0][2:]) > 0.05
    assert max(found[1]) < 1e-5


def test_patching_a_run_into_itself_changes_no_bit():
    model = tiny_model("llama")
    plain = logits(model)
    for layer, own in enumerate(states(model, lambda: logits(model))):
        self_patch = Intervention("replace", (layer,), torch.ones(3), Positions(ALL), source=own)
        with intervene(model, [self_patch]):
            assert torch.equal(logits(model).view(torch.int32), plain.view(torch.int32))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "phi3"])
def test_the_whole_stream_at_the_last_block_is_the_source_s_answer(name):
    model = tiny_model(name)
    others = IDS.flip(0).flip(1)
    theirs = states(model, lambda: logits(model, others))[-1]
    patch = Intervention(
        "replace", (len(find_blocks(model.base_model)) - 1,), torch.ones(3), Positions(ALL),
        source=theirs,
    )  # fmt: skip
    with intervene(model, [patch]):
        assert torch.equal(logits(model), logits(tiny_model(name), others))


def test_swapping_a_whole_orthonormal_basis_is_replacing_the_state():
    model = tiny_model("llama")
    plan = {"strengths": torch.ones(3), "positions": Positions(ALL), "source": SOURCE}
    outs = []
    for wanted in (
        Intervention("replace", (1,), **plan),
        Intervention("swap", (1,), vectors=unit_vectors(1, 32, 32), **plan),
    ):
        with intervene(model, [wanted]):
            outs.append(logits(model))
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-4, atol=1e-4)


def test_a_coordinate_and_its_complement_are_together_the_source():
    model = tiny_model("llama")
    v = unit_vectors(3, 32)
    base = states(model, lambda: logits(model))[1]
    changes = []
    for operator in ("swap", "swap_complement"):
        wanted = Intervention(
            operator, (1,), torch.ones(3), Positions(ALL), vectors=v, source=SOURCE
        )
        with intervene(model, [wanted]):
            changes.append(states(model, lambda: logits(model))[1] - base)
    torch.testing.assert_close(changes[0] + changes[1], SOURCE - base, rtol=1e-4, atol=1e-4)
    coordinate = ((base + changes[0]) * v[:, None]).sum(dim=-1)
    torch.testing.assert_close(coordinate, (SOURCE * v[:, None]).sum(dim=-1), rtol=1e-4, atol=1e-4)
    # The subspace moves by nothing but the coordinate.
    assert torch.allclose((changes[1] * v[:, None]).sum(dim=-1), torch.zeros(3, 9), atol=1e-4)


def test_rows_with_their_own_strength_equal_sequential_runs():
    model = tiny_model("llama")
    together = addition(alphas=(0.5, -2.0, 7.0))
    with intervene(model, [together]):
        batched = logits(model)
    for i in range(3):
        alone = Intervention(
            "add", (1,), together.strengths[i : i + 1], Positions(ALL[:1]),
            vectors=together.vectors[i : i + 1],
        )  # fmt: skip
        with intervene(model, [alone]):
            single = logits(model, IDS[i : i + 1])
        torch.testing.assert_close(batched[i : i + 1], single, rtol=5e-5, atol=5e-5)


def test_rows_of_a_batch_may_each_be_touched_at_a_layer_of_their_own():
    model = tiny_model("llama")
    plan = {"strengths": torch.full((3,), 2.0), "positions": Positions(ALL)}
    v = unit_vectors(32)
    each = [
        Intervention("add", (layer,), vectors=v, rows=torch.arange(3) == layer, **plan)
        for layer in range(3)
    ]
    with intervene(model, each):
        together = logits(model)
    for layer in range(3):
        with intervene(model, [Intervention("add", (layer,), vectors=v, **plan)]):
            alone = logits(model)
        torch.testing.assert_close(together[layer], alone[layer], rtol=1e-5, atol=1e-5)


def left_padded(lengths, pad=0):
    width = max(lengths)
    ids, attended = torch.full((len(lengths), width), pad), torch.zeros(len(lengths), width).long()
    for row, n in enumerate(lengths):
        ids[row, width - n :] = IDS[row, :n]
        attended[row, width - n :] = 1
    return ids, attended


@pytest.mark.parametrize("phase", ["prompt-all", "prompt-last", "response", "all"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "neox"])
def test_with_and_without_a_cache_the_same_words_follow(name, phase):
    model = tiny_model(name)
    ids, attended = left_padded([5, 9, 7])
    positions = plan_positions(ids, attended, phase=phase)
    wanted = Intervention(
        "add", (1,), torch.tensor([4.0, 0.0, -4.0]), positions, vectors=unit_vectors(3, 32)
    )
    outs = []
    for use_cache in (True, False):
        with intervene(model, [wanted]), torch.inference_mode():
            outs.append(
                model.generate(
                    input_ids=ids, attention_mask=attended, max_new_tokens=6, do_sample=False,
                    use_cache=use_cache, eos_token_id=None, pad_token_id=0,
                )
            )  # fmt: skip
    assert torch.equal(outs[0], outs[1])


def test_only_the_phase_asked_for_is_touched_token_by_token():
    model = tiny_model("llama")
    ids, attended = left_padded([5, 9, 7])
    v = unit_vectors(32)
    answer = torch.randint(2, 1024, (3, 4), generator=torch.Generator().manual_seed(1))
    whole = torch.cat([ids, answer], dim=1)
    mask = torch.cat([attended, torch.ones(3, 4).long()], dim=1)
    for phase in ("prompt-all", "prompt-last", "response", "all"):
        positions = plan_positions(ids, attended, phase=phase)
        plan = {"strengths": torch.ones(3), "positions": positions, "vectors": v}

        def run(mask=mask):
            with torch.inference_mode():
                model(whole, attention_mask=mask, use_cache=False)

        before = states(model, run)[1]
        with intervene(model, [Intervention("add", (1,), **plan)]):
            moved = (states(model, run)[1] - before).norm(dim=-1) > 0.5
        expected = torch.zeros(3, 13, dtype=torch.bool)
        if phase in {"prompt-all", "all"}:
            expected[:, :9] = attended.bool()
        if phase == "prompt-last":
            expected[:, 8] = True
        if phase in {"response", "all"}:
            expected[:, 9:] = True
        assert torch.equal(moved, expected), phase


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    left=st.booleans(),
    has_bos=st.booleans(),
)
@settings(deadline=None)
def test_phases_partition_the_prompt_whatever_the_padding(lengths, left, has_bos):
    ids, attended = left_padded(lengths)
    if not left:
        ids, attended = ids.flip(1), attended.flip(1)
    bos = None
    if has_bos:
        bos = 1
        for row, n in enumerate(lengths):
            ids[row, ids.shape[1] - n if left else 0] = bos
    plans = {p: plan_positions(ids, attended, phase=p, bos=bos) for p in ("all", "prompt-all")}
    assert plans["all"].generated
    assert not plans["prompt-all"].generated
    counted = plans["prompt-all"].planned.sum(dim=1)
    assert counted.tolist() == [n - has_bos for n in lengths]
    assert not (plans["all"].planned & ~attended.bool()).any()
    last = plan_positions(ids, attended, phase="prompt-last", bos=bos).planned
    assert last.sum(dim=1).tolist() == [1] * len(lengths)
    assert (last & attended.bool()).sum() == len(lengths)


@given(start=st.integers(0, 12), n=st.integers(1, 6), cut=st.integers(0, 6), beyond=st.booleans())
def test_columns_of_pieces_are_the_columns_of_the_whole(start, n, cut, beyond):
    planned = torch.rand(2, 8, generator=torch.Generator().manual_seed(3)) > 0.5
    positions = Positions(planned, generated=beyond)
    stop = start + n
    middle = min(stop, start + cut)
    pieces = [positions.columns(a, b) for a, b in itertools.pairwise((start, middle, stop))]
    assert torch.equal(torch.cat(pieces, dim=1), positions.columns(start, stop))


def test_a_vector_moves_to_the_device_and_type_of_its_block():
    model = tiny_model("llama").to(torch.bfloat16)
    with intervene(model, [addition(alphas=(4.0, 4.0, 4.0))]):
        steered = logits(model)
    assert steered.dtype == torch.bfloat16
    assert not torch.equal(steered, logits(model))
    model.to(torch.float32)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (addition(layer=9), "layers 0 to 3"),
        (addition(vectors=torch.zeros(3, 31)), "31 wide, the model 32"),
        (addition(alphas=(0.0, float("nan"), 1.0)), "finite"),
        (addition(alphas=(0.0, float("inf"), 1.0)), "finite"),
        (addition(vectors=torch.full((3, 32), torch.nan)), "finite"),
        (addition(vectors=unit_vectors(2, 32)), "unlike numbers of rows"),
        (addition(positions=ALL[:2]), "unlike numbers of rows"),
        (addition(site="attn_heads"), "has no site attn_heads; it has resid_pre"),
        (addition(vectors=None), "needs a direction"),
        (addition(source=SOURCE), "takes no source"),
        (addition(vectors=unit_vectors(3, 2, 32)), "one direction per row, got 2"),
        (
            Intervention(
                "project_out", (1,), torch.ones(3), Positions(ALL), vectors=torch.ones(32)
            ),
            "orthonormal",
        ),
        (Intervention("replace", (1,), torch.ones(3), Positions(ALL)), "needs source"),
        (
            Intervention("replace", (1,), torch.ones(3), Positions(ALL), source=SOURCE[:, :4]),
            r"\(3, 4\), the planned columns are \(3, 9\)",
        ),
        (Intervention("push", (1,), torch.ones(3), Positions(ALL)), "unknown; expected one of add"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_the_model_runs(bad, message):
    with pytest.raises(InvalidInputError, match=message), intervene(tiny_model("llama"), [bad]):
        pass


def test_an_unknown_phase_is_refused():
    with pytest.raises(InvalidInputError, match="expected one of prompt-all"):
        plan_positions(IDS, torch.ones(3, 9), phase="later")


def test_a_batch_of_another_shape_is_refused_rather_than_steered_wrongly():
    model = tiny_model("llama")
    with (
        pytest.raises(InvalidInputError, match=r"planned for rows x tokens \(3, 9\)"),
        intervene(model, [addition()]),
    ):
        logits(model, IDS[:, :5])
    assert not any(block._forward_hooks for block in find_blocks(model.base_model))
    assert np.isfinite(logits(model).numpy()).all()
