"""What a patch does is what an independent library finds when it patches the same model."""

import numpy as np
import pytest
import torch
from nnsight import NNsight
from transformers import AutoModelForCausalLM

from actlake.extract import load_model
from actlake.schemas import PatchSpec
from actlake.steer import align_contrasts, sweep_patches
from tests.extract.tiny import tiny_folder
from tests.steer.contrasts import CONTRASTS

pytestmark = pytest.mark.oracle

LAYERS, PLACES = (0, 2, 3), ("prompt-all", "suffix", "response", -2)
RUNS = {"denoise": ("base", "source"), "noise": ("source", "base")}  # patched, donor


def unit(width=32):
    v = np.random.default_rng(0).standard_normal(width)
    return v / np.linalg.norm(v)


def states(wrapped, ids):
    """Return what nnsight reads at the end of every block, (layer, token, hidden)."""
    found = []
    with torch.no_grad(), wrapped.trace(ids):
        for block in wrapped.model.layers:
            found.append(block.output.save())
    return torch.stack(found)[:, 0].clone()


def patched_logits(wrapped, ids, *, layer, where, values):
    """Return the logits (token, word) of a run whose block gives ``values`` at ``where``."""
    with torch.no_grad(), wrapped.trace(ids):
        wrapped.model.layers[layer].output[0, where] = values
        logits = wrapped.lm_head.output.save()
    return logits[0].clone()


def theirs(wrapped, case, *, mode, layer, place, vector=None):
    """Return the log-prob difference of a patched run, one completion and one pass at a time."""
    into, donor = RUNS[mode]
    scores = []
    for c, answer in enumerate(case.completions):
        ids = {
            role: torch.from_numpy(np.concatenate([case.prompts[role], answer])).long()[None]
            for role in (into, donor)
        }
        where = torch.from_numpy(case.columns(place, c))[: ids[into].shape[1]]
        own, other = (states(wrapped, ids[role])[layer][where] for role in (into, donor))
        values = other
        if vector is not None:
            v = torch.from_numpy(vector).float()
            values = own + ((other - own) @ v)[:, None] * v
        logits = patched_logits(wrapped, ids[into], layer=layer, where=where, values=values)
        log_probs = torch.log_softmax(logits.float(), dim=-1)
        picked = [log_probs[case.n_prompt - 1 + t, token] for t, token in enumerate(answer)]
        scores.append(torch.stack(picked).mean().item())
    return scores[0] - scores[1]


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_patches_do_what_nnsight_finds(tmp_path, name):
    folder = tiny_folder(name, tmp_path / f"tiny-{name}")
    loaded = load_model(str(folder), head=True, device="cpu")
    cases = align_contrasts(loaded, CONTRASTS[:2])
    spec = PatchSpec(layers=LAYERS, positions=PLACES, arms=("full", "coordinate"), n_bootstrap=10)
    ours = sweep_patches(loaded, cases, spec=spec, direction=unit()).samples
    assert len(ours) == 2 * len(LAYERS) * len(PLACES) * 2 * len(cases)
    wrapped = NNsight(AutoModelForCausalLM.from_pretrained(folder).eval())
    by_id = {case.contrast.id: case for case in cases}
    moved = 0
    for found in ours.itertuples():
        place = next(p for p in PLACES if str(p) == found.position)
        expected = theirs(
            wrapped, by_id[found.pair], mode=found.mode, layer=found.layer, place=place,
            vector=unit() if found.arm == "coordinate" else None,
        )  # fmt: skip
        assert found.patched == pytest.approx(expected, rel=2e-4, abs=2e-4), found
        clean = found.base if found.mode == "denoise" else found.source
        moved += abs(found.patched - clean) > 1e-3
    assert moved > len(ours) / 2  # parity of patches that do nothing would say nothing
