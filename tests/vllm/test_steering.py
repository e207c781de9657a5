"""Interventions in vLLM are those of transformers, whatever batches vLLM makes."""

import numpy as np
import pandas as pd
import pytest
import torch

from actlake.corpus import bundled_corpus, pair_texts
from actlake.extract import load_model, render_texts
from actlake.schemas import CaptureSpec, Direction, InvalidInputError, SteeredTextsSpec, SteerSpec
from actlake.steer import (
    Condition,
    GenerateRow,
    Intervention,
    Positions,
    VllmSteering,
    angle_degrees,
    generate_rows,
    generate_table,
    plan_positions,
    score_rows,
    sweep_direction,
    weigh_direction,
)
from actlake.steer.generation import end_ids
from tests.vllm.steering import OPERATORS, SITES, batch, intervention, oracle, until_end

pytestmark = pytest.mark.vllm

N_NEW = 8
LONGEST = 200


@pytest.fixture(scope="module")
def loaded():
    return load_model("bundled:llama-organism", head=True, device="cpu")


@pytest.fixture(scope="module")
def engine(loaded):
    """vLLM in this process, with fewer places than rows and less than a prompt per pass."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        made = VllmSteering(loaded, longest=LONGEST, batch_tokens=48, options={"max_num_seqs": 4})
        with made.ready():
            yield made


@pytest.fixture(scope="module")
def prompts(loaded):
    return batch(loaded)


def texts(made):
    return [row.ids.tolist() for row in made]


def check(engine, loaded, prompts, interventions):
    """Compare greedy texts and the first token's log-probs with transformers."""
    tokens, first = oracle(loaded, *prompts, interventions, n_new=N_NEW)
    made = engine.generate(*prompts, interventions, max_new_tokens=N_NEW)
    assert texts(made) == until_end(tokens, end_ids(loaded))
    seen = engine.first_logprobs(*prompts, interventions)
    torch.testing.assert_close(seen, first, rtol=0, atol=5e-5)
    return first


def test_without_interventions_it_is_the_model(engine, loaded, prompts):
    check(engine, loaded, prompts, [])
    assert engine.sites == SITES
    assert engine.n_steps > N_NEW


