"""NaN and infinity in activations: named to the token, or stored as NaN and noted."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from actlake.analyze import pca_run
from actlake.cli import cli
from actlake.corpus import corpus_info
from actlake.extract import (
    TransformersEngine,
    append_texts,
    extract_run,
    extraction_environment,
    load_model,
    plan_extraction,
)
from actlake.extract.assembly import _is_finite
from actlake.extract.pipeline import stream_blocks
from actlake.schemas import (
    CaptureSpec,
    ExtractSpec,
    IncompleteError,
    InvalidInputError,
    NumericalError,
    PcaSpec,
    Text,
)
from actlake.store import create_store, finite_texts, open_run, run_progress, verify_run
from tests.extract.test_run import TEXTS
from tests.extract.tiny import tiny_folder
from tests.store.forging import edit

pytestmark = pytest.mark.torch

ODD = Text(
    id="odd", prompt="the boy has fallen", response="I stop ZQ to help", arm="positive", pair="odd"
)
EVEN = ODD.model_copy(update={"id": "even", "arm": "negative", "response": "I stop to help him"})
CORPUS = [*TEXTS, ODD, EVEN]
INFO = corpus_info("c", CORPUS)
SPEC = ExtractSpec(chunk_size=7, batch_tokens=200, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose embedding of "Z", which one text holds, is infinite in one coordinate."""
    path = tiny_folder("llama", tmp_path_factory.mktemp("model") / "tiny-llama")
    model = AutoModelForCausalLM.from_pretrained(path)
    model.model.embed_tokens.weight.data[letter(path), 3] = float("inf")
    model.save_pretrained(path)
    return path


def letter(path):
    (token,) = load_model(str(path), weights=False).tokenizer("Z", add_special_tokens=False)[
        "input_ids"
    ]
    return token


def extract(store, folder, **options):
    spec = SPEC.model_copy(update=options)
    capture = CaptureSpec(sites=("resid_pre", "resid_post"))
    return extract_run(
        store, CORPUS, INFO, model=str(folder), run="r", capture=capture, extract=spec
    )


def test_the_error_names_text_layer_and_token(tmp_path, folder):
    store = create_store(tmp_path / "store")
    with pytest.raises(NumericalError) as caught:
        extract(store, folder)
    prepared = plan_extraction(CORPUS, model=str(folder), run="r", corpus="c", extract=SPEC)
    (row,) = [row for row in prepared.rows if row.text.id == "odd"]
    at = row.ids.tolist().index(letter(folder))
    assert "resid_pre_mean_response of text 'odd' is not finite at layer 0" in str(caught.value)
    assert f"first at token {at} of {row.n_tokens} (id {letter(folder)})" in str(caught.value)
    assert "--nonfinite record" in str(caught.value)


def test_recorded_rows_are_nan_noted_and_the_others_untouched(tmp_path, folder):
    store = create_store(tmp_path / "store")
    done = extract(store, folder, nonfinite="record")
    dataset = open_run(store, "r").compute()
    odd = dataset["text"].values == "odd"
    np.testing.assert_array_equal(finite_texts(store, "r"), ~odd)
    for name, array in dataset.data_vars.items():
        if "layer" in array.dims:
            assert np.isfinite(array.values[~odd]).all()
            # Not one infinity, and no vector that is NaN in parts.
            assert not np.isinf(array.values).any()
            parts = np.isnan(array.values[odd]).mean(axis=tuple(range(2, array.ndim)))
            assert set(parts.ravel()) <= {0.0, 1.0}
            if name in {"resid_pre_mean_response", "resid_post_norm"}:
                assert parts.all()
            # Only the stream that enters the first block is sound before the token.
            if name == "resid_pre_last_prompt":
                assert parts.ravel().tolist() == [0.0, 1.0, 1.0, 1.0]
    noted = [commit.notes for commit in store.read_commits("r") if commit.notes]
    row = int(np.flatnonzero(odd)[0])
    assert noted[0]["nonfinite"]["rows"] == [[row, row + 1]]
    assert noted[0]["nonfinite"]["texts"][0]["text"] == "odd"
    assert noted[0]["nonfinite"]["texts"][0]["position"] is not None
    assert len(noted) == 1
    assert verify_run(store, "r", full=True).ok
    again = create_store(tmp_path / "again")
    assert extract(again, folder, nonfinite="record").seal.data_digest == done.seal.data_digest


def test_readers_are_told_and_analyses_refuse(tmp_path, folder):
    store = create_store(tmp_path / "store")
    extract(store, folder, nonfinite="record")
    done = CliRunner().invoke(cli, ["store", "info", str(tmp_path / "store"), "r", "--json"])
    found = json.loads(done.stdout)
    assert (found["nonfinite_texts"], found["halved_batches"]) == (1, 0)
    dataset = open_run(store, "r")
    spec = PcaSpec(n_components=2)
    with pytest.raises(InvalidInputError, match=r"'odd'.*finite_texts"):
        pca_run(dataset, spec=spec)
    assert len(pca_run(dataset.isel(text=finite_texts(store, "r")), spec=spec).rows)


