import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlake.extract import load_model
from actlake.schemas import InvalidInputError, MatchedSpec, MediateSpec
from actlake.steer import (
    align_contrasts,
    compare_with_steering,
    decompose_effects,
    fit_contrast_direction,
    mediate,
    weigh_mediation,
)
from tests.steer.contrasts import organism_contrasts
from tests.steer.linear_net import HIDDEN, N_LAYERS, linear_cases, linear_model

pytestmark = pytest.mark.torch

ODDS = st.lists(st.floats(-3, 3), min_size=4, max_size=4)


def unit(seed=0, width=HIDDEN):
    v = np.random.default_rng(seed).standard_normal(width)
    return v / np.linalg.norm(v)


@given(ODDS)
def test_effects_add_up_to_the_total_with_their_interaction(odds):
    null, full, null_with_full, full_with_null = (np.array([x]) for x in odds)
    found = decompose_effects(
        null, full, null_with_full=null_with_full, full_with_null=full_with_null
    )
    assert found["TE"] == pytest.approx(full - null)
    assert found["NDE"] + found["NIE"] + found["interaction"] == pytest.approx(found["TE"])
    ratio = decompose_effects(
        null, full, null_with_full=null_with_full, full_with_null=full_with_null, scale="ratio"
    )
    assert ratio["TE"] == pytest.approx(np.expm1(full - null))
    assert ratio["NIE"] == pytest.approx(np.expm1(null_with_full - null))


def test_in_a_linear_net_effects_add_without_interaction():
    spec = MediateSpec(position="prompt-all", n_random=3, n_bootstrap=100)
    result = mediate(linear_model(), linear_cases(), spec=spec, direction=unit())
    rows = result.rows.set_index(["way", "layer", "mediator", "index", "metric"])["estimate"]
    wide = rows.unstack("metric").astype(float)
    assert len(wide) == 2 * N_LAYERS * 5
    np.testing.assert_allclose(wide["NDE"] + wide["NIE"], wide["TE"], atol=1e-5)
    np.testing.assert_allclose(wide["interaction"], 0, atol=1e-5)
    # All of the prompt at one layer: nothing passes beside it at the last one.
    full = wide.xs("full", level="mediator").xs(N_LAYERS - 1, level="layer")
    np.testing.assert_allclose(full["NIE"], full["TE"], atol=1e-5)
    np.testing.assert_allclose(full["NDE"], 0, atol=1e-5)
    np.testing.assert_allclose(wide.loc["forward", "TE"], -wide.loc["reverse", "TE"], atol=1e-6)
    assert wide.xs("coordinate", level="mediator")["NIE"].std() > 1e-3
    assert len(result.samples) == N_LAYERS * 5 * 5


def test_no_share_of_a_total_that_may_be_nothing():
    spec = MediateSpec(layers=(1,), mediators=("full",), n_bootstrap=200)
    cases = linear_cases(n=6)
    rows = mediate(linear_model(), cases, spec=spec).rows
    total = rows[(rows["metric"] == "TE") & (rows["way"] == "forward")].iloc[0]
    share = rows[(rows["metric"] == "proportion") & (rows["way"] == "forward")].iloc[0]
    assert (total["ci_low"] <= 0 <= total["ci_high"]) == np.isnan(share["estimate"] or np.nan)
    # The same contrast in both directions has a total of exactly 0.
    first = cases[0]
    turned = {**first.prompts, "source": first.prompts["base"], "base": first.prompts["source"]}
    mirrored = type(first)(first.contrast, turned, first.completions, first.shared, first.bos)
    rows = mediate(linear_model(), [first, mirrored], spec=spec).rows
    share = rows[rows["metric"] == "proportion"].iloc[0]
    assert share["estimate"] is None or np.isnan(share["estimate"])
    assert "holds 0" in share["reason"]


