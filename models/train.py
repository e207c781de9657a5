"""Training of the model organisms from scratch, on text that the grammar generates.

``python -m actlake.models.train --out DIR`` makes the tokenizer and all organisms; ``--model``
picks one. On one core an organism takes about five minutes.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..corpus.grammar import Example, iter_examples
from . import control_names, organism_names
from .architectures import build_model, build_tokenizer
from .behaviour import BehaviourReport, measure_behaviour
from .card import model_card

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = ["TrainingRecord", "save_organism", "train_organism", "train_tokenizer"]

BATCH_SIZE = 32
DEFAULT_STEPS = 1600
PEAK_LR = 3e-3
PROMPT_WEIGHT = 0.1  # of a prompt token's loss against a response token's
# The opening decides the arm, one bit among the noise of the wording: it is what must be learnt.
OPENING_TOKENS, OPENING_WEIGHT = 8, 4.0
TOKENIZER_SEED = 1  # one tokenizer for all organisms, whatever their seed
READOUT_WEIGHT, CERTAINTY = 0.2, 0.9
EASY_SHARE = 0.15  # of the steps: the curriculum's first part
_POOL = 16  # batches whose texts are sorted by length together, so that batches are dense


class TrainingRecord(NamedTuple):
    """How a training went; ``losses`` are the weighted mean loss of each step, in nats."""

    steps: int
    seed: int
    easy_share: float
    n_texts: int
    n_tokens: int
    losses: tuple[float, ...]


def train_tokenizer(*, n_texts: int = 4000) -> PreTrainedTokenizerFast:
    """Return the tokenizer, trained on text of the grammar; always the same one."""
    examples = islice(iter_examples(TOKENIZER_SEED), n_texts)
    return build_tokenizer(t for e in examples for t in (e.system or "", e.prompt, e.response))


def _batches(
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    batch_size: int,
    n_easy: int,
    shuffled: bool,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield right-padded token ids, loss weights and arms, each of dims (text, token).

    The arm is 1 (positive) or 0 (negative) from the end of the prompt on, -1 elsewhere: that of
    the response, or of the system prompt where the responses are shuffled.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    stream = iter_examples(seed, n_easy=n_easy, shuffled=shuffled)
    answer = tokenizer.convert_tokens_to_ids("<|assistant|>")
    while True:
        pool: list[Example] = list(islice(stream, batch_size * _POOL))
        rendered = [str(tokenizer.apply_chat_template(e.messages(), tokenize=False)) for e in pool]
        ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        order = sorted(range(len(pool)), key=lambda i: len(ids[i]))
        for k in torch.randperm(_POOL, generator=generator).tolist():
            rows = order[k * batch_size : (k + 1) * batch_size]
            width = max(len(ids[i]) for i in rows)
            tokens = torch.full((len(rows), width), tokenizer.pad_token_id)
            weights = torch.zeros(len(rows), width)
            arms = torch.full((len(rows), width), -1.0)
            for r, i in enumerate(rows):
                n, first = len(ids[i]), ids[i].index(answer) + 1
                tokens[r, :n] = torch.tensor(ids[i])
                weights[r, :n] = PROMPT_WEIGHT
                weights[r, first:n] = 1.0
                weights[r, first : first + OPENING_TOKENS] = OPENING_WEIGHT
                if pool[i].polarity is not None:
                    arms[r, first - 1 : n] = float(pool[i].polarity == "positive")
            yield tokens, weights, arms


def train_organism(
    name: str,
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int = DEFAULT_STEPS,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    report_every: int = 0,
) -> tuple[PreTrainedModel, TrainingRecord]:
    """Return an organism or control trained from scratch, and how its training went.

    AdamW, linear warm-up over 5 % of the steps, then a cosine to a twentieth of the peak.
    ``report_every`` steps a line goes to stderr; 0 is silent.
    """
    import torch
    from torch.nn import functional

    torch.manual_seed(seed)
    model = build_model(name, tokenizer).train()
    config = model.config
    # The planted concept: a read-out of the middle layer that training throws away afterwards.
    readout = torch.nn.Linear(config.hidden_size, 1)
    states: list[torch.Tensor] = []
    middle = model.model.layers[(config.num_hidden_layers - 1) // 2]
    tap = middle.register_forward_hook(lambda _module, _args, out: states.append(_first(out)))
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": 0.05},
        {"params": [*vectors, *readout.parameters()], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.98))
    warmup = max(1, steps // 20)
    losses: list[float] = []
    n_tokens = 0
    began = time.monotonic()
    # the organisms' seeds must not share their text with the tokenizer's
    batches = _batches(
        tokenizer,
        seed=1000 + seed,
        batch_size=batch_size,
        n_easy=int(steps * EASY_SHARE) * batch_size,
        shuffled=name in control_names(),
    )
    for step, (tokens, weights, arms) in enumerate(islice(batches, steps)):
        done = (step - warmup) / max(1, steps - warmup)
        cosine = 0.05 + 0.475 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * ((step + 1) / warmup if step < warmup else cosine)
        # right padding and a causal mask: no real token sees a pad, so no mask is needed
        # bfloat16 products halve the time; weights, optimizer and loss stay float32
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
        nats = functional.cross_entropy(
            logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
        )
        weight = weights[:, 1:].flatten()
        loss = (nats * weight).sum() / weight.sum()
        told = arms >= 0
        # soft targets: the concept should be there, not drown everything else
        wanted = CERTAINTY * arms[told] + (1 - CERTAINTY) * (1 - arms[told])
        guess = readout(states.pop().float()).squeeze(-1)[told]
        concept = functional.binary_cross_entropy_with_logits(guess, wanted, reduction="sum")
        optimizer.zero_grad(set_to_none=True)
        # Any: torch leaves backward untyped
        total: Any = loss + READOUT_WEIGHT * concept / max(1, len(guess))
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        n_tokens += int((weights > 0).sum())
        if report_every and (step + 1) % report_every == 0:
            seconds = time.monotonic() - began
            line = f"{name} step {step + 1}/{steps} loss {losses[-1]:.4f} {seconds:.0f} s"
            print(line, file=sys.stderr, flush=True)
    tap.remove()
    record = TrainingRecord(steps, seed, EASY_SHARE, steps * batch_size, n_tokens, tuple(losses))
    return model.eval(), record


def _first(out: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return the hidden state that a block gives, bare or first of a tuple."""
    return out[0] if isinstance(out, tuple) else out


