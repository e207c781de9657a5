"""What a run stores is what an independent library reads from the same model."""

import numpy as np
import pytest
import torch
from nnsight import NNsight
from transformers import AutoModelForCausalLM

from actlake.corpus import corpus_info
from actlake.extract import extract_run, load_model, render_texts
from actlake.schemas import CaptureSpec, ExtractSpec
from actlake.store import create_store, open_run
from tests.extract.test_run import TEXTS
from tests.extract.tiny import tiny_folder

pytestmark = pytest.mark.oracle

SITES = ("resid_pre", "attn_heads", "attn_out", "resid_mid", "mlp_out", "resid_post")
CAPTURE = CaptureSpec.parse(
    {"sites": SITES, "pools": ["mean_response", "last_prompt", "max_abs"], "tokens": {}}
)
SPEC = ExtractSpec(chunk_size=9, batch_tokens=200, device="cpu", attn_implementation="eager")


def traced(model, ids):
    """Return what nnsight sees at every site, (layer, token, values) float64."""
    seen = {site: [] for site in SITES}
    wrapped = NNsight(model)
    with wrapped.trace(ids):
        for block in wrapped.model.layers:
            found = {
                "resid_pre": block.input.save(),
                "attn_heads": block.self_attn.o_proj.input.save(),
                "attn_out": block.self_attn.output[0].save(),
                "resid_mid": block.post_attention_layernorm.input.save(),
                "mlp_out": block.mlp.output.save(),
                "resid_post": block.output.save(),
            }
            for site, values in found.items():
                seen[site].append(values)
    return {site: torch.stack(values)[:, 0].double().numpy() for site, values in seen.items()}


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3"])
def test_a_run_is_what_nnsight_reads(tmp_path, name):
    folder = tiny_folder(name, tmp_path / f"tiny-{name}")
    store = create_store(tmp_path / "store")
    extract_run(
        store, TEXTS, corpus_info("c", TEXTS), model=str(folder), run="r", capture=CAPTURE,
        extract=SPEC,
    )  # fmt: skip
    dataset = open_run(store, "r").compute()
    edges = dataset["token_offset"].values
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = load_model(str(folder), weights=False).tokenizer
    by_id = {text.id: text for text in TEXTS}
    for i, text in list(enumerate(dataset["text"].values))[::5]:
        (row,) = render_texts([by_id[text]], tokenizer, spec=CAPTURE)
        with torch.inference_mode():
            theirs = traced(model, torch.from_numpy(row.ids).long()[None])
        tokens = dataset["resid_post_tokens"].values[edges[i] : edges[i + 1]]
        compare(tokens.transpose(1, 0, 2), theirs["resid_post"])
        for site, values in theirs.items():
            here = dataset.sel(text=text)
            compare(here[f"{site}_mean_response"], values[:, row.response].mean(axis=1))
            compare(here[f"{site}_last_prompt"], values[:, row.n_prompt - 1])
            compare(here[f"{site}_max_abs"], np.abs(values[:, ~row.special]).max(axis=1))


def compare(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=5e-5, atol=5e-5 * np.abs(theirs).max())
