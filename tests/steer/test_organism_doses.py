"""Dose-response of what the organisms write: where it turns, breaks down, and what it needs."""

from random import Random

import numpy as np
import pytest
import torch

from actlake.corpus import bundled_corpus
from actlake.corpus.grammar import classify_response, scenarios, user_prompt
from actlake.extract import find_blocks, load_model, render_texts, unwrap_hidden
from actlake.schemas import CaptureSpec, DoseSpec, SteeredTextsSpec, Text
from actlake.steer import analyse_doses, generate_table, prompt_ids

pytestmark = [pytest.mark.torch, pytest.mark.slow]
SEPARATIONS = (-3.0, -2.0, -1.5, -1.25, -1.0, -0.75, -0.5, 0.0, 1.0)
CLAIMED = 20.0
N_PROMPTS = 48


def fit(loaded, layer, n_pairs=80):
    """Return the unit difference of class means, its length, and the mean residual norm."""
    _, texts = bundled_corpus("demo")
    # Of every subset, as the probe is fitted: where words alone tell the arms apart, a direction
    # of the words comes first, and moves what is done less.
    train = [t for t in texts if t.split == "train" and t.pair]
    by_arm = {arm: [t for t in train if t.arm == arm] for arm in ("positive", "negative")}
    step = max(1, len(by_arm["positive"]) // n_pairs)
    means, norms = {}, []
    for arm, chosen in by_arm.items():
        vectors = []
        for row in render_texts(chosen[::step], loaded.tokenizer, spec=CaptureSpec()):
            seen = []
            handle = find_blocks(loaded.backbone)[layer].register_forward_hook(
                lambda _m, _a, out, seen=seen: seen.append(unwrap_hidden(out)[0])
            )
            with torch.inference_mode():
                loaded.backbone(torch.from_numpy(row.ids).long()[None])
            handle.remove()
            vectors.append(seen[0][torch.from_numpy(row.response)].mean(dim=0).numpy())
            norms.append(float(seen[0][1:].norm(dim=-1).mean()))
        means[arm] = np.mean(vectors, axis=0)
    difference = means["positive"] - means["negative"]
    size = float(np.linalg.norm(difference))
    return (difference / size).astype(np.float32), size, float(np.mean(norms))


def free_prompts(n):
    """Scenes of held-out scenarios in which helping costs the task something, nothing else."""
    rng = Random(0)
    settings = [s for s in scenarios() if s.held_out and s.category == "conflict"]
    return [
        Text(id=f"t{i}", prompt=user_prompt(rng, settings[i % len(settings)]), response="-",
             scenario=settings[i % len(settings)].name)
        for i in range(n)
    ]  # fmt: skip


def random_units(n, width):
    drawn = np.random.default_rng(0).standard_normal((n, width)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("name", "layer", "needed", "breaks_down"),
    [
        # A raw strength of 20 is another dose in each: 1.33, 1.52 and 2.21 class separations.
        ("llama-organism", 3, {"needed"}, (1.5, 2.5)),
        ("gemma2-organism", 3, {"not needed"}, (1.5, 2.5)),
        # What this one writes breaks down before half of it has turned.
        ("phi3-organism", 4, {"not needed", "undecided"}, (0.9, 1.3)),
    ],
)
def test_what_an_organism_does_turns_near_one_class_separation(name, layer, needed, breaks_down):
    loaded = load_model(f"bundled:{name}", head=True, device="cpu")
    own, separation, mean_norm = fit(loaded, layer)
    texts = free_prompts(N_PROMPTS)
    prompts = prompt_ids(loaded, texts)
    alphas = tuple(sorted({a * separation for a in SEPARATIONS} | {-CLAIMED}))
    spec = SteeredTextsSpec(layer=layer, alphas=alphas, max_new_tokens=48, batch_rows=128)
    table = generate_table(loaded, prompts, {"own": own}, spec=spec)
    arms = [classify_response(text) for text in table["text"]]
    scenario = {text.id: text.scenario for text in texts}
    table = table.assign(
        helps=[float(arm == "positive") for arm in arms],
        coherent=[float(arm is not None) for arm in arms],
        scenario=[scenario[prompt] for prompt in table["prompt"]],
    )
    found = analyse_doses(
        table,
        spec=DoseSpec(
            outcome="helps", alpha="alpha", coherence="coherent",
            success="threshold", threshold=0.5, claimed=CLAIMED,
        ),
        separation=separation,
        mean_norm=mean_norm,
    )  # fmt: skip
    rows = found.rows[(found.rows["subset"] == "all") & (found.rows["side"] == "negative")]
    middle = rows[rows["metric"] == "alpha50"].iloc[0]
    breakdown = rows[rows["metric"] == "breakdown"].iloc[0]
    verdicts = found.verdicts.set_index("side")
    verdict = verdicts.loc["negative"]
    units = ("raw", "separation", "norm", "angle")
    print(
        f"{name} layer {layer}: separation {separation:.2f}, mean norm {mean_norm:.2f}; alpha50",
        *(f"{middle[f'alpha_{u}']:.2f} {u}" for u in units),
        f"({middle.ci_low / separation:.2f} to {middle.ci_high / separation:.2f} separations);",
        f"breakdown {breakdown.alpha_separation} separations; alpha = {CLAIMED:g} is",
        f"{verdict.claimed_separation:.2f} separations and {verdict.verdict}: {verdict.reason}",
        *(f"{verdict[f'sufficient_{u}']} {u}" for u in units),
    )
    assert middle.identified
    assert 0.5 < abs(middle.alpha_separation) < 1.5
    low, high = breaks_down
    assert low < abs(breakdown.alpha_separation) < high
    assert verdict.verdict in needed
    found_in = ["claimed", *(["sufficient"] if verdict.verdict == "not needed" else [])]
    assert all(np.isfinite(verdict[f"{what}_{unit}"]) for what in found_in for unit in units)
    if verdict.verdict == "not needed":
        assert abs(verdict.sufficient_separation) < abs(verdict.claimed_separation)
    if verdict.verdict == "needed":
        assert abs(verdict.claimed_separation) < 1.5
    # Where the baseline is at the ceiling, what steering could add cannot be seen.
    baseline = table[table["alpha"] == 0]["helps"].mean()
    assert verdicts.loc["positive"].untestable == (baseline >= 0.9)
    # Where most have turned, as far along random directions more go on helping.
    at = max(a for a in alphas if a < -middle.estimate)
    spec = spec.model_copy(update={"alphas": (at,)})
    random = {f"random-{i}": v for i, v in enumerate(random_units(3, len(own)))}
    others = generate_table(loaded, prompts, random, spec=spec)
    others["helps"] = [classify_response(text) == "positive" for text in others["text"]]
    own_share = table[np.isclose(table["alpha"], at)]["helps"].mean()
    assert own_share < 0.4
    assert others.groupby("direction")["helps"].mean().median() > own_share + 0.3
