from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.special import ndtr

from actlake.analyze import compare_probes, compare_scores, probe_run
from actlake.schemas import (
    BagOfWordsSpec,
    InvalidInputError,
    NotFoundError,
    ProbeSpec,
    RandomSpec,
)


def frame(positive, negative, *, prefix="p", n_scenarios=5, **columns):
    n = len(positive)
    return pd.DataFrame(
        {
            "text": [f"{prefix}{i}+" for i in range(n)] + [f"{prefix}{i}-" for i in range(n)],
            "pair": [f"{prefix}{i}" for i in range(n)] * 2,
            "scenario": [f"s{i % n_scenarios}" for i in range(n)] * 2,
            "label": [1] * n + [0] * n,
            "score": np.concatenate([positive, negative]),
            **columns,
        }
    )


def draw(rng, n, *, d_first, d_second, shared=0.8):
    """Two probes whose noise is correlated, as that of two layers is."""
    common = rng.standard_normal((2, n))
    out = []
    for d in (d_first, d_second):
        own = rng.standard_normal((2, n))
        noise = shared * common + np.sqrt(1 - shared**2) * own
        out.append(frame(noise[0] + d, noise[1]))
    return out


def test_both_intervals_cover_the_true_difference():
    rng = np.random.default_rng(0)
    truth = ndtr(1.2 / np.sqrt(2)) - ndtr(0.7 / np.sqrt(2))
    repeats = 200
    delong = bootstrap = 0
    for _ in range(repeats):
        found = compare_scores(*draw(rng, 60, d_first=1.2, d_second=0.7), n_bootstrap=200)
        delong += found["ci_low"] <= truth <= found["ci_high"]
        bootstrap += found["bootstrap_low"] <= truth <= found["bootstrap_high"]
    assert 0.9 <= delong / repeats <= 0.99
    assert 0.88 <= bootstrap / repeats <= 0.99


def test_pairing_narrows_the_interval():
    rng = np.random.default_rng(1)
    first, second = draw(rng, 80, d_first=1.0, d_second=1.0, shared=0.95)
    paired = compare_scores(first, second, n_bootstrap=300)
    shuffled = second.copy()
    for label in (0, 1):
        rows = np.flatnonzero(second.label == label)
        shuffled.loc[rows, "score"] = rng.permutation(second.score[rows])
    loose = compare_scores(first, shuffled, n_bootstrap=300)
    assert paired["ci_high"] - paired["ci_low"] < 0.6 * (loose["ci_high"] - loose["ci_low"])
    width = paired["bootstrap_high"] - paired["bootstrap_low"]
    assert width < 0.7 * (loose["bootstrap_high"] - loose["bootstrap_low"])


def test_the_order_of_rows_does_not_matter_and_the_sign_turns():
    rng = np.random.default_rng(2)
    first, second = draw(rng, 20, d_first=1.0, d_second=0.3)
    one = compare_scores(first, second.sample(frac=1, random_state=0), n_bootstrap=50)
    two = compare_scores(second, first, n_bootstrap=50)
    assert one["delta"] == pytest.approx(-two["delta"])
    assert one["ci_low"] == pytest.approx(-two["ci_high"])
    assert one["bootstrap_low"] == pytest.approx(-two["bootstrap_high"])


def test_at_the_boundary_the_interval_keeps_a_width_and_the_bootstrap_says_why_not():
    rng = np.random.default_rng(3)
    perfect = frame(np.arange(20) + 10.0, -np.arange(20.0))
    other = frame(rng.standard_normal(20) + 1, rng.standard_normal(20))
    found = compare_scores(perfect, other)
    assert found["ci_low"] < found["delta"] < found["ci_high"]
    assert found["bootstrap_low"] is None
    assert "does not vary under the bootstrap" in found["reason"]


def test_runs_are_compared_on_their_common_pairs_alone():
    rng = np.random.default_rng(4)
    first, second = draw(rng, 30, d_first=1.0, d_second=0.0)
    fewer = second[second.pair.isin([f"p{i}" for i in range(12)]) & (second.text != "p3+")]
    found = compare_scores(first, fewer, n_bootstrap=20)
    assert (found["n_pairs"], found["n_texts"]) == (11, 22)


def test_without_common_texts_nothing_is_compared():
    rng = np.random.default_rng(5)
    ours = frame(rng.random(5), rng.random(5))
    theirs = frame(rng.random(5), rng.random(5), prefix="q")
    with pytest.raises(InvalidInputError, match="0 complete pairs in common"):
        compare_scores(ours, theirs)
    flipped = ours.assign(label=1 - ours.label)
    with pytest.raises(InvalidInputError, match="disagree on the label of text 'p0\\+'"):
        compare_scores(ours, flipped)
    with pytest.raises(InvalidInputError, match="has several scores"):
        compare_scores(pd.concat([ours, ours]), ours)
    with pytest.raises(InvalidInputError, match=r"lack the columns \['scenario'\]"):
        compare_scores(ours.drop(columns="scenario"), ours)


@pytest.fixture(scope="module")
def scores(synthetic_run):
    def late_signal(x, texts):
        x[[t.arm == "positive" for t in texts], 2, 0] += 2.0
        return x

    run = synthetic_run(n_layers=3, strength=0.0, activations=late_signal, n_test_scenarios=2)
    return probe_run(
        run.ds, run.texts, spec=ProbeSpec(methods=("diff_means", "ridge", "lda"), n_bootstrap=0),
        random=RandomSpec(n_directions=3), bow=BagOfWordsSpec(), scheduler="synchronous",
    ).scores  # fmt: skip


def test_layers_are_compared_with_the_one_that_was_chosen(scores):
    found = compare_probes(scores, between="layer", reference=2, n_bootstrap=100)
    nested = found[found.cv.str.startswith("leave") & (found.method == "ridge")]
    assert nested["first"].tolist() == ["2", "2"]
    assert set(nested["second"]) == {"0", "1"}
    assert (nested.ci_low > 0).all()
    assert (nested.bootstrap_low > 0).all()


def test_methods_are_compared_two_by_two_within_each_layer(scores):
    found = compare_probes(scores, between="method", n_bootstrap=0)
    assert len(found) == 3 * 3 * 2  # layers x pairs of methods x schemes
    assert (found.reason == "n_bootstrap is 0").all()
    assert not found.delta.isna().any()


def test_models_are_compared_where_both_have_the_layer(scores):
    other = scores.assign(run="other", score=-scores.score)
    found = compare_probes(pd.concat([scores, other]), between="run", n_bootstrap=0)
    assert set(found["first"]) == {"synthetic"}
    np.testing.assert_allclose(found.auroc_first, 1 - found.auroc_second)


def test_nothing_to_compare_is_an_error_that_names_what_is_there(scores):
    with pytest.raises(InvalidInputError, match=r"between pools: the scores have \['mean_resp"):
        compare_probes(scores, between="pool")
    with pytest.raises(NotFoundError, match="no layer 9 to compare with"):
        compare_probes(scores, between="layer", reference=9)
