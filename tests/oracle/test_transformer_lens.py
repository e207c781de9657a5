"""What a run stores is what TransformerLens reads at its hooks of the same model."""

import numpy as np
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from actlake.corpus import corpus_info
from actlake.extract import extract_run
from actlake.schemas import CaptureSpec, ExtractSpec, Text
from actlake.store import create_store, open_run
from tests.extract.tiny import tiny_folder

pytestmark = pytest.mark.oracle

MODELS = ("llama", "qwen2", "phi3")
SITES = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
POOLS = ("mean_all", "last_response", "max_abs")
WORDS = ("the boy has fallen", "I stop to help", "we go on", "he is cold")
TEXTS = [
    Text(
        id=f"t{i}",
        prompt=f"{WORDS[i % 4]} " * (1 + i % 3),
        response=WORDS[-1 - i % 3] * (1 + i % 4),
    )
    for i in range(12)
]
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


@pytest.fixture(scope="module", params=MODELS)
def stored(request, tmp_path_factory):
    """Return a model's folder, and a run of it over the texts."""
    folder = tiny_folder(request.param, tmp_path_factory.mktemp("model") / request.param)
    store = create_store(tmp_path_factory.mktemp("store"))
    extract_run(
        store,
        TEXTS,
        corpus_info("c", TEXTS),
        model=str(folder),
        run="r",
        capture=CaptureSpec(sites=SITES, pools=POOLS, dtype="float32", render="plain"),
        extract=ExtractSpec(batch_tokens=64, device="cpu", attn_implementation="eager"),
    )
    return folder, open_run(store, "r").compute()


def rows(run):
    """Yield (row, token ids) of every text as it was run, alone."""
    edges = run["token_offset"].values
    for row in range(run.sizes["text"]):
        ids = run["token_id"].values[edges[row] : edges[row + 1]]
        yield row, torch.from_numpy(ids.astype(np.int64))[None]


def assert_pooled(run, row, states):
    """Hold the stored pools of a text against its states, by (site, layer): (token, hidden)."""
    for (site, layer), hidden in states.items():
        expected = {
            "mean_all": hidden.mean(dim=0),  # these tokenizers add no BOS to plain texts
            "last_response": hidden[-1],
            "max_abs": hidden.abs().amax(dim=0),
        }
        for pool, values in expected.items():
            got = run[f"{site}_{pool}"].isel(text=row).sel(layer=layer).values
            np.testing.assert_allclose(got, values.numpy(), err_msg=f"{site} {layer}", **CLOSE)


def test_every_site_is_what_transformer_lens_reads_there(stored):
    folder, run = stored
    bridge = TransformerBridge.boot_transformers(str(folder), device="cpu")
    for row, ids in rows(run):
        with torch.inference_mode():
            _, cache = bridge.run_with_cache(ids)
        states = {
            (site, layer): cache[f"blocks.{layer}.hook_{site}"][0]
            for site in SITES
            for layer in run["layer"].values
        }
        assert_pooled(run, row, states)
