from __future__ import annotations

import json
from typing import get_args

import numpy as np
import pytest
import xarray as xr

from actlake.analyze import probe_run
from actlake.analyze.directions import (
    combine_directions,
    direction_set,
    load_directions,
    save_directions,
    score_direction,
)
from actlake.analyze.halves import draw_halves, reliabilities, spearman_brown
from actlake.analyze.probes import Tuning, fit_diff_means
from actlake.analyze.rowspace import pair_space
from actlake.schemas import (
    BagOfWordsSpec,
    CorruptError,
    Direction,
    DirectionSet,
    InvalidInputError,
    NotFoundError,
    ProbeMethod,
    ProbeSpec,
    RandomSpec,
)

METHODS = get_args(ProbeMethod)


@pytest.fixture(scope="module")
def run(synthetic_run):
    def one_flat_layer(x, _texts):
        x[:, 0] = 1.0
        return x

    return synthetic_run(
        n_layers=3, hidden=30, strength=3.0, n_test_scenarios=1, activations=one_flat_layer
    )


@pytest.fixture(scope="module")
def probes(run):
    return probe_run(
        run.ds,
        run.texts,
        spec=ProbeSpec(methods=METHODS, n_bootstrap=0, c_grid=(0.01, 1.0)),
        random=RandomSpec(n_directions=9),
        bow=BagOfWordsSpec(),
        scheduler="synchronous",
    )


def a_direction(**fields):
    values = {
        "method": "diff_means", "site": "resid_post", "layer": 3, "pool": "mean_response",
        "vector": (0.6, 0.8), "norm": 2.0, "bias": -1.0, "model": "a/model", "run": "r",
    }  # fmt: skip
    return Direction(**(values | fields))


def test_a_set_holds_every_layer_that_has_a_direction(probes):
    found = direction_set(probes.directions, pool="mean_response")
    assert {(d.method, d.layer) for d in found.directions} == {
        (m, n) for m in METHODS for n in (1, 2)
    }
    first = found.get("ridge", layer=2)
    assert first.site == "resid_post"
    assert first.store_url == "memory://store"
    assert first.content_digest == "unsealed"
    for digest in (first.split_digest, first.dataset_digest):
        assert digest is not None
        assert digest.startswith("sha256:")
    assert first.penalty is not None
    assert found.get("logistic", layer=1).penalty in (0.01, 1.0)
    assert found.get("diff_means", layer=1).penalty is None


def test_strong_directions_are_reliable_and_every_method_says_so(probes):
    found = direction_set(probes.directions, pool="mean_response")
    for direction in found.directions:
        firm = direction.reliability
        assert firm is not None
        assert 0 < firm.split_half < firm.spearman_brown < 1, direction.name
        assert firm.bootstrap_low <= firm.bootstrap < 1
        assert firm.n_draws == 20
    strongest = found.get("diff_means", layer=1).reliability
    assert strongest is not None
    assert strongest.spearman_brown > 0.8


def test_split_halves_predict_the_cosine_of_two_independent_fits():
    """cos of two fits on m pairs = ‖μ‖²/(‖μ‖² + 2σ²d/m): halves know it after Spearman–Brown."""
    rng = np.random.default_rng(0)
    hidden, m, length = 400, 60, 4.0
    scenario = np.repeat([f"s{i}" for i in range(6)], 10)
    found = []
    for _ in range(40):
        x = rng.standard_normal((2, m, hidden))
        x[0, :, 0] += length
        space = pair_space(x)
        weight = fit_diff_means(space.points).weight
        got = reliabilities(
            space.points, x, scenario=scenario, fitted={"diff_means": (weight, None)},
            hidden=hidden, tuning=Tuning(), n_draws=5, seed=int(rng.integers(1 << 30)),
        )["diff_means"]  # fmt: skip
        assert got is not None
        found.append(got.spearman_brown)
    expected = length**2 / (length**2 + 2 * hidden / m)
    assert np.mean(found) == pytest.approx(expected, abs=0.03)


def test_noise_alone_is_not_reliable():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 40, 500))
    space = pair_space(x)
    fitted = {"diff_means": (fit_diff_means(space.points).weight, None)}
    got = reliabilities(
        space.points, x, scenario=np.repeat(["a", "b"], 20), fitted=fitted, hidden=500,
        tuning=Tuning(), n_draws=20, seed=0,
    )["diff_means"]  # fmt: skip
    assert got is not None
    assert abs(got.split_half) < 0.1
    assert got.spearman_brown < 0.2


def test_halves_are_disjoint_and_share_every_scenario():
    scenario = np.repeat(["a", "b", "c"], [8, 5, 1])
    for first, second in draw_halves(scenario, n_draws=10, seed=0):
        np.testing.assert_array_equal(np.sort(np.concatenate([first, second])), np.arange(14))
        assert (scenario[first] == "a").sum() == 4
        assert (scenario[first] == "b").sum() in (2, 3)


def test_spearman_brown_never_makes_a_negative_cosine_worse():
    assert spearman_brown(0.5) == pytest.approx(2 / 3)
    assert spearman_brown(-0.5) == 0.0


