import numpy as np
import pytest
import torch

from actlake.extract import find_blocks, load_model, replace_hidden, unwrap_hidden
from actlake.extract.sites import tapped
from actlake.schemas import InvalidInputError, PatchSpec
from actlake.steer import (
    Intervention,
    Patch,
    Positions,
    align_contrasts,
    fit_contrast_direction,
    intervene,
    run_patches,
    sweep_patches,
    weigh_sweep,
)
from actlake.steer.writes import write_along, write_full
from tests.extract.tiny import CONFIGS, tiny_folder, tiny_model
from tests.steer.contrasts import CONTRASTS, organism_contrasts
from tests.steer.linear_net import HIDDEN, N_LAYERS, linear_cases, linear_model

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module", params=["llama", "gemma2", "phi3"])
def loaded(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("m") / f"tiny-{request.param}"
    return load_model(str(tiny_folder(request.param, folder)), head=True)


def unit(seed=0, width=32):
    v = np.random.default_rng(seed).standard_normal(width)
    return v / np.linalg.norm(v)


def naive_outcome(loaded, case, *, into, donor, layer, place, vector=None):
    """One patch the plain way: whole passes, one text at a time, a hook of its own."""
    block = find_blocks(loaded.backbone)[layer]
    found = []
    for c, answer in enumerate(case.completions):
        mask = torch.from_numpy(case.columns(place, c))[: case.n_prompt + len(answer)]
        ids = {
            role: torch.from_numpy(np.concatenate([case.prompts[role], answer])).long()[None]
            for role in case.prompts
        }
        seen = []
        keep = block.register_forward_hook(
            lambda _m, _a, o, seen=seen: seen.append(unwrap_hidden(o))
        )
        with torch.inference_mode():
            loaded.network(ids[donor], use_cache=False)
        keep.remove()

        def write(_m, _a, output, mask=mask, seen=seen):
            hidden = unwrap_hidden(output).clone()
            delta = seen[0][0, mask] - hidden[0, mask]
            if vector is not None:
                v = torch.from_numpy(vector).float()
                delta = (delta @ v)[:, None] * v
            hidden[0, mask] += delta
            return replace_hidden(output, hidden)

        handle = block.register_forward_hook(write)
        with torch.inference_mode():
            logits = loaded.network(ids[into], use_cache=False).logits[0].float()
        handle.remove()
        log_probs = torch.log_softmax(logits, dim=-1)
        picked = [log_probs[case.n_prompt - 1 + t, token].item() for t, token in enumerate(answer)]
        found.append(np.mean(picked))
    return found[0] - found[1]


def test_a_sweep_is_what_one_patch_at_a_time_gives(loaded):
    cases = align_contrasts(loaded, CONTRASTS[:2])
    v = unit()
    spec = PatchSpec(
        layers=(0, 2),
        positions=("suffix", -2, "response", "all"),
        arms=("full", "coordinate"),
        n_bootstrap=10,
    )
    samples = sweep_patches(loaded, cases, spec=spec, direction=v, batch_tokens=300).samples
    assert len(samples) == 2 * 2 * 4 * 2 * 2
    for found in samples.sample(16, random_state=0).itertuples():
        case = next(c for c in cases if c.contrast.id == found.pair)
        into, donor = ("base", "source") if found.mode == "denoise" else ("source", "base")
        place = int(found.position) if found.position.startswith("-") else found.position
        expected = naive_outcome(
            loaded, case, into=into, donor=donor, layer=found.layer, place=place,
            vector=v if found.arm == "coordinate" else None,
        )  # fmt: skip
        assert found.patched == pytest.approx(expected, rel=2e-4, abs=2e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_patched_with_its_own_states_is_bitwise_itself(name):
    model = tiny_model(name)
    ids = torch.randint(2, 1024, (2, 8), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), tapped(find_blocks(model.base_model)) as seen:
        plain = model(ids, use_cache=False).logits
    for layer in range(4):
        own = Intervention(
            "replace", (layer,), torch.ones(2), Positions(torch.ones(2, 8, dtype=torch.bool)),
            source=seen[layer]["resid_post"],
        )  # fmt: skip
        with torch.inference_mode(), intervene(model, [own]):
            again = model(ids, use_cache=False).logits
        assert torch.equal(again.view(torch.int32), plain.view(torch.int32))


def test_self_patches_change_nothing_and_the_last_block_decides_everything(loaded):
    cases = align_contrasts(loaded, CONTRASTS)
    for case in cases:
        patches = [
            Patch("base", layer, place, write_full(donor, layer))
            for layer in range(4)
            for place in ("all", "suffix", -1)
            for donor in ("base", "source")
        ]
        outcome = run_patches(loaded, case, patches)
        for patch, score, change in zip(patches, outcome.patched, outcome.change, strict=True):
            donor = "base" if change == 0 else "source"
            if donor == "base":
                np.testing.assert_allclose(score, outcome.clean["base"], rtol=1e-5, atol=1e-5)
            elif (patch.layer, patch.place) == (3, "all"):
                np.testing.assert_allclose(score, outcome.clean["source"], rtol=1e-5, atol=1e-5)
        assert (outcome.change == 0).sum() == 12


def test_a_basis_of_full_rank_patches_everything(loaded):
    (case,) = align_contrasts(loaded, CONTRASTS[:1])
    basis = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(1))).Q
    places = ("suffix", "all", -1)
    full = [Patch("base", 1, place, write_full("source", 1)) for place in places]
    ranked = [Patch("base", 1, p, write_along("base", "source", 1, basis)) for p in places]
    outcome = run_patches(loaded, case, full + ranked)
    np.testing.assert_allclose(outcome.patched[3:], outcome.patched[:3], rtol=1e-4, atol=1e-4)


