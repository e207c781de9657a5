"""The lexical ablation: planted signals, the arithmetic of re-pooling, what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from actlake.analyze import ablation_run, auroc, save_ablation
from actlake.analyze.ablation_measures import finding_of
from actlake.analyze.ablation_rows import VERDICT_COLUMNS, verdict_table
from actlake.analyze.auroc import Interval
from actlake.analyze.design import make_design
from actlake.analyze.lexical_words import draw_matched, without_words, word_table
from actlake.analyze.repooling import TokenTable, pack_masks, passes_needed, repooled_scores
from actlake.corpus import make_variants
from actlake.corpus.words import stop_words
from actlake.schemas import (
    AblationSpec,
    InvalidInputError,
    Lexicon,
    NotFoundError,
    ProbeSpec,
    VariantSpec,
)
from tests.analyze.token_runs import KEYWORDS, LEXICA, make_token_run, token_run

SPEC = AblationSpec(n_draws=40, n_dose_draws=5, n_bow_draws=2, n_bootstrap=200, k_max=16)
EVERY = sorted(word for of in KEYWORDS.values() for word in of)


def ablate(run, **options):
    given_ = {"spec": SPEC, "lexica": LEXICA, "scheduler": "synchronous"} | options
    return ablation_run(run.ds, run.texts, **given_)


def row_of(result, *, metric="auroc", readout="refit", arm="keywords_removed", **where):
    rows = result.rows
    where = {"lexicon": "warm+work", "subset": "all"} | where
    for name, value in (where | {"metric": metric, "readout": readout, "arm": arm}).items():
        rows = rows[rows[name].isna() if value is None else rows[name] == value]
    (found,) = rows.to_dict("records")
    return found


@pytest.fixture(scope="module")
def planted():
    return {plant: make_token_run(plant=plant) for plant in ("keyword", "spread", "none")}


@pytest.fixture(scope="module")
def results(planted):
    return {plant: ablate(run) for plant, run in planted.items()}


# -- planted signals


@pytest.mark.parametrize("readout", ["refit", "fixed"])
def test_without_the_planted_keywords_nothing_is_left(results, readout):
    row = row_of(results["keyword"], readout=readout)
    assert row["before_estimate"] > 0.9
    assert row["ci_low"] < 0.5 < row["ci_high"]
    assert row["delta_ci_high"] < 0
    assert row["contrast_ci_high"] < 0
    assert row["random_mean"] > 0.85
    assert row["percentile"] == 0
    assert row["p_value"] == pytest.approx(1 / 41)
    assert row["finding"] == "shortcut"
    assert "shortcut: without the keywords AUROC falls" in row["verdict"]
    assert "have attended to those words" in row["verdict"]


def test_a_signal_in_every_token_outlives_its_keywords(results):
    for readout in ("refit", "fixed"):
        row = row_of(results["spread"], readout=readout)
        assert row["before_estimate"] == row["estimate"] == 1
        assert row["finding"] != "shortcut"
        spread = row_of(results["spread"], metric="d_prime", readout=readout)
        assert spread["contrast_ci_low"] < 0 < spread["contrast_ci_high"]
        assert 0.02 < spread["percentile"] < 0.98


def test_where_nothing_is_planted_no_shortcut_is_found(results):
    row = row_of(results["none"])
    assert row["finding"] == "no_signal"
    assert row["verdict"].startswith("no signal")


def test_the_verdict_of_a_run_follows_its_rows(results):
    verdicts = {
        name: of.verdicts.set_index("way")["finding"]["all"] for name, of in results.items()
    }
    assert verdicts["keyword"] == "shortcut"
    assert verdicts["spread"] != "shortcut"
    assert verdicts["none"] == "no_signal"


def test_each_lexicon_alone_takes_its_half(results):
    whole = row_of(results["keyword"], metric="d_prime")
    halves = [row_of(results["keyword"], metric="d_prime", lexicon=n) for n in ("warm", "work")]
    for half in halves:
        assert whole["estimate"] < half["estimate"] < half["before_estimate"]
        assert half["words_removed"] == pytest.approx(1, abs=0.01)
    assert whole["words_removed"] == pytest.approx(2, abs=0.01)


def test_the_bag_of_words_is_refitted_under_the_arm(results):
    row = row_of(results["keyword"])
    assert row["bow_before"] == 1
    assert row["bow_estimate"] < 0.75
    assert row["bow_random"] > 0.95
    assert row["bow_delta"] == pytest.approx(row["estimate"] - row["bow_estimate"])


# -- doses


def test_learned_words_in_growing_doses_take_the_contrast(results):
    rows = results["keyword"].rows
    doses = rows[
        (rows.arm == "data_driven") & (rows.metric == "auroc") & (rows.readout == "refit")
    ].sort_values("k")
    assert doses.k.tolist()[0] == SPEC.k_first
    assert doses.words_removed.is_monotonic_increasing
    assert doses.estimate.iloc[0] < 0.75 < doses.before_estimate.iloc[0]
    assert doses.finding.iloc[-1] == "shortcut"
    matched = rows[(rows.arm == "random_like_data_driven") & (rows.metric == "auroc")]
    assert set(matched.k) == set(doses.k)
    assert (matched.n_draws == SPEC.n_dose_draws).all()
    top = results["keyword"].words
    assert set(top[top["rank"] < 6].groupby("fold").word.agg(lambda w: tuple(sorted(w)))) == {
        tuple(EVERY)
    }


def test_a_fold_learns_no_word_that_only_its_held_out_scenario_has():
    run = make_token_run(plant="keyword")
    marked = [
        t.model_copy(update={"response": t.response.replace("lamp", "zebra")})
        if t.scenario == "scenario-2" and t.arm == "positive" else t
        for t in run.texts
    ]  # fmt: skip
    again = token_run(
        marked, plant="keyword", n_layers=1, hidden=8, strength=3.0, rng=np.random.default_rng(1)
    )
    spec = SPEC.model_copy(update={"k_first": 16, "n_dose_draws": 1})
    words = ablate(again, spec=spec).words
    assert "zebra" not in set(words[words.fold == "scenario-2"].word)
    assert all(
        "zebra" in set(of.word) for name, of in words.groupby("fold") if name != "scenario-2"
    )


def test_a_dose_that_leaves_nothing_of_a_text_ends_the_sweep():
    run = make_token_run(plant="keyword", n_words=6)
    result = ablate(run, spec=SPEC.model_copy(update={"k_max": 1024, "bow_target": 0.5}))
    doses = result.rows[result.rows.arm == "data_driven"].k.unique()
    assert 1 <= len(doses) <= 2


# -- random words


def test_random_words_are_content_words_as_many_as_the_keywords_in_every_text():
    run = make_token_run(plant="none")
    table = word_table([t.response for t in run.texts])
    gone = table.among(EVERY)
    drawn, short = draw_matched(table, gone, n_draws=50, seed=[0])
    assert short == 0
    for flags in drawn:
        assert np.array_equal(table.per_text(flags), table.per_text(gone))
        taken = {table.vocabulary[k] for k in table.kind[flags]}
        assert not taken & ({*EVERY} | stop_words())
    assert len({flags.tobytes() for flags in drawn}) == 50
    again, _ = draw_matched(table, gone, n_draws=50, seed=[0])
    assert np.array_equal(drawn, again)
    assert not np.array_equal(drawn, draw_matched(table, gone, n_draws=50, seed=[1])[0])


def test_random_words_are_of_like_frequency():
    rng = np.random.default_rng(0)
    common = [f"{w} rare{chr(97 + i)}x key" for i, w in enumerate(rng.choice(["lamp"], 20))]
    table = word_table(common)
    often, _ = draw_matched(table, table.among(["key"]), n_draws=200, seed=[0])
    share = often[:, table.among(["lamp"])].mean()
    # exp(-2·|log 20 − log 20|) : exp(-2·log 20) = 1 : 1/400
    assert share > 0.98


def test_where_no_word_is_left_the_shortage_is_counted():
    table = word_table(["tender care the", "tender lamp the"])
    drawn, short = draw_matched(table, table.among(["tender", "care"]), n_draws=3, seed=[0])
    assert short == 2
    assert drawn.sum(axis=1).tolist() == [1, 1, 1]


@given(st.lists(st.text("ab c'.", max_size=20), min_size=1, max_size=4), st.integers(0, 99))
def test_what_is_taken_out_of_a_text_leaves_the_rest_in_its_place(responses, seed):
    table = word_table(responses)
    gone = np.random.default_rng(seed).random(table.n_words) < 0.5
    left = without_words(responses, table, gone)
    assert [len(text) for text in left] == [len(text) for text in responses]
    kept = [table.vocabulary[k] for k in table.kind[~gone]]
    assert [w for text in left for w in word_table([text]).vocabulary] == [
        w for t in range(table.n_texts)
        for w in sorted({table.vocabulary[k] for k in table.kind[~gone & (table.text == t)]})
    ]  # fmt: skip
    assert len(kept) == (~gone).sum()


# -- re-pooling


def brute_force(x, tokens, keep, late, n_folds):
    """Scores of one layer, text by text and fold by fold; ``keep`` (column, token)."""
    n_texts, fold = tokens.n_texts, tokens.fold
    arm = np.arange(n_texts) // (n_texts // 2)

    def pooled(column, text):
        return x[(tokens.text == text) & keep[column]].mean(axis=0)

    refit = np.zeros((len(late), n_texts))
    fixed = np.zeros_like(refit)
    for text in range(n_texts):
        train = np.flatnonzero(fold != fold[text])
        for condition, first in enumerate(late):
            column = first if condition < late.count(None) else first + fold[text]
            column = condition if first is None else column
            probes = []
            for source in (column, 0):
                means = [
                    np.mean([pooled(source, t) for t in train if arm[t] == a], axis=0)
                    for a in (0, 1)
                ]
                w = means[0] - means[1]
                probes.append((w, w @ (means[0] + means[1]) / 2, w @ w))
            here = pooled(column, text)
            refit[condition, text] = (here @ probes[0][0] - probes[0][1]) / probes[0][2]
            fixed[condition, text] = (here @ probes[1][0] - probes[1][1]) / probes[1][2]
    return refit, fixed


@pytest.mark.parametrize("memory", ["1GiB", 9 * 3 * 5 * 4 * 2])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_all_repoolings_of_two_passes_are_those_of_one_text_at_a_time(memory, seed):
    import xarray as xr

    rng = np.random.default_rng(seed)
    n_pairs, n_folds, hidden = 6, 3, 5
    n_texts = 2 * n_pairs
    fold = np.tile(np.arange(n_pairs) % n_folds, 2)
    text_of_row = np.repeat(rng.permutation(n_texts), 7)
    rows = np.sort(rng.choice(text_of_row.size, 70, replace=False))
    rows = np.union1d(rows, np.arange(0, text_of_row.size, 7))
    tokens = TokenTable(rows, text_of_row[rows], fold)
    n_plain, n_by_fold = 3, 2
    keep = rng.random((n_plain + n_by_fold * n_folds, rows.size)) < 0.6
    keep[0] = True
    first = np.flatnonzero(np.diff(tokens.text, prepend=-1))
    keep[:, first] = True
    x = (rng.standard_normal((text_of_row.size, 2, hidden)) + 100).astype(np.float32)
    array = xr.DataArray(
        x, dims=("token", "token_layer", "hidden"), coords={"token_layer": [3, 9]}
    ).chunk({"token": 11, "token_layer": 1})

    def dropped(condition, of):
        column = condition if of < 0 else n_plain + (condition - n_plain) * n_folds + of
        return ~keep[column]

    masks = pack_masks(dropped, tokens, n_plain=n_plain, n_by_fold=n_by_fold)
    found = repooled_scores(array, tokens, masks, layer=9, memory=memory, scheduler="synchronous")
    late = [None] * n_plain + [n_plain + k * n_folds for k in range(n_by_fold)]
    refit, fixed = brute_force(x[rows, 1].astype(np.float64), tokens, keep, late, n_folds)
    np.testing.assert_allclose(found.refit.reshape(5, -1), refit, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(found.fixed.reshape(5, -1), fixed, rtol=2e-3, atol=2e-3)
    assert len(passes_needed(masks, hidden=hidden, memory=memory)) == (1 if memory == "1GiB" else 4)


def test_the_originals_score_as_the_stored_pool_does(planted, results):
    run = planted["keyword"]
    design = make_design(run.ds, run.texts, spec=ProbeSpec(methods=("diff_means",)))
    points = run.ds["resid_post_mean_response"].values[design.table.rows, 0].astype(np.float64)
    scores = np.zeros(points.shape[:2])
    for fold in design.folds.folds:
        means = points[:, fold.train].mean(axis=1)
        w = means[0] - means[1]
        scores[:, fold.test] = (points[:, fold.test] @ w - w @ means.mean(axis=0)) / (w @ w)
    expected = auroc(scores.ravel(), np.repeat([1, 0], scores.shape[1]))
    assert row_of(results["keyword"])["before_estimate"] == pytest.approx(expected, abs=1e-9)


def test_every_scheduler_gives_the_same_rows(planted, results):
    again = ablate(planted["keyword"], scheduler="threads")
    pd.testing.assert_frame_equal(again.rows, results["keyword"].rows)


def test_blocks_are_read_once_per_pass_and_those_without_a_pair_never(planted):
    import dask.array as da

    run = planted["spread"]
    array = run.ds["resid_post_tokens"]
    reads = []

    def watched(block, block_info=None):
        reads.append(block_info[0]["chunk-location"])
        return block

    values = da.map_blocks(watched, array.data, dtype=array.dtype, meta=array.data._meta)
    text = run.ds["token_text"].values
    # The first chunk holds tokens of texts that belong to no pair.
    lonely = np.unique(text[:150])
    pair = run.ds["pair"].values.copy()
    pair[lonely] = ""
    ds = run.ds.assign(resid_post_tokens=(array.dims, values)).assign_coords(pair=("text", pair))
    reads.clear()
    ablation_run(ds, run.texts, spec=SPEC, lexica=LEXICA, scheduler="synchronous")
    assert (0, 0, 0) not in reads
    n_blocks = array.data.numblocks[0]
    assert sorted(set(reads)) == [(k, 0, 0) for k in range(1, n_blocks)]
    assert len(reads) == 2 * (n_blocks - 1)


def test_the_draws_are_told_one_by_one_and_agree_with_the_summary(results):
    result = results["keyword"]
    draws = result.draws
    mine = draws[
        (draws.lexicon == "warm+work") & (draws.readout == "refit") & (draws.subset == "all")
    ]
    row = row_of(result)
    assert len(mine) == SPEC.n_draws == row["n_draws"]
    assert row["random_mean"] == pytest.approx(mine.auroc.mean())
    assert row["random_low"] == pytest.approx(mine.auroc.quantile(0.025))
    below = (mine.auroc < row["estimate"]).mean() + 0.5 * (mine.auroc == row["estimate"]).mean()
    assert row["percentile"] == pytest.approx(below)
    assert row["contrast"] == pytest.approx(row["estimate"] - mine.auroc.mean())
    assert spearmanr(mine.auroc, mine.d_prime).statistic > 0.5


def test_rows_carry_what_a_reader_needs(results):
    rows = results["keyword"].rows
    there = rows[rows.layer.notna()]
    for name in ("run", "model", "site", "pool", "layer", "cv", "groups", "n_pairs", "n_scenarios",
                 "token_mask", "dataset_digest", "split_digest", "seed", "code_version",
                 "content_digest", "store_url", "readout", "before_estimate", "delta"):  # fmt: skip
        assert there[name].notna().all(), name
    missing = rows[rows.estimate.isna()]
    assert set(missing.arm) == {"keywords_replaced", "keywords_inserted"}
    assert missing.reason.str.contains("corpus variants").all()


def test_the_tables_are_written(results, tmp_path):
    folder = save_ablation(results["keyword"], tmp_path / "ablation")
    for name in ("ablation", "ablation_draws", "ablation_verdicts", "ablation_words"):
        assert len(pd.read_parquet(folder / f"{name}.parquet")) == len(
            pd.read_csv(folder / f"{name}.csv")
        )


# -- variants that went through the model


@pytest.fixture(scope="module")
def varied():
    run = make_token_run(plant="keyword")
    spec = VariantSpec(n_draws=3, k_first=4, k_max=8)
    made = make_variants(run.texts, spec=spec, lexica=LEXICA)
    return token_run(
        [*run.texts, *made.texts], plant="keyword", n_layers=1, hidden=8, strength=3.0,
        rng=np.random.default_rng(5),
    )  # fmt: skip


def test_variants_are_compared_with_the_original_of_their_pair(varied):
    result = ablate(varied, spec=SPEC.model_copy(update={"ways": ("reextracted",)}))
    row = row_of(result, lexicon=None, way="reextracted")
    # What is left of 36 pairs is chance, on which side of its interval it may lie.
    assert row["finding"] in {"shortcut", "partly_lexical"}
    assert row["estimate"] < 0.75 < 0.9 < row["before_estimate"]
    assert row["contrast_ci_high"] < 0
    assert row["n_draws"] == 3
    assert row["words_removed"] == pytest.approx(2, abs=0.01)
    assert "attended" not in row["verdict"]
    learned = row_of(result, lexicon=None, arm="data_driven")
    assert learned["n_draws"] == 3
    assert learned["estimate"] < 0.75
    # The crossed arm: each class was given the keywords of the other.
    crossed = row_of(result, lexicon=None, arm="keywords_inserted", readout="fixed")
    assert crossed["estimate"] < crossed["before_estimate"]
    assert set(result.verdicts.way) == {"all", "reextracted"}


def test_both_ways_stand_in_one_table_and_re_extraction_has_the_last_word(varied):
    result = ablate(varied)
    assert set(result.rows.way) == {"repooled", "reextracted"}
    overall = result.verdicts[result.verdicts.way == "all"]
    assert (
        overall.verdict.tolist()
        == result.verdicts[
            (result.verdicts.way == "reextracted") & (result.verdicts.subset == "all")
        ].verdict.tolist()
    )


def test_variants_of_another_run_are_found_by_their_parents(varied):
    original = varied.ds["variant"].values == "original"
    apart = {
        name: varied.ds.drop_dims(["token", "text_edge"]).isel(text=np.flatnonzero(keep))
        for name, keep in (("originals", original), ("variants", ~original))
    }
    spec = SPEC.model_copy(update={"ways": ("reextracted",)})
    together = ablation_run(varied.ds, varied.texts, spec=spec, scheduler="synchronous")
    split = ablation_run(
        apart["originals"], varied.texts, spec=spec, variants=apart["variants"],
        scheduler="synchronous",
    )  # fmt: skip
    pd.testing.assert_frame_equal(split.rows, together.rows)


def test_a_variant_of_some_pairs_is_compared_on_those(varied):
    lost = {f"none-{k:03d}" for k in range(5)}
    keep = ~(
        np.isin(varied.ds["pair"].values, sorted(lost))
        & (varied.ds["variant"].values == "keywords_removed")
    )
    ds = varied.ds.drop_dims(["token", "text_edge"]).isel(text=np.flatnonzero(keep))
    result = ablation_run(ds, varied.texts, spec=SPEC, scheduler="synchronous")
    assert row_of(result, lexicon=None)["n_pairs"] == 31
    assert row_of(result, lexicon=None, arm="keywords_replaced")["n_pairs"] == 36


def test_a_variant_of_another_parent_is_refused(varied):
    texts = [
        t.model_copy(update={"parent": "none-001-pos"})
        if t.id == "none-000-pos@keywords_removed" else t
        for t in varied.texts
    ]  # fmt: skip
    with pytest.raises(
        InvalidInputError, match="is a variant of 'none-001-pos', expected 'none-000"
    ):
        ablation_run(varied.ds, texts, spec=SPEC, lexica=LEXICA)


# -- verdicts


def row(estimate, low, high, contrast):
    return {"estimate": estimate, "ci_low": low, "ci_high": high, "contrast_ci_high": contrast}


@pytest.mark.parametrize(
    ("area", "spread", "before", "repooled", "finding"),
    [
        (row(0.5, 0.4, 0.6, -0.3), row(0, -1, 1, -1), 0.9, False, "shortcut"),
        (row(0.5, 0.4, 0.6, -0.3), row(0, -1, 1, -1), 0.9, True, "shortcut"),
        (row(0.8, 0.7, 0.9, -0.1), row(1, 1, 2, -1), 0.9, False, "partly_lexical"),
        (row(1.0, 0.9, 1.0, 0.0), row(3, 2, 4, -1), 0.9, False, "partly_lexical"),
        (row(1.0, 0.9, 1.0, 0.0), row(3, 2, 4, 0.5), 0.9, False, "not_lexical"),
        (row(1.0, 0.9, 1.0, 0.0), row(3, 2, 4, 0.5), 0.9, True, "undecided"),
        (row(0.5, 0.4, 0.6, 0.1), row(0, -1, 1, 0.2), 0.9, False, "undecided"),
        (row(0.5, None, None, -0.1), row(0, -1, 1, -0.2), 0.9, False, "shortcut"),
        (row(0.5, 0.4, 0.6, None), row(0, -1, 1, None), 0.9, False, "undecided"),
        (row(0.5, 0.4, 0.6, -0.3), row(0, -1, 1, -1), 0.45, False, "no_signal"),
    ],
)
def test_only_intervals_decide(area, spread, before, repooled, finding):
    assert finding_of(area, spread, Interval(before, 1.0, "x"), repooled=repooled) == finding


def test_the_words_of_one_lexicon_alone_give_no_verdict():
    """Texts whose keywords are balanced are not so without one kind of them."""
    findings = {"warm+work": "undecided", "warm": "partly_lexical", "work": "shortcut"}
    rows = pd.DataFrame(
        {
            "way": "repooled", "pool": "mean_response", "layer": 1, "subset": subset,
            "readout": "refit", "arm": "keywords_removed", "lexicon": lexicon, "metric": metric,
            "before_estimate": 1.0, "finding": finding,
        }
        for lexicon, finding in findings.items()
        for subset in ("all", "balanced")
        for metric in ("auroc", "d_prime")
    ).reindex(columns=[*{"readout": 0, "metric": 0} | dict.fromkeys(VERDICT_COLUMNS)])  # fmt: skip
    found = verdict_table(rows, keywords="warm+work", chosen_k=None)
    assert sorted(found.way) == ["all", "all", "repooled", "repooled"]
    assert set(found.lexicon) == {"warm+work"}
    assert set(found.finding) == {"undecided"}


# -- what is refused


def test_a_run_without_tokens_and_variants_says_which_commands_make_them(planted):
    ds = planted["keyword"].ds.drop_vars("resid_post_tokens")
    with pytest.raises(NotFoundError, match=r"extract MODEL --tokens all.*actlake corpus variants"):
        ablation_run(ds, planted["keyword"].texts)
    spec = AblationSpec(ways=("repooled",))
    with pytest.raises(NotFoundError, match="--tokens all"):
        ablation_run(ds, planted["keyword"].texts, spec=spec)
    spec = AblationSpec(ways=("reextracted",))
    with pytest.raises(NotFoundError, match="has no lexical variants; `actlake corpus variants`"):
        ablation_run(planted["keyword"].ds, planted["keyword"].texts, spec=spec)


def test_tokens_without_their_characters_are_refused(planted):
    run = planted["keyword"]
    with pytest.raises(InvalidInputError, match=r"no token_start, .*--tokenizer.*extract it again"):
        ablate(type(run)(ds=run.ds.drop_vars(["token_start", "token_stop"]), texts=run.texts))
    blank = np.full(run.ds.sizes["token"], -1, dtype=np.int32)
    nothing = run.ds.assign_coords(token_start=("token", blank), token_stop=("token", blank))
    with pytest.raises(InvalidInputError, match="72 texts have no token that holds a character"):
        ablate(type(run)(ds=nothing, texts=run.texts))


def test_a_lexicon_that_hits_no_word_is_refused(planted):
    away = Lexicon.parse({"name": "away", "arm": "positive", "entry": [{"forms": ["xylophone"]}]})
    with pytest.raises(InvalidInputError, match=r"lexicon 'away' \(xylophone, …\) hits no word"):
        ablate(planted["keyword"], lexica=[*LEXICA, away])
    with pytest.raises(InvalidInputError, match="needs a lexicon"):
        ablate(planted["keyword"], lexica=[])


def test_layers_and_memory_that_do_not_do_are_refused(planted):
    with pytest.raises(NotFoundError, match=r"no layers \[7\]; they have \[0\]"):
        ablate(planted["keyword"], spec=SPEC.model_copy(update={"layers": (7,)}))
    with pytest.raises(InvalidInputError, match="two conditions need"):
        ablate(planted["keyword"], spec=SPEC.model_copy(update={"memory": "1KiB"}))


def test_a_token_that_is_not_finite_is_named_by_its_place(planted):
    run = planted["keyword"]
    x = run.ds["resid_post_tokens"].values.copy()
    at = int(np.flatnonzero(run.ds["token_response"].values)[200])
    x[at, 0, 0] = np.nan
    ds = run.ds.assign(resid_post_tokens=(run.ds["resid_post_tokens"].dims, x))
    with pytest.raises(InvalidInputError, match=r"layer 0, rows .* NaN or infinite"):
        ablate(type(run)(ds=ds, texts=run.texts))
    prompt = int(np.flatnonzero(~run.ds["token_response"].values)[200])
    x[at, 0, 0], x[prompt, 0, 0] = 0.0, np.nan  # no token that counts
    ablate(type(run)(ds=ds, texts=run.texts))
