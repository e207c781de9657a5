"""The stream that vLLM keeps in two parts is read as it is, and what is none is refused."""

import pytest
import torch
from torch import nn

from actlake.extract.sites import find_taps
from actlake.extract.vllm_proof import Proof, hook_stream
from actlake.schemas import InvalidInputError

pytestmark = pytest.mark.torch

HIDDEN, N_BLOCKS = 8, 3
SITES = ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]


class FusedNorm(nn.Module):
    """Adds its two parts and norms them, both in place, as vLLM's kernels do."""

    def forward(self, x, residual=None):
        if residual is None:
            return nn.functional.rms_norm(x, (HIDDEN,))
        residual.add_(x)
        x.copy_(nn.functional.rms_norm(residual, (HIDDEN,)))
        return x, residual


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_layernorm = FusedNorm()
        self.self_attn = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.post_attention_layernorm = FusedNorm()
        self.mlp = nn.Linear(HIDDEN, HIDDEN, bias=False)

    def forward(self, positions, hidden_states, residual):
        if residual is None:
            residual = hidden_states.clone()
            hidden_states = self.input_layernorm(hidden_states)
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        hidden_states = self.self_attn(hidden_states)
        hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)
        return self.mlp(hidden_states), residual


class Backbone(nn.Module):
    def __init__(self, between, last):
        super().__init__()
        self.embed = nn.Embedding(20, HIDDEN)
        self.layers = nn.ModuleList([Block() for _ in range(N_BLOCKS)])
        self.norm = FusedNorm()
        self.between, self.last = between, last

    def forward(self, ids, positions):
        hidden, residual = self.embed(ids), None
        for layer in self.layers:
            hidden, residual = self.between(*layer(positions, hidden, residual))
        return self.last(self.norm, hidden, residual)


class Model(nn.Module):
    def __init__(self, *, between=lambda h, r: (h, r), last=lambda norm, h, r: norm(h, r)[0]):
        super().__init__()
        torch.manual_seed(0)
        self.model = Backbone(between, last)

    def forward(self, input_ids, positions):
        return self.model(input_ids, positions)


IDS, POSITIONS = torch.tensor([3, 7, 11, 2]), torch.arange(4)


@torch.inference_mode()
def prove(model):
    proof = Proof(model, list(model.model.layers), hidden_size=HIDDEN)
    handles = proof.attach()
    model(IDS, POSITIONS)
    for handle in handles:
        handle.remove()
    return proof.sites()


@torch.inference_mode()
def plain_stream(model):
    """The stream of every site, by the textbook: one tensor, nothing in place."""
    x = model.model.embed(IDS)
    for block in model.model.layers:
        pre = x
        attention = block.self_attn(nn.functional.rms_norm(pre, (HIDDEN,)))
        mid = pre + attention
        mlp = block.mlp(nn.functional.rms_norm(mid, (HIDDEN,)))
        x = mid + mlp
        yield {
            "resid_pre": pre, "attn_out": attention, "resid_mid": mid, "mlp_out": mlp,
            "resid_post": x,
        }  # fmt: skip


def test_every_site_of_a_fused_block_is_proven():
    assert prove(Model()) == SITES


@torch.inference_mode()
def test_what_hooks_read_is_the_stream_though_norms_work_in_place():
    model = Model()
    seen = [{} for _ in model.model.layers]
    for block, values in zip(model.model.layers, seen, strict=True):
        for site, tap in find_taps(block).items():
            hook_stream(
                tap, HIDDEN, lambda x, s=site, v=values: v.__setitem__(s, x.detach().clone())
            )
    model(IDS, POSITIONS)
    for ours, theirs in zip(seen, plain_stream(model), strict=True):
        for site in SITES:
            torch.testing.assert_close(ours[site], theirs[site])


def test_a_sublayer_that_is_scaled_before_it_is_added_is_no_site():
    model = Model()
    for block in model.model.layers:
        block.mlp.register_forward_hook(lambda _m, _a, output: output * 0.5)
    # This hook comes first, so what is captured is halved too: still the stream's own.
    assert prove(model) == SITES
    model = Model()
    for block in model.model.layers:
        norm = block.post_attention_layernorm
        norm.register_forward_pre_hook(lambda _m, args: (args[0] * 0.5, args[1]))
    assert prove(model) == ["resid_pre", "resid_mid", "mlp_out", "resid_post"]


def drop_residual(norm, hidden, _residual):
    return norm(hidden)


def test_a_final_norm_of_something_else_than_the_sum_is_refused():
    with pytest.raises(InvalidInputError, match="not a norm of what its last block returns"):
        prove(Model(last=drop_residual))


def test_an_output_that_is_no_norm_of_the_stream_is_refused():
    with pytest.raises(InvalidInputError, match=r"norm is off by .*transformers engine"):
        prove(Model(last=lambda norm, h, r: norm(h, r)[0] * 2))


def test_a_stream_that_changes_between_blocks_is_refused():
    with pytest.raises(InvalidInputError, match="block 0 does not return what block 1 reads"):
        prove(Model(between=lambda h, r: (h * 1.01, r)))


def test_blocks_whose_hooks_do_not_fire_are_an_error():
    model = Model()
    proof = Proof(model, list(model.model.layers), hidden_size=HIDDEN)
    proof.attach()
    with pytest.raises(InvalidInputError, match="3 of 3 blocks did not run"):
        proof.sites()


def test_a_module_without_a_stream_is_refused_when_it_is_captured():
    model = Model()
    handle = hook_stream(find_taps(model.model.layers[0])["resid_post"], HIDDEN + 1, print)
    with pytest.raises(InvalidInputError, match=r"tensors \(token, 9\) of the stream, got 0"):
        model(IDS, POSITIONS)
    handle.remove()
