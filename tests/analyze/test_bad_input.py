"""Bad input: a clear error or a stated fallback, and never a number without a reason."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pandas as pd
import pytest

from actlake.analyze import (
    PARTS,
    analyze_run,
    confound_run,
    null_run,
    probe_run,
    random_run,
)
from actlake.schemas import (
    AnalyzeSpec,
    BagOfWordsSpec,
    ConfoundSpec,
    InvalidInputError,
    NotFoundError,
    NullSpec,
    ProbeMethod,
    ProbeSpec,
    RandomSpec,
)

METHODS = get_args(ProbeMethod)
SPEC = AnalyzeSpec(
    probe=ProbeSpec(methods=METHODS, n_bootstrap=10, c_grid=(0.01, 1.0), n_reliability=2),
    random=RandomSpec(n_directions=9),
    nulls=NullSpec(n_draws=9),
)


def every(run, **fields):
    return analyze_run(run.ds, run.texts, spec=SPEC, scheduler="synchronous", **fields)


def each(run):
    """Every analysis by its own function."""
    ds, texts = run.ds, run.texts
    options = {"scheduler": "synchronous"}
    return {
        "probe": lambda: probe_run(
            ds, texts, spec=SPEC.probe, random=SPEC.random, bow=SPEC.bow, **options
        ),
        "nulls": lambda: null_run(ds, texts, spec=SPEC.nulls, probe=SPEC.probe, **options),
        "confounds": lambda: confound_run(
            ds, texts, spec=ConfoundSpec(), probe=SPEC.probe, bow=BagOfWordsSpec(), **options
        ),
        "random": lambda: random_run(ds, spec=SPEC.random, **options),
    }


def refuses(run, words, *, but=()):
    for name, analysis in each(run).items():
        if name not in but:
            with pytest.raises(InvalidInputError, match=words):
                analysis()
    with pytest.raises(InvalidInputError, match=words):
        every(run)


def tables(parts):
    for name, result in parts.items():
        for attribute in ("rows", "bands", "null"):
            if hasattr(result, attribute):
                yield f"{name}.{attribute}", getattr(result, attribute)


def assert_reasoned(parts):
    """No number is missing, and no interval of an estimate, without a reason beside it."""
    for name, frame in tables(parts):
        estimated = [c for c in ("estimate", "mean", "sd", "max") if c in frame.columns]
        assert estimated, name
        reason = frame["reason"].notna() if "reason" in frame.columns else False
        for column in estimated:
            assert (frame[column].notna() | reason).all(), (name, column)
        numbers = frame.select_dtypes("number").astype(float).to_numpy()
        assert not np.isinf(numbers).any(), name
        if "ci_low" in frame.columns:
            known = frame["ci_low"].notna() | frame["ci_method"].notna() | reason
            assert (known | (frame["metric"] == "selected_layer")).all(), name
    return parts


def test_fewer_than_two_scenarios_are_refused(synthetic_run):
    run = synthetic_run(n_scenarios=1)
    refuses(run, r"two scenarios or more, got \['scenario-00'\]", but=("random",))


def test_one_class_is_refused(synthetic_run):
    run = synthetic_run()
    run.ds = run.ds.isel(text=run.ds["label"].values == 1)
    refuses(run, "one class: no original text is negative")


def test_no_pair_is_refused(synthetic_run):
    run = synthetic_run()
    n = run.ds.sizes["text"]
    run.ds["pair"] = ("text", np.array([f"own-{i}" for i in range(n)]))
    refuses(run, "no complete pair")


def test_one_pair_is_refused_as_one_scenario(synthetic_run):
    run = synthetic_run(n_scenarios=1, pairs_per_scenario=1)
    refuses(run, "two scenarios or more|two pairs or more")


def test_labels_that_are_not_binary_are_refused(synthetic_run):
    run = synthetic_run()
    label = run.ds["label"].values.copy()
    label[3] = 2
    run.ds["label"] = ("text", label)
    refuses(run, r"labels must be 1 .* got \[2\]")


def test_rows_with_nan_are_refused_by_name(synthetic_run):
    run = synthetic_run(chunked=False)
    row = int(np.flatnonzero(run.ds["text"].values == "neg-0007")[0])
    run.ds["resid_post_mean_response"][row, 1, 3] = np.nan
    refuses(run, r"layer 1: 1 of 96 rows have NaN .* 'neg-0007'|\['neg-0007'\]")


def test_a_corpus_of_another_run_is_refused(synthetic_run):
    run = synthetic_run()
    run.texts = run.texts[:10]
    for name in ("probe", "nulls", "confounds"):
        with pytest.raises(NotFoundError, match="are not in the corpus that was given"):
            each(run)[name]()


def test_a_missing_site_and_pool_are_named(synthetic_run):
    run = synthetic_run()
    for site in ("attn_out",):
        with pytest.raises(NotFoundError, match="no site 'attn_out'"):
            every(run, site=site)
    spec = SPEC.model_copy(
        update={"probe": SPEC.probe.model_copy(update={"pools": ("last_prompt",)})}
    )
    with pytest.raises(NotFoundError, match=r"no pool \['last_prompt'\]"):
        analyze_run(run.ds, run.texts, spec=spec)


def test_two_pairs_in_two_scenarios_give_rows_with_reasons(synthetic_run):
    """The smallest run that has folds: one training pair, no inner folds, no reliability."""
    run = synthetic_run(n_scenarios=2, pairs_per_scenario=1, subsets=("none",))
    found = assert_reasoned(every(run, parts=["probe", "random", "nulls", "confounds"]))
    rows = found["probe"].rows
    nested = rows[rows.metric == "auroc_nested"]
    assert nested.estimate.isna().all()
    assert (nested.reason == "no inner folds: the training pairs are a single group").all()
    nulls = found["nulls"].rows
    linear = nulls[nulls.layer.notna()]
    assert linear.p_value.between(0.1, 1).all()


def test_fewer_pairs_than_folds_fall_back_to_one_scenario_a_fold(synthetic_run):
    run = synthetic_run(n_scenarios=3, pairs_per_scenario=1, subsets=("none",))
    spec = SPEC.model_copy(update={"probe": SPEC.probe.model_copy(update={"max_folds": 50})})
    found = analyze_run(run.ds, run.texts, spec=spec, parts=["probe"], scheduler="synchronous")
    assert set(found["probe"].rows.cv) == {"leave-one-scenario-out (3 folds)"}
    assert_reasoned(found)


def test_constant_features_give_one_half_and_a_reason(synthetic_run):
    def flat(x, _texts):
        x[:, 0] = 1.7
        x[:, 1, :5] = 3.3
        return x

    found = assert_reasoned(every(synthetic_run(activations=flat, strength=0.0)))
    rows = found["probe"].rows
    dead = rows[(rows.layer == 0) & (rows.metric == "auroc") & (rows.analysis == "probe")]
    assert set(dead.method) == set(METHODS)
    assert (dead.estimate == 0.5).all()
    assert (dead.reason == "all scores are equal").all()
    nulls = found["nulls"].rows
    dead = nulls[(nulls.layer == 0)]
    assert (dead.estimate == 0.5).all()
    assert (dead.p_value == 1.0).all()
    assert (found["random"].aurocs.sel(layer=0) == 0.5).all()
    confounds = found["confounds"].rows
    assert (confounds[confounds.layer == 0].estimate.dropna().isin([0.5, 0.0])).all()


def test_equal_responses_leave_words_and_surface_at_one_half(synthetic_run):
    run = synthetic_run(responses=lambda _arm, _k: "the very same words")
    found = assert_reasoned(every(run))
    rows = found["probe"].rows
    compared = rows[(rows.metric == "auroc") & (rows.analysis == "probe")]
    assert (compared.bow_estimate == 0.5).all()
    assert (compared.surface_estimate == 0.5).all()
    control = found["confounds"].rows
    length = control[control.concept == "length"]
    assert length.estimate.isna().all()
    assert length.reason.str.startswith("half of the lengths or more").all()


def test_responses_without_a_word_are_refused_by_the_bag_of_words(synthetic_run):
    run = synthetic_run(responses=lambda _arm, _k: "!!! ...")
    with pytest.raises(InvalidInputError, match="bag of words found no word"):
        every(run, parts=["probe"])


def test_values_of_any_size_give_finite_tables(synthetic_run):
    for size in (1e-20, 1e12):
        run = synthetic_run(activations=lambda x, _t, size=size: x * size, strength=2.0)
        found = assert_reasoned(every(run))
        rows = found["probe"].rows
        curve = rows[(rows.metric == "auroc") & (rows.analysis == "probe") & (rows.subset == "all")]
        curve = curve[curve.method != "pca_diff"]
        assert (curve.estimate > 0.8).all(), size


def test_parts_are_all_there_for_an_ordinary_run(synthetic_run):
    found = assert_reasoned(every(synthetic_run(n_neutral=3, n_test_scenarios=1)))
    assert list(found) == list(PARTS)
    for name, frame in tables(found):
        assert isinstance(frame, pd.DataFrame), name
        assert len(frame), name
