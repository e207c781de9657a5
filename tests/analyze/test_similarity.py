"""CKA and RSA: what they do not change with, and what they are when nothing is shared."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ortho_group, spearmanr

from actlake.analyze.common import common_texts, nearest_layers
from actlake.analyze.similarity import biased_cka, debiased_cka, rsa, u_centred
from actlake.analyze.similarity_run import similarity_run
from actlake.schemas import InvalidInputError, SimilaritySpec


@given(st.integers(0, 1000), st.floats(0.01, 100), st.floats(-50, 50))
def test_rotation_scale_and_shift_change_nothing(seed, scale, shift):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((30, 8)), rng.standard_normal((30, 5))
    y[:, 0] += x[:, 0]
    turned = scale * x @ ortho_group.rvs(8, random_state=seed) + shift
    for measure in (debiased_cka, biased_cka, rsa):
        assert measure(turned, y) == pytest.approx(measure(x, y), abs=1e-6)
        assert measure(turned, x) == pytest.approx(1, abs=1e-6)


def test_independent_activations_are_zero_only_when_debiased():
    rng = np.random.default_rng(0)
    pairs = [(rng.standard_normal((40, 300)), rng.standard_normal((40, 200))) for _ in range(60)]
    assert np.mean([debiased_cka(x, y) for x, y in pairs]) == pytest.approx(0, abs=0.02)
    assert np.mean([biased_cka(x, y) for x, y in pairs]) > 0.8
    assert np.mean([rsa(x, y) for x, y in pairs]) == pytest.approx(0, abs=0.02)


def test_the_unbiased_hsic_is_unbiased_about_its_population_value():
    """E⟨K̃, L̃⟩/(n(n−3)) of linear kernels is the squared Frobenius norm of the covariance."""
    rng = np.random.default_rng(1)
    mixing = rng.standard_normal((3, 4))
    truth = float((mixing**2).sum())
    found = []
    for _ in range(3000):
        x = rng.standard_normal((8, 3))
        y = x @ mixing + rng.standard_normal((8, 4))
        found.append((u_centred(x) * u_centred(y)).sum() / (8 * 5))
    assert np.mean(found) == pytest.approx(truth, abs=4 * np.std(found) / np.sqrt(3000))


def test_rsa_is_the_spearman_correlation_of_distances():
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((15, 4)), rng.standard_normal((15, 6))
    upper = np.triu_indices(15, 1)
    distances = [np.linalg.norm(z[:, None] - z[None], axis=2)[upper] for z in (x, y)]
    assert rsa(x, y) == pytest.approx(spearmanr(*distances).statistic)


def test_too_few_texts_and_unlike_numbers_are_refused():
    with pytest.raises(InvalidInputError, match="4 texts or more, got 3"):
        debiased_cka(np.eye(3), np.eye(3))
    with pytest.raises(InvalidInputError, match="same texts"):
        rsa(np.ones((4, 2)), np.ones((5, 2)))
    assert np.isnan(debiased_cka(np.ones((5, 2)), np.eye(5)))
    assert np.isnan(rsa(np.ones((5, 2)), np.eye(5)))


@pytest.fixture(scope="module")
def runs(synthetic_run):
    """Two runs of the same texts: the second is the first turned and widened, one layer more."""
    one = synthetic_run(n_neutral=6, hidden=10, n_layers=2).ds
    rng = np.random.default_rng(3)
    x = one["resid_post_mean_response"].values
    turn = np.linalg.qr(rng.standard_normal((14, 10)))[0]
    y = np.stack([x[:, 0] @ turn.T, rng.standard_normal((len(x), 14)), x[:, 1] @ turn.T], axis=1)
    two = one.drop_vars(["resid_post_mean_response", "layer"])
    two = two.assign(resid_post_mean_response=(("text", "layer", "hidden"), y.astype(np.float32)))
    two = two.assign_coords(layer=np.arange(3)).assign_attrs(
        n_layers=3, run="two", model="made/wider"
    )
    return {"one": one, "two": two}


def test_a_table_has_every_pair_of_layers_and_finds_the_turned_ones(runs):
    frame = similarity_run(runs, spec=SimilaritySpec(), scheduler="threads")
    assert len(frame) == 2 * 2 * 3
    at = frame.set_index(["metric", "layer", "other_layer"])
    for metric in ("debiased_cka", "rsa"):
        assert at.loc[(metric, 0, 0), "estimate"] == pytest.approx(1, abs=1e-4)
        assert at.loc[(metric, 1, 2), "estimate"] == pytest.approx(1, abs=1e-4)
        row = at.loc[(metric, 0, 1)]
        assert abs(row.estimate) < 0.15
        assert row.ci_low < row.estimate < row.ci_high
    assert (frame.other_model == "made/wider").all()
    x = runs["one"]["resid_post_mean_response"].values[:, 1].astype(np.float64)
    y = runs["two"]["resid_post_mean_response"].values[:, 1].astype(np.float64)
    assert at.loc[("debiased_cka", 1, 1), "estimate"] == pytest.approx(debiased_cka(x, y))
    assert at.loc[("rsa", 1, 1), "estimate"] == pytest.approx(rsa(x, y))


def test_texts_are_matched_by_id_and_not_by_row(runs):
    shuffled = runs["two"].isel(text=np.random.default_rng(0).permutation(102)[:80])
    frame = similarity_run({**runs, "two": shuffled}, spec=SimilaritySpec(), scheduler="threads")
    at = frame.set_index(["metric", "layer", "other_layer"])
    assert at.loc[("rsa", 0, 0), "estimate"] == pytest.approx(1, abs=1e-4)
    assert (frame.n_texts == 80).all()


def test_processes_give_the_same_table(runs):
    tables = [
        similarity_run(runs, spec=SimilaritySpec(max_texts=50), scheduler=name)
        for name in ("synchronous", "processes")
    ]
    pd.testing.assert_frame_equal(*tables)
    assert (tables[0].n_texts == 50).all()


def test_runs_that_cannot_be_compared_say_why(runs):
    other = runs["two"].assign_coords(text=[f"x{i}" for i in range(102)])
    with pytest.raises(InvalidInputError, match=r"0 texts in common.*from one corpus"):
        similarity_run({**runs, "two": other}, spec=SimilaritySpec())
    with pytest.raises(InvalidInputError, match="two runs or more"):
        common_texts({"one": runs["one"]})
    flipped = runs["two"].assign_coords(label=("text", -runs["two"]["label"].values))
    with pytest.raises(InvalidInputError, match=r"has label .* their corpora differ"):
        common_texts({**runs, "two": flipped})
    moved = runs["two"].rename(resid_post_mean_response="mlp_out_mean_response")
    with pytest.raises(InvalidInputError, match="unlike sites"):
        similarity_run({**runs, "two": moved}, spec=SimilaritySpec())


def test_layers_are_matched_by_relative_depth(runs):
    assert nearest_layers(runs["one"], runs["two"]) == [(0, 0), (0, 1), (1, 2)]
    assert nearest_layers(runs["two"], runs["one"]) == [(0, 0), (2, 1)]
