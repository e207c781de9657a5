"""What vLLM gives is what transformers gives."""

import typing

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    Olmo2Config,
    OpenAIGPTConfig,
    Qwen2Config,
)

from actlake.corpus import bundled_corpus
from actlake.extract import TransformersEngine, VllmEngine, load_model, render_texts
from actlake.schemas import CaptureSpec, InvalidInputError, Pool, Site, Text
from tests.extract.tiny import tiny_tokenizer
from tests.vllm.folders import widened_organism

pytestmark = pytest.mark.vllm

POOLS = typing.get_args(Pool)
SITES = tuple(site for site in typing.get_args(Site) if site != "attn_heads")  # ranks split heads
WIDE = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS = {
    "gemma2": Gemma2Config(**WIDE, num_key_value_heads=1, head_dim=32, query_pre_attn_scalar=32),
    "qwen2": Qwen2Config(**WIDE, num_key_value_heads=1),
    "olmo2": Olmo2Config(**WIDE, num_key_value_heads=2),
    "gpt2": GPT2Config(
        vocab_size=512, n_embd=64, n_layer=3, n_head=2, n_positions=512, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    ),
    "neox": GPTNeoXConfig(**WIDE),
    "openai-gpt": OpenAIGPTConfig(
        vocab_size=512, n_embd=64, n_layer=3, n_head=2, n_positions=512, pad_token_id=0
    ),
}  # fmt: skip


