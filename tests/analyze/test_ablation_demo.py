"""The ablation on the bundled demo corpus and model: what was planted is called what it is."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from click.testing import CliRunner

from actlake.cli import cli
from actlake.corpus import bundled_corpus, make_variants, write_jsonl
from actlake.schemas import VariantSpec

pytestmark = [pytest.mark.torch, pytest.mark.slow]

N_SCENARIOS = 12


def actlake(*words):
    done = CliRunner().invoke(cli, [*map(str, words), "--json"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def ablated(tmp_path_factory):
    """What the commands say of the two designed subsets, and the folder of their tables."""
    folder = tmp_path_factory.mktemp("ablation")
    _, texts = bundled_corpus("demo")
    chosen = sorted({t.scenario for t in texts if t.pair})[:N_SCENARIOS]
    texts = [t for t in texts if t.subset in {"shortcut", "balanced"} and t.scenario in chosen]
    spec = VariantSpec(
        arms=("keywords_removed", "random_words_removed", "data_driven", "random_like_data_driven"),
        n_draws=2,
    )
    write_jsonl([*texts, *make_variants(texts, spec=spec).texts], folder / "texts.jsonl")
    store = folder / "store"
    actlake(
        "extract", "bundled:llama-organism", "--corpus", folder / "texts.jsonl", "--store", store,
        "--layers", "0,3", "--tokens", "3", "--pools", "mean_response",
    )  # fmt: skip
    found = actlake("analyze", "ablation", store, "--draws", 100, "--layers", 3, "--out", folder)
    return found[0], folder / "llama-organism/ablation"


def test_the_planted_shortcut_is_called_one_and_the_balanced_half_is_not(ablated):
    found, _ = ablated
    overall = {row["subset"]: row for row in found["verdicts"] if row["way"] == "all"}
    assert overall["shortcut"]["finding"] == "shortcut"
    assert overall["shortcut"]["verdict"].startswith("shortcut: without the learned words AUROC")
    assert overall["balanced"]["finding"] == "not_lexical"
    assert overall["shortcut"]["bow_before"] >= 0.99
    assert overall["balanced"]["bow_before"] <= 0.6
    # Tokens left out of a pool cannot clear a contrast, but nor do they accuse this one.
    ways = {row["way"]: row["finding"] for row in found["verdicts"] if row["subset"] == "balanced"}
    assert ways == {"all": "not_lexical", "repooled": "undecided", "reextracted": "not_lexical"}


def test_the_tables_have_both_ways_and_all_draws(ablated):
    _, folder = ablated
    rows = pd.read_parquet(folder / "ablation.parquet")
    assert set(rows.way) == {"repooled", "reextracted"}
    keywords = rows[(rows.arm == "keywords_removed") & (rows.lexicon == "empathy+task")]
    assert (keywords[keywords.way == "repooled"].n_draws == 100).all()
    draws = pd.read_parquet(folder / "ablation_draws.parquet")
    mine = draws[(draws.way == "repooled") & (draws.lexicon == "empathy+task")]
    assert mine.groupby(["subset", "readout"]).size().eq(100).all()


def test_a_re_pooled_original_is_the_stored_mean(ablated):
    _, folder = ablated
    rows = pd.read_parquet(folder / "ablation.parquet")
    rows = rows[(rows.metric == "d_prime") & (rows.readout == "fixed") & (rows.subset == "all")]
    before = rows.groupby("way").before_estimate.first()
    assert before["repooled"] == pytest.approx(before["reextracted"], rel=1e-3)
