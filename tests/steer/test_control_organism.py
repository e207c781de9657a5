"""In the organism of shuffled dispositions no intervention finds what is not there."""

import numpy as np
import pytest

from actlake.analyze import auroc
from actlake.corpus import bundled_corpus, pair_texts
from actlake.extract import load_model, render_texts
from actlake.schemas import CaptureSpec, Direction, MatchedSpec, MediateSpec, PatchSpec, SteerSpec
from actlake.steer import (
    align_contrasts,
    choose_pairs,
    compare_with_steering,
    fit_contrast_direction,
    mediate,
    sweep_direction,
    sweep_patches,
)
from actlake.steer.patched_runs import capture_runs
from tests.steer.contrasts import organism_contrasts

pytestmark = pytest.mark.torch

CONTROL, TWIN = "llama-shuffled", "llama-organism"
PLANTED = 2  # the block whose output training read
NOTHING = 0.02  # nats per token: the twin's total effect is 0.7
SWEPT = 1  # the block whose direction of texts moves the twin most
FEW = 1 / 21  # the smallest p that 20 draws can give


@pytest.fixture(scope="module", params=[CONTROL, TWIN])
def organism(request):
    loaded = load_model(f"bundled:{request.param}", head=True, device="cpu")
    cases = align_contrasts(loaded, organism_contrasts(12))
    fitted = fit_contrast_direction(loaded, cases[:6], place="response")
    return loaded, cases[6:], fitted, request.param == CONTROL


def test_the_disposition_is_read_in_both(organism):
    loaded, cases, direction, _ = organism
    scores, labels = [], []
    for case in cases:
        clean, _ = capture_runs(loaded, case, place="response")
        for role in ("source", "base"):
            for c in (0, 1):
                states = clean.states(role, c, PLANTED)[case.columns("response", c)]
                scores.append(float(states.mean(dim=0).numpy() @ direction[PLANTED]))
                labels.append(role == "source")
    # Within a contrast the texts are the same: only the system prompt tells the runs apart.
    assert auroc(np.array(scores), np.array(labels)) > 0.9


def test_patches_find_it_in_the_twin_alone(organism):
    loaded, cases, direction, is_control = organism
    spec = PatchSpec(
        layers=(PLANTED,), positions=("prompt-all", "response"), modes=("denoise",),
        arms=("full", "coordinate", "random"), n_random=20, n_bootstrap=200,
    )  # fmt: skip
    rows = sweep_patches(loaded, cases, spec=spec, direction=direction).rows
    own = rows[(rows["arm"] == "coordinate") & (rows["position"] == "response")]
    if is_control:
        assert rows["small_total"].all()
        assert rows[["total", "effect"]].abs().to_numpy().max() < NOTHING
        assert (own["p_value_max"] > 0.05).all()
        return
    assert not rows["small_total"].any()
    assert rows["total"].min() > 20 * NOTHING
    assert own["p_value_max"].max() == pytest.approx(FEW)


def test_nothing_is_mediated_but_in_the_twin(organism):
    loaded, cases, direction, is_control = organism
    spec = MediateSpec(layers=(PLANTED,), position="response", n_random=20, n_bootstrap=200)
    rows = mediate(loaded, cases, spec=spec, direction=direction).rows
    shares = rows[(rows["metric"] == "proportion") & (rows["mediator"] != "random")]
    indirect = rows[(rows["metric"] == "NIE") & (rows["mediator"] == "coordinate")]
    if is_control:
        assert shares["estimate"].isna().all()
        assert shares["reason"].str.contains("holds 0").all()
        assert indirect["estimate"].abs().max() < NOTHING
        assert (indirect["p_value"] > 0.05).all()
        return
    assert shares["ci_low"].min() > 0.2
    assert indirect["p_value"].max() == pytest.approx(FEW)


def test_steering_as_far_as_the_runs_differ_moves_the_twin_alone(organism):
    loaded, cases, direction, is_control = organism
    spec = MatchedSpec(
        layers=(PLANTED,), position="response", steer_position="response", n_random=20,
        n_bootstrap=200,
    )  # fmt: skip
    rows = compare_with_steering(loaded, cases, direction, spec=spec).rows.set_index("what")
    if is_control:
        assert rows["estimate"].abs().max() < NOTHING
        assert rows.loc["steer", "p_value"] > 0.05
        return
    assert rows.loc["steer", "ci_low"] > 10 * NOTHING
    assert rows.loc["steer", "p_value"] == pytest.approx(FEW)


def test_a_sweep_along_the_arms_of_texts_moves_the_twin_alone(organism):
    loaded, _, _, is_control = organism
    _, texts = bundled_corpus("demo")
    pairs = [p for p in pair_texts(texts) if p.positive.subset == "plain"]
    train = [p for p in pairs if p.positive.split == "train"][:40]
    chosen = choose_pairs(pairs, spec=SteerSpec(n_prompts=8))
    result = sweep_direction(
        loaded, fit_on(loaded, train), chosen,
        spec=SteerSpec(alphas=(-2.0, -1.0, 1.0, 2.0), n_random=3), capture=CaptureSpec(),
        mean_norm=1.0,
    )  # fmt: skip
    own = result.rows[result.rows["direction"] == "diff_means"].set_index("alpha_separation")
    # Words of an arm are a little likelier in its direction: the text's, not a disposition's.
    assert (own["estimate"].abs().max() < NOTHING) == is_control
    assert (own.loc[2.0, "ci_low"] > 5 * NOTHING) != is_control


def fit_on(loaded, pairs):
    """Return the difference of means over responses, read without a store."""
    import torch

    from actlake.extract import find_blocks, unwrap_hidden

    texts = [t for pair in pairs for t in (pair.positive, pair.negative)]
    rows = render_texts(texts, loaded.tokenizer, spec=CaptureSpec())
    seen = []
    block = find_blocks(loaded.backbone)[SWEPT]
    handle = block.register_forward_hook(lambda _m, _a, out: seen.append(unwrap_hidden(out)[0]))
    with torch.inference_mode():
        for row in rows:
            loaded.backbone(torch.from_numpy(row.ids).long()[None], use_cache=False)
    handle.remove()
    read = zip(seen, rows, strict=True)
    means = np.array([states[row.response].mean(dim=0).numpy() for states, row in read])
    raw = (means[0::2] - means[1::2]).mean(axis=0).astype(np.float64)
    norm = float(np.linalg.norm(raw))
    return Direction(
        method="diff_means", site="resid_post", layer=SWEPT, pool="mean_response", norm=norm,
        vector=tuple((raw / norm).tolist()), bias=0.0, model=loaded.info.name, run="r",
    )  # fmt: skip
