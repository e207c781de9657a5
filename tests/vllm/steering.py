"""The transformers oracle of steered generation, and what is asked of both engines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from actlake.corpus import bundled_corpus
from actlake.steer import Intervention, intervene, plan_positions, prompt_ids

OPERATORS = ("add", "project_out", "set", "replace", "swap", "swap_complement")
SITES = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")


@contextmanager
def beside_vllm(config, path) -> Iterator[None]:
    """Let transformers make a model of ``config`` whose class vLLM has borrowed in this process.

    vLLM changes the class, which from then on asks for vLLM's configuration of the model.
    """
    from vllm import EngineArgs
    from vllm.config import set_current_vllm_config

    config.save_pretrained(path)
    given = EngineArgs(
        str(path), skip_tokenizer_init=True, enforce_eager=True, dtype="float32", max_model_len=64
    )
    with set_current_vllm_config(given.create_engine_config()):
        yield


def batch(loaded, n=6):
    """Prompts of the bundled corpus in unlike lengths, padded on the left."""
    _, texts = bundled_corpus("demo")
    asked = {text.prompt: text for text in texts if text.prompt}
    prompts = sorted(prompt_ids(loaded, list(asked.values())).values(), key=len)
    chosen = prompts[:: len(prompts) // n][:n]
    chosen = [chosen[i] for i in torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    width = max(len(ids) for ids in chosen)
    ids = torch.full((n, width), loaded.tokenizer.pad_token_id or 0)
    attended = torch.zeros_like(ids)
    for i, row in enumerate(chosen):
        ids[i, width - len(row) :] = torch.from_numpy(row)
        attended[i, width - len(row) :] = 1
    return ids, attended


@torch.inference_mode()
def oracle(loaded, ids, attended, interventions, *, n_new):
    """Greedy tokens (row, n_new) and log-probs of the first by transformers, without a cache."""
    # A model that vLLM takes from transformers has had its class changed by vLLM in this process.
    loaded.backbone.do_not_compile = True
    first = None
    with intervene(loaded.network, interventions):
        for _ in range(n_new):
            places = (attended.cumsum(dim=1) - 1).clamp_min(0)
            scores = loaded.network(
                input_ids=ids, attention_mask=attended, position_ids=places, use_cache=False,
                logits_to_keep=1,
            ).logits[:, -1].float()  # fmt: skip
            first = scores.log_softmax(dim=-1) if first is None else first
            fresh = scores.argmax(dim=-1, keepdim=True)
            ids = torch.cat([ids, fresh], dim=1)
            attended = torch.cat([attended, torch.ones_like(fresh)], dim=1)
    return ids[:, -n_new:], first


def until_end(tokens, ends):
    """What of each row comes before a token that ends it."""
    rows = []
    for row in tokens.tolist():
        stops = [i for i, token in enumerate(row) if token in ends]
        rows.append(row[: stops[0]] if stops else row)
    return rows


def stream_scale(loaded, ids, attended, layer):
    """The root mean square norm of a block's output over the prompts' tokens."""
    with torch.inference_mode():
        out = loaded.backbone(
            input_ids=ids, attention_mask=attended, output_hidden_states=True, use_cache=False
        ).hidden_states[layer + 1]
    return float(out[attended.bool()].square().sum(dim=-1).mean().sqrt())


def intervention(loaded, ids, attended, operator, *, phase, site="resid_post", layers=(1,), seed=0):
    """An operator with other strengths, directions and source states for every row."""
    generator = torch.Generator().manual_seed(seed)
    n, width = ids.shape
    hidden = loaded.info.hidden_size
    scale = stream_scale(loaded, ids, attended, layers[0])
    rank = 1 if operator in {"add", "set"} else 3
    basis, _ = torch.linalg.qr(torch.randn(n, hidden, rank, generator=generator))
    positions = plan_positions(ids, attended, phase=phase, bos=loaded.tokenizer.bos_token_id)
    source = None
    if operator in {"replace", "swap", "swap_complement"}:
        # By column where nothing but the prompt is touched, else one state for a row.
        shape = (n, hidden) if positions.generated else (n, width, hidden)
        source = torch.randn(shape, generator=generator) * scale / hidden**0.5
    strengths = torch.tensor([1.0, 0.0, -0.5, 0.7, 1.0, 2.0])[torch.arange(n) % 6]
    return Intervention(
        operator,
        layers,
        strengths * scale if operator in {"add", "set"} else strengths,
        positions,
        vectors=None if operator == "replace" else basis.transpose(1, 2).contiguous(),
        source=source,
        site=site,
    )
