"""Directions with their texts: what two of them share, halves, permutations, cosines."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.covariance import oas

from actlake.analyze.contrasts import (
    bootstrap_weights,
    check_shared,
    construction_cosine,
    deleted_weights,
    half_weights,
    make_contrast,
    permuted_weights,
    select_contrasts,
)
from actlake.analyze.cosines import (
    contrast_cosines,
    contrast_reliabilities,
    disattenuate,
    spearman_brown,
    vector_cosines,
)
from actlake.analyze.inner_products import oas_shrinkage, outlier_dimensions, spaces
from actlake.schemas import GeometrySpec, InvalidInputError

N = 40


def ids(n):
    return np.array([f"t{i:03d}" for i in range(n)])


def arms(*sides, texts=None, pairs=None):
    """Contrasts of slices (positive, negative) of the texts."""
    everything = ids(max(s.stop for side in sides for s in side)) if texts is None else texts
    rows = np.arange(everything.size)
    return [
        make_contrast(f"c{k}", rows[plus], rows[minus], texts=everything, pairs=pairs)
        for k, (plus, minus) in enumerate(sides)
    ]


def arm(k, n=N):
    return slice(k * n, (k + 1) * n)


def cosines(x, contrasts, *, shared="flag", n_permutations=200, n_splits=50, space="raw", **where):
    made = spaces(x, groups=where.get("groups", ["all"] * len(x)), n_outliers=2)[space]
    reliable, _ = contrast_reliabilities(contrasts, made, n_splits=n_splits, n_bootstrap=20, seed=0)
    return list(
        contrast_cosines(
            contrasts, made, reliabilities=reliable, n_permutations=n_permutations,
            shared=shared, seed=0,
        )
    )  # fmt: skip


def test_a_shared_neutral_arm_gives_one_half_and_disjoint_halves_zero():
    """O10, in simulation: nothing but noise, 4096 wide."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4 * N, 4096))
    trapped = arms((arm(0), arm(2)), (arm(1), arm(2)))
    apart = arms((arm(0), arm(2)), (arm(1), arm(3)))
    same = arms((arm(0), arm(1)), (arm(1), arm(0)))
    for contrasts, expected in ((trapped, 0.5), (apart, 0.0), (same, -1.0)):
        n = contrasts[0].texts.size
        assert construction_cosine(*contrasts) == pytest.approx(expected)
        (row,) = cosines(x[:n], contrasts)
        assert row["estimate"] == pytest.approx(expected, abs=0.05)
        assert row["construction"] == pytest.approx(expected)


def test_the_trap_is_refused_with_its_reason_or_flagged():
    trapped = arms((arm(0), arm(2)), (arm(1), arm(2)))
    with pytest.raises(InvalidInputError, match=r"40 texts in common.*would be \+0\.50 even if"):
        check_shared(*trapped, shared="refuse")
    with pytest.raises(InvalidInputError, match=r"same arms, so that their cosine is -1"):
        check_shared(*arms((arm(0), arm(1)), (arm(1), arm(0))), shared="refuse")
    assert check_shared(*arms((arm(0), arm(1)), (arm(2), arm(3))), shared="refuse") == (0.0, 0)
    x = np.random.default_rng(1).standard_normal((3 * N, 300))
    with pytest.raises(InvalidInputError, match="set shared = 'flag'"):
        cosines(x, trapped, shared="refuse")
    (row,) = cosines(x, trapped)
    assert row["verdict"].startswith("trap: 40 texts stand in both")
    assert row["disattenuated"] is None
    assert "share texts" in row["disattenuated_reason"]


def test_the_null_of_a_trapped_pair_is_centred_on_the_trap():
    x = np.random.default_rng(2).standard_normal((3 * N, 2000))
    (row,) = cosines(x, arms((arm(0), arm(2)), (arm(1), arm(2))))
    assert row["null_mean"] == pytest.approx(0.5, abs=0.02)
    assert row["p_value"] > 0.02


def test_the_permuted_null_of_isotropic_noise_has_the_isotropic_sd():
    x = np.random.default_rng(3).standard_normal((4 * N, 100))
    (row,) = cosines(x, arms((arm(0), arm(1)), (arm(2), arm(3))), n_permutations=3000)
    assert row["isotropic_sd"] == pytest.approx(0.1)
    assert row["null_sd"] == pytest.approx(0.1, rel=0.12)
    assert row["null_mean"] == pytest.approx(0, abs=0.01)


def test_cosines_without_a_relation_have_uniform_p_values():
    rng = np.random.default_rng(4)
    contrasts = arms((arm(0, 8), arm(1, 8)), (arm(2, 8), arm(3, 8)))
    p = [
        cosines(rng.standard_normal((32, 20)), contrasts, n_permutations=99, n_splits=2)[0][
            "p_value"
        ]
        for _ in range(300)
    ]
    assert np.mean(np.array(p) <= 0.1) == pytest.approx(0.1, abs=0.05)
    assert np.mean(p) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("truth", [0.0, 0.6])