@pytest.mark.parametrize("phase", ["prompt-all", "prompt-last", "response", "all"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_is_that_of_transformers(engine, loaded, prompts, operator, phase):
    seed = OPERATORS.index(operator)
    wanted = intervention(loaded, *prompts, operator, phase=phase, seed=seed, layers=(1, 2))
    clean, _ = oracle(loaded, *prompts, [], n_new=N_NEW)
    steered, _ = oracle(loaded, *prompts, [wanted], n_new=N_NEW)
    assert not torch.equal(clean, steered)  # else nothing would be tested
    check(engine, loaded, prompts, [wanted])


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_every_site_is_that_of_transformers(engine, loaded, prompts, operator, site):
    layers = (0, loaded.info.n_layers - 1)
    wanted = intervention(loaded, *prompts, operator, phase="prompt-all", site=site, layers=layers)
    check(engine, loaded, prompts, [wanted])


def test_several_interventions_act_in_their_order(engine, loaded, prompts):
    parts = [
        intervention(loaded, *prompts, "set", phase="all", seed=1),
        intervention(loaded, *prompts, "add", phase="response", seed=1),
        intervention(loaded, *prompts, "swap", phase="prompt-all", site="resid_pre", layers=(0, 2)),
        intervention(loaded, *prompts, "add", phase="all", site="mlp_out", layers=(1, 3), seed=3),
    ]
    check(engine, loaded, prompts, parts)


def test_rows_of_one_batch_are_the_rows_alone(engine, loaded, prompts):
    ids, attended = prompts
    wanted = intervention(loaded, ids, attended, "add", phase="all", layers=(1, 2))
    together = engine.generate(ids, attended, [wanted], max_new_tokens=N_NEW)
    logprobs = engine.first_logprobs(ids, attended, [wanted])
    for i in range(len(ids)):
        row = slice(i, i + 1)
        alone = Intervention(
            "add", (1, 2), wanted.strengths[row],
            Positions(wanted.positions.planned[row], generated=True), vectors=wanted.vectors[row],
        )  # fmt: skip
        (made,) = engine.generate(ids[row], attended[row], [alone], max_new_tokens=N_NEW)
        assert made.ids.tolist() == together[i].ids.tolist()
        seen = engine.first_logprobs(ids[row], attended[row], [alone])
        torch.testing.assert_close(seen[0], logprobs[i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("operator", ["add", "project_out", "replace", "swap", "swap_complement"])
def test_strength_0_is_no_intervention_to_the_last_bit(engine, loaded, prompts, operator):
    wanted = intervention(loaded, *prompts, operator, phase="all")
    idle = Intervention(
        operator, (1,), torch.zeros(len(prompts[0])), wanted.positions, vectors=wanted.vectors,
        source=wanted.source,
    )  # fmt: skip
    n_writes = engine.n_writes
    clean = engine.first_logprobs(*prompts)
    assert torch.equal(engine.first_logprobs(*prompts, [idle]), clean)
    assert texts(engine.generate(*prompts, [idle], max_new_tokens=N_NEW)) == texts(
        engine.generate(*prompts, max_new_tokens=N_NEW)
    )
    assert engine.n_writes == n_writes
    # A row of strength 0 beside rows that are steered, too.
    mixed = engine.first_logprobs(*prompts, [wanted])
    still = wanted.strengths == 0
    assert still.any()
    assert torch.equal(mixed[still], clean[still])
    assert not any(torch.equal(a, b) for a, b in zip(mixed[~still], clean[~still], strict=True))


def test_every_token_that_is_to_be_changed_is_changed_once(engine, loaded, prompts):
    ids, attended = prompts
    n_rows = len(ids)
    positions = plan_positions(ids, attended, phase="all", bos=loaded.tokenizer.bos_token_id)
    vector = torch.randn(loaded.info.hidden_size, generator=torch.Generator().manual_seed(0))
    wanted = Intervention("add", (0, 2), torch.full((n_rows,), 1e-3), positions, vectors=vector)
    before = engine.n_writes
    engine.first_logprobs(ids, attended, [wanted])
    assert engine.n_writes - before == 2 * int(positions.planned.sum())


def test_texts_at_a_temperature_are_those_of_transformers(engine, loaded, prompts):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(12):
        vector = rng.standard_normal(loaded.info.hidden_size)
        prompt = prompts[0][i % 4][prompts[1][i % 4].bool()].numpy().astype(np.int32)
        vector = (vector / np.linalg.norm(vector)).astype(np.float32)
        rows.append(GenerateRow(prompt, vector if i % 5 else None, float(i % 3), seed=i))
    for temperature, positions in ((0.0, "all"), (1.0, "response"), (2.0, "prompt-last")):
        spec = SteeredTextsSpec(
            layer=2, temperature=temperature, positions=positions, max_new_tokens=20, batch_rows=9
        )
        ours = engine.generate_rows(rows, spec=spec)
        theirs = generate_rows(loaded, rows, spec=spec)
        assert [(m.ids.tolist(), m.ended) for m in ours] == [
            (m.ids.tolist(), m.ended) for m in theirs
        ]
        assert any(m.ended for m in ours) or temperature > 1
        assert len({tuple(m.ids.tolist()) for m in ours}) > 3


def test_the_table_is_that_of_transformers(engine, loaded, prompts, tmp_path):
    rng = np.random.default_rng(1)
    ids, attended = prompts
    named = {f"p{i}": ids[i][attended[i].bool()].numpy().astype(np.int32) for i in range(3)}
    vectors = rng.standard_normal((2, loaded.info.hidden_size)).astype(np.float32)
    directions = {f"d{i}": v / np.linalg.norm(v) for i, v in enumerate(vectors)}
    spec = SteeredTextsSpec(
        layer=2, alphas=(0.0, 3.0, -3.0), seeds=(0, 1), temperature=0.7, max_new_tokens=12,
        batch_rows=10,
    )  # fmt: skip
    table = generate_table(loaded, named, directions, spec=spec, folder=tmp_path, engine=engine)
    wanted = generate_table(loaded, named, directions, spec=spec)
    assert len(list(tmp_path.glob("part-*"))) == 4
    for column in ("prompt", "direction", "alpha", "seed", "text", "ended", "n_new", "n_prompt"):
        assert table[column].tolist() == wanted[column].tolist(), column
    assert [list(ids) for ids in table["ids"]] == [list(ids) for ids in wanted["ids"]]


@pytest.mark.parametrize("positions", ["all", "prompt-last", "response"])
def test_completions_are_scored_as_by_transformers(engine, loaded, positions):
    _, found = bundled_corpus("demo")
    rows = render_texts(found[::60][:8], loaded.tokenizer, spec=CaptureSpec())
    rows = [row for row in rows if row.n_tokens < LONGEST]
    assert len(rows) > 3
    vectors = np.linalg.qr(np.random.default_rng(0).standard_normal((128, 2)))[0].T
    conditions = [
        Condition(row, d, alpha)
        for row in range(len(rows)) for d in (0, 1) for alpha in (-3.0, 0.0, 3.0)
    ]  # fmt: skip
    settings = {"directions": vectors, "layer": 1, "positions": positions}
    ours = engine.score_rows(rows, conditions, **settings)
    theirs = score_rows(loaded, rows, conditions, **settings, batch_tokens=2048)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert np.ptp(ours) > 0.1
    # Several layers at once, each with a vector of its own.
    both = {**settings, "directions": np.stack([vectors, vectors[::-1]], axis=1), "layer": (1, 2)}
    ours = engine.score_rows(rows, conditions, **both)
    theirs = score_rows(loaded, rows, conditions, **both, batch_tokens=2048)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("positions", ["all", "prompt-last", "response"])
@pytest.mark.parametrize("layer", [0, 2])
def test_angles_are_those_of_transformers(engine, loaded, positions, layer):
    _, found = bundled_corpus("demo")
    rows = [r for r in render_texts(found[::60][:8], loaded.tokenizer, spec=CaptureSpec())
            if r.n_tokens < LONGEST]  # fmt: skip
    vectors = np.linalg.qr(np.random.default_rng(0).standard_normal((128, 3)))[0].T
    settings = {"directions": vectors, "layer": layer, "positions": positions}
    n_writes = engine.n_writes
    for alphas in ([-30.0, 0.0, 30.0], np.outer([10.0, 20.0, 30.0], [-1.0, 1.0])):
        ours = engine.angle_degrees(rows, alphas=alphas, **settings)
        theirs = angle_degrees(loaded, rows, alphas=alphas, **settings)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)
        assert ours.max() > 5
    assert engine.n_writes == n_writes


def test_a_sweep_is_that_of_transformers_and_goes_on_in_its_folder(engine, loaded, tmp_path):
    _, found = bundled_corpus("demo")
    pairs = [p for p in pair_texts(found) if p.positive.subset == "plain"][:3]
    vectors = np.linalg.qr(np.random.default_rng(2).standard_normal((128, 2)))[0].T
    directions = [
        Direction(
            method="diff_means", site="resid_post", layer=layer, pool="mean_response", norm=40.0,
            bias=0.0, vector=tuple(vector.tolist()), model=loaded.info.name, run="r",
        )
        for layer, vector in zip((1, 2), vectors, strict=True)
    ]  # fmt: skip
    spec = SteerSpec(alphas=(-1.0, 0.0, 1.0), n_random=3, n_prompts=3)
    asked = {"spec": spec, "capture": CaptureSpec(), "mean_norm": [5.0, 6.0]}
    ours = sweep_direction(loaded, directions, pairs, folder=tmp_path, engine=engine, **asked)
    theirs = sweep_direction(loaded, directions, pairs, **asked)
    pd.testing.assert_frame_equal(ours.samples, theirs.samples, rtol=1e-4, atol=2e-4)
    pd.testing.assert_frame_equal(ours.rows, theirs.rows, rtol=1e-4, atol=2e-4)
    assert ours.rows["estimate"].abs().max() > 0.02
    n_steps = engine.n_steps
    again = sweep_direction(loaded, directions, pairs, folder=tmp_path, engine=engine, **asked)
    pd.testing.assert_frame_equal(again.samples, ours.samples)
    angles = engine.n_steps - n_steps
    n_steps = engine.n_steps
    settings = {"directions": vectors, "layer": 1, "positions": "all"}
    rows = render_texts([p.positive for p in pairs], loaded.tokenizer, spec=CaptureSpec())
    engine.angle_degrees(rows, alphas=[1.0], **settings)
    # Nothing but the angles of both layers is run again.
    assert angles == 2 * (engine.n_steps - n_steps)
    speed = weigh_direction(loaded, directions, pairs, engine=engine, **asked).probe(max_seconds=0)
    assert speed.tokens_per_second > 0


def test_what_does_not_fit_is_refused_and_the_engine_lives_on(engine, loaded, prompts):
    ids, attended = prompts
    n = len(ids)
    positions = plan_positions(ids, attended, phase="all")
    vector = torch.eye(loaded.info.hidden_size)[0]

    def wanted(**changes):
        parts = {
            "operator": "add", "layers": (1,), "strengths": torch.ones(n),
            "positions": positions, "vectors": vector,
        }  # fmt: skip
        return Intervention(**{**parts, **changes})

    wrong = {
        "127 wide": wanted(vectors=vector[:-1]),
        "layers 0 to": wanted(layers=(99,)),
        "must be finite": wanted(strengths=torch.full((n,), float("nan"))),
        "has no site attn_heads to write": wanted(site="attn_heads"),
        "planned for rows x columns": wanted(
            positions=Positions(torch.ones(n, 3, dtype=torch.bool))
        ),
        "unlike numbers of rows": wanted(strengths=torch.ones(n + 1)),
        "needs orthonormal": wanted(operator="project_out", vectors=2 * vector),
        "operator 'push' is unknown": wanted(operator="push"),
    }
    for match, bad in wrong.items():
        with pytest.raises(InvalidInputError, match=match):
            engine.generate(ids, attended, [bad], max_new_tokens=2)
    with pytest.raises(InvalidInputError, match="more than the 200"):
        engine.generate(ids, attended, max_new_tokens=LONGEST)
    with pytest.raises(InvalidInputError, match="at least one token"):
        engine.generate(ids, torch.zeros_like(attended), max_new_tokens=2)
    with pytest.raises(InvalidInputError, match="needs noise_keys"):
        engine.generate(ids, attended, max_new_tokens=2, temperature=1.0)
    with pytest.raises(InvalidInputError, match=f"more than the context of {loaded.max_positions}"):
        VllmSteering(loaded, longest=loaded.max_positions + 1)
    spec = SteeredTextsSpec(layer=99, max_new_tokens=2)
    row = GenerateRow(ids[0][attended[0].bool()].numpy(), vector.numpy(), 1.0)
    with pytest.raises(InvalidInputError, match="layers 0 to"):
        engine.generate_rows([row], spec=spec)
    check(engine, loaded, prompts, [])