def test_states_may_come_from_elsewhere(loaded):
    (case,) = align_contrasts(loaded, CONTRASTS[:1])
    given = {}
    for c, name in enumerate(("positive", "negative")):
        ids = np.concatenate([case.prompts["source"], case.completions[c]])
        with torch.inference_mode(), tapped(find_blocks(loaded.backbone)) as seen:
            loaded.backbone(torch.from_numpy(ids).long()[None], use_cache=False)
        given["source", name] = np.stack([block["resid_post"][0].numpy() for block in seen])
    spec = PatchSpec(positions=("suffix", "all"), arms=("full",), n_bootstrap=10)
    own = sweep_patches(loaded, [case], spec=spec)
    lent = sweep_patches(loaded, [case], spec=spec, states={"c0": given})
    np.testing.assert_allclose(
        lent.samples["patched"], own.samples["patched"], rtol=1e-4, atol=1e-4
    )
    twisted = {key: array * 2 for key, array in given.items()}
    other = sweep_patches(loaded, [case], spec=spec, states={"c0": twisted})
    assert not np.allclose(other.samples["patched"], own.samples["patched"], atol=1e-3)
    cut = {key: array[:, 1:] for key, array in given.items()}
    with pytest.raises(InvalidInputError, match=r"states given for source, positive.*expected"):
        sweep_patches(loaded, [case], spec=spec, states={"c0": cut})


def test_in_a_linear_net_what_denoising_recovers_noising_loses():
    spec = PatchSpec(positions=("suffix", -2, "prompt-all"), n_random=3, n_bootstrap=50)
    rows = sweep_patches(
        linear_model(), linear_cases(), spec=spec, direction=unit(width=HIDDEN),
        shuffled=unit(seed=1, width=HIDDEN),
    ).rows  # fmt: skip
    rows = rows[rows["arm"] != "same_class"]
    keys = ["layer", "position", "arm", "index"]
    by = {
        mode: part.set_index(keys)["estimate"].sort_index() for mode, part in rows.groupby("mode")
    }
    assert len(by["denoise"]) == N_LAYERS * 3 * 8
    np.testing.assert_allclose(by["denoise"] + by["noise"], 1, atol=2e-4)
    assert by["denoise"].xs("full", level="arm").std() > 0.05
    parts = [by["denoise"].xs(arm, level="arm") for arm in ("coordinate", "complement", "full")]
    np.testing.assert_allclose(parts[0] + parts[1], parts[2], atol=2e-4)
    last = by["denoise"].xs("full", level="arm").xs(N_LAYERS - 1, level="layer")
    assert last.loc["prompt-all"].item() == pytest.approx(1, abs=1e-4)


