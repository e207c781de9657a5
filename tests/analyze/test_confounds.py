from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr

from actlake.analyze import confound_run, probe_run
from actlake.analyze.auroc import auroc
from actlake.analyze.controls import concept_scores, mean_auroc, pair_folds, sentiment
from actlake.analyze.probes import fit_diff_means
from actlake.analyze.residual import Confounds, residual_scores
from actlake.analyze.splits import pair_table, scenario_folds
from actlake.analyze.surface import (
    SURFACE_FEATURES,
    feature_scores,
    readability,
    surface_features,
    surface_scores,
)
from actlake.schemas import BagOfWordsSpec, ConfoundSpec, ProbeSpec, RandomSpec, ResultRow


def feature(text, name):
    return surface_features([text])[0, SURFACE_FEATURES.index(name)]


def folds_of(n_scenarios, pairs_each):
    scenario = np.repeat([f"s{i:03d}" for i in range(n_scenarios)], pairs_each)
    names = np.array([f"p{i:05d}" for i in range(scenario.size)])
    table = SimpleNamespace(n_pairs=scenario.size, scenario=scenario, pair=names)
    return scenario_folds(table, max_folds=1000, seed=0)


# -- features of texts


def test_readability_is_the_automated_index_worked_by_hand():
    # 9 words of 35 characters in 2 sentences.
    text = "The quick brown fox jumps. The lazy dog sleeps."
    assert readability(text) == pytest.approx(4.71 * 37 / 9 + 0.5 * 9 / 2 - 21.43)
    assert readability("!!! ...") == 0.0


def test_longer_words_and_sentences_read_harder():
    easy = "I see a cat. It is red."
    assert readability("Considerable organisational restructuring necessitates deliberation.") > (
        readability(easy)
    )


@pytest.mark.parametrize(
    ("text", "n_marks"),
    [
        ("# Head\n- one\n- two", 3),
        ("1. first\n2) second", 2),
        ("a **bold** word and `code`", 2),
        ("see [this](https://x.y)", 1),
        ("2 * 3 is 6, not #1; a - b", 0),
        ("plain text.", 0),
    ],
)
def test_markdown_counts_marks_and_not_punctuation(text, n_marks):
    assert feature(text, "markdown") == n_marks


def test_first_person_counts_contractions_and_plural_but_no_part_of_a_word():
    assert (
        feature("I'm sure we\N{RIGHT SINGLE QUOTATION MARK}ll take my car", "first_person") == 3 / 6
    )
    assert feature("Imagine weather in Ohio", "first_person") == 0


@given(st.text(max_size=80))
def test_features_of_any_text_are_finite(text):
    assert np.isfinite(surface_features([text])).all()


def test_surface_scores_come_from_the_training_folds_alone():
    rng = np.random.default_rng(0)
    folds = folds_of(5, 4)
    features = rng.standard_normal((40, 5))
    clean = surface_scores(features, folds.folds[:1])
    spoilt = features.copy().reshape(2, 20, 5)
    spoilt[:, folds.folds[0].test] *= 7
    again = surface_scores(spoilt.reshape(40, 5), folds.folds[:1])
    held = folds.folds[0].test
    assert np.isnan(np.delete(clean, held, axis=1)).all()
    # The fit is the same: the scores are affine in the held-out features.
    intercept = (again[:, held] - 7 * clean[:, held]) / -6
    assert np.allclose(intercept, intercept[0, 0])


def test_a_feature_that_tells_the_arms_is_found_and_a_constant_one_is_not():
    folds = folds_of(5, 6)
    longer = np.concatenate([np.arange(30) + 100.0, np.arange(30)])
    labels = np.repeat([1, 0], 30)
    assert auroc(feature_scores(longer, folds.folds).ravel(), labels) == 1.0
    assert auroc(feature_scores(-longer, folds.folds).ravel(), labels) == 1.0
    np.testing.assert_array_equal(feature_scores(np.full(60, 2.0), folds.folds), 0)


# -- control concepts


def test_concept_scores_are_those_of_a_loop_over_folds_and_labels():
    rng = np.random.default_rng(1)
    points = rng.standard_normal((2, 20, 6))
    labels = rng.random((40, 3)) < 0.4
    fold = np.arange(20) % 4
    found = concept_scores(points, labels, fold)
    rows = points.reshape(40, 6)
    for k in range(3):
        for number in range(4):
            train = np.tile(fold, 2) != number
            one, other = rows[train & labels[:, k]].mean(0), rows[train & ~labels[:, k]].mean(0)
            w = one - other
            expected = (rows[~train] - (one + other) / 2) @ w / (w @ w)
            np.testing.assert_allclose(found[~train, k], expected)