def test_three_training_pairs_have_no_reliability_and_the_reason_is_kept(synthetic_run):
    run = synthetic_run(n_scenarios=3, pairs_per_scenario=1, n_layers=1)
    found = probe_run(
        run.ds, run.texts, spec=ProbeSpec(methods=("diff_means",), n_bootstrap=0),
        random=RandomSpec(n_directions=3), bow=BagOfWordsSpec(), scheduler="synchronous",
    )  # fmt: skip
    (direction,) = direction_set(found.directions, pool="mean_response").directions
    assert direction.reliability is None
    assert direction.reliability_reason == "too few training pairs (3)"


@pytest.mark.parametrize(
    ("field", "value"),
    [("site", "attn_out"), ("pool", "last_prompt"), ("model", "b/model"), ("vector", (1.0,))],
)
def test_directions_of_unlike_places_refuse_to_combine(field, value):
    other = a_direction(method="ridge", **{field: value})
    with pytest.raises(InvalidInputError, match="unlike places cannot be combined"):
        combine_directions([a_direction(), other], [1, -1])
    with pytest.raises(ValueError, match="unlike places cannot be combined"):
        DirectionSet(directions=(a_direction(), other))


def test_layers_may_stand_in_one_set_but_not_in_one_sum():
    """The output of block 3 is not that of block 4: the off-by-one that a sum would hide."""
    one, two = a_direction(layer=3), a_direction(layer=4)
    assert DirectionSet(directions=(one, two)).get("diff_means", layer=4) == two
    with pytest.raises(InvalidInputError, match="layer 3 and 4"):
        combine_directions([one, two], [0.5, 0.5])


def test_a_sum_is_that_of_the_raw_vectors():
    one = a_direction(vector=(1.0, 0.0), norm=3.0, bias=1.0)
    two = a_direction(vector=(0.0, 1.0), norm=4.0, bias=2.0, method="ridge")
    total = combine_directions([one, two], [1.0, -1.0])
    np.testing.assert_allclose(np.array(total.vector) * total.norm, [3, -4])
    assert total.bias == -1.0
    assert total.method == "1*diff_means+-1*ridge"
    with pytest.raises(InvalidInputError, match="cancel"):
        combine_directions([one, one.model_copy(update={"method": "again"})], [1, -1])


def test_a_direction_reads_the_run_as_its_probe_does(run, probes):
    found = direction_set(probes.directions, pool="mean_response")
    for method in METHODS:
        direction = found.get(method, layer=2)
        scores = score_direction(run.ds, direction)
        assert scores.dims == ("text",)
        x = run.ds["resid_post_mean_response"].values[:, 2].astype(float)
        at = probes.directions.sel({"method": method, "layer": 2, "pool": "mean_response"})
        expected = float(at["norm"]) * (x @ at["vector"].values) + float(at["bias"])
        np.testing.assert_allclose(scores.values, expected, rtol=1e-9)


def test_a_run_of_another_site_pool_layer_width_or_model_is_refused(run, probes):
    direction = direction_set(probes.directions, pool="mean_response").get("lda", layer=2)
    cases = [
        ({"site": "attn_out"}, "reads attn_out_mean_response, which the run lacks"),
        ({"pool": "last_prompt"}, "reads resid_post_last_prompt, which the run lacks"),
        ({"layer": 7}, r"at layer 7; the run is 30 wide and has layers \[0, 1, 2\]"),
        ({"vector": (1.0,)}, "is 1 wide"),
        ({"model": "other"}, "a direction reads its own model"),
    ]
    for change, words in cases:
        with pytest.raises(InvalidInputError, match=words):
            score_direction(run.ds, direction.model_copy(update=change))


def test_a_saved_set_comes_back_as_it_was(probes, tmp_path):
    found = direction_set(probes.directions, pool="mean_response", methods=["lda", "diff_means"])
    folder = save_directions(found, tmp_path / "kept")
    assert load_directions(folder) == found
    records = json.loads((folder / "directions.json").read_text())
    assert records["encoding-type"] == "actlake-direction-set"
    assert len(records["directions"][0]["vector"]) == 1
    plain = xr.open_zarr(folder / "directions.zarr", consolidated=False)
    assert plain["vector"].shape == (4, 30)


def test_a_set_that_is_missing_or_not_of_its_vectors_is_refused(probes, tmp_path):
    found = direction_set(probes.directions, pool="mean_response", methods=["lda"])
    with pytest.raises(NotFoundError, match=r"no directions\.json"):
        load_directions(tmp_path)
    save_directions(found, tmp_path / "one")
    save_directions(DirectionSet(directions=found.directions[:1]), tmp_path / "two")
    (tmp_path / "two" / "directions.json").write_text(
        (tmp_path / "one" / "directions.json").read_text()
    )
    with pytest.raises(CorruptError, match="does not hold the vectors"):
        load_directions(tmp_path / "two")


def test_unknown_pools_and_methods_are_named(probes):
    with pytest.raises(NotFoundError, match="on pool 'last_prompt'"):
        direction_set(probes.directions, pool="last_prompt")
    with pytest.raises(NotFoundError, match=r"methods \['svm'\]"):
        direction_set(probes.directions, pool="mean_response", methods=["svm"])
