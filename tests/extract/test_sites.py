import numpy as np
import pytest
import torch

from actlake.extract import find_blocks
from actlake.extract.sites import check_sites, tapped
from actlake.schemas import InvalidInputError
from tests.extract.test_capture import ROWS, run
from tests.extract.tiny import CONFIGS, tiny_model

pytestmark = pytest.mark.torch

ALL = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
PARALLEL = {"neox", "phi"}  # attention and MLP read the same stream
SCALED = {"granite"}  # a sublayer's output is halved before it is added
SERIAL = sorted(set(CONFIGS) - PARALLEL - SCALED)


def last(seen, site):
    return seen[f"{site}_last_response"]


@pytest.mark.parametrize("name", SERIAL)
def test_the_stream_grows_by_what_attention_and_mlp_add(name):
    seen = run(tiny_model(name), ROWS, sites=ALL)
    pre, attention, mid, mlp, post = (last(seen, site) for site in ALL)
    np.testing.assert_allclose(pre + attention, mid, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(mid + mlp, post, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(post[:, :-1], pre[:, 1:])
    # No two sites are the same tensor, and none is nothing.
    for a, b in ((pre, mid), (mid, post), (attention, mlp)):
        assert np.abs(a - b).max() > 0.01
    assert np.abs(attention).max() > 1e-3
    assert np.abs(mlp).max() > 1e-3


@pytest.mark.parametrize("name", sorted(PARALLEL))
def test_parallel_sublayers_have_no_stream_between_them(name):
    model = tiny_model(name)
    sites = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    pre, attention, mlp, post = (last(run(model, ROWS, sites=sites), site) for site in sites)
    np.testing.assert_allclose(pre + attention + mlp, post, rtol=1e-5, atol=1e-5)
    with pytest.raises(
        InvalidInputError,
        match="no site resid_mid; it has resid_pre, attn_heads, attn_out, mlp_out, resid",
    ):
        run(model, ROWS, sites=("resid_mid",))


def test_a_sublayer_that_is_scaled_before_it_is_added_is_refused():
    with pytest.raises(InvalidInputError, match="no site attn_out"):
        run(tiny_model("granite"), ROWS, sites=("attn_out",))


@pytest.mark.parametrize("name", SERIAL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_check_holds_in_half_precision(name, dtype):
    model = tiny_model(name).to(dtype)
    check_sites(model.base_model, find_blocks(model.base_model), sites=ALL)


def test_a_block_that_adds_something_else_too_is_found_out():
    """Names prove nothing: here the MLP is called mlp, and yet not all that is added."""
    model = tiny_model("llama")
    blocks = find_blocks(model.base_model)
    for block in blocks:
        block.register_forward_hook(lambda _module, _args, out: out + 0.5)
    with pytest.raises(
        InvalidInputError,
        match="no site mlp_out; it has resid_pre, attn_heads, attn_out, resid_mid, resid",
    ):
        check_sites(model.base_model, blocks, sites=("mlp_out",))


def test_hooks_of_the_check_come_off_whatever_happens():
    model = tiny_model("llama")
    blocks = find_blocks(model.base_model)
    with pytest.raises(ValueError, match="stop"), tapped(blocks):
        raise ValueError("stop")
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