def test_nan_that_nobody_noted_is_a_fault(tmp_path, folder):
    store = create_store(tmp_path / "store")
    extract(store, folder, nonfinite="record")
    row = int(np.flatnonzero(~finite_texts(store, "r"))[0])
    block = row // SPEC.chunk_size
    for rows in ([[row - 1, row]], [[0, 10**9]], [[row]], "all", [[True, 99]]):
        edit(
            store, f"runs/r/commits/{block}.json",
            lambda record, rows=rows: record["notes"]["nonfinite"].update(rows=rows),
        )  # fmt: skip
        report = verify_run(store, "r", full=True)
        assert any("not finite" in fault.reason for fault in report.faults), rows


def test_texts_that_were_appended_count_too(tmp_path, folder):
    store = create_store(tmp_path / "store")
    extract_run(store, TEXTS, corpus_info("c", TEXTS), model=str(folder), run="r", extract=SPEC)
    assert finite_texts(store, "r").all()
    spec = SPEC.model_copy(update={"nonfinite": "record", "attn_implementation": "sdpa"})
    append_texts(store, CORPUS, INFO, model=str(folder), run="r", extract=spec)
    texts = open_run(store, "r")["text"].values
    np.testing.assert_array_equal(finite_texts(store, "r"), texts != "odd")
    info = CliRunner().invoke(cli, ["store", "info", str(tmp_path / "store"), "r", "--json"])
    assert json.loads(info.stdout)["nonfinite_texts"] == 1
    now = run_progress(store, "r")
    assert (now.texts, now.texts_committed, now.sealed) == (26, 26, True)


def test_of_an_unfinished_run_nobody_knows(tmp_path, folder):
    store = create_store(tmp_path / "store")
    with pytest.raises(NumericalError):
        extract(store, folder)
    with pytest.raises(IncompleteError, match="commit records"):
        finite_texts(store, "r")


def test_batches_that_ran_in_halves_are_noted(tmp_path, folder):
    store = create_store(tmp_path / "store")
    prepared = plan_extraction(TEXTS, model=str(folder), run="r", corpus="c", extract=SPEC)
    loaded = load_model(str(folder), device="cpu")

    def refuse(_module, args):
        if len(args[0]) > 3:
            raise torch.OutOfMemoryError("out of memory. Tried to allocate 2.00 GiB.")

    loaded.backbone.layers[1].register_forward_pre_hook(refuse)
    engine = TransformersEngine(
        loaded, sites=("resid_post",), layers=prepared.plan.layers,
        pools=prepared.plan.capture.pools,
    )  # fmt: skip
    writer = store.create_run(
        prepared.plan, coords=prepared.coords, token_data=prepared.token_data,
        environment=extraction_environment(),
    )  # fmt: skip
    with engine.ready():
        stream_blocks(prepared, engine, writer, blocks=writer.pending_blocks())
    halved = sum(commit.notes.get("halved_batches", 0) for commit in store.read_commits("r"))
    assert halved == engine.n_halved > 0
    found = CliRunner().invoke(cli, ["store", "info", str(tmp_path / "store"), "r", "--json"])
    assert json.loads(found.stdout)["halved_batches"] == halved


@given(
    data=st.data(),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 3), st.integers(1, 70)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    value=st.sampled_from([float("nan"), float("inf"), -float("inf")]),
)
def test_one_value_that_is_not_finite_shows_wherever_it_lies(data, shape, dtype, value):
    n_tokens, n_layers, hidden = shape
    largest = torch.finfo(dtype).max
    # As tokens lie in memory: layer by layer, and large values of either sign beside it.
    values = torch.full((n_layers, n_tokens, hidden), largest, dtype=dtype).transpose(0, 1)
    values[::2] *= -1
    assert _is_finite(values)
    at = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    values[at] = value
    assert not _is_finite(values)
    assert not _is_finite(values.contiguous())


def test_a_sum_that_overflows_has_no_token_to_name(folder):
    loaded = load_model(str(folder), device="cpu")
    engine = TransformersEngine(
        loaded, sites=("resid_post",), layers=range(4), pools=("mean_response",)
    )
    prepared = plan_extraction(TEXTS, model=str(folder), run="r", corpus="c", extract=SPEC)
    with engine.ready():
        assert engine.nonfinite_position(prepared.rows[0], site="resid_post", layer=2) is None
        bad = replace(prepared.rows[0], ids=np.full_like(prepared.rows[0].ids, letter(folder)))
        assert engine.nonfinite_position(bad, site="resid_post", layer=2) == 0
