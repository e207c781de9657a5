"""Models that are spread over devices, and quantised ones."""

import json

import numpy as np
import pytest
import torch

from actlake.corpus import corpus_info
from actlake.extract import TransformersEngine, extract_run, load_model, plan_extraction
from actlake.extract.costs import Memory, check_memory, memory_needed
from actlake.schemas import (
    AlreadyExistsError,
    ExtractSpec,
    InvalidInputError,
    MissingDependencyError,
)
from actlake.store import create_store, open_run
from tests.extract.test_capture import ROWS
from tests.extract.test_run import TEXTS
from tests.extract.tiny import tiny_folder

pytestmark = pytest.mark.torch

SITES = ("resid_pre", "attn_heads", "attn_out", "resid_mid", "mlp_out", "resid_post")
SPEC = ExtractSpec(chunk_size=7, batch_tokens=200, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_folder("llama", tmp_path_factory.mktemp("model") / "tiny-llama"))


def extract(store, folder, spec=SPEC):
    info = corpus_info("c", TEXTS)
    return extract_run(store, TEXTS, info, model=folder, run="r", extract=spec)


@pytest.mark.parametrize("on_disk", [["layers.1"], ["layers.0", "layers.2", "layers.3", "norm"]])
def test_layers_that_lie_elsewhere_give_the_same_activations(folder, on_disk):
    parts = ["embed_tokens", "norm", "rotary_emb", *(f"layers.{i}" for i in range(4))]
    places = {name: "disk" if name in on_disk else "cpu" for name in parts}
    seen = []
    for device_map in (None, places):
        loaded = load_model(folder, device="cpu", device_map=device_map)
        engine = TransformersEngine(
            loaded, sites=SITES, layers=range(4), pools=("mean_response", "last_prompt"),
            tokens={"resid_post": (1, 2)},
        )  # fmt: skip
        with engine.ready():
            seen.append(engine.forward(ROWS))
    spread = load_model(folder, device="cpu", device_map=places)
    assert any(p.device.type == "meta" for p in spread.backbone.parameters())
    assert spread.info == load_model(folder, weights=False).info
    for name, values in seen[0].items():
        assert torch.equal(values, seen[1][name]), name


def test_a_spread_run_is_the_run_of_one_device(tmp_path, folder):
    one, spread = create_store(tmp_path / "one"), create_store(tmp_path / "spread")
    first = extract(one, folder)
    second = extract(spread, folder, SPEC.model_copy(update={"device_map": "auto"}))
    assert first.seal.data_digest == second.seal.data_digest
    assert first.seal.plan_id == second.seal.plan_id
    assert np.isfinite(open_run(spread, "r")["resid_post_norm"].values).all()


def test_what_does_not_fit_on_one_device_is_told_of_the_map(folder):
    prepared = plan_extraction(TEXTS, model=folder, run="r", corpus="c", extract=SPEC)
    with pytest.raises(InvalidInputError, match="--device-map auto"):
        check_memory(prepared, {"device": Memory(10, 9)})
    cpu = torch.device("cpu")
    spread = memory_needed(prepared, cpu, is_spread=True)
    assert spread["host"].needed < memory_needed(prepared, cpu)["host"].needed


def test_a_map_without_accelerate_says_what_to_install(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(MissingDependencyError, match=r"actlake\[extract\]"):
        load_model(folder, device_map="auto")


@pytest.fixture(scope="module")
def quantised(folder, tmp_path_factory):
    """The same weights, whose config says that they are to be loaded in four bits."""
    path = tiny_folder("llama", tmp_path_factory.mktemp("model") / "tiny-llama")
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


def test_a_quantised_model_is_recorded_and_never_mixed_with_another(tmp_path, folder, quantised):
    plain, packed = (load_model(f, weights=False).info for f in (folder, quantised))
    assert plain.quantization is None
    assert packed.quantization == "bitsandbytes"
    assert packed.n_parameters == plain.n_parameters
    store = create_store(tmp_path / "store")
    digest = extract(store, folder).seal.tree_digest
    with pytest.raises(AlreadyExistsError, match="model"):
        extract(store, quantised)
    seal = store.read_seal("r")
    assert seal is not None
    assert seal.tree_digest == digest


def test_a_quantised_model_without_its_library_is_one_line(quantised):
    with pytest.raises((MissingDependencyError, InvalidInputError)) as caught:
        load_model(quantised, device="cpu")
    assert "bitsandbytes" in str(caught.value)
    assert "\n" not in str(caught.value)
