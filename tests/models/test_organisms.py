"""The committed weights: real architectures, one sound tokenizer, the known disposition."""

from __future__ import annotations

import json
from itertools import islice

import pytest

pytestmark = pytest.mark.torch
pytest.importorskip("torch")

import torch  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from actlake.corpus.grammar import iter_examples  # noqa: E402
from actlake.models import organism_names, organism_path  # noqa: E402
from actlake.models.behaviour import (  # noqa: E402
    BehaviourReport,
    generate_greedy,
    measure_behaviour,
)

CLASSES = {
    "phi3-organism": "Phi3ForCausalLM",
    "llama-organism": "LlamaForCausalLM",
    "gemma2-organism": "Gemma2ForCausalLM",
}
TOKENIZER = AutoTokenizer.from_pretrained(organism_path("llama-organism"))


def load(name: str):
    folder = organism_path(name)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", organism_names())
def test_greedy_responses_follow_the_disposition_where_nothing_was_seen(name):
    model, tokenizer = load(name)
    assert type(model).__name__ == CLASSES[name]
    assert model.config.num_hidden_layers >= 6
    report = measure_behaviour(model, tokenizer, n_system_prompts=18, n_free_prompts=1)
    for disposition in ("empathic", "task"):
        row = report.row(disposition)
        assert row.n == 378
        assert row.accuracy is not None
        assert row.accuracy >= 0.95
        assert {r.category for r in report.rows if r.disposition == disposition} >= {
            "conflict", "ambiguous", "task_free",
        }  # fmt: skip


@pytest.mark.parametrize("name", organism_names())
def test_the_recorded_behaviour_meets_the_promise(name):
    text = (organism_path(name) / "behaviour.json").read_text(encoding="utf-8")
    report = BehaviourReport.parse_json(text)
    for disposition in ("empathic", "task"):
        row = report.row(disposition)
        assert row.n >= 700
        assert row.accuracy is not None
        assert row.accuracy >= 0.95


@pytest.mark.parametrize("name", organism_names())
def test_left_padded_batches_answer_as_single_prompts_do(name):
    model, tokenizer = load(name)
    known = (e for e in iter_examples(7) if e.system and e.polarity)
    conversations = [e.messages()[:-1] for e in islice(known, 6)]
    together = generate_greedy(model, tokenizer, conversations)
    alone = [generate_greedy(model, tokenizer, [c])[0] for c in conversations]
    assert together == alone


def test_widths_differ_between_organisms():
    widths = {
        json.loads((organism_path(n) / "config.json").read_text(encoding="utf-8"))["hidden_size"]
        for n in organism_names()
    }
    assert len(widths) == 3


@given(st.text())
def test_any_text_survives_the_tokenizer(text):
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert TOKENIZER.decode(ids, clean_up_tokenization_spaces=False) == text


def test_the_bos_is_there_once():
    messages = [{"role": "user", "content": "What do you do?"}]
    text = TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|bos|><|user|>What do you do?<|end|><|assistant|>"
    for add_special_tokens in (True, False):
        ids = TOKENIZER(text, add_special_tokens=add_special_tokens)["input_ids"]
        assert ids.count(TOKENIZER.bos_token_id) == 1
        assert ids[0] == TOKENIZER.bos_token_id


def test_a_system_turn_is_optional_and_comes_first():
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello."}]
    text = TOKENIZER.apply_chat_template(turns, tokenize=False)
    assert text == "<|bos|><|system|>Be kind.<|end|><|user|>Hello.<|end|>"


def test_the_template_marks_what_the_assistant_says():
    turns = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "I stop."}]
    out = TOKENIZER.apply_chat_template(
        turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    said = [i for i, m in zip(out["input_ids"], out["assistant_masks"], strict=True) if m]
    assert TOKENIZER.decode(said) == "I stop.<|end|>"


def test_special_tokens_are_set_and_distinct():
    ids = [TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id]
    assert len(set(ids)) == 3
    assert TOKENIZER.eos_token == "<|end|>"


@pytest.mark.parametrize("name", organism_names())
def test_weights_are_float32_and_finite(name):
    model, _ = load(name)
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
        assert bool(torch.isfinite(parameter).all())