def test_a_disattenuated_cosine_recovers_the_cosine_without_noise(truth):
    rng = np.random.default_rng(5)
    hidden, found, raw = 400, [], []
    a = np.eye(hidden)[0]
    b = truth * a + np.sqrt(1 - truth**2) * np.eye(hidden)[1]
    for _ in range(20):
        x = rng.standard_normal((4 * N, hidden))
        x[arm(0)] += 5.0 * a
        x[arm(2)] += 5.0 * b
        (row,) = cosines(x, arms((arm(0), arm(1)), (arm(2), arm(3))))
        found.append(row["disattenuated"])
        raw.append(row["estimate"])
    assert np.mean(found) == pytest.approx(truth, abs=0.04)
    if truth:
        assert np.mean(raw) < truth - 0.1


def test_the_reliability_is_that_of_the_whole_direction():
    """Spearman-Brown of the halves is signal/(signal + noise) of the full direction."""
    rng = np.random.default_rng(6)
    hidden, length, found = 500, 4.0, []
    for _ in range(10):
        x = rng.standard_normal((2 * N, hidden))
        x[arm(0), 0] += length
        contrasts = arms((arm(0), arm(1)))
        made = spaces(x, groups=["a"] * N + ["b"] * N, n_outliers=0)["raw"]
        reliable, rows = contrast_reliabilities(
            contrasts, made, n_splits=50, n_bootstrap=50, seed=1
        )
        found.append(reliable["c0"])
        by = {row["metric"]: row["estimate"] for row in rows}
        assert by["split_half_cosine"] < by["reliability"] < by["bootstrap_cosine"] + 0.2
    assert np.mean(found) == pytest.approx(length**2 / (length**2 + hidden * 2 / N), abs=0.04)
    assert spearman_brown(0.5) == pytest.approx(2 / 3)
    assert disattenuate(0.3, -0.1, 0.5)[0] is None


def test_the_jackknife_interval_covers_the_attenuated_cosine():
    rng = np.random.default_rng(7)
    hidden, n = 30, 30
    covered, estimates, intervals = 0, [], []
    for _ in range(150):
        x = rng.standard_normal((4 * n, hidden))
        x[arm(0, n), :2] += 1.0
        x[arm(2, n), 1:3] += 1.0
        (row,) = cosines(
            x, arms((arm(0, n), arm(1, n)), (arm(2, n), arm(3, n))), n_permutations=1, n_splits=2
        )
        estimates.append(row["estimate"])
        intervals.append((row["ci_low"], row["ci_high"]))
    centre = np.mean(estimates)
    covered = np.mean([low < centre < high for low, high in intervals])
    assert 0.9 <= covered <= 0.995


@pytest.mark.parametrize(("n", "hidden"), [(60, 9), (24, 50)], ids=["tall", "wide"])
def test_every_space_is_the_inner_product_of_changed_coordinates(n, hidden):
    rng = np.random.default_rng(8)
    groups = np.repeat(["a", "b"], n // 2)
    x = rng.standard_normal((n, hidden)) @ rng.standard_normal((hidden, hidden))
    x[:, 3] = x[:, 3] * 0.01 + 1000  # nearly constant, and massive
    x[groups == "a"] += 2
    found = spaces(x, groups=groups, n_outliers=2)
    residual = x.copy()
    for name in "ab":
        residual[groups == name] -= residual[groups == name].mean(axis=0)
    centred = x - x.mean(axis=0)
    sd = np.sqrt((residual**2).sum(axis=0) / (n - 2))
    np.testing.assert_allclose(
        found["standardised"].gram, (centred / sd) @ (centred / sd).T, rtol=1e-6, atol=1e-6
    )
    intensity, target = oas_shrinkage(residual, n_freedom=n - 2)
    covariance = (1 - intensity) * residual.T @ residual / (n - 2)
    covariance += intensity * target * np.eye(hidden)
    expected = centred @ np.linalg.solve(covariance, centred.T)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found["whitened"].gram, expected, atol=1e-6 * scale)
    dropped = outlier_dimensions(x, n_dims=2)
    assert dropped[0] == 3
    kept = np.delete(centred, dropped, axis=1)
    np.testing.assert_allclose(found["outliers_removed"].gram, kept @ kept.T, atol=1e-8)
    assert found["outliers_removed"].hidden == hidden - 2


@pytest.mark.parametrize(("n", "hidden"), [(300, 80), (10, 400)], ids=["tall", "wide"])
def test_shrinkage_equals_sklearns_oas_up_to_the_terms_it_drops(n, hidden):
    """scikit-learn leaves out the terms in 2/hidden of the published formula."""
    x = np.random.default_rng(9).standard_normal((n, hidden)) * np.linspace(1, 4, hidden)
    x -= x.mean(axis=0)
    intensity, target = oas_shrinkage(x, n_freedom=n)
    covariance, expected = oas(x, assume_centered=True)
    assert intensity == pytest.approx(expected, rel=3 / hidden)
    assert target == pytest.approx(np.trace(covariance) / hidden)


