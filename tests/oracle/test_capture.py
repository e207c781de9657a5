"""What is stored, against two independent libraries that read the same tensors.

TransformerLens and nnsight are test oracles only: ``make test-oracle`` runs this file in an
environment of its own.
"""

import numpy as np
import pytest
import torch

from actlake.corpus import corpus_info
from actlake.extract import extract_run
from actlake.schemas import CaptureSpec, ExtractSpec, Text
from actlake.store import create_store, open_run
from tests.extract.tiny import tiny_folder, tiny_model

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
    """Return a model's name, its folder, and a run of it over the texts."""
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
    return request.param, folder, open_run(store, "r").compute()


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
    from transformer_lens.model_bridge import TransformerBridge

    _, folder, run = stored
    bridge = TransformerBridge.boot_transformers(str(folder), device="cpu")
    names = {site: f"hook_{site}" for site in SITES}
    for row, ids in rows(run):
        with torch.inference_mode():
            _, cache = bridge.run_with_cache(ids)
        states = {
            (site, layer): cache[f"blocks.{layer}.{names[site]}"][0]
            for site in SITES
            for layer in run["layer"].values
        }
        assert_pooled(run, row, states)


def test_every_site_is_what_nnsight_reads_there(stored):
    import nnsight

    name, _, run = stored
    network = tiny_model(name)
    model = nnsight.NNsight(network)
    n_layers = run.sizes["layer"]
    for row, ids in rows(run):
        seen = []
        with torch.inference_mode(), model.trace(ids):
            for layer in range(n_layers):  # nnsight reads modules in the order in which they run
                block = model.model.layers[layer]
                before = block.input.save()
                attention = block.self_attn.output[0].save()
                middle = block.post_attention_layernorm.input.save()
                mlp = block.mlp.output.save()
                seen.append((before, attention, middle, mlp, block.output.save()))
        states = {
            (site, layer): (hidden[0] if hidden.ndim == 3 else hidden)
            for layer, values in enumerate(seen)
            for site, hidden in zip(SITES, values, strict=True)
        }
        assert_pooled(run, row, states)
