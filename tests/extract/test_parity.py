"""The texts of a run that are run once more alone: how far their batches take them."""

import json

import pytest
import torch

from actlake.corpus import corpus_info
from actlake.extract import extract_run, load_model, plan_extraction
from actlake.extract.engine import TransformersEngine, pad_rows
from actlake.extract.parity import ParitySample
from actlake.schemas import ExtractSpec
from actlake.store import create_store
from tests.extract.test_run import TEXTS
from tests.extract.tiny import tiny_folder

pytestmark = pytest.mark.torch

SPEC = ExtractSpec(chunk_size=12, batch_tokens=200, device="cpu", attn_implementation="eager")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_folder("llama", tmp_path_factory.mktemp("model") / "tiny-llama"))


def extract(store, folder, spec=SPEC):
    info = corpus_info("c", TEXTS)
    extract_run(store, TEXTS, info, model=folder, run="r", extract=spec)
    return [commit.notes.get("parity") for commit in store.read_commits("r")]


def test_a_run_says_how_far_texts_alone_are_from_their_batches(tmp_path, folder):
    first, *others = extract(create_store(tmp_path / "store"), folder)
    assert others == [None]
    assert 1 <= len(first["texts"]) <= 3
    assert set(first["texts"]) <= {text.id for text in TEXTS}
    assert 0 <= first["deviation"] < 5e-5  # ENGINES 10
    assert first["array"].startswith("resid_post_")


def test_a_model_whose_padding_leaks_is_recorded_as_it_is(tmp_path, folder, monkeypatch):
    def unmasked(rows, **ids_of):
        ids, attended, masks = pad_rows(rows, **ids_of)
        return ids.flip(1), attended.flip(1), masks  # padded on the left, read as on the right

    monkeypatch.setattr("actlake.extract.engine.pad_rows", unmasked)
    (first, _) = extract(create_store(tmp_path / "store"), folder)
    assert first["deviation"] > 1e-2


def test_texts_that_share_no_batch_have_no_parity(tmp_path, folder):
    alone = SPEC.model_copy(update={"batch_tokens": 1})
    assert extract(create_store(tmp_path / "store"), folder, alone) == [None, None]


def test_what_is_not_finite_is_left_to_the_run(folder):
    prepared = plan_extraction(TEXTS, model=folder, run="r", corpus="c", extract=SPEC)
    loaded = load_model(folder, device="cpu", attn_implementation="eager")
    capture = prepared.plan.capture
    engine = TransformersEngine(
        loaded, sites=capture.sites, layers=prepared.plan.layers, pools=capture.pools
    )
    rows = prepared.rows[:4]
    sample = ParitySample(prepared.plan)
    with engine.ready():
        arrays = engine.forward(rows)
        broken = torch.full_like(arrays["resid_post_last_prompt"], torch.nan)
        arrays["resid_post_last_prompt"] = broken
        sample.add(engine, rows, arrays)
    assert json.loads(json.dumps(sample.notes(), allow_nan=False)) == sample.notes()
    assert sample.notes()["parity"]["array"] != "resid_post_last_prompt"