def test_the_arm_as_a_concept_is_the_difference_of_means():
    rng = np.random.default_rng(2)
    points = rng.standard_normal((2, 12, 5))
    fold = np.arange(12) % 3
    found = concept_scores(points, np.repeat([True, False], 12)[:, None], fold).reshape(2, 12)
    for number in range(3):
        probe = fit_diff_means(points[:, fold != number])
        np.testing.assert_allclose(found[:, fold == number], probe.score(points[:, fold == number]))


def test_a_label_that_training_texts_lack_has_no_score():
    points = np.random.default_rng(3).standard_normal((2, 6, 4))
    fold = np.arange(6) // 2
    labels = np.tile(fold == 0, 2)[:, None]
    scores = concept_scores(points, labels, fold)
    assert np.isnan(scores[np.tile(fold == 0, 2)]).all()
    assert mean_auroc(scores, labels) is None


def test_pairs_of_every_scenario_are_spread_over_the_folds():
    groups = np.repeat(["a", "b", "c"], [10, 4, 1])
    fold = pair_folds(groups, n_folds=5, seed=0)
    assert (np.bincount(fold[groups == "a"], minlength=5) == 2).all()
    assert np.unique(fold[groups == "b"]).size == 4


def test_sentiment_is_vaders():
    kind, cruel = sentiment(("I love this wonderful help", "I hate this horrible pain"))
    assert kind > 0.5 > -0.5 > cruel


# -- residualising


