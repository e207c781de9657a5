"""Probe scores against rubric scores."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr, rankdata, spearmanr

from actlake.analyze.behaviour import (
    correlate_scores,
    fisher_interval,
    read_ratings,
    weighted_ranks,
)
from actlake.schemas import CorrelationRow, CorrelationSpec, InvalidInputError, NotFoundError

SPEC = CorrelationSpec(n_bootstrap=300)


def tables(*, n=60, seed=0, slope=1.0, **columns):
    """Scores and ratings of texts in ten scenarios, two layers."""
    rng = np.random.default_rng(seed)
    texts = [f"t{i}" for i in range(n)]
    rating = rng.integers(0, 3, n)
    frames = [
        pd.DataFrame(
            {
                "run": "r", "model": "m", "site": "resid_post", "pool": "last_prompt",
                "layer": layer, "method": "diff_means", "cv": "loso", "text": texts,
                "label": (rating >= 1).astype(int),
                "score": slope * (rating - 1) + rng.standard_normal(n), **columns,
            }
        )
        for layer in (3, 4)
    ]  # fmt: skip
    ratings = pd.DataFrame(
        {"text": texts, "rating": rating, "scenario": [f"s{i % 10}" for i in range(n)]}
    )
    return pd.concat(frames, ignore_index=True), ratings


def by_metric(frame, layer=3):
    return frame[frame.layer == layer].set_index("metric")


def test_estimates_and_fisher_intervals_equal_scipys():
    scores, ratings = tables()
    found = by_metric(correlate_scores(scores, ratings, spec=SPEC))
    x, y = scores[scores.layer == 3].score.to_numpy(), ratings.rating.to_numpy()
    expected = pearsonr(x, y)
    assert found.loc["pearson", "estimate"] == pytest.approx(expected.statistic)
    interval = expected.confidence_interval(0.95)
    assert found.loc["pearson", "ci_low"] == pytest.approx(interval.low)
    assert found.loc["pearson", "ci_high"] == pytest.approx(interval.high)
    assert found.loc["spearman", "estimate"] == pytest.approx(spearmanr(x, y).statistic)
    low, high = fisher_interval(0.5, 60, spearman=True)
    assert low < fisher_interval(0.5, 60)[0]
    assert high > fisher_interval(0.5, 60)[1]


def test_the_accuracy_states_its_rule_and_leaves_the_middle_out():
    scores, ratings = tables()
    found = by_metric(correlate_scores(scores, ratings, spec=SPEC))
    x, y = scores[scores.layer == 3].score.to_numpy(), ratings.rating.to_numpy()
    ends = y != 1
    assert found.loc["accuracy", "estimate"] == pytest.approx(((x > 0) == (y == 2))[ends].mean())
    rule = found.loc["accuracy", "rule"]
    assert f"{(~ends).sum()} texts between are left out" in rule
    assert "rating >= 1.5 (positive) or <= 0.5 (negative)" in rule
    half = ((x[y == 2] > 0).mean() + (x[y == 0] <= 0).mean()) / 2
    assert found.loc["balanced_accuracy", "estimate"] == pytest.approx(half)


def test_what_is_missing_or_no_number_is_missing_and_never_zero():
    scores, ratings = tables()
    ratings["rating"] = ratings["rating"].astype(object)
    ratings.loc[:3, "rating"] = ["refused", None, 7, ""]
    ratings.loc[len(ratings)] = ["stranger", 2, "s1"]
    found = by_metric(correlate_scores(scores, ratings, spec=SPEC))
    kept, other = tables()
    expected = correlate_scores(
        kept[~kept.text.isin(["t0", "t1", "t2", "t3"])], other.iloc[4:], spec=SPEC
    )
    assert found.loc["pearson", "n_missing"] == 4
    assert found.loc["pearson", "n_unknown"] == 1
    assert found.loc["pearson", "n_texts"] == 56
    assert found.loc["pearson", "estimate"] == by_metric(expected).loc["pearson", "estimate"]


def test_a_relation_between_arms_alone_is_gone_within_them():
    rng = np.random.default_rng(1)
    label = np.repeat([0, 1], 200)
    scores = pd.DataFrame(
        {"text": [f"t{i}" for i in range(400)], "label": label,
         "score": 3 * label + rng.standard_normal(400)}
    )  # fmt: skip
    ratings = pd.DataFrame({"text": scores.text, "rating": label + rng.uniform(0, 1, 400)})
    found = correlate_scores(scores, ratings, spec=SPEC).set_index("metric")
    assert found.loc["pearson", "estimate"] > 0.7
    assert abs(found.loc["pearson_within_arms", "estimate"]) < 0.12
    assert found.loc["pearson", "cluster_ci_method"].startswith("none: the scenarios")


def test_scenarios_that_move_together_widen_the_cluster_interval():
    rng = np.random.default_rng(2)
    scenario = np.repeat(np.arange(12), 20)
    shared = rng.standard_normal((2, 12))[:, scenario]
    texts = [f"t{i}" for i in range(240)]
    scores = pd.DataFrame({"text": texts, "score": shared[0] + 0.2 * rng.standard_normal(240)})
    rating = (shared[1] - shared[1].min()) / np.ptp(shared[1]) * 2
    ratings = pd.DataFrame(
        {"text": texts, "rating": rating, "scenario": [f"s{s}" for s in scenario]}
    )
    row = correlate_scores(scores, ratings, spec=SPEC).set_index("metric").loc["pearson"]
    assert row.cluster_ci_high - row.cluster_ci_low > 2 * (row.ci_high - row.ci_low)
    assert row.cluster_ci_method == "bootstrap of 12 scenarios"


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=12))
def test_weighted_ranks_are_the_ranks_of_repeated_values(items):
    values = np.array([float(v) for v, _ in items])
    counts = np.array([c for _, c in items])
    repeated = rankdata(np.repeat(values, counts))
    found = np.repeat(weighted_ranks(values, counts[None].astype(float))[0], counts)
    np.testing.assert_allclose(found, repeated)


def test_files_are_read_and_columns_are_named(tmp_path):
    scores, ratings = tables()
    renamed = ratings.rename(columns={"text": "uid", "rating": "empathy"})
    renamed.to_csv(tmp_path / "r.csv", index=False)
    renamed.to_parquet(tmp_path / "r.parquet", index=False)
    spec = SPEC.model_copy(update={"id_column": "uid", "rating_column": "empathy"})
    whole = correlate_scores(scores, ratings, spec=SPEC)
    for name in ("r.csv", "r.parquet"):
        pd.testing.assert_frame_equal(correlate_scores(scores, tmp_path / name, spec=spec), whole)
    for values in whole.astype(object).where(whole.notna(), None).to_dict("records"):
        CorrelationRow.parse(values)


def test_ids_that_look_like_numbers_are_matched_as_text(tmp_path):
    scores, ratings = tables()
    scores["text"] = "00" + scores.text.str[1:]
    ratings["text"] = "00" + ratings.text.str[1:]
    ratings.to_csv(tmp_path / "r.csv", index=False)
    found = correlate_scores(scores, tmp_path / "r.csv", spec=SPEC)
    assert (found.n_texts == 60).all()


def test_constant_and_few_texts_have_a_reason():
    scores, ratings = tables()
    flat = correlate_scores(scores.assign(score=1.0), ratings, spec=SPEC)
    by = by_metric(flat)
    assert by.loc["pearson", "reason"] == "the scores do not vary"
    few = correlate_scores(scores[scores.text.isin(["t0", "t1", "t2"])], ratings, spec=SPEC)
    assert by_metric(few).loc["spearman", "reason"] == "3 texts have a score and a rating"
    same = ratings.assign(rating=1.0)
    found = by_metric(correlate_scores(scores, same, spec=SPEC))
    assert found.loc["accuracy", "reason"] == "no rating is at either end"
    assert np.isnan(found.loc["pearson", "estimate"])


def test_tables_that_do_not_fit_are_refused(tmp_path):
    scores, ratings = tables()
    with pytest.raises(InvalidInputError, match=r"no column 'rating' \(did you mean 'ratings'"):
        correlate_scores(scores, ratings.rename(columns={"rating": "ratings"}), spec=SPEC)
    with pytest.raises(InvalidInputError, match=r"1 texts are rated twice, such as \['t0'\]"):
        correlate_scores(scores, pd.concat([ratings, ratings.head(1)]), spec=SPEC)
    with pytest.raises(InvalidInputError, match="none of the 60 scored texts"):
        correlate_scores(scores, ratings.assign(text="x" + ratings.text), spec=SPEC)
    with pytest.raises(InvalidInputError, match="one score per text"):
        correlate_scores(pd.concat([scores, scores]), ratings, spec=SPEC)
    with pytest.raises(NotFoundError, match="no table at"):
        read_ratings(tmp_path / "none.csv")
    (tmp_path / "r.xlsx").write_text("x")
    with pytest.raises(InvalidInputError, match=r"read from \.csv or \.parquet, got \.xlsx"):
        read_ratings(tmp_path / "r.xlsx")
    (tmp_path / "r.parquet").write_text("not parquet")
    with pytest.raises(InvalidInputError, match=r"r\.parquet cannot be read"):
        read_ratings(tmp_path / "r.parquet")
    with pytest.raises(InvalidInputError, match="expected lowest <= negative_to"):
        CorrelationSpec.parse({"negative_to": 1.8})
