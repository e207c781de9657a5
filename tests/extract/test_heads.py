"""Per-head outputs of the attention: what they are, and in which order the heads stand."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from actlake.corpus import corpus_info
from actlake.extract import extract_run, find_blocks, load_model, plan_extraction
from actlake.extract.sites import check_sites, find_heads, find_taps, proven_sites
from actlake.schemas import CaptureSpec, ExtractSpec, InvalidInputError
from actlake.store import create_store, open_run, split_heads, verify_run
from tests.extract.test_capture import ROWS, run
from tests.extract.test_run import TEXTS
from tests.extract.tiny import CONFIGS, WIDE, tiny_folder, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.torch

AFTER = ("post_attention_layernorm", "post_self_attn_layernorm")
POST_NORM = {"gemma2", "gemma3", "olmo2", "glm4"}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_projection_of_the_heads_is_what_attention_adds(name):
    model = tiny_model(name)
    blocks = find_blocks(model.base_model)
    sites = ("attn_heads",) if name == "granite" else ("attn_heads", "attn_out")
    seen = run(model, ROWS, sites=sites)
    heads = torch.from_numpy(seen["attn_heads_last_response"])
    assert heads.shape[-1] == int(np.prod(find_heads(model.base_model, blocks)))
    assert heads.abs().max() > 1e-3
    for layer, block in enumerate(blocks):
        added = find_taps(block)["attn_heads"].module(heads[:, layer : layer + 1])
        if name in POST_NORM:
            added = next(getattr(block, n) for n in reversed(AFTER) if hasattr(block, n))(added)
        if name != "granite":
            expected = seen["attn_out_last_response"][:, layer]
            np.testing.assert_allclose(added[:, 0].numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "olmo2", "gemma2"])
def test_heads_are_attention_weights_times_values(name):
    model = tiny_model(name)
    row = ROWS[2]
    values = {}
    for layer, block in enumerate(model.base_model.layers):
        block.self_attn.v_proj.register_forward_hook(
            lambda _m, _a, out, layer=layer: values.__setitem__(layer, out)
        )
    with torch.inference_mode():
        out = model(torch.from_numpy(row.ids).long()[None], output_attentions=True)
    seen = run(model, [row], sites=("attn_heads",))["attn_heads_last_response"]
    for layer, weights in enumerate(out.attentions):
        n_heads = weights.shape[1]
        v = values[layer].view(1, row.n_tokens, 2, -1).transpose(1, 2)
        v = v.repeat_interleave(n_heads // 2, dim=1)
        expected = (weights @ v)[0, :, -1].reshape(-1)
        np.testing.assert_allclose(seen[0, layer], expected.numpy(), rtol=1e-5, atol=1e-5)


def test_heads_that_cannot_be_told_are_refused_with_the_sites_there_are():
    model = tiny_model("llama")
    blocks = find_blocks(model.base_model)
    for block in blocks:
        block.self_attn.o_proj.register_forward_hook(lambda _m, _a, out: out * 1.5)
        block.self_attn.register_forward_hook(lambda _m, _a, out: (out[0] + 0.1, *out[1:]))
    assert "attn_heads" not in proven_sites(model.base_model, blocks)
    with pytest.raises(InvalidInputError, match="no site attn_heads; it has resid_pre"):
        check_sites(model.base_model, blocks, sites=("attn_heads",))
    blocks[1].self_attn.o_proj = torch.nn.Linear(48, 32)
    assert find_heads(model.base_model, blocks) is None
    model.base_model.config = deepcopy(model.config)
    model.base_model.config.num_attention_heads = 5
    assert find_heads(model.base_model, blocks[:1]) is None


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Four heads of sixteen values each on a stream of 32."""
    path = tmp_path_factory.mktemp("model") / "tiny-wide"
    torch.manual_seed(0)
    config = Qwen3Config(**WIDE, num_key_value_heads=2, head_dim=16)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def test_heads_wider_than_the_stream_are_stored_and_taken_apart(tmp_path, wide):
    store = create_store(tmp_path / "store")
    capture = CaptureSpec(sites=("attn_heads", "resid_post"), layers=(1, 3))
    spec = ExtractSpec(chunk_size=7, batch_tokens=200, device="cpu")
    plan = plan_extraction(
        TEXTS, model=str(wide), run="r", corpus="c", capture=capture, extract=spec
    )
    extract_run(
        store, TEXTS, corpus_info("c", TEXTS), model=str(wide), run="r", capture=capture,
        extract=spec,
    )  # fmt: skip
    assert verify_run(store, "r", full=True).ok
    dataset = open_run(store, "r")
    array = dataset["attn_heads_last_response"]
    assert array.dims == ("text", "layer", "head_hidden")
    assert plan.summary()["bytes_per_array"][array.name] == array.nbytes
    apart = split_heads(array)
    assert apart.sizes == {"text": 24, "layer": 2, "head": 4, "head_dim": 16}
    assert apart.chunks is not None
    np.testing.assert_array_equal(
        apart.sel(layer=3).isel(head=2).values, array.sel(layer=3).values[:, 32:48]
    )
    with pytest.raises(InvalidInputError, match="holds no heads"):
        split_heads(dataset["resid_post_last_response"])


def test_a_model_without_heads_is_refused_before_weights_are_read(tmp_path, monkeypatch):
    folder = tiny_folder("llama", tmp_path / "tiny")
    monkeypatch.setattr("actlake.extract.loading.find_heads", lambda *_: None)
    assert load_model(str(folder), weights=False).heads is None
    with pytest.raises(InvalidInputError, match="heads cannot be told apart"):
        plan_extraction(
            TEXTS, model=str(folder), run="r", corpus="c",
            capture=CaptureSpec(sites=("attn_heads",)),
        )  # fmt: skip
