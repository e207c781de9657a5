"""Tiny random models of several architectures, made in seconds and never downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    Glm4Config,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PhiConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

WIDE = {
    "vocab_size": 1024,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": LlamaConfig(**WIDE, num_key_value_heads=2),
    "mistral": MistralConfig(**WIDE, num_key_value_heads=2),
    "qwen2": Qwen2Config(**WIDE, num_key_value_heads=2),
    "phi3": Phi3Config(**WIDE, num_key_value_heads=4),
    "gemma2": Gemma2Config(**WIDE, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8),
    "gemma3": Gemma3TextConfig(**WIDE, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8),
    "mixtral": MixtralConfig(
        **WIDE, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2
    ),
    "qwen3": Qwen3Config(**WIDE, num_key_value_heads=2, head_dim=8),
    "gpt_oss": GptOssConfig(
        **WIDE, num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2
    ),
    "olmo2": Olmo2Config(**WIDE, num_key_value_heads=2),
    "glm4": Glm4Config(**WIDE, num_key_value_heads=2, head_dim=8),
    "granite": GraniteConfig(**WIDE, num_key_value_heads=2, residual_multiplier=0.5),
    "phi": PhiConfig(**WIDE),
    "neox": GPTNeoXConfig(**WIDE),
    "neox_serial": GPTNeoXConfig(**WIDE, use_parallel_residual=False),
    "gpt2": GPT2Config(
        vocab_size=1024, n_embd=32, n_layer=4, n_head=4, n_positions=256, pad_token_id=0
    ),
}


def tiny_model(name: str, *, seed: int = 0) -> PreTrainedModel:
    """Return a random causal LM in float32 with eager attention, in evaluation mode."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="eager")
    # Fresh weights are so small that every block is nearly the identity: enlarge them.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model.float().eval().requires_grad_(False)


TEMPLATE = (
    "{{ bos_token }}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with a chat template, trained on one sentence."""
    special = ["<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["the boy has fallen and I stop to help the boy"], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|bos|>", eos_token="<|end|>", pad_token="<|pad|>",
        additional_special_tokens=special[3:],
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def tiny_folder(name: str, path: Path, *, seed: int = 0) -> Path:
    """Save a tiny random model with its tokenizer as a transformers folder; return it."""
    tiny_model(name, seed=seed).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path
