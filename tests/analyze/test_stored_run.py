"""The analyses on a run that went through a store, as a reader of its URL has it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from actlake.analyze import directions_record, pca_run, probe_run
from actlake.schemas import (
    ArraySpec,
    BagOfWordsSpec,
    CaptureSpec,
    EnvironmentInfo,
    InvalidInputError,
    ModelInfo,
    PcaSpec,
    ProbeSpec,
    RandomSpec,
    RunPlan,
    TokenizerInfo,
    digest_json,
)
from actlake.store import create_store, open_run

ARRAY = "resid_post_mean_response"
LAYERS = (1, 4)  # of six blocks: the layer is not its place in the array


@pytest.fixture(scope="module")
def stored(synthetic_run, tmp_path_factory):
    run = synthetic_run(n_neutral=3, strength=2.0)
    values = run.ds[ARRAY].values
    n_texts, _, hidden = values.shape
    plan = RunPlan(
        run="stored",
        corpus="made-up",
        corpus_digest=digest_json("corpus"),
        model=ModelInfo(
            name="made/up",
            architecture="LlamaForCausalLM",
            n_layers=6,
            hidden_size=hidden,
            n_parameters=1,
            dtype="float32",
            attn_implementation="eager",
        ),
        tokenizer=TokenizerInfo(digest=digest_json("tokenizer"), vocab_size=9),
        capture=CaptureSpec(layers=LAYERS, pools=("mean_response",)),
        layers=LAYERS,
        n_texts=n_texts,
        n_tokens=n_texts,
        rows_digest=digest_json("rows"),
        rows_per_block=40,
        batch_tokens=10,
        arrays=(ArraySpec(name=ARRAY, dims=("text", "layer", "hidden"), shape=values.shape),),
    )
    store = create_store(tmp_path_factory.mktemp("store"))
    writer = store.create_run(
        plan,
        coords={name: run.ds[name].values for name in run.ds.coords if name != "layer"},
        environment=EnvironmentInfo(actlake="0", python="3", platform="test"),
    )
    for block in range(plan.n_blocks - 1):
        writer.write_block(block, {ARRAY: values[plan.block_rows(block)]})
    run.partial = open_run(store, "stored", allow_partial=True)
    writer.write_block(plan.n_blocks - 1, {ARRAY: values[plan.block_rows(plan.n_blocks - 1)]})
    run.seal = writer.seal()
    run.opened = open_run(store.url, "stored")
    return run


def probes(ds, texts):
    return probe_run(
        ds,
        texts,
        spec=ProbeSpec(n_bootstrap=20, c_grid=(0.01, 1.0)),
        random=RandomSpec(n_directions=19),
        bow=BagOfWordsSpec(),
        scheduler="threads",
    )


def test_a_stored_run_gives_the_tables_of_the_same_run_in_memory(stored):
    from_store, in_memory = probes(stored.opened, stored.texts), probes(stored.ds, stored.texts)
    for name in ("rows", "null", "scores"):
        a, b = getattr(from_store, name), getattr(in_memory, name)
        assert set(a["layer"].dropna()) == set(LAYERS)
        if name == "rows":  # a selected layer is a name, and the names differ
            a, b = (frame[frame.metric != "selected_layer"] for frame in (a, b))
        numbers = a.select_dtypes("float64").columns.drop("depth", errors="ignore")
        pd.testing.assert_frame_equal(a[numbers], b[numbers])


def test_rows_and_directions_name_the_store_and_its_digest(stored):
    found = probes(stored.opened, stored.texts)
    row = found.rows[found.rows.layer == 4].iloc[0]
    assert (row.run, row.model, row["dtype"]) == ("stored", "made/up", "float32")
    assert row.depth == pytest.approx(5 / 6)
    assert row.content_digest == stored.seal.data_digest
    assert row.store_url == stored.opened.attrs["store_url"]
    record = directions_record(found.directions, "diff_means", "mean_response", layer=4)
    assert record.content_digest == stored.seal.data_digest


def test_components_of_a_stored_run_have_its_layers(stored):
    found = pca_run(stored.opened, spec=PcaSpec(), scheduler="threads")
    assert set(found.rows.layer) == set(LAYERS)
    assert np.isfinite(found.rows.explained_variance_ratio).all()


def test_rows_that_are_not_committed_are_refused_by_name(stored):
    with pytest.raises(InvalidInputError, match=r"rows have NaN .* Resume the run"):
        probes(stored.partial, stored.texts)
