"""Steering when vLLM chunks, preempts, shares, splits and remembers; and other models."""

import numpy as np
import pytest
import torch

from actlake.corpus import bundled_corpus
from actlake.extract import load_model, render_texts
from actlake.schemas import CaptureSpec, InvalidInputError, SteeredTextsSpec
from actlake.steer import (
    GenerateRow,
    Intervention,
    Positions,
    VllmSteering,
    angle_degrees,
    generate_rows,
    plan_positions,
)
from actlake.steer.generation import end_ids
from tests.vllm.folders import widened_organism
from tests.vllm.steering import (
    OPERATORS,
    SITES,
    batch,
    beside_vllm,
    intervention,
    oracle,
    stream_scale,
    until_end,
)  # fmt: skip
from tests.vllm.test_parity import CONFIGS, folder

pytestmark = pytest.mark.vllm

N_NEW = 8


@pytest.fixture(scope="module")
def loaded():
    return load_model("bundled:llama-organism", head=True, device="cpu")


def texts(made):
    return [row.ids.tolist() for row in made]


def check(engine, loaded, prompts, interventions, *, limit=5e-5):
    tokens, first = oracle(loaded, *prompts, interventions, n_new=N_NEW)
    made = engine.generate(*prompts, interventions, max_new_tokens=N_NEW)
    assert texts(made) == until_end(tokens, end_ids(loaded))
    seen = engine.first_logprobs(*prompts, interventions)
    torch.testing.assert_close(seen, first, rtol=0, atol=limit)


def all_at_once(loaded, prompts):
    """Every operator, at unlike sites, layers and phases."""
    phases = ("all", "prompt-all", "response", "prompt-last", "all", "prompt-all")
    last = loaded.info.n_layers - 1
    return [
        intervention(
            loaded, *prompts, operator, phase=phase, seed=i, layers=(i % last, last),
            site=("resid_post", "resid_pre")[i % 2],
        )
        for i, (operator, phase) in enumerate(zip(OPERATORS, phases, strict=True))
    ]  # fmt: skip


@pytest.mark.parametrize("batch_tokens", [16, 2048])
def test_any_size_of_forward_pass_gives_the_same(loaded, batch_tokens):
    prompts = batch(loaded, 9)
    engine = VllmSteering(loaded, longest=200, batch_tokens=batch_tokens)
    with engine.ready():
        check(engine, loaded, prompts, all_at_once(loaded, prompts))


