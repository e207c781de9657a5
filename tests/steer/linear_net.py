"""A causal model whose logits are linear in every residual, for identities that hold exactly."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache

from actlake.extract import LoadedModel, ModelSource
from actlake.schemas import Contrast, ModelInfo, TokenizerInfo
from actlake.steer import AlignedCase

HIDDEN, N_LAYERS, N_WORDS = 16, 4, 64


class _Block(nn.Module):
    """Adds a linear map of the decaying sum of all states so far."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.mix = nn.Linear(HIDDEN, HIDDEN, bias=True)

    def forward(self, hidden, cache=None):
        past = hidden
        if cache is not None:
            past = cache.update(hidden[:, None], hidden[:, None], self.layer)[0][:, 0]
        n, m = hidden.shape[1], past.shape[1]
        lag = torch.arange(m - n, m)[:, None] - torch.arange(m)[None]
        weights = torch.where(lag >= 0, 0.8 ** lag.clamp_min(0), 0.0)
        return hidden + self.mix(weights @ past)


class _Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        text = SimpleNamespace(hidden_size=HIDDEN, num_hidden_layers=N_LAYERS)
        self.config = SimpleNamespace(get_text_config=lambda: text)
        self.embedding = nn.Embedding(N_WORDS, HIDDEN)
        self.layers = nn.ModuleList(_Block(i) for i in range(N_LAYERS))

    def forward(self, input_ids, past_key_values=None, use_cache=False, **_kwargs):
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        hidden = self.embedding(input_ids)
        for block in self.layers:
            hidden = block(hidden, past_key_values)
        return SimpleNamespace(last_hidden_state=hidden, past_key_values=past_key_values)


class _Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.base_model = _Backbone()
        self.config = self.base_model.config
        self.head = nn.Linear(HIDDEN, N_WORDS)

    def forward(self, input_ids, logits_to_keep=None, **kwargs):
        out = self.base_model(input_ids, **kwargs)
        hidden = out.last_hidden_state
        if logits_to_keep is not None:
            hidden = hidden[:, logits_to_keep]
        return SimpleNamespace(logits=self.head(hidden), past_key_values=out.past_key_values)


def linear_model(seed=0):
    torch.manual_seed(seed)
    network = _Network().eval().requires_grad_(False)
    info = ModelInfo(
        name="linear", revision=None, content_digest=None, architecture="Linear",
        n_layers=N_LAYERS, hidden_size=HIDDEN, n_parameters=1, dtype="float32",
        attn_implementation="none", quantization=None,
    )  # fmt: skip
    return LoadedModel(
        source=ModelSource("linear"), info=info, tokenizer=None,
        tokenizer_info=TokenizerInfo.model_construct(), max_positions=None,
        device=torch.device("cpu"), model=network,
    )  # fmt: skip


def linear_cases(n=5, seed=1):
    """Return contrasts with one-token completions, whose log-prob difference is one of logits."""
    rng = np.random.default_rng(seed)
    cases = []
    for i in range(n):
        suffix = rng.integers(1, N_WORDS, 5)
        prompts = {
            role: np.concatenate([rng.integers(1, N_WORDS, 4), suffix]).astype(np.int32)
            for role in ("source", "base", "same_class")
        }
        answers = rng.choice(np.arange(1, N_WORDS), 2, replace=False).astype(np.int32)
        contrast = Contrast(
            id=f"c{i}", scenario=f"s{i % 2}", prompt="-", source="a", base="b",
            positive="p", negative="n",
        )  # fmt: skip
        cases.append(AlignedCase(contrast, prompts, (answers[:1], answers[1:]), 4, bos=False))
    return cases
