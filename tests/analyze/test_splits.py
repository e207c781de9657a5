from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlake.analyze.splits import (
    generator_folds,
    group_folds,
    pair_table,
    scenario_folds,
    split_fold,
)
from actlake.schemas import InvalidInputError


def relabel(ds, **coords):
    return ds.assign_coords({name: ("text", values) for name, values in coords.items()})


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(2, 12), st.integers(0, 5))
def test_no_group_lies_in_two_folds_and_no_fold_is_empty(groups, n_folds, seed):
    fold = group_folds(groups, n_folds, seed=seed)
    for name in set(groups):
        assert len({int(f) for f, g in zip(fold, groups, strict=True) if g == name}) == 1
    assert set(fold.tolist()) == set(range(min(n_folds, len(set(groups)))))


def test_folds_of_equal_groups_differ_by_one_group_at_most():
    fold = group_folds(np.repeat(np.arange(10), 7), 3, seed=0)
    assert sorted(np.bincount(fold).tolist()) == [21, 21, 28]


def test_every_scenario_is_held_out_once(synthetic_run):
    table = pair_table(synthetic_run(n_scenarios=5, pairs_per_scenario=4).ds)
    folds = scenario_folds(table, max_folds=100, seed=0)
    assert folds.scheme == "leave-one-scenario-out (5 folds)"
    held = np.concatenate([fold.test for fold in folds.folds])
    assert sorted(held.tolist()) == list(range(20))
    for fold in folds.folds:
        assert set(table.scenario[fold.test]) == {fold.name}
        assert fold.name not in set(table.scenario[fold.train])


def test_more_scenarios_than_folds_gives_grouped_folds(synthetic_run):
    table = pair_table(synthetic_run(n_scenarios=9, pairs_per_scenario=2).ds)
    folds = scenario_folds(table, max_folds=4, seed=0)
    assert folds.scheme == "stratified group k-fold on scenario (4 folds)"
    for fold in folds.folds:
        assert not set(table.scenario[fold.test]) & set(table.scenario[fold.train])


def test_inner_folds_divide_the_training_scenarios(synthetic_run):
    table = pair_table(synthetic_run(n_scenarios=7, pairs_per_scenario=3).ds)
    for fold in scenario_folds(table, max_folds=100, seed=0).folds:
        assert fold.inner_unit == "scenario"
        assert fold.inner_scenario.max() + 1 == 6
        assert fold.inner_tune.max() + 1 == 3
        for name in set(table.scenario[fold.train]):
            assert np.unique(fold.inner_tune[table.scenario[fold.train] == name]).size == 1


def test_one_training_scenario_leaves_pairs_as_inner_groups(synthetic_run):
    table = pair_table(synthetic_run(n_scenarios=2, pairs_per_scenario=5).ds)
    fold = scenario_folds(table, max_folds=100, seed=0).folds[0]
    assert fold.inner_unit == "pair"
    assert fold.inner_scenario.max() + 1 == 5


def test_split_fold_holds_out_the_test_scenarios(synthetic_run):
    table = pair_table(synthetic_run(n_scenarios=6, n_test_scenarios=2).ds)
    fold = split_fold(table, max_folds=100, seed=0)
    assert fold.name == "split=train"
    assert set(table.scenario[fold.test]) == {"scenario-04", "scenario-05"}


def test_pairs_are_matched_by_id_whatever_the_row_order(synthetic_run):
    ds = synthetic_run(n_neutral=3).ds
    ds = ds.isel(text=np.random.default_rng(0).permutation(ds.sizes["text"]))
    table = pair_table(ds)
    assert table.n_pairs == 48
    for arm, value in ((0, 1), (1, 0)):
        assert set(ds["label"].values[table.rows[arm]]) == {value}
        assert ds["pair"].values[table.rows[arm]].tolist() == table.pair.tolist()