def test_a_planted_confound_is_taken_out_to_the_known_auroc():
    """O11: x = a·y·u + b·c·v + noise, with a confound c that agrees with y on most texts.

    Regressing on c takes b·c·v out, and of the concept what c predicts of y: along u remains
    a(y − ρc) + noise with ρ = 2q − 1.
    """
    rng = np.random.default_rng(0)
    n, hidden, a, b, q = 6000, 12, 0.5, 3.0, 0.8
    y = np.repeat([1.0, -1.0], n)
    c = np.where(rng.random(2 * n) < q, y, -y)
    x = rng.standard_normal((2 * n, hidden))
    x[:, 0] += a * y
    x[:, 1] += b * c
    folds = folds_of(6, n // 6)
    points = x.reshape(2, n, hidden)
    before = concept_scores(points, (y > 0)[:, None], folds.fold_of_pair).ravel()
    after, n_empty = residual_scores(points, Confounds(c[:, None], []), folds.folds)
    rho = 2 * q - 1
    expected = sum(
        (q if c1 > 0 else 1 - q) * (1 - q if c0 > 0 else q)
        * ndtr(a * (2 - rho * (c1 - c0)) / math.sqrt(2))
        for c1 in (1, -1) for c0 in (1, -1)
    )  # fmt: skip
    assert n_empty == 0
    assert auroc(before, y > 0) > 0.8  # b·c·v alone: the shortcut
    assert auroc(after.ravel(), y > 0) == pytest.approx(expected, abs=0.015)
    assert expected < 0.75


def test_a_confound_alone_leaves_chance():
    """O11: no concept at all, only the confound: after residualising nothing is left."""
    rng = np.random.default_rng(1)
    n = 1500
    y = np.repeat([1.0, -1.0], n)
    c = np.where(rng.random(2 * n) < 0.9, y, -y)
    x = rng.standard_normal((2 * n, 8))
    x[:, 1] += 3 * c
    folds = folds_of(5, n // 5)
    after, _ = residual_scores(x.reshape(2, n, 8), Confounds(c[:, None], []), folds.folds)
    assert auroc(after.ravel(), y > 0) == pytest.approx(0.5, abs=0.03)


def test_confounds_that_are_the_label_leave_nothing_and_say_so():
    y = np.repeat([1.0, -1.0], 20)
    points = np.random.default_rng(2).standard_normal((2, 20, 4))
    folds = folds_of(4, 5)
    scores, n_empty = residual_scores(points, Confounds(y[:, None], []), folds.folds)
    np.testing.assert_array_equal(scores, 0)
    assert n_empty == 4


def test_without_confounds_residualising_is_the_difference_of_means():
    rng = np.random.default_rng(3)
    points = rng.standard_normal((2, 20, 5))
    folds = folds_of(4, 5)
    constant = Confounds(np.ones((40, 1)), [])
    found, _ = residual_scores(points, constant, folds.folds)
    arms = np.repeat([True, False], 20)[:, None]
    expected = concept_scores(points, arms, folds.fold_of_pair).reshape(2, 20)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_a_scenario_that_was_not_trained_on_counts_as_average():
    values = np.array(["a", "a", "b", "c"])
    confounds = Confounds(np.zeros((4, 0)), [values])
    inside, outside = confounds.matrices(np.array([0, 1, 2]), np.array([3, 2]))
    np.testing.assert_allclose(inside.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_array_equal(outside[0], 0)
    assert outside[1].any()


# -- a whole run


def respond(arm, k):
    person = "I am glad that we talked" if arm == "positive" else "The unit moved on its way"
    return f"{person} about item {k % 7}" + (" **now**" if k % 3 == 0 else "")


@pytest.fixture(scope="module")
def run(synthetic_run):
    return synthetic_run(n_layers=2, hidden=60, strength=2.0, responses=respond, n_neutral=2)


@pytest.fixture(scope="module")
def rows(run):
    return confound_run(
        run.ds, run.texts, spec=ConfoundSpec(), probe=ProbeSpec(), bow=BagOfWordsSpec(),
        scheduler="synchronous",
    ).rows  # fmt: skip


def test_every_concept_has_a_row_on_every_layer(rows):
    control = rows[rows.analysis == "control"]
    assert set(control.concept) == {
        "generator", "scenario", "markdown", "length", "sentiment", "random_label", "arm",
    }  # fmt: skip
    assert (control.groupby(["layer", "concept"]).size() == 1).all()
    assert not (rows.estimate.isna() & rows.reason.isna()).any()
    for record in rows.astype(object).where(rows.notna(), None).to_dict("records"):
        ResultRow.model_validate(record)


def test_selectivity_is_the_arm_beside_a_random_label(rows):
    arm = rows[(rows.concept == "arm") & (rows.layer == 1)].iloc[0]
    control = rows[(rows.concept == "random_label") & (rows.layer == 1)].iloc[0]
    assert arm.selectivity == pytest.approx(arm.estimate - control.estimate)
    assert arm.estimate > 0.8 > 0.65 > control.estimate
    assert control.cv.startswith("group 5-fold on pair")
    assert control.ci_method == "mean over 20 labels: no interval"


def test_a_concept_that_is_the_arm_says_how_far_it_agrees(rows):
    sentiments = rows[(rows.concept == "sentiment") & (rows.layer == 0)].iloc[0]
    assert sentiments.verdict == "agrees with the arm on 100% of texts"
    generator = rows[(rows.concept == "generator") & (rows.layer == 0)].iloc[0]
    assert generator.verdict == "agrees with the arm on 50% of texts"


def test_surface_features_that_tell_the_arms_reach_one(rows):
    surface = rows[(rows.analysis == "surface") & (rows.metric == "auroc") & (rows.subset == "all")]
    areas = surface.set_index("method").estimate
    assert areas["first_person"] == 1.0
    assert areas["surface_logistic"] == 1.0
    assert areas["markdown"] == pytest.approx(0.5, abs=0.1)
    assert surface.layer.isna().all()


def test_before_and_after_stand_beside_words_and_surface(rows):
    residual = rows[(rows.analysis == "residual") & (rows.subset == "all") & (rows.layer == 0)]
    residual = residual.set_index("metric")
    assert set(residual.index) == {"auroc_raw", "auroc_residualised", "auroc_change"}
    change = residual.estimate["auroc_residualised"] - residual.estimate["auroc_raw"]
    assert residual.estimate["auroc_change"] == pytest.approx(change)
    for name in ("bow_estimate", "surface_estimate"):
        assert (residual[name][["auroc_raw", "auroc_residualised"]] == 1.0).all()
    assert residual.reason["auroc_residualised"].endswith("nothing is left to probe")


def test_one_generator_and_no_markdown_are_reasons_and_not_numbers(synthetic_run):
    plain = synthetic_run(n_layers=1)
    plain.ds["generator"] = ("text", np.full(plain.ds.sizes["text"], "only"))
    found = confound_run(
        plain.ds, plain.texts, spec=ConfoundSpec(concepts=("generator", "markdown")),
        probe=ProbeSpec(), bow=BagOfWordsSpec(), scheduler="synchronous",
    ).rows  # fmt: skip
    control = found[found.analysis == "control"].set_index("concept")
    assert control.estimate[["generator", "markdown"]].isna().all()
    assert control.reason["generator"] == "all texts have one generator"
    assert control.reason["markdown"] == "all texts or none have markdown"


def test_every_auroc_of_a_probe_stands_beside_the_surface_features(run):
    found = probe_run(
        run.ds, run.texts, spec=ProbeSpec(methods=("diff_means",), n_bootstrap=0),
        random=RandomSpec(n_directions=5), bow=BagOfWordsSpec(), scheduler="synchronous",
    ).rows  # fmt: skip
    mine = found[(found.analysis == "probe") & found.metric.isin(["auroc", "auroc_nested"])]
    assert len(mine) > 5
    assert (mine.surface_estimate == 1.0).all()
    np.testing.assert_allclose(mine.surface_delta, mine.estimate - mine.surface_estimate)
    table = pair_table(run.ds)
    assert (mine.n_pairs <= table.n_pairs).all()
    assert mine.surface_delta_ci_low.notna().all()
