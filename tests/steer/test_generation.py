import numpy as np
import pandas as pd
import pytest
import torch

from actlake.extract import load_model
from actlake.schemas import InvalidInputError, SteeredTextsSpec, Text
from actlake.steer import (
    GenerateRow,
    condition_cost,
    generate_rows,
    generate_table,
    prompt_ids,
    read_generated,
)
from tests.extract.tiny import tiny_folder

pytestmark = pytest.mark.torch

TEXTS = [
    Text(id=f"t{i}", prompt="the boy has fallen " * (i + 1), response="I stop") for i in range(3)
]


@pytest.fixture(scope="module", params=["llama", "gemma2", "phi3"])
def loaded(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("m") / f"tiny-{request.param}"
    return load_model(str(tiny_folder(request.param, folder)), head=True)


def unit(seed=0, width=32):
    v = np.random.default_rng(seed).standard_normal(width)
    return (v / np.linalg.norm(v)).astype(np.float32)


def rows_of(loaded, alphas=(0.0, 4.0, -4.0), seeds=(0,)):
    ids = prompt_ids(loaded, TEXTS)
    return [
        GenerateRow(prompt, unit(d), alpha, seed)
        for prompt in ids.values()
        for d in (0, 1)
        for alpha in alphas
        for seed in seeds
    ]


def ids_of(made):
    return [found.ids.tolist() for found in made]


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("positions", ["all", "response", "prompt-last"])
def test_a_row_in_a_batch_is_the_row_alone_with_a_cache_or_without(loaded, positions, temperature):
    spec = SteeredTextsSpec(layer=1, positions=positions, temperature=temperature, max_new_tokens=8)
    rows = rows_of(loaded, seeds=(0, 5) if temperature else (0,))[::2]
    together = ids_of(generate_rows(loaded, rows, spec=spec))
    alone = [ids_of(generate_rows(loaded, [row], spec=spec))[0] for row in rows]
    assert together == alone
    assert together == ids_of(generate_rows(loaded, rows, spec=spec, use_cache=False))
    assert len({tuple(ids) for ids in together}) > 4


def test_the_greedy_text_is_that_of_the_model_s_own_generate(loaded):
    spec = SteeredTextsSpec(layer=1, max_new_tokens=10)
    for prompt in prompt_ids(loaded, TEXTS).values():
        (made,) = generate_rows(loaded, [GenerateRow(prompt)], spec=spec)
        with torch.inference_mode():
            out = loaded.network.generate(
                torch.from_numpy(prompt).long()[None], max_new_tokens=10, do_sample=False,
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                eos_token_id=loaded.tokenizer.eos_token_id, pad_token_id=0,
            )  # fmt: skip
        expected = out[0, len(prompt) :].tolist()
        if loaded.tokenizer.eos_token_id in expected:
            expected = expected[: expected.index(loaded.tokenizer.eos_token_id)]
        assert made.ids.tolist() == expected


def test_alpha_zero_is_no_hook(loaded):
    spec = SteeredTextsSpec(layer=1, max_new_tokens=8, temperature=1.0)
    idle = rows_of(loaded, alphas=(0.0,))
    plain = [GenerateRow(row.ids, seed=row.seed) for row in idle]
    assert ids_of(generate_rows(loaded, idle, spec=spec)) == ids_of(
        generate_rows(loaded, plain, spec=spec)
    )


def test_sampling_draws_from_the_softmax():
    loaded = load_model("bundled:llama-organism", head=True, device="cpu")
    (prompt,) = prompt_ids(loaded, TEXTS[:1]).values()
    spec = SteeredTextsSpec(layer=1, temperature=2.0, max_new_tokens=1, batch_rows=500)
    rows = [GenerateRow(prompt, seed=seed) for seed in range(2000)]
    made = generate_rows(loaded, rows, spec=spec)
    first = [m.ids[0] if len(m.ids) else loaded.tokenizer.eos_token_id for m in made]
    with torch.inference_mode():
        logits = loaded.network(torch.from_numpy(prompt).long()[None]).logits[0, -1]
    expected = torch.softmax(logits.double() / 2.0, dim=-1).numpy()
    counts = np.bincount(first, minlength=len(expected))
    top = np.argsort(expected)[-5:]
    sd = np.sqrt(2000 * expected[top] * (1 - expected[top]))
    assert (np.abs(counts[top] - 2000 * expected[top]) < 4 * sd).all()


def test_texts_end_where_the_organism_ends_them_and_the_batch_shrinks():
    loaded = load_model("bundled:llama-organism", head=True, device="cpu")
    from tests.steer.contrasts import organism_contrasts

    texts = [
        Text(id=c.id, system=c.source, prompt=c.prompt, response="-") for c in organism_contrasts(5)
    ]
    table = generate_table(
        loaded, prompt_ids(loaded, texts), {"none": unit(width=128)},
        spec=SteeredTextsSpec(layer=2, max_new_tokens=80),
    )  # fmt: skip
    assert table["ended"].all()
    assert table["n_new"].nunique() > 1
    assert table["text"].str.endswith(".").all()
    end = loaded.tokenizer.eos_token_id
    assert not any(end in ids for ids in table["ids"])


def test_a_table_goes_on_where_it_was_interrupted(loaded, tmp_path, monkeypatch):
    prompts, directions = prompt_ids(loaded, TEXTS), {"own": unit(0), "random": unit(1)}
    spec = SteeredTextsSpec(layer=1, alphas=(0.0, 3.0), max_new_tokens=4, batch_rows=4)
    whole = generate_table(loaded, prompts, directions, spec=spec)
    assert len(whole) == 12
    passes = []

    class StopError(Exception):
        pass

    def count(*_args):
        passes.append(1)
        if len(passes) == 6:  # in the second batch
            raise StopError

    hook = loaded.network.register_forward_hook(count)
    with pytest.raises(StopError):
        generate_table(loaded, prompts, directions, spec=spec, folder=tmp_path)
    hook.remove()
    assert len(read_generated(tmp_path)) == 4
    assert condition_cost(loaded, prompts, directions, spec=spec, folder=tmp_path).n_rows == 8
    (tmp_path / ".part-0.parquet.partial").write_bytes(b"cut off")
    seen = []
    done = generate_table(
        loaded, prompts, directions, spec=spec, folder=tmp_path, progress=lambda *n: seen.append(n)
    )
    assert seen == [(8, 12), (12, 12)]
    pd.testing.assert_frame_equal(done, whole)
    n_parts = len(list(tmp_path.glob("part-*")))
    more = spec.model_copy(update={"alphas": (0.0, 3.0, 5.0)})
    assert condition_cost(loaded, prompts, directions, spec=more, folder=tmp_path).n_rows == 6
    again = generate_table(loaded, prompts, directions, spec=spec, folder=tmp_path)
    pd.testing.assert_frame_equal(again, whole)
    assert len(list(tmp_path.glob("part-*"))) == n_parts
    other = spec.model_copy(update={"layer": 2})
    with pytest.raises(InvalidInputError, match="made with another layer"):
        generate_table(loaded, prompts, directions, spec=other, folder=tmp_path)


def test_what_cannot_be_generated_is_refused(loaded):
    prompts = prompt_ids(loaded, TEXTS)
    spec = SteeredTextsSpec(layer=1, max_new_tokens=4)
    with pytest.raises(InvalidInputError, match="more than the context of 256"):
        generate_table(
            loaded, prompts, {"own": unit()}, spec=spec.model_copy(update={"max_new_tokens": 250})
        )
    with pytest.raises(InvalidInputError, match="32 wide"):
        generate_table(loaded, prompts, {"own": unit(width=31)}, spec=spec)
    with pytest.raises(InvalidInputError, match="length 2, expected 1"):
        generate_table(loaded, prompts, {"own": 2 * unit()}, spec=spec)
    with pytest.raises(InvalidInputError, match="0 prompts"):
        generate_table(loaded, {}, {"own": unit()}, spec=spec)
    with pytest.raises(InvalidInputError, match="has no prompt"):
        prompt_ids(loaded, [Text(id="x", response="y")])
    with pytest.raises(InvalidInputError, match="layers 0 to 3"):
        generate_table(loaded, prompts, {"own": unit()}, spec=spec.model_copy(update={"layer": 9}))
    with pytest.raises(InvalidInputError, match="same text"):
        SteeredTextsSpec.parse({"layer": 1, "seeds": [1, 2]})