def test_neutral_variant_and_unpaired_texts_are_left_out_and_counted(synthetic_run):
    ds = synthetic_run(n_neutral=4).ds
    variant, pair = ds["variant"].values.astype(object), ds["pair"].values.astype(object)
    labelled = np.flatnonzero(ds["label"].values >= 0)
    variant[labelled[0]] = "keywords_removed"
    pair[labelled[-1]] = ""
    table = pair_table(relabel(ds, variant=variant.astype(str), pair=pair.astype(str)))
    dropped = {ds["text"].values[labelled[i]] for i in (0, -1)}
    assert not dropped & set(table.texts.ravel())
    assert table.counts == {
        "n_texts": 100,
        "n_neutral_ignored": 4,
        "n_variants_ignored": 1,
        "n_unpaired_ignored": 95 - table.rows.size,
    }
    assert table.n_pairs in (46, 47)


def test_bad_tables_are_refused_with_what_is_wrong(synthetic_run):
    ds = synthetic_run().ds
    n = ds.sizes["text"]
    label, pair = ds["label"].values, ds["pair"].values
    positive = np.flatnonzero(label == 1)
    doubled = pair.copy()
    doubled[positive[1]] = doubled[positive[0]]
    moved = ds["scenario"].values.copy()
    moved[positive[0]] = "elsewhere"
    cases = [
        (relabel(ds, label=np.ones(n, np.int8)), "two texts with label 1"),
        (ds.isel(text=positive), "one class: no original text is negative"),
        (relabel(ds, pair=np.array([f"p{i}" for i in range(n)])), "no complete pair"),
        (relabel(ds, label=np.full(n, 3, np.int8)), r"labels must be .* got \[3\]"),
        (relabel(ds, pair=doubled), "two texts with label 1"),
        (relabel(ds, scenario=moved), "unlike scenarios"),
        (ds.drop_vars("variant"), r"lacks the coordinates \['variant'\]"),
    ]
    for broken, words in cases:
        with pytest.raises(InvalidInputError, match=words):
            pair_table(broken)


def test_one_scenario_is_refused(synthetic_run):
    table = pair_table(synthetic_run(n_scenarios=1).ds)
    with pytest.raises(InvalidInputError, match=r"two scenarios or more, got \['scenario-00'\]"):
        scenario_folds(table, max_folds=10, seed=0)


def test_generators_are_held_out_one_at_a_time(synthetic_run):
    table = pair_table(synthetic_run(n_scenarios=3).ds)
    folds = generator_folds(table, max_folds=10, seed=0)
    assert folds.scheme == "leave-one-generator-out (2 folds)"
    assert folds.groups == "generator"
    for fold in folds.folds:
        assert set(table.generator[fold.test]) == {fold.name}
        assert fold.name not in table.generator[fold.train]
        # Inner folds stay with the unit of generalisation.
        for name in range(3):
            assert np.unique(table.scenario[fold.train[fold.inner_scenario == name]]).size == 1
    np.testing.assert_array_equal(folds.held_out, np.arange(table.n_pairs))


def test_a_pair_of_mixed_generators_is_on_neither_side(synthetic_run):
    ds = synthetic_run().ds
    generator = ds["generator"].values.copy()
    row = pair_table(ds).rows[0, 3]
    generator[row] = "somebody else"
    table = pair_table(relabel(ds, generator=generator))
    folds = generator_folds(table, max_folds=10, seed=0)
    assert folds.fold_of_pair[3] == -1
    assert 3 not in folds.held_out
    for fold in folds.folds:
        assert 3 not in np.concatenate([fold.train, fold.test])


def test_one_generator_is_refused(synthetic_run):
    ds = synthetic_run().ds
    table = pair_table(relabel(ds, generator=np.full(ds.sizes["text"], "only")))
    with pytest.raises(InvalidInputError, match=r"two generators or more, got \['only'\]"):
        generator_folds(table, max_folds=10, seed=0)