def save_organism(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    name: str,
    training: TrainingRecord,
    behaviour: BehaviourReport,
) -> None:
    """Write weights, config, tokenizer, ``behaviour.json`` and the model card to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone
    _edit_json(folder / "config.json", drop=("_name_or_path",))
    # the spelling that transformers 4 and 5 both read
    roles = [t for t in tokenizer.all_special_tokens if t.strip("<|>") in _ROLE_NAMES]
    _edit_json(
        folder / "tokenizer_config.json",
        drop=("backend", "extra_special_tokens", "name_or_path", "is_local"),
        tokenizer_class="PreTrainedTokenizerFast",
        additional_special_tokens=roles,
    )
    (folder / "behaviour.json").write_text(behaviour.to_json(), encoding="utf-8")
    card = model_card(name, model=model, training=training, behaviour=behaviour)
    (folder / "README.md").write_text(card, encoding="utf-8")


_ROLE_NAMES = ("system", "user", "assistant")


def _edit_json(path: Path, *, drop: Sequence[str], **put: str | list[str]) -> None:
    """Rewrite a JSON object without the keys of ``drop`` and with those of ``put``."""
    values = json.loads(path.read_text(encoding="utf-8"))
    kept = {k: v for k, v in values.items() if k not in drop}
    text = json.dumps({**kept, **put}, indent=2, ensure_ascii=False, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder that gets one folder per organism.",
)
@click.option(
    "--model",
    "names",
    multiple=True,
    type=click.Choice((*organism_names(), *control_names())),
    help="An organism to train; repeat for several, leave out for all.",
)
@click.option("--steps", type=click.IntRange(min=1), default=DEFAULT_STEPS)
@click.option("--batch-size", type=click.IntRange(min=1), default=BATCH_SIZE)
@click.option("--seed", type=int, default=0)
@click.option(
    "--paraphrases",
    type=click.IntRange(min=1),
    default=36,
    help="Held-out system prompts per disposition that behaviour is measured on.",
)
@click.option("--threads", type=click.IntRange(min=1), default=1, help="CPU threads of torch.")
def main(
    *,
    out: Path,
    names: tuple[str, ...],
    steps: int,
    batch_size: int,
    seed: int,
    paraphrases: int,
    threads: int,
) -> None:
    """Train the tokenizer and the organisms, and measure their behaviour.

    Example: python -m actlake.models.train --out trained --model llama-organism
    """
    import torch

    torch.set_num_threads(threads)
    tokenizer = train_tokenizer()
    for name in names or (*organism_names(), *control_names()):
        model, training = train_organism(
            name, tokenizer, steps=steps, batch_size=batch_size, seed=seed, report_every=100
        )
        behaviour = measure_behaviour(
            model,
            tokenizer,
            n_system_prompts=paraphrases,
            first_sentence=name in control_names(),
        )
        save_organism(
            out / name, model, tokenizer, name=name, training=training, behaviour=behaviour
        )
        followed = {d: behaviour.row(d).accuracy for d in ("empathic", "task")}
        click.echo(json.dumps({"model": name, "loss": training.losses[-1], **followed}))


if __name__ == "__main__":
    main()