@pytest.fixture(scope="module")
def organism():
    loaded = load_model("bundled:llama-organism", head=True, device="cpu")
    cases = align_contrasts(loaded, organism_contrasts(9))
    return loaded, cases[5:], fit_contrast_direction(loaded, cases[:5], place="response")


def test_an_organisms_direction_mediates_and_random_ones_do_not(organism):
    loaded, cases, direction = organism
    spec = MediateSpec(layers=(0, 2), position="response", n_random=12, n_bootstrap=200)
    rows = mediate(loaded, cases, spec=spec, direction=direction).rows
    rows = rows.set_index(["way", "layer", "mediator", "metric"]).sort_index()
    for way in ("forward", "reverse"):
        share = rows.loc[[(way, 2, "coordinate", "proportion")]].iloc[0]
        # About three fifths pass through one coordinate; through all of the residual, all do.
        assert 0.3 < share["ci_low"] < share["estimate"] < share["ci_high"] < 0.9
        assert rows.loc[(way, 2, "full", "proportion"), "estimate"].item() > 0.95
        none = rows.loc[(way, 2, "random", "proportion"), "estimate"]
        assert none.abs().median() < share["estimate"] / 2
        assert abs(rows.loc[(way, 0, "full", "proportion"), "estimate"].item()) < 0.1
    own = rows.loc[[("forward", 2, "coordinate", "NIE")]].iloc[0]
    assert own["p_value"] == own["p_value_max"] == pytest.approx(1 / 13)
    random = rows.loc[("forward", 2, "random", "NIE"), "estimate"]
    assert random.abs().median() < own["estimate"] / 4
    cost = weigh_mediation(loaded, cases, spec=spec, direction=direction)
    assert cost.n_rows > len(cases) * 2 * 2 * 14 * 2


def test_steering_as_far_as_a_patch_is_compared_pair_by_pair(organism):
    loaded, cases, direction = organism
    spec = MatchedSpec(
        layers=(2,), arm="coordinate", position="response", steer_position="response",
        n_random=6, n_bootstrap=200,
    )  # fmt: skip
    result = compare_with_steering(loaded, cases, direction, spec=spec)
    rows = result.rows.set_index("what")
    sizes = result.samples.pivot_table(
        index="pair", columns=["what", "index"], values="change_norm"
    )
    for column in sizes:
        np.testing.assert_allclose(sizes[column], sizes["patch", 0], rtol=1e-3)
    difference = rows.loc["steer", "estimate"] - rows.loc["patch", "estimate"]
    assert rows.loc["steer - patch", "estimate"] == pytest.approx(difference)
    assert rows.loc["steer", "estimate"] > rows.loc["random", "estimate"].abs().max()
    # At one token a swapped coordinate is a step along the direction.
    one = spec.model_copy(update={"position": -1, "steer_position": -1, "n_random": 0})
    rows = compare_with_steering(loaded, cases, direction, spec=one).rows.set_index("what")
    assert rows.loc["steer - patch", "estimate"] == pytest.approx(0, abs=1e-5)
    full = spec.model_copy(update={"arm": "full", "n_random": 0})
    rows = compare_with_steering(loaded, cases, direction, spec=full).rows.set_index("what")
    assert rows.loc["steer", "change_norm"] == pytest.approx(rows.loc["patch", "change_norm"])


def test_what_cannot_be_mediated_is_refused():
    model, cases = linear_model(), linear_cases(n=2)
    with pytest.raises(InvalidInputError, match="'coordinate' needs a direction"):
        mediate(model, cases, spec=MediateSpec())
    with pytest.raises(InvalidInputError, match="layer 9 does not exist"):
        mediate(model, cases, spec=MediateSpec(layers=(9,), mediators=("full",)))
    with pytest.raises(InvalidInputError, match="no contrast"):
        mediate(model, [], spec=MediateSpec(), direction=unit())
    with pytest.raises(InvalidInputError, match="no contrast"):
        compare_with_steering(model, [], unit(), spec=MatchedSpec())
