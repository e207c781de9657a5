"""Tiny random encoders of several architectures."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    AutoModelForTextEncoding,
    BertConfig,
    DistilBertConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    T5Config,
)

from tests.extract.tiny import WIDE

ENCODERS = {
    "bert": BertConfig(**WIDE),
    "roberta": RobertaConfig(**WIDE),
    "distilbert": DistilBertConfig(
        vocab_size=1024, dim=32, hidden_dim=48, n_layers=4, n_heads=4, max_position_embeddings=256
    ),
    "modernbert": ModernBertConfig(
        **WIDE, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2
    ),
    "mpnet": MPNetConfig(**WIDE),
    "t5": T5Config(
        vocab_size=1024, d_model=32, d_kv=8, d_ff=48, num_layers=4, num_heads=4, pad_token_id=0
    ),
}


def tiny_encoder(name: str, *, seed: int = 0) -> PreTrainedModel:
    """Return a random encoder in float32 with eager attention, in evaluation mode."""
    torch.manual_seed(seed)
    auto = AutoModelForTextEncoding if name == "t5" else AutoModel
    model = auto.from_config(ENCODERS[name], attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and name != "t5":
                parameter.mul_(4)
    return model.float().eval().requires_grad_(False)


def cls_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer that writes [CLS] and [SEP] around a text."""
    special = ["<pad>", "<cls>", "<sep>", "<mask>"]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(["the boy has fallen and I stop to help the boy"], trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<cls> $A <sep>", special_tokens=[("<cls>", 1), ("<sep>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", cls_token="<cls>", sep_token="<sep>",
        mask_token="<mask>",
    )  # fmt: skip


def encoder_folder(name: str, path: Path, *, seed: int = 0) -> Path:
    """Save a tiny random encoder with its tokenizer as a transformers folder; return it."""
    tiny_encoder(name, seed=seed).save_pretrained(path)
    cls_tokenizer().save_pretrained(path)
    return path