def test_rows_that_vllm_preempts_and_begins_again_are_steered_the_same(loaded):
    ids, attended = batch(loaded, 8)
    rng = np.random.default_rng(0)
    rows = []
    for i in range(16):
        vector = rng.standard_normal(loaded.info.hidden_size)
        prompt = ids[i % 8][attended[i % 8].bool()].numpy().astype(np.int32)
        vector = (vector / np.linalg.norm(vector)).astype(np.float32)
        rows.append(GenerateRow(prompt, vector, float(i % 3), i))
    longest = max(len(row.ids) for row in rows) + 40
    engine = VllmSteering(
        loaded, longest=longest, batch_tokens=48,
        options={
            # Rows are begun side by side, with room for the keys and values of a few.
            "num_gpu_blocks_override": -(-longest // 32) + 4, "block_size": 32,
            "scheduler_reserve_full_isl": False, "long_prefill_token_threshold": 16,
        },
    )  # fmt: skip
    with engine.ready():
        for temperature in (0.0, 2.0):
            spec = SteeredTextsSpec(
                layer=2, positions="all", temperature=temperature, max_new_tokens=40
            )
            made = engine.generate_rows(rows, spec=spec)
            assert texts(made) == texts(generate_rows(loaded, rows, spec=spec))
    assert engine.n_recomputed > 0


def test_ranks_of_tensor_parallelism_write_the_same(loaded):
    prompts = batch(loaded, 4)
    engine = VllmSteering(loaded, longest=200, batch_tokens=64, tensor_parallel=2)
    with engine.ready():
        assert engine.sites == SITES
        check(engine, loaded, prompts, all_at_once(loaded, prompts))


def test_steered_keys_and_values_are_never_shared(loaded):
    ids, attended = batch(loaded, 4)
    longest = int(attended.sum(dim=1).max()) + 64
    engine = VllmSteering(
        loaded, longest=longest, batch_tokens=64, prefix_caching=True, options={"block_size": 32}
    )
    ends = end_ids(loaded)
    vector = torch.randn(loaded.info.hidden_size, generator=torch.Generator().manual_seed(0))
    scale = stream_scale(loaded, ids, attended, 0) / vector.norm()

    def add(strength, phase, ids, attended):
        positions = plan_positions(ids, attended, phase=phase)
        strengths = torch.full((len(ids),), float(strength))
        return [Intervention("add", (0,), strengths, positions, vectors=vector * scale)]

    with engine.ready():

        def run(interventions, prompts=(ids, attended)):
            """Greedy texts and how many of the prompts' tokens were there already."""
            before = engine.n_cached
            tokens, first = oracle(loaded, *prompts, interventions, n_new=N_NEW)
            made = engine.generate(*prompts, interventions, max_new_tokens=N_NEW)
            assert texts(made) == until_end(tokens, ends)
            n_cached = engine.n_cached - before
            seen = engine.first_logprobs(*prompts, interventions)
            torch.testing.assert_close(seen, first, rtol=0, atol=5e-5)
            return texts(made), n_cached

        clean, n_cached = run([])
        assert n_cached == 0
        again, n_cached = run([])
        assert again == clean
        assert n_cached > 0  # the cache is there, and unsteered rows share
        steered, n_cached = run(add(1, "prompt-all", ids, attended))
        assert steered != clean
        assert n_cached == 0  # nothing of the clean runs
        assert run(add(1, "prompt-all", ids, attended))[1] > 0  # the same again: the same cache
        others = ((-1, "prompt-all"), (1, "all"), (1, "response"), (1, "prompt-last"))
        for strength, phase in others:
            assert run(add(strength, phase, ids, attended))[1] == 0, phase
        assert run([])[0] == clean
        # What was generated under steering, given as a prompt: its keys are the steered ones.
        row = attended[0].bool()
        held = add(3, "all", ids[:1], attended[:1])
        long = engine.generate(ids[:1], attended[:1], held, max_new_tokens=48)[0].ids
        grown = torch.cat([ids[0][row], torch.from_numpy(long)])[None]
        assert grown.shape[1] // 32 > int(row.sum()) // 32  # a block of generated tokens
        _, n_cached = run([], (grown, torch.ones_like(grown)))
        assert n_cached <= int(row.sum())  # of the prompt alone, which ran unsteered


@pytest.mark.parametrize("name", ["phi3-organism", "gemma2-organism"])
def test_organisms_in_heads_that_vllm_has(name, tmp_path):
    loaded = load_model(f"bundled:{name}", head=True, device="cpu")
    wide = load_model(str(widened_organism(name, tmp_path / name)), weights=False)
    prompts = batch(loaded, 5)
    engine = VllmSteering(wide, longest=200, batch_tokens=64)
    with engine.ready():
        assert engine.sites == SITES
        check(engine, loaded, prompts, [])
        for operator in OPERATORS:
            for site in SITES:
                wanted = intervention(
                    loaded, *prompts, operator, phase="all", site=site, layers=(0, 2)
                )
                check(engine, loaded, prompts, [wanted])


@pytest.mark.parametrize("name", ["gemma2", "qwen2", "olmo2", "gpt2", "neox"])
def test_other_architectures(name, tmp_path):
    with beside_vllm(CONFIGS[name], tmp_path / "config"):
        loaded = load_model(str(folder(name, tmp_path / name)), head=True, device="cpu")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 500, (4, 20), generator=generator)
    attended = (torch.arange(20) >= torch.tensor([0, 5, 16, 11])[:, None]).long()
    engine = VllmSteering(loaded, longest=64, batch_tokens=16)
    with engine.ready():
        assert set(engine.sites) == set(SITES) - ({"resid_mid"} if name == "neox" else set())
        check(engine, loaded, (ids, attended), [], limit=1e-3)
        for operator in OPERATORS:
            for site in engine.sites:
                wanted = intervention(loaded, ids, attended, operator, phase="all", site=site)
                check(engine, loaded, (ids, attended), [wanted], limit=1e-3)


def test_a_state_written_at_the_last_block_gives_its_own_logits(loaded):
    """ENGINES 27, in bfloat16: a state is written to the last bit."""
    half = load_model("bundled:llama-organism", head=True, device="cpu", dtype="bfloat16")
    ids, attended = batch(half, 4)
    n, width = ids.shape
    last = half.info.n_layers - 1
    with torch.inference_mode():
        states = half.backbone(ids.flip(0), attention_mask=attended.flip(0)).last_hidden_state
    source = states[:, -1].float().contiguous()  # any states that bfloat16 holds
    planned = torch.zeros(n, width, dtype=torch.bool)
    planned[:, -1] = True
    held = Intervention("replace", (last,), torch.ones(n), Positions(planned), source=source)
    engine = VllmSteering(half, longest=200, batch_tokens=64)
    with engine.ready():
        assert {"resid_pre", "resid_post"} <= set(engine.sites)
        seen = engine.first_logprobs(ids, attended, [held])
        alike = engine.first_logprobs(
            ids.flip(0),
            attended.flip(0),
            [Intervention("replace", (last,), torch.ones(n), Positions(planned), source=source)],
        )
    # Whatever the prompt, what is read behind the last block is what was written there.
    assert torch.equal(seen, alike)
    with torch.inference_mode():
        norm = half.backbone.norm(source.bfloat16()[:, None])
        wanted = half.network.lm_head(norm)[:, 0].float().log_softmax(dim=-1)
    torch.testing.assert_close(seen, wanted, rtol=0, atol=0.05)


def test_tokens_from_a_cache_are_not_read(loaded):
    rows = render_texts(bundled_corpus("demo")[1][:1], loaded.tokenizer, spec=CaptureSpec())
    cached = VllmSteering(
        loaded, longest=200, batch_tokens=64, prefix_caching=True, options={"block_size": 32}
    )
    assert rows[0].n_tokens > 40  # more than a block
    settings = {
        "directions": np.eye(1, 128), "alphas": [1.0], "layer": 1, "positions": "all",
    }  # fmt: skip
    with cached.ready():
        first = cached.angle_degrees(rows, **settings)
        np.testing.assert_allclose(first, angle_degrees(loaded, rows, **settings), rtol=1e-4)
        with pytest.raises(InvalidInputError, match="tokens from a cache are not read"):
            cached.angle_degrees(rows, **settings)