def folder(name, path):
    """Save a random model of an architecture with a tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def sample(loaded, n):
    """Texts of very mixed length: rows are sorted, so every n-th."""
    _, texts = bundled_corpus("demo")
    chosen = sorted(texts, key=lambda text: (text.n_chars, text.id))[:: len(texts) // n]
    return render_texts(chosen, loaded.tokenizer, spec=CaptureSpec())


def values(engine, rows):
    with engine.ready():
        return {name: array.cpu().numpy() for name, array in engine.forward(rows).items()}


def vllm(loaded, rows, *, sites=SITES, pools=POOLS, batch_tokens=64):
    layers = range(loaded.info.n_layers)
    longest = max(row.n_tokens for row in rows)
    return VllmEngine(
        loaded, sites=sites, layers=layers, pools=pools, longest=longest,
        batch_tokens=batch_tokens, options={"max_num_seqs": 5},
    )  # fmt: skip


def compare(seen, wanted, *, limit):
    assert set(seen) == set(wanted)
    for name, reference in wanted.items():
        for layer in range(reference.shape[1]):
            ours, theirs = seen[name][:, layer], reference[:, layer]
            error = np.abs(ours - theirs).max() / np.abs(theirs).max()
            assert error < limit, (name, layer, error)


@pytest.fixture(scope="module")
def reference():
    """Every site and pool of an organism by transformers, once."""
    done = {}

    def get(name):
        if name not in done:
            loaded = load_model(f"bundled:{name}")
            rows = sample(loaded, 30)
            engine = TransformersEngine(
                loaded, sites=SITES, layers=range(loaded.info.n_layers), pools=POOLS
            )
            done[name] = loaded, rows, values(engine, rows)
        return done[name]

    return get


@pytest.mark.parametrize("batch_tokens", [16, 64, 2048])
@pytest.mark.parametrize("name", ["llama-organism", "phi3-organism", "gemma2-organism"])
def test_every_site_and_pool_of_an_organism(name, batch_tokens, reference, tmp_path):
    loaded, rows, wanted = reference(name)
    if name != "llama-organism":  # vLLM has no heads of its size on a CPU: see below
        loaded = load_model(str(widened_organism(name, tmp_path / name)), weights=False)
    compare(values(vllm(loaded, rows, batch_tokens=batch_tokens), rows), wanted, limit=1e-5)


def test_conversations_and_token_ids_are_what_they_are_in_transformers():
    """Every kind of input: turns with a system text, plain text, ids with and without a prompt."""
    loaded = load_model("bundled:llama-organism")
    turns = [
        {"role": "user", "content": "You are at the bakery."},
        {"role": "assistant", "content": "I knead the dough."},
        {"role": "user", "content": "A girl falls. What do you do?"},
    ]
    conversation = Text.parse({"id": "a", "response": "I stop and help her.", "messages": turns})
    written = [
        conversation,
        Text(id="b", system="Be kind.", prompt="A boy falls.", response="I stop."),
        Text(id="c", response="the ward is full and I go on"),
    ]
    (chat,) = render_texts([conversation], loaded.tokenizer, spec=CaptureSpec())
    ids = tuple(chat.ids.tolist())
    given = [
        Text(id="d", response=conversation.response, token_ids=ids, response_start=chat.n_prompt),
        Text(id="e", token_ids=ids[3:20]),
    ]
    pools = tuple(pool for pool in POOLS if "prompt" not in pool)
    rows = render_texts([*written, *given], loaded.tokenizer, spec=CaptureSpec(pools=pools))
    assert rows[3].ids.tolist() == rows[0].ids.tolist()
    engine = TransformersEngine(
        loaded, sites=("resid_post",), layers=range(loaded.info.n_layers), pools=pools
    )
    wanted = values(engine, rows)
    seen = values(vllm(loaded, rows, sites=("resid_post",), pools=pools, batch_tokens=16), rows)
    compare(seen, wanted, limit=1e-5)
    for name, array in seen.items():
        if "all" in name:  # the same ids, whichever way they came
            np.testing.assert_allclose(array[3], array[0], rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(("name", "size"), [("phi3-organism", 24), ("gemma2-organism", 28)])
def test_a_head_size_that_vllm_lacks_is_refused_with_those_it_has(name, size, reference):
    loaded, rows, _ = reference(name)
    with pytest.raises(InvalidInputError, match=rf"no head size {size}.*\[32, 64.*transformers"):
        values(vllm(loaded, rows), rows)


@pytest.mark.parametrize("name", ["gemma2", "qwen2", "olmo2", "gpt2"])
def test_every_site_of_other_architectures(name, tmp_path):
    loaded = load_model(str(folder(name, tmp_path / name)))
    rows = sample(loaded, 12)
    engine = TransformersEngine(
        loaded, sites=SITES, layers=range(loaded.info.n_layers), pools=("mean_all", "max_abs")
    )
    wanted = values(engine, rows)
    compare(values(vllm(loaded, rows, pools=("mean_all", "max_abs")), rows), wanted, limit=1e-5)


def test_bfloat16_is_as_near_as_its_rounding(tmp_path):
    path = folder("qwen2", tmp_path / "qwen2")
    loaded = load_model(str(path), dtype="bfloat16")
    rows = sample(loaded, 12)
    layers = range(loaded.info.n_layers)
    pools = ("mean_all", "last_response")
    engine = TransformersEngine(loaded, sites=("resid_post",), layers=layers, pools=pools)
    wanted = values(engine, rows)
    seen = values(vllm(loaded, rows, sites=("resid_post",), pools=pools), rows)
    compare(seen, wanted, limit=3e-2)
    picked = torch.from_numpy(seen["resid_post_last_response"])
    assert torch.equal(picked, picked.bfloat16().float())  # exactly the model's own values
    for name in pools:
        ours, theirs = seen[f"resid_post_{name}"], wanted[f"resid_post_{name}"]
        cosine = (ours * theirs).sum(-1) / (
            np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
        )
        assert cosine.min() > 0.999


def test_a_site_that_a_model_lacks_is_refused_with_those_it_has(tmp_path):
    loaded = load_model(str(folder("neox", tmp_path / "neox")), weights=False)
    rows = sample(loaded, 4)
    with pytest.raises(
        InvalidInputError, match=r"no site resid_mid; it has resid_pre, .*resid_post"
    ):
        values(vllm(loaded, rows), rows)


def test_a_model_that_vllm_does_not_have_is_one_clear_line(tmp_path):
    loaded = load_model(str(folder("openai-gpt", tmp_path / "gpt")), weights=False)
    rows = sample(loaded, 4)
    with pytest.raises(InvalidInputError, match="use the transformers engine") as caught:
        values(vllm(loaded, rows), rows)
    assert "\n" not in str(caught.value)
