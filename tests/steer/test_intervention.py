import numpy as np
import pytest
import torch

from actlake.extract import find_blocks
from actlake.schemas import InvalidInputError
from actlake.steer import Addition, intervene
from tests.extract.tiny import CONFIGS, tiny_model

pytestmark = pytest.mark.torch

IDS = torch.randint(2, 1024, (3, 9), generator=torch.Generator().manual_seed(0))
ALL = torch.ones(3, 9, dtype=torch.bool)
# A steered row may choose other experts, and then its neighbours' products are summed in another
# order: within a batch, rows of these models are equal but for rounding.
MIXTURES = {"mixtral", "gpt_oss"}


def addition(layer=1, alphas=(0.0, 3.0, -3.0), positions=ALL, seed=0):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.nn.functional.normalize(torch.randn(3, 32, generator=generator), dim=-1)
    return Addition(layer, vectors, torch.tensor(alphas), positions)


def logits(model, ids=IDS):
    with torch.inference_mode():
        return model(ids, use_cache=False).logits


def layer_outputs(model, run):
    seen = []
    handles = [
        block.register_forward_hook(
            lambda _m, _a, out: seen.append((out[0] if isinstance(out, tuple) else out).clone())
        )
        for block in find_blocks(model.base_model)
    ]
    run()
    for handle in handles:
        handle.remove()
    return seen


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


@pytest.mark.parametrize("name", CONFIGS)
def test_only_the_layer_asked_for_changes_and_by_exactly_what_was_asked(name):
    model = tiny_model(name)
    positions = ALL.clone()
    positions[:, :4] = False
    wanted = addition(positions=positions)
    before = layer_outputs(model, lambda: logits(model))
    # Hooks see a block's output in order of registration: these look behind the intervention.
    with intervene(model, [wanted]):
        after = layer_outputs(model, lambda: logits(model))
    assert torch.equal(after[0], before[0])
    change = after[1] - before[1]
    assert torch.equal(change[:, :4], torch.zeros_like(change[:, :4]))
    expected = (wanted.alphas[:, None] * wanted.vectors)[:, None].expand(-1, 5, -1)
    torch.testing.assert_close(change[:, 4:], expected, rtol=1e-4, atol=1e-4)


def test_rows_with_their_own_strength_equal_sequential_runs():
    model = tiny_model("llama")
    together = addition(alphas=(0.5, -2.0, 7.0))
    with intervene(model, [together]):
        batched = logits(model)
    for i in range(3):
        alone = Addition(1, together.vectors[i : i + 1], together.alphas[i : i + 1], ALL[:1])
        with intervene(model, [alone]):
            single = logits(model, IDS[i : i + 1])
        torch.testing.assert_close(batched[i : i + 1], single, rtol=5e-5, atol=5e-5)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (addition(layer=9), "layers 0 to 3"),
        (Addition(1, torch.zeros(3, 31), torch.ones(3), ALL), "31 wide, the model 32"),
        (addition(alphas=(0.0, float("nan"), 1.0)), "finite"),
        (addition(alphas=(0.0, float("inf"), 1.0)), "finite"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_the_model_runs(bad, message):
    with pytest.raises(InvalidInputError, match=message), intervene(tiny_model("llama"), [bad]):
        pass


def test_a_batch_of_another_shape_is_refused_rather_than_steered_wrongly():
    model = tiny_model("llama")
    with (
        pytest.raises(InvalidInputError, match=r"planned for rows x tokens \(3, 9\)"),
        intervene(model, [addition()]),
    ):
        logits(model, IDS[:, :5])
    assert not any(block._forward_hooks for block in find_blocks(model.base_model))
    assert np.isfinite(logits(model).numpy()).all()
