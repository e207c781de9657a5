import typing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actlake.extract import LoadedModel, TokenRow, TransformersEngine, find_blocks, unwrap_hidden
from actlake.extract.blocks import backbone_of
from actlake.extract.capture import PooledCapture, PoolMasks
from actlake.extract.loading import ModelSource
from actlake.schemas import InvalidInputError, ModelInfo, Pool, Text, TokenizerInfo
from tests.extract.tiny import CONFIGS, tiny_model

pytestmark = pytest.mark.torch

POOLS = ("mean_response", "last_prompt", "last_response")


class Tokenizer:
    pad_token_id = 0
    bos_token_id = 1


def loaded(model, n_layers=4):
    digest = "sha256:" + "0" * 64
    return LoadedModel(
        source=ModelSource("tiny"),
        info=ModelInfo(
            name="tiny",
            architecture=type(model).__name__,
            n_layers=n_layers,
            hidden_size=32,
            n_parameters=1,
            dtype="float32",
            attn_implementation="eager",
        ),
        tokenizer=Tokenizer(),
        tokenizer_info=TokenizerInfo(digest=digest, vocab_size=1024),
        max_positions=256,
        device=torch.device("cpu"),
        model=model,
    )


def token_row(name, n_prompt, n_response, *, seed=0):
    rng = np.random.default_rng([seed, n_prompt, n_response])
    n = n_prompt + n_response
    ids = rng.integers(2, 1024, n).astype(np.int32)
    ids[0] = 1
    special = np.zeros(n, dtype=bool)
    special[0] = True
    response = np.arange(n) >= n_prompt
    return TokenRow(Text(id=name, response="x"), ids, special, response, n)


ROWS = [token_row(f"t{i}", p, r) for i, (p, r) in enumerate([(3, 4), (9, 2), (2, 12), (5, 5)])]


