"""Interventions against doing them one by one, on the CPU: a random Llama of 60 M parameters.

Every figure is a ratio within one run. QUICK=1 uses a smaller model and smaller grids.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from actlake.extract import LoadedModel, ModelSource, find_blocks, replace_hidden, unwrap_hidden
from actlake.extract.loading import load_model
from actlake.schemas import Contrast, PatchSpec, Place, SteeredTextsSpec
from actlake.steer import AlignedCase, GenerateRow, generate_rows, sweep_patches

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.harness import QUICK, compare, emit

N_LAYERS, HIDDEN = (6, 256) if QUICK else (12, 640)  # 60 M parameters
REPEATS = 1 if QUICK else 3
N_PROMPT, N_SYSTEM, N_ANSWER = 60, 20, 16
PLACES: tuple[Place, ...] = (-1, -4) if QUICK else (-1, -2, -4, -8, "suffix")
N_PROMPTS, N_ALPHAS, N_DIRECTIONS = (4, 3, 2) if QUICK else (8, 11, 4)
N_NEW = 12 if QUICK else 32
LAYER = N_LAYERS // 2


def make_model() -> LoadedModel:
    """Return a random Llama that never ends a text, with the tokenizer of a bundled organism."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1445, hidden_size=HIDDEN, intermediate_size=11 * HIDDEN // 4,
        num_hidden_layers=N_LAYERS, num_attention_heads=8, num_key_value_heads=8,
        max_position_embeddings=1024, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(requires_grad=False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # fresh weights make every block nearly the identity
                parameter.mul_(4)
    model.generation_config.eos_token_id = None
    organism = load_model("bundled:llama-organism", head=True, device="cpu")
    organism.tokenizer.eos_token = None
    update = {"name": "random", "n_layers": N_LAYERS, "hidden_size": HIDDEN}
    return LoadedModel(
        source=ModelSource("random"),
        info=organism.info.model_copy(update=update),
        tokenizer=organism.tokenizer,
        tokenizer_info=organism.tokenizer_info,
        max_positions=1024,
        device=torch.device("cpu"),
        model=model,
    )


def make_case() -> AlignedCase:
    """Return a contrast of random tokens: two beginnings, one end, two completions."""
    rng = np.random.default_rng(0)
    suffix = rng.integers(10, 1400, N_PROMPT - N_SYSTEM)
    prompts = {
        role: np.concatenate([rng.integers(10, 1400, N_SYSTEM), suffix]).astype(np.int32)
        for role in ("source", "base")
    }
    answers = [rng.integers(10, 1400, N_ANSWER).astype(np.int32) for _ in range(2)]
    contrast = Contrast(id="c", prompt="-", source="a", base="b", positive="p", negative="n")
    return AlignedCase(contrast, prompts, (answers[0], answers[1]), N_SYSTEM, bos=False)


@torch.inference_mode()
def patch_one_by_one(loaded: LoadedModel, case: AlignedCase) -> np.ndarray:
    """Patch every layer and place by itself: a pass of the source, and one of the base."""
    blocks = find_blocks(loaded.backbone)
    out = []
    for layer in range(N_LAYERS):
        for place in PLACES:
            scores = []
            for c, answer in enumerate(case.completions):
                where = torch.from_numpy(case.columns(place, c))
                seen: list[torch.Tensor] = []

                def keep(
                    _m: object, _a: object, output: object, seen: list[torch.Tensor] = seen
                ) -> None:
                    seen.append(unwrap_hidden(output))

                def write(
                    _m: object,
                    _a: object,
                    output: object,
                    seen: list[torch.Tensor] = seen,
                    where: torch.Tensor = where,
                ) -> object:
                    hidden = unwrap_hidden(output).clone()
                    hidden[0, where] = seen[0][0, where]
                    return replace_hidden(output, hidden)

                ids = [
                    torch.from_numpy(np.concatenate([case.prompts[r], answer])).long()[None]
                    for r in ("source", "base")
                ]
                hooks: tuple[Callable[..., object], ...] = (keep, write)
                for hook, row in zip(hooks, ids, strict=True):
                    handle = blocks[layer].register_forward_hook(hook)
                    logits = loaded.network(row, use_cache=False).logits[0]
                    handle.remove()
                log_probs = torch.log_softmax(logits[case.n_prompt - 1 : -1], dim=-1)
                scores.append(float(log_probs[range(len(answer)), answer.tolist()].mean()))
            out.append(scores[0] - scores[1])
    return np.array(out)


def patch_sweep(loaded: LoadedModel, case: AlignedCase) -> np.ndarray:
    """Patch every layer and place in shared passes."""
    spec = PatchSpec(positions=PLACES, arms=("full",), modes=("denoise",), n_bootstrap=1)
    return sweep_patches(loaded, [case], spec=spec).samples["patched"].to_numpy()


def make_rows(*, steered: bool) -> list[GenerateRow]:
    """Return every prompt at every strength along every direction."""
    rng = np.random.default_rng(1)
    prompts = [rng.integers(10, 1400, n).astype(np.int32) for n in range(40, 40 + 2 * N_PROMPTS, 2)]
    units = rng.standard_normal((N_DIRECTIONS, HIDDEN))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    return [
        GenerateRow(prompt, unit if steered else None, float(alpha))
        for prompt in prompts
        for unit in units
        for alpha in np.linspace(-20, 20, N_ALPHAS)
    ]


def generate(loaded: LoadedModel, rows: list[GenerateRow], *, n: int, cache: bool = True) -> None:
    """Generate ``rows``, ``n`` together."""
    spec = SteeredTextsSpec(layer=LAYER, max_new_tokens=N_NEW, batch_rows=n)
    generate_rows(loaded, rows, spec=spec, use_cache=cache)


def main() -> None:
    loaded, case = make_model(), make_case()
    np.testing.assert_allclose(
        patch_sweep(loaded, case), patch_one_by_one(loaded, case), rtol=1e-3, atol=1e-3
    )
    figures: dict[str, float | int] = {
        "patch_sweep_vs_one_by_one": compare(
            "patches",
            lambda: patch_sweep(loaded, case),
            lambda: patch_one_by_one(loaded, case),
            repeats=REPEATS,
        )
    }
    rows, plain = make_rows(steered=True), make_rows(steered=False)
    sample = rows[:: max(1, len(rows) // 12)]  # one by one takes minutes: a twelfth of the sweep
    ratio = compare(
        "sweep",
        lambda: generate(loaded, rows, n=64),
        lambda: generate(loaded, sample, n=1, cache=False),
        repeats=1,
    )
    figures["batched_vs_sequential"] = round(ratio * len(rows) / len(sample), 3)
    figures["hook_overhead"] = round(
        1
        / compare(
            "hook",
            lambda: generate(loaded, rows[:64], n=64),
            lambda: generate(loaded, plain[:64], n=64),
            repeats=REPEATS if QUICK else 5,
        ),
        3,
    )
    figures["n_parameters"] = sum(p.numel() for p in loaded.network.parameters())
    emit(figures)


if __name__ == "__main__":
    main()
