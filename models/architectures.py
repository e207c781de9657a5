"""The architectures of the organisms and the tokenizer that they share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..schemas.base import near_names
from ..schemas.errors import NotFoundError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = ["CHAT_TEMPLATE", "MAX_POSITIONS", "build_model", "build_tokenizer"]

MAX_POSITIONS = 256
_BOS, _PAD, _END = "<|bos|>", "<|pad|>", "<|end|>"
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>")

# The template writes the BOS and the tokenizer adds none, so it is never there twice.
# The generation block marks what the assistant says, for return_assistant_tokens_mask.
CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|' + message['role'] + '|>' }}"
    "{%- if message['role'] == 'assistant' %}"
    "{%- generation %}{{- message['content'] + eos_token }}{%- endgeneration %}"
    "{%- else %}{{- message['content'] + eos_token }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)

_SIZES: dict[str, dict[str, Any]] = {
    "phi3-organism": {
        "hidden_size": 96,
        "num_hidden_layers": 8,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "original_max_position_embeddings": MAX_POSITIONS,
    },
    "llama-organism": {
        "hidden_size": 128,
        "num_hidden_layers": 6,
        "intermediate_size": 288,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "gemma2-organism": {
        "hidden_size": 112,
        "num_hidden_layers": 7,
        "intermediate_size": 288,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 28,
        "query_pre_attn_scalar": 28,
        "sliding_window": 64,
    },
}

_SIZES["llama-shuffled"] = _SIZES["llama-organism"]  # unlike it in nothing but its text


def build_model(name: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Return an untrained organism of the named architecture; torch's seed decides its weights.

    Raises
    ------
    NotFoundError
        If no organism has that name.
    """
    import transformers

    classes: dict[str, tuple[Any, Any]] = {
        "phi3-organism": (transformers.Phi3Config, transformers.Phi3ForCausalLM),
        "llama-organism": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "llama-shuffled": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "gemma2-organism": (transformers.Gemma2Config, transformers.Gemma2ForCausalLM),
    }
    if name not in classes:
        msg = f"no organism is named {name!r}{near_names(name, list(classes))}"
        raise NotFoundError(msg)
    make_config, make_model = classes[name]
    config = make_config(
        **_SIZES[name],
        vocab_size=len(tokenizer),
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # sdpa has no softcap: Gemma-2 must be eager, and one choice serves all
        attn_implementation="eager",
    )
    model: PreTrainedModel = make_model(config)
    return model


def build_tokenizer(texts: Iterable[str], *, vocab_size: int = 1536) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with our chat template, trained on ``texts``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_PAD, _BOS, _END, *_ROLES],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=_BOS,
        eos_token=_END,
        pad_token=_PAD,
        additional_special_tokens=list(_ROLES),
        model_max_length=MAX_POSITIONS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