def test_an_outlier_dimension_rules_the_raw_cosine_and_no_other():
    rng = np.random.default_rng(10)
    x = rng.standard_normal((4 * N, 200))
    x[:, 0] = rng.standard_normal(4 * N) * 300
    x[arm(0), 0] += 400
    x[arm(2), 0] += 400
    contrasts = arms((arm(0), arm(1)), (arm(2), arm(3)))
    groups = np.repeat(["a", "b", "c", "d"], N)
    found = {
        name: cosines(x, contrasts, space=name, groups=groups)[0]["estimate"]
        for name in ("raw", "standardised", "outliers_removed")
    }
    assert found["raw"] > 0.99
    assert found["standardised"] < 0.6
    assert abs(found["outliers_removed"]) < 0.25


@given(st.integers(2, 9), st.booleans(), st.integers(0, 99))
def test_halves_are_disjoint_whole_and_never_divide_a_pair(n, paired, seed):
    pairs = np.tile([f"p{i}" for i in range(n)], 2) if paired else None
    (contrast,) = arms((arm(0, n), arm(1, n)), pairs=pairs)
    assert contrast.paired == paired
    first, second = half_weights(contrast, n_draws=5, rng=np.random.default_rng(seed))
    assert not (first.astype(bool) & second.astype(bool)).any()
    assert (first.astype(bool) | second.astype(bool)).all()
    for half in (first, second):
        np.testing.assert_allclose(half[:, :n].sum(axis=1), 1)
        np.testing.assert_allclose(half[:, n:].sum(axis=1), -1)
        if paired:
            np.testing.assert_array_equal(half[:, :n] > 0, half[:, n:] < 0)


@given(st.integers(2, 9), st.booleans(), st.integers(0, 99))
def test_draws_are_differences_of_means_over_the_same_texts(n, paired, seed):
    pairs = np.tile([f"p{i}" for i in range(n)], 2) if paired else None
    (contrast,) = arms((arm(0, n), arm(1, n)), pairs=pairs)
    rng = np.random.default_rng(seed)
    (flipped,) = permuted_weights([contrast], n_draws=6, rng=rng)
    np.testing.assert_allclose(np.sort(np.abs(flipped)), 1 / n)
    np.testing.assert_allclose(flipped.sum(axis=1), 0, atol=1e-12)
    if paired:
        np.testing.assert_allclose(flipped[:, :n], -flipped[:, n:])
    drawn = bootstrap_weights(contrast, n_draws=6, rng=rng)
    np.testing.assert_allclose(drawn[:, :n].sum(axis=1), 1)
    left_out, _ = deleted_weights(contrast, contrast)
    assert left_out.shape == (n if paired else 2 * n, 2 * n)
    assert ((left_out == 0).sum(axis=1) == (2 if paired else 1)).all()


def test_finished_vectors_have_a_cosine_and_say_what_is_not_known():
    (row,) = vector_cosines({"a": np.array([3.0, 0, 0, 0]), "b": np.array([1.0, 1, 0, 0])})
    assert row["estimate"] == pytest.approx(np.sqrt(0.5))
    assert row["isotropic_sd"] == 0.5
    assert row["verdict"] == "not checked for texts in common"
    with pytest.raises(InvalidInputError, match="unlike widths"):
        list(vector_cosines({"a": np.ones(3), "b": np.ones(4)}))
    with pytest.raises(InvalidInputError, match="length 0"):
        list(vector_cosines({"a": np.ones(3), "b": np.zeros(3)}))


def test_a_side_with_one_text_or_a_text_on_both_sides_is_refused():
    rows = np.arange(6)
    with pytest.raises(InvalidInputError, match="1 positive and 3 negative"):
        make_contrast("c", rows[:1], rows[3:], texts=ids(6))
    with pytest.raises(InvalidInputError, match="'t003' on both sides"):
        make_contrast("c", rows[:4], rows[3:], texts=ids(6))


def test_default_contrasts_share_no_text_and_are_the_same_in_every_run(synthetic_run):
    runs = [synthetic_run(n_neutral=12, n_test_scenarios=2, seed=seed).ds for seed in (0, 1)]
    found = [select_contrasts(ds, GeometrySpec()) for ds in runs]
    assert [c.name for c in found[0]] == ["positive-neutral", "negative-neutral"]
    assert construction_cosine(*found[0]) == 0
    members = [
        [set(contrast.texts[contrast.members].tolist()) for contrast in contrasts]
        for contrasts in found
    ]
    assert members[0] == members[1]
    (concept,) = select_contrasts(synthetic_run().ds, GeometrySpec())
    assert concept.paired
    assert concept.signed_texts["pos-0000"] == 1
    assert concept.signed_texts["neg-0000"] == -1
    assert concept.members.size == 96


def test_a_spec_that_walks_into_the_trap_is_refused(synthetic_run):
    neutral = {"arm": "neutral"}
    spec = GeometrySpec.parse(
        {
            "contrasts": [
                {"name": "warm", "positive": {"arm": "positive"}, "negative": neutral},
                {"name": "task", "positive": {"arm": "negative"}, "negative": neutral},
            ]
        }
    )
    with pytest.raises(InvalidInputError, match="'warm' and 'task' have 12 texts in common"):
        select_contrasts(synthetic_run(n_neutral=12).ds, spec)
