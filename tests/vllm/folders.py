"""Models for the vLLM engine: one whose answer is known, and organisms in heads that vLLM has."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from actlake.models import organism_path

WIDE_HEAD = 32  # the smallest that vLLM's attention has on a CPU
STEP = 1000.0  # what block i of the predictable model adds, times i + 1


def predictable_folder(path: Path, *, n_rows: int, n_positions: int, n_layers: int = 5) -> Path:
    """Save a Llama whose stream says which token it belongs to.

    Token ``row * n_positions + position`` embeds as (row, position, 1, 0, ...), attention adds
    nothing, and the MLP of block i adds STEP * (i + 1) to the fourth coordinate. So every text can
    have ids of its own, and a wrong row, position or layer shows.
    """
    config = LlamaConfig(
        vocab_size=n_rows * n_positions, hidden_size=2 * WIDE_HEAD, intermediate_size=16,
        num_hidden_layers=n_layers, num_attention_heads=2, num_key_value_heads=2,
        max_position_embeddings=n_positions, mlp_bias=True, bos_token_id=None, eos_token_id=None,
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).float()
    with torch.no_grad():
        table = model.model.embed_tokens.weight.zero_()
        ids = torch.arange(config.vocab_size)
        table[:, 0] = (ids // n_positions).float()
        table[:, 1] = (ids % n_positions).float()
        table[:, 2] = 1.0
        for i, block in enumerate(model.model.layers):
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
            for layer in (block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj):
                layer.bias.zero_()
            block.mlp.down_proj.bias[3] = STEP * (i + 1)
    model.save_pretrained(path)
    return path


def widened_organism(name: str, path: Path) -> Path:
    """Save an organism as the same function in heads of WIDE_HEAD.

    Heads are padded with zeros; the rotary embedding stays on their first coordinates, in the
    frequencies of the old size. Where the scale of attention follows from the head size, the
    queries make up for it.
    """
    shutil.copytree(organism_path(name), path)
    config = json.loads((path / "config.json").read_text())
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    config["head_dim"] = WIDE_HEAD
    config["rope_parameters"]["partial_rotary_factor"] = size / WIDE_HEAD
    config["partial_rotary_factor"] = size / WIDE_HEAD
    scale = 1.0 if "query_pre_attn_scalar" in config else math.sqrt(WIDE_HEAD / size)
    (path / "config.json").write_text(json.dumps(config))
    weights = load_file(path / "model.safetensors")
    for key, weight in weights.items():
        if key.endswith("qkv_proj.weight"):
            q, k, v = weight.split([heads * size, groups * size, groups * size])
            parts = (_padded(q, heads) * scale, _padded(k, groups), _padded(v, groups))
            weights[key] = torch.cat(parts)
        elif key.endswith("q_proj.weight"):
            weights[key] = _padded(weight, heads) * scale
        elif key.endswith(("k_proj.weight", "v_proj.weight")):
            weights[key] = _padded(weight, groups)
        elif key.endswith("o_proj.weight"):
            weights[key] = _padded(weight.T, heads).T.contiguous()
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


def _padded(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Return the rows of each head with rows of zeros behind them."""
    per_head = weight.reshape(heads, -1, weight.shape[-1])
    zeros = per_head.new_zeros(heads, WIDE_HEAD - per_head.shape[1], weight.shape[-1])
    return torch.cat([per_head, zeros], dim=1).reshape(heads * WIDE_HEAD, -1)