def run(model, rows, *, layers=range(4), sites=("resid_post",), pools=POOLS):
    engine = TransformersEngine(loaded(model), sites=sites, layers=tuple(layers), pools=pools)
    with engine.ready():
        return {k: v.numpy() for k, v in engine.forward(rows).items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_capture_is_the_hidden_state_that_transformers_reports(name):
    model = tiny_model(name)
    row = ROWS[2]
    ids = torch.from_numpy(row.ids).long()[None]
    with torch.inference_mode():
        states = model(ids, output_hidden_states=True).hidden_states
    seen = run(model, [row], sites=("resid_post", "resid_pre"))
    last = row.n_tokens - 1
    for layer in range(4):
        # hidden_states[i] is the input of block i, and the last one is behind the final norm.
        before = states[layer][0].numpy()
        assert np.array_equal(seen["resid_pre_last_response"][0, layer], before[last])
        if layer < 3:
            after = states[layer + 1][0].numpy()
            assert np.array_equal(seen["resid_post_last_response"][0, layer], after[last])
            assert np.array_equal(seen["resid_post_last_prompt"][0, layer], after[row.n_prompt - 1])
            mean = after[row.response].mean(axis=0, dtype=np.float64)
            np.testing.assert_allclose(
                seen["resid_post_mean_response"][0, layer], mean, rtol=2e-5, atol=2e-5
            )
            norms = np.linalg.norm(after[~row.special], axis=1)
            np.testing.assert_allclose(seen["resid_post_norm"][0, layer], norms.mean(), rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_every_pool_is_what_its_name_says(name):
    model = tiny_model(name)
    pools = typing.get_args(Pool)
    seen = run(model, ROWS, pools=pools)
    assert set(seen) == {f"resid_post_{p}" for p in (*pools, "norm", "norm_with_bos")}
    for i, row in enumerate(ROWS):
        ids = torch.from_numpy(row.ids).long()[None]
        with torch.inference_mode():
            states = model(ids, output_hidden_states=True).hidden_states
        for layer in range(3):
            tokens = states[layer + 1][0].double().numpy()
            prompt = np.arange(row.n_tokens) < row.n_prompt
            bos = np.arange(row.n_tokens) == 0
            expected = {
                "mean_response": tokens[row.response].mean(axis=0),
                "mean_prompt": tokens[prompt & ~bos].mean(axis=0),
                "mean_prompt_with_bos": tokens[prompt].mean(axis=0),
                "mean_all": tokens[~bos].mean(axis=0),
                "mean_all_with_bos": tokens.mean(axis=0),
                "first_response": tokens[row.n_prompt],
                "last_response": tokens[-1],
                "last_prompt": tokens[row.n_prompt - 1],
                "first_token": tokens[0],
                "max_abs": np.abs(tokens[~bos]).max(axis=0),
                "norm": np.linalg.norm(tokens[~bos], axis=1).mean(),
                "norm_with_bos": np.linalg.norm(tokens, axis=1).mean(),
            }
            scale = np.abs(tokens).max()
            for pool, values in expected.items():
                got = seen[f"resid_post_{pool}"][i, layer]
                np.testing.assert_allclose(got, values, rtol=5e-5, atol=5e-5 * scale, err_msg=pool)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_last_layer_is_captured_before_the_final_norm(name):
    model = tiny_model(name)
    row = ROWS[0]
    with torch.inference_mode():
        out = model(torch.from_numpy(row.ids).long()[None], output_hidden_states=True)
        seen = run(model, [row])["resid_post_last_response"][0, 3]
        backbone = backbone_of(model)
        norm = next(
            getattr(backbone, n) for n in ("norm", "ln_f", "final_layer_norm", "final_layernorm")
            if hasattr(backbone, n)
        )  # fmt: skip
        normed = norm(torch.from_numpy(seen)[None, None])[0, 0]
    torch.testing.assert_close(normed, out.hidden_states[-1][0, -1], rtol=1e-5, atol=1e-5)
    assert not np.allclose(seen, out.hidden_states[-1][0, -1].numpy(), atol=1e-3)


def test_the_mean_over_a_span_is_that_of_its_tokens():
    model = tiny_model("llama")
    rows = []
    for i, row in enumerate(ROWS):
        mask = row.response & (np.arange(row.n_tokens) % 2 == i % 2)
        rows.append(replace(row, spans={"odd": mask}))
    seen = run(model, rows, pools=("mean_span:odd", "mean_response"))
    for i, row in enumerate(rows):
        with torch.inference_mode():
            states = model(
                torch.from_numpy(row.ids).long()[None], output_hidden_states=True
            ).hidden_states
        for layer in range(3):
            expected = states[layer + 1][0][row.spans["odd"]].mean(dim=0).numpy()
            got = seen["resid_post_mean_span_odd"][i, layer]
            np.testing.assert_allclose(got, expected, rtol=5e-5, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_text_alone_equals_the_text_in_a_batch(name):
    model = tiny_model(name)
    together = run(model, ROWS)
    for i, row in enumerate(ROWS):
        alone = run(model, [row])
        for key, values in alone.items():
            scale = np.abs(values).max()
            np.testing.assert_allclose(together[key][i], values[0], rtol=5e-5, atol=5e-5 * scale)


def test_a_batch_that_does_not_fit_is_run_in_halves():
    model = tiny_model("llama")
    expected = run(model, ROWS)

    def refuse(_module, args):
        if len(args[0]) > 1:
            raise torch.OutOfMemoryError("out of memory. Tried to allocate 2.00 GiB.")

    handle = model.base_model.layers[1].register_forward_pre_hook(refuse)
    engine = TransformersEngine(loaded(model), sites=("resid_post",), layers=range(4), pools=POOLS)
    with engine.ready():
        seen = engine.forward(ROWS)
        assert engine.n_halved == 3
        for name, values in expected.items():
            np.testing.assert_allclose(seen[name].numpy(), values, rtol=5e-5, atol=5e-4)
        handle.remove()
        model.base_model.layers[1].register_forward_pre_hook(
            lambda _m, _a: refuse(None, [range(2)])
        )
        with pytest.raises(InvalidInputError, match="text 't0' with 7 tokens does not fit"):
            engine.forward(ROWS)


def test_layers_above_the_last_asked_for_are_not_run():
    model = tiny_model("llama")
    calls = []
    for i, block in enumerate(find_blocks(model.base_model)):
        block.register_forward_hook(lambda *_, i=i: calls.append(i))
    seen = run(model, ROWS, layers=(1,))
    assert calls == [0, 1]
    assert np.array_equal(
        seen["resid_post_last_prompt"], run(model, ROWS)["resid_post_last_prompt"][:, 1:2]
    )


class Predictable(torch.nn.Module):
    """Block i adds 1000 (i + 1) to a stream that begins as the position."""

    class Block(torch.nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def forward(self, hidden):
            return (hidden + self.value,)

    def __init__(self):
        super().__init__()
        self.config = type("C", (), {"num_hidden_layers": 4})()
        self.config.get_text_config = lambda: self.config
        self.blocks = torch.nn.ModuleList([self.Block(1000.0 * (i + 1)) for i in range(4)])

    @property
    def base_model(self):
        return self

    def forward(self, *, input_ids, attention_mask, position_ids, use_cache):
        hidden = position_ids[..., None].expand(-1, -1, 32).float()
        hidden = torch.where(attention_mask[..., None].bool(), hidden, torch.nan)
        for block in self.blocks:
            hidden = block(hidden)[0]
        return hidden


@given(
    lengths=st.lists(
        st.tuples(st.integers(2, 12), st.integers(1, 12)), min_size=1, max_size=6, unique=True
    )
)
def test_every_offset_is_right_on_a_model_whose_answer_is_known(lengths):
    rows = [token_row(f"t{i}", p, r) for i, (p, r) in enumerate(lengths)]
    seen = run(Predictable(), rows)
    base = np.cumsum([1000.0 * (i + 1) for i in range(4)])
    for i, (p, r) in enumerate(lengths):
        for layer in range(4):
            # Padding holds NaN in this model: nothing of it may reach a pool.
            assert (seen["resid_post_last_prompt"][i, layer] == base[layer] + p - 1).all()
            assert (seen["resid_post_last_response"][i, layer] == base[layer] + p + r - 1).all()
            expected = base[layer] + p + (r - 1) / 2
            np.testing.assert_allclose(
                seen["resid_post_mean_response"][i, layer], expected, rtol=1e-6
            )


def test_a_layer_that_does_not_exist_is_refused_before_anything_runs():
    with pytest.raises(InvalidInputError, match="layers 0 to 3"):
        run(tiny_model("llama"), ROWS, layers=(2, 4))


def test_hooks_come_off_when_a_forward_pass_fails():
    model = tiny_model("llama")
    engine = TransformersEngine(loaded(model), sites=("resid_post",), layers=(0, 2), pools=POOLS)
    bad = TokenRow(ROWS[0].text, ROWS[0].ids + 5000, ROWS[0].special, ROWS[0].response, 7)
    with pytest.raises(IndexError), engine.ready():
        engine.forward([bad])
    assert not any(block._forward_hooks for block in find_blocks(model.base_model))


def test_a_block_that_never_runs_is_an_error_and_not_zeros():
    model = Predictable()
    capture = PooledCapture(list(model.blocks), sites=("resid_post",), layers=(0, 1), pools=POOLS)
    mask = torch.ones(1, 3, dtype=torch.bool)
    at = torch.zeros(1, dtype=torch.long)
    with capture.attached():
        masks = PoolMasks(mask, mask, mask, mask, dict.fromkeys(POOLS[1:], at))
        capture.run(lambda **_inputs: None, {"input_ids": mask}, masks)
        with pytest.raises(InvalidInputError, match="10 of 10 captures did not happen"):
            capture.take()


def test_a_block_that_runs_twice_in_one_pass_is_an_error():
    model = Predictable()
    whole = model.forward

    def twice(**inputs):
        model.blocks[1](torch.zeros(1, 3, 32))
        return whole(**inputs)

    model.forward = twice
    with pytest.raises(InvalidInputError, match="layer 1 was captured twice in one forward pass"):
        run(model, [token_row("a", 2, 1)])


def test_what_is_captured_stays_though_later_blocks_write_in_place():
    class InPlace(Predictable.Block):
        def forward(self, hidden):
            return (hidden.add_(self.value),)

    model, plain = Predictable(), Predictable()
    model.blocks = torch.nn.ModuleList([InPlace(block.value) for block in model.blocks])
    pools = (*POOLS, "max_abs", "first_token")

    def seen(network):
        engine = TransformersEngine(
            loaded(network), sites=("resid_pre", "resid_post"), layers=range(4), pools=pools,
            tokens={"resid_pre": (0, 2), "resid_post": (1, 3)},
        )  # fmt: skip
        with engine.ready():
            return {name: values.numpy() for name, values in engine.forward(ROWS).items()}

    wanted = seen(plain)
    assert len(wanted) == 2 * (5 + 2) + 2
    for name, values in seen(model).items():
        np.testing.assert_array_equal(values, wanted[name], err_msg=name)


def test_the_library_s_own_hidden_states_are_asked_for_by_the_self_check_alone():
    """Never beside hooks of our own (ENGINES 6): what they hold depends on who came first."""
    root = Path(__file__).resolve().parents[2]
    rooms = ("extract", "steer", "analyze", "corpus", "src/actlake")
    users = {
        path.relative_to(root).as_posix()
        for room in rooms
        for path in (root / room).glob("*.py")
        if "output_hidden_states=" in path.read_text()
    }
    assert users == {"extract/checks.py"}


def test_a_matrix_is_never_mistaken_for_a_batch():
    with pytest.raises(InvalidInputError, match=r"got \(3, 4\)"):
        unwrap_hidden(torch.zeros(2, 3, 4)[0])
    assert unwrap_hidden((torch.zeros(2, 3, 4), None)).shape == (2, 3, 4)
    assert unwrap_hidden(torch.zeros(2, 3, 4)).shape == (2, 3, 4)


def test_a_model_without_a_list_of_blocks_is_refused_with_what_was_found():
    model = Predictable()
    model.config.num_hidden_layers = 7
    with pytest.raises(InvalidInputError, match=r"7 blocks, got 0; module lists: blocks \(4\)"):
        find_blocks(model)
