import numpy as np
import pytest
import torch

from actlake.corpus import pair_texts
from actlake.extract import find_blocks, load_model, render_texts, replace_hidden, unwrap_hidden
from actlake.schemas import CaptureSpec, Direction, InvalidInputError, SteerSpec, Text
from actlake.steer import (
    Condition,
    angle_degrees,
    choose_pairs,
    compare_layers,
    score_rows,
    steered_mask,
)
from actlake.steer import sweep_direction as sweep
from actlake.steer.sweep import with_random
from tests.extract.tiny import tiny_folder

pytestmark = pytest.mark.torch

TEXTS = [
    Text(
        id=f"{pair}-{arm}",
        prompt="the boy has fallen " * (1 + pair % 2),
        response=("I stop to help" if arm == "positive" else "and the boy has fallen")
        + " I" * pair,
        arm=arm,
        pair=f"p{pair}",
        scenario=f"s{pair % 3}",
        split="test" if pair % 3 else "train",
        subset="plain" if pair < 6 else "shortcut",
    )
    for pair in range(9)
    for arm in ("positive", "negative")
]
PAIRS = pair_texts(TEXTS)
CAPTURE = CaptureSpec()


@pytest.fixture(scope="module", params=["llama", "gemma2", "phi3"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("m") / f"tiny-{request.param}"
    return load_model(str(tiny_folder(request.param, folder)), head=True)


def rows_of(model):
    return render_texts([p.positive for p in PAIRS[:4]], model.tokenizer, spec=CAPTURE)


def direction(loaded, *, layer=1, seed=0, **changes):
    vector = np.random.default_rng(seed).standard_normal(32)
    vector /= np.linalg.norm(vector)
    values = {
        "method": "diff_means", "site": "resid_post", "layer": layer, "pool": "mean_response",
        "vector": vector.tolist(), "norm": 2.5, "bias": 0.0, "model": loaded.info.name, "run": "r",
    }  # fmt: skip
    return Direction.parse(values | changes)


def naive_score(model, row, vector, alpha, layer, positions):
    """One text alone, the plain way: a full forward pass and a hook of its own."""
    mask = torch.from_numpy(steered_mask(row, positions, bos=model.tokenizer.bos_token_id))

    def hook(_module, _args, output):
        hidden = unwrap_hidden(output).clone()
        hidden[0, mask] += torch.from_numpy(vector).float() * alpha
        return replace_hidden(output, hidden)

    handle = find_blocks(model.backbone)[layer].register_forward_hook(hook)
    try:
        with torch.inference_mode():
            logits = model.network(torch.from_numpy(row.ids).long()[None]).logits[0]
    finally:
        handle.remove()
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    picked = [log_probs[i - 1, row.ids[i]].item() for i in np.flatnonzero(row.response)]
    return np.mean(picked)


@pytest.mark.parametrize("positions", ["all", "response", "prompt-all", "prompt-last"])
def test_batched_scores_equal_one_text_at_a_time(model, positions):
    rows = rows_of(model)
    vectors = np.array([direction(model, seed=s).vector for s in (0, 1)])
    conditions = [
        Condition(row, d, alpha)
        for row in range(len(rows))
        for d in range(2)
        for alpha in (-3.0, 0.0, 8.0)
    ]
    scores = score_rows(
        model, rows, conditions,
        directions=vectors, layer=2, positions=positions, batch_tokens=150,
    )  # fmt: skip
    for condition, score in zip(conditions, scores, strict=True):
        expected = naive_score(
            model, rows[condition.row], vectors[condition.direction], condition.alpha, 2, positions
        )
        assert score == pytest.approx(expected, rel=5e-5, abs=5e-5)


def test_the_angle_is_that_between_the_residuals(model):
    rows = rows_of(model)[:2]
    vector = np.array(direction(model).vector)
    seen = []
    block = find_blocks(model.backbone)[1]
    handle = block.register_forward_hook(lambda _m, _a, out: seen.append(unwrap_hidden(out)[0]))
    with torch.inference_mode():
        for row in rows:
            model.backbone(torch.from_numpy(row.ids).long()[None])
    handle.remove()
    expected = []
    for row, hidden in zip(rows, seen, strict=True):
        mask = steered_mask(row, "all", bos=model.tokenizer.bos_token_id)
        before = hidden.numpy()[mask].astype(float)
        after = before + 4.0 * vector
        cosine = (before * after).sum(1) / np.linalg.norm(before, axis=1)
        expected.extend(np.degrees(np.arccos(cosine / np.linalg.norm(after, axis=1))))
    got = angle_degrees(
        model, rows, directions=vector[None], alphas=[0.0, 4.0], layer=1, positions="all"
    )
    assert got[0, 0] == pytest.approx(0, abs=0.1)
    assert got[0, 1] == pytest.approx(np.mean(expected), rel=1e-3)


def test_positions_are_those_of_their_names_and_never_the_bos(model):
    (row,) = rows_of(model)[:1]
    bos = model.tokenizer.bos_token_id
    assert row.ids[0] == bos
    masks = {
        p: steered_mask(row, p, bos=bos) for p in ("all", "prompt-all", "prompt-last", "response")
    }
    assert not any(mask[0] for mask in masks.values())
    assert masks["all"][1:].all()
    assert masks["prompt-all"].sum() == row.n_prompt - 1
    assert np.flatnonzero(masks["prompt-last"]).tolist() == [row.n_prompt - 1]
    assert np.array_equal(masks["response"], row.response)
    with pytest.raises(InvalidInputError, match="'everywhere' are unknown"):
        steered_mask(row, "everywhere", bos=bos)


def test_a_sweep_has_all_units_and_starts_from_zero(model):
    spec = SteerSpec(alphas=(-1.0, 1.0), n_random=3, unit="separation")
    result = sweep(model, direction(model), PAIRS[:5], spec=spec, capture=CAPTURE, mean_norm=10.0)
    assert len(result.rows) == 4 * 3  # alpha 0 is always there
    own = result.rows[result.rows["direction"] == "diff_means"]
    at = own.set_index("alpha_separation").to_dict("index")
    assert at[1.0]["alpha_raw"] == pytest.approx(2.5)
    assert at[1.0]["alpha_norm"] == pytest.approx(0.25)
    assert at[0.0]["estimate"] == 0
    assert at[0.0]["alpha_angle"] == pytest.approx(0, abs=0.1)
    assert at[1.0]["ci_low"] <= at[1.0]["estimate"] <= at[1.0]["ci_high"]
    samples = result.samples
    assert len(samples) == 4 * 3 * 5
    mean = samples[(samples["direction"] == "diff_means") & (samples["alpha_separation"] == 1.0)]
    assert mean["shift"].mean() == pytest.approx(at[1.0]["estimate"])
    again = sweep(model, direction(model), PAIRS[:5], spec=spec, capture=CAPTURE, mean_norm=10.0)
    assert result.rows.equals(again.rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vector": [1.0] + [0.0] * 30}, "31 wide, tiny-.* is 32"),
        ({"model": "other"}, "comes from other"),
        ({"site": "resid_pre"}, "read at resid_pre, steering writes resid_post"),
        ({"layer": 12}, "layers 0 to 3"),
    ],
)
def test_a_direction_from_elsewhere_is_refused(model, changes, message):
    spec = SteerSpec(n_random=0)
    with pytest.raises(InvalidInputError, match=message):
        sweep(
            model, direction(model, **changes), PAIRS[:1], spec=spec, capture=CAPTURE, mean_norm=1.0
        )


def test_prompts_are_held_out_and_spread_over_scenarios():
    chosen = choose_pairs(PAIRS, spec=SteerSpec(n_prompts=4))
    assert [p.id for p in chosen] == ["p1", "p2", "p4", "p5"]
    chosen = choose_pairs(PAIRS, spec=SteerSpec(n_prompts=50, subsets=("shortcut",)))
    assert [p.id for p in chosen] == ["p7", "p8"]
    with pytest.raises(
        InvalidInputError, match=r"\['none'\]; the corpus has \['plain', 'shortcut'"
    ):
        choose_pairs(PAIRS, spec=SteerSpec(subsets=("none",)))


def test_layers_are_compared_by_their_effect_beyond_random_directions(model):
    directions = [direction(model, layer=layer, seed=layer) for layer in range(3)]
    table = compare_layers(
        model, directions, PAIRS[:3], positions="response", capture=CAPTURE, n_random=2
    )
    assert sorted(table["layer"]) == [0, 1, 2]
    assert table["margin"].is_monotonic_decreasing
    assert (table["n_pairs"] == 3).all()
    texts = [t for pair in PAIRS[:3] for t in (pair.positive, pair.negative)]
    rows = render_texts(texts, model.tokenizer, spec=CAPTURE)
    for found in table.itertuples():
        own = directions[found.layer]
        effects = []
        for vector in with_random(own, n_random=2, seed=0):
            plus, minus = (
                [
                    naive_score(model, row, vector, sign * own.norm, own.layer, "response")
                    for row in rows
                ]
                for sign in (1, -1)
            )
            odd = (np.array(plus) - np.array(minus)) / 2
            effects.append((odd[0::2] - odd[1::2]).mean())
        assert found.effect == pytest.approx(effects[0], rel=1e-3, abs=5e-5)
        placebo = np.sqrt(np.mean(np.square(effects[1:])))
        assert found.placebo == pytest.approx(placebo, rel=1e-3, abs=5e-5)
        assert found.margin == pytest.approx(found.effect - 2 * found.placebo)
    with pytest.raises(InvalidInputError, match="0 pairs"):
        compare_layers(model, directions, [], positions="response", capture=CAPTURE)
