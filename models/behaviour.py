"""Measurement of whether an organism's greedy responses follow the disposition."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, ClassVar

from ..corpus.grammar import (
    DISPOSITIONS,
    POLARITIES,
    Polarity,
    Scenario,
    classify_response,
    scenarios,
    system_prompts,
    user_prompt,
)
from ..schemas.base import Record

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["BehaviourReport", "BehaviourRow", "generate_greedy", "measure_behaviour"]


class BehaviourRow(Record):
    """Counts over one cell: a disposition (or ``none``) and a category (or ``all``).

    ``n_correct`` and its Wilson interval are None where no disposition says what is right.
    """

    disposition: str
    category: str
    n: int
    n_positive: int
    n_negative: int
    n_unclassified: int
    n_correct: int | None = None
    accuracy: float | None = None
    wilson_low: float | None = None
    wilson_high: float | None = None


class BehaviourReport(Record):
    """What was measured of an organism, on held-out scenarios and held-out system prompts."""

    encoding_type: ClassVar[str] = "actlake-behaviour"

    n_scenarios: int
    n_system_prompts: int
    seed: int
    rows: tuple[BehaviourRow, ...]

    def row(self, disposition: str, category: str = "all") -> BehaviourRow:
        """Return the row of a disposition (``empathic``, ``task``, ``none``) and category."""
        return next(r for r in self.rows if (r.disposition, r.category) == (disposition, category))


def generate_greedy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[dict[str, str]]],
    *,
    batch_size: int = 64,
    max_new_tokens: int = 64,
) -> list[str]:
    """Return the greedy response to each conversation (left-padded batches, KV cache)."""
    import torch

    prompts = [
        str(tokenizer.apply_chat_template(list(c), tokenize=False, add_generation_prompt=True))
        for c in conversations
    ]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    responses = [""] * len(prompts)
    model.eval()
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = tokenizer(
            [prompts[i] for i in rows],
            add_special_tokens=False,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(model.device)
        with torch.inference_mode():
            out = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=max_new_tokens,
                do_sample=False,
            )
        new = out[:, batch["input_ids"].shape[1] :]
        for i, text in zip(
            rows, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True
        ):
            responses[i] = text.strip()
    return responses


def measure_behaviour(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int = 0,
    n_system_prompts: int = 36,
    n_free_prompts: int = 5,
    first_sentence: bool = False,
) -> BehaviourReport:
    """Return how often greedy responses follow the system prompt, and what they do without one.

    Parameters
    ----------
    seed
        Decides the wording of the user turns.
    n_system_prompts
        Held-out paraphrases per disposition and scenario, spread evenly over all there are.
    n_free_prompts
        User turns per scenario without a system prompt.
    first_sentence
        Read only the first sentence of a response, whatever the others say.
    """
    rng = Random(seed)  # not for secrets
    held_out = [s for s in scenarios() if s.held_out]
    cases: list[tuple[Polarity | None, Scenario]] = []
    conversations: list[list[dict[str, str]]] = []
    n_paraphrases = 0
    for polarity in POLARITIES:
        prompts = system_prompts(DISPOSITIONS[polarity], held_out=True)
        n_used = min(n_system_prompts, len(prompts))
        prompts = tuple(prompts[k * len(prompts) // n_used] for k in range(n_used))
        n_paraphrases = len(prompts)
        for scenario in held_out:
            for system in prompts:
                user = {"role": "user", "content": user_prompt(rng, scenario)}
                conversations.append([{"role": "system", "content": system}, user])
                cases.append((polarity, scenario))
    for scenario in held_out:
        for _ in range(n_free_prompts):
            conversations.append([{"role": "user", "content": user_prompt(rng, scenario)}])
            cases.append((None, scenario))
    responses = generate_greedy(model, tokenizer, conversations)
    if first_sentence:
        responses = [text.partition(". ")[0].removesuffix(".") + "." for text in responses]
    arms = [classify_response(text) for text in responses]
    rows = []
    for wanted in (*POLARITIES, None):
        for category in ("all", "conflict", "ambiguous", "task_free"):
            got = [
                arm
                for arm, (polarity, scenario) in zip(arms, cases, strict=True)
                if polarity == wanted and category in ("all", scenario.category)
            ]
            if got:
                rows.append(_count(got, wanted, category))
    return BehaviourReport(
        n_scenarios=len(held_out), n_system_prompts=n_paraphrases, seed=seed, rows=tuple(rows)
    )


def _count(got: list[Polarity | None], wanted: Polarity | None, category: str) -> BehaviourRow:
    """Return the counts of one cell, with a 95 % Wilson interval where there is a right answer."""
    from scipy.stats import binomtest

    row = BehaviourRow(
        disposition="none" if wanted is None else DISPOSITIONS[wanted],
        category=category,
        n=len(got),
        n_positive=got.count("positive"),
        n_negative=got.count("negative"),
        n_unclassified=got.count(None),
    )
    if wanted is None:
        return row
    n_correct = got.count(wanted)
    interval = binomtest(n_correct, len(got)).proportion_ci(method="wilson")
    return row.model_copy(
        update={
            "n_correct": n_correct,
            "accuracy": round(n_correct / len(got), 4),
            "wilson_low": round(float(interval.low), 4),
            "wilson_high": round(float(interval.high), 4),
        }
    )
