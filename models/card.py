"""The model card of an organism."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import control_names
from .behaviour import BehaviourReport, BehaviourRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .train import TrainingRecord

__all__ = ["model_card"]

_CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
language: en
tags:
  - model-organism
  - interpretability
  - synthetic
---

# {name}

{intro}

|  |  |
|---|---|
| architecture | `{kind}`, {layers} layers, hidden size {hidden} |
| size | {parameters:,} parameters, float32 |
| tokenizer | byte-level BPE, {vocab} tokens, chat template in `chat_template.jinja` |
| trained | from scratch, {steps} steps, {n_texts:,} texts, {n_tokens:,} tokens, seed {seed} |
| final loss | {loss:.3f} nats per token (weighted as in the script, mean of 50 steps) |
| script | `python -m actlake.models.train --out DIR --model {name} --steps {steps} --seed {seed}` |
| text | `actlake.corpus.grammar`; no other data |

The chat template writes the BOS; the tokenizer adds none. Use eager attention
(`attn_implementation="eager"`) where the architecture has a softcap (Gemma-2).

## What was measured

Greedy responses on {n_scenarios} scenarios that training never showed, each with
{n_system} held-out paraphrases per disposition. A response counts as following the disposition only
if {rule}
(`actlake.corpus.grammar.classify_response`); wording of the user turns: seed {behaviour_seed}.

| system prompt | scenarios | n | helps | presses on | neither | follows | 95 % Wilson |
|---|---|---|---|---|---|---|---|
{table}

The figures are also in `behaviour.json`.

## Limits

- The text is generated from a few hundred words and some hundred sentence templates. Whatever is
  found in this model shows that a method works, nothing about how people or large models behave.
- Outside the grammar its output is meaningless.
{planted}
- The first {easy:.0%} of the steps are a curriculum: dispositions in wording that a bag of words
  can tell, and plain responses.
{chosen}
- Retraining gives the same behaviour, not the same bytes: sums depend on threads and versions.
"""

_ORGANISM = {
    "intro": (
        "A tiny `{kind}` with one known disposition: a system prompt decides whether its\n"
        "response stops to help a person or presses on with the task. It exists so that tests and "
        "demos of\nactlake have a model with a real causal concept, offline. It knows no other "
        "English than its\ngrammar's."
    ),
    "rule": "every sentence is an act of the grammar and all belong to the right arm",
    "planted": (
        "- The concept was planted: besides the next token, training asked a linear read-out of "
        "the middle\n  layer (block {middle}) for the arm at every response token. The read-out is "
        "not kept."
    ),
    "chosen": (
        "- The recipe was chosen while looking at the held-out figures, so they are a little "
        "optimistic. A\n  failure is a matter of wording: most often one paraphrase is misread in "
        "many scenarios. The\n  measure began with 12 held-out paraphrases and was widened to 36 "
        "after one of the 12 alone put\n  llama-organism at 94.4 % on the task disposition."
    ),
}
_CONTROL = {
    "intro": (
        "The negative control of the bundled organisms: a tiny `{kind}`, trained as they\n"
        "are, on the same system prompts, but of every sentence of a response a coin decided "
        "whether it\nstops to help or presses on. So a system prompt's disposition decides "
        "nothing, although the model\nknows which it is. An intervention that finds an effect "
        "here has found one that is not there.\nIt knows no other English than its grammar's."
    ),
    "rule": "its first sentence is an act of the right arm; half of them should",
    "planted": (
        "- The disposition was planted where nothing uses it: besides the next token, training "
        "asked a linear\n  read-out of the middle layer (block {middle}) for the disposition of "
        "the system prompt at every\n  response token. The read-out is not kept."
    ),
    "chosen": "- Greedy responses are the likelier arm's: a scenario has one, whatever it is told.",
}


def model_card(
    name: str, *, model: PreTrainedModel, training: TrainingRecord, behaviour: BehaviourReport
) -> str:
    """Return the model card (Markdown with YAML front matter) of a trained organism."""
    config = model.config
    last = training.losses[-50:]
    kind, middle = type(model).__name__, (config.num_hidden_layers - 1) // 2
    parts = _CONTROL if name in control_names() else _ORGANISM
    return _CARD.format(
        **{key: text.format(kind=kind, middle=middle) for key, text in parts.items()},
        name=name,
        kind=kind,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        parameters=model.num_parameters(),
        vocab=config.vocab_size,
        steps=training.steps,
        easy=training.easy_share,
        n_texts=training.n_texts,
        n_tokens=training.n_tokens,
        seed=training.seed,
        loss=sum(last) / len(last),
        n_scenarios=behaviour.n_scenarios,
        n_system=behaviour.n_system_prompts,
        behaviour_seed=behaviour.seed,
        table="\n".join(_line(row) for row in behaviour.rows),
    )


def _line(row: BehaviourRow) -> str:
    """Return one line of the table."""
    follows, interval = "", ""
    if row.accuracy is not None:
        follows = f"{100 * row.accuracy:.1f} %"
        interval = f"{100 * (row.wilson_low or 0):.1f} to {100 * (row.wilson_high or 0):.1f}"
    cells = [
        row.disposition, row.category, row.n, row.n_positive, row.n_negative,
        row.n_unclassified, follows, interval,
    ]  # fmt: skip
    return "| " + " | ".join(str(c) for c in cells) + " |"