def test_every_placebo_has_the_size_it_should(loaded):
    cases = align_contrasts(loaded, CONTRASTS)
    spec = PatchSpec(layers=(1, 2), positions=("suffix",), n_random=4, n_bootstrap=20)
    result = sweep_patches(loaded, cases, spec=spec, direction=unit(), shuffled=unit(seed=3))
    keys = ["mode", "layer", "position", "pair"]
    sizes = result.samples.set_index(["arm", "index", *keys])["change_norm"].sort_index()
    for index in range(4):
        np.testing.assert_allclose(
            sizes.loc["random", index], sizes.loc["coordinate", 0], rtol=1e-4
        )
    np.testing.assert_allclose(sizes.loc["wrong_layer", 0], sizes.loc["full", 0], rtol=1e-4)
    squares = sizes.loc["coordinate", 0] ** 2 + sizes.loc["complement", 0] ** 2
    np.testing.assert_allclose(squares, sizes.loc["full", 0] ** 2, rtol=1e-4)
    rows = result.rows
    assert set(rows["arm"]) == {
        "full", "coordinate", "complement", "random", "shuffled", "wrong_layer", "same_class",
    }  # fmt: skip
    own = rows[rows["arm"] == "coordinate"]
    assert (own["p_value"] >= 1 / 5).all()
    assert (own["p_value_max"] >= own["p_value"]).all()
    cost = weigh_sweep(loaded, cases, spec=spec, direction=unit(), shuffled=unit(seed=3))
    assert cost.n_rows >= len(result.samples) * 2
    assert cost.n_forwards < len(result.samples) / 5


def test_prompts_that_are_not_aligned_are_refused_with_their_lengths(loaded):
    bad = CONTRASTS[0].model_copy(update={"base": "the boy has fallen and fallen"})
    with pytest.raises(InvalidInputError, match=r"'c0' is not aligned.*'source': \d+, 'base': \d+"):
        align_contrasts(loaded, [bad])
    with pytest.raises(InvalidInputError, match="these ids twice"):
        align_contrasts(loaded, [CONTRASTS[0], CONTRASTS[0]])
    cases = align_contrasts(loaded, CONTRASTS[:1])
    with pytest.raises(InvalidInputError, match="position -40 lies before"):
        sweep_patches(loaded, cases, spec=PatchSpec(positions=(-40,)))
    with pytest.raises(InvalidInputError, match="layers 0 to 3"):
        sweep_patches(loaded, cases, spec=PatchSpec(layers=(7,)))
    with pytest.raises(InvalidInputError, match="'coordinate' needs a direction"):
        sweep_patches(loaded, cases, spec=PatchSpec(arms=("coordinate",)))
    with pytest.raises(InvalidInputError, match="of length 1"):
        sweep_patches(loaded, cases, spec=PatchSpec(), direction=np.ones(32))
    with pytest.raises(InvalidInputError, match=r"expected \(32,\)"):
        sweep_patches(loaded, cases, spec=PatchSpec(), direction=np.ones(31))


@pytest.mark.parametrize(("name", "planted"), [("llama-organism", 2), ("phi3-organism", 3)])
def test_patching_finds_the_layer_where_an_organism_reads_its_disposition(name, planted):
    loaded = load_model(f"bundled:{name}", head=True, device="cpu")
    cases = align_contrasts(loaded, organism_contrasts(9))
    fitted, held_out = cases[:5], cases[5:]
    spec = PatchSpec(
        layers=(planted - 1, planted),
        positions=("prompt-all", "response"),
        arms=("full", "coordinate", "random"),
        modes=("denoise",),
        n_random=10,
        n_bootstrap=200,
    )
    result = sweep_patches(
        loaded, held_out, spec=spec,
        direction=fit_contrast_direction(loaded, fitted, place="response"),
    )  # fmt: skip
    rows = result.rows.set_index(["arm", "layer", "position"]).sort_index()
    full = rows.loc["full", "estimate"]
    # Up to the planted layer the prompt carries the disposition, from there on the response.
    assert full.loc[planted - 1, "prompt-all"] > 0.8
    assert full.loc[planted - 1, "response"] < 0.3
    assert full.loc[planted, "prompt-all"] < 0.1
    assert full.loc[planted, "response"] > 0.9
    assert rows.loc[("full", planted, "response"), "interchange"] == 1
    own = rows.loc[("coordinate", planted, "response")]
    random = rows.loc[("random", planted, "response"), "estimate"]
    assert own["estimate"] > 0.4
    assert own["ci_low"] > random.abs().max()
    assert own["p_value_max"] == pytest.approx(1 / 11)
    assert random.abs().median() < own["estimate"] / 4
