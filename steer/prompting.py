"""System prompts in place of steering: the baseline that steering has to be better than."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from ..extract import LoadedModel, TokenRow, render_texts
from ..schemas import (
    CaptureSpec,
    InvalidInputError,
    Pair,
    PersonaSet,
    SteeringRow,
    SteerSpec,
    Text,
    Turn,
)
from .costs import PatchCost, weigh_rows
from .scoring import Condition, ScoreEngine, score_rows
from .sweep import METRIC, SweepResult, bootstrap_over, prompt_set

__all__ = ["prompt_baseline", "prompt_rows", "weigh_prompts"]

_ARMS: tuple[Literal["positive", "negative"], ...] = ("positive", "negative")
_ZERO: dict[str, Any] = {
    "alpha_raw": 0.0,
    "alpha_separation": 0.0,
    "alpha_norm": 0.0,
    "alpha_angle": 0.0,
}


def prompt_baseline(
    loaded: LoadedModel,
    pairs: Sequence[Pair],
    personas: PersonaSet,
    *,
    spec: SteerSpec,
    capture: CaptureSpec,
    batch_tokens: int = 16384,
    engine: ScoreEngine | None = None,
) -> SweepResult:
    """Return what asking for it does to the log-prob difference (Wu et al. 2501.17148, AxBench).

    Every persona's instruction takes the place of the texts' system prompt, nothing is steered;
    the shift is against the texts as they are. One row per arm of the personas, over its
    paraphrases, with a bootstrap over scenarios; ``samples`` have every paraphrase.

    Where the chat template takes no system turn the instruction begins the user's turn, which the
    rows' ``token_mask`` says.

    Raises
    ------
    InvalidInputError
        If a text is too long with its instruction, or has token ids of its own.
    """
    rows, words, how = prompt_rows(loaded, pairs, personas, capture=capture)
    conditions = [Condition(row, 0, 0.0) for row in range(len(rows))]
    scores = score_rows(
        loaded,
        rows,
        conditions,
        directions=np.zeros((1, loaded.info.hidden_size)),
        layer=0,
        positions=spec.positions,
        batch_tokens=batch_tokens,
        engine=engine,
    ).reshape(1 + len(words), len(pairs), 2)
    difference = scores[..., 0] - scores[..., 1]
    shift = difference[1:] - difference[:1]
    samples = pd.DataFrame.from_records(
        [
            {
                "direction": "system_prompt", "direction_index": index, "system_prompt": arm,
                **_ZERO, "pair": pair.id, "scenario": pair.positive.scenario,
                "category": pair.positive.category,
                "difference": difference[1 + k, p], "shift": shift[k, p],
            }
            for k, (arm, index, _) in enumerate(words)
            for p, pair in enumerate(pairs)
        ]
    )  # fmt: skip
    scenarios = np.array([pair.positive.scenario for pair in pairs])
    records = []
    for arm in _ARMS:
        mean = shift[[k for k, word in enumerate(words) if word[0] == arm]].mean(axis=0)
        low, high = bootstrap_over(scenarios, mean[None, None], seed=spec.seed)
        records.append(
            SteeringRow(
                analysis="steer",
                metric=METRIC,
                estimate=float(mean.mean()),
                model=loaded.info.name,
                method="system_prompt",
                ci_low=float(low[0, 0]),
                ci_high=float(high[0, 0]),
                ci_method="percentile bootstrap over scenarios",
                direction="system_prompt",
                prompt=arm,
                prompt_set=prompt_set(spec),
                n_draws=len(personas.positive),
                n_pairs=len(pairs),
                n_scenarios=len(set(scenarios)),
                groups="scenario",
                token_mask=f"not steered; an instruction as {how}, mean over paraphrases",
                seed=spec.seed,
                **_ZERO,
            ).model_dump()
        )
    return SweepResult(pd.DataFrame.from_records(records), samples)


def weigh_prompts(
    loaded: LoadedModel,
    pairs: Sequence[Pair],
    personas: PersonaSet,
    *,
    capture: CaptureSpec,
    batch_tokens: int = 16384,
    engine: ScoreEngine | None = None,
) -> PatchCost:
    """Return what :func:`prompt_baseline` would run; no weights are needed."""
    rows, _, _ = prompt_rows(loaded, pairs, personas, capture=capture)
    conditions = [Condition(row, 0, 0.0) for row in range(len(rows))]
    return weigh_rows(loaded, rows, conditions, batch_tokens=batch_tokens, engine=engine)


def prompt_rows(
    loaded: LoadedModel, pairs: Sequence[Pair], personas: PersonaSet, *, capture: CaptureSpec
) -> tuple[list[TokenRow], list[tuple[str, int, str]], str]:
    """Return the texts as they are, then under each instruction; the instructions; where."""
    given = {"positive": personas.positive, "negative": personas.negative}
    words: list[tuple[str, int, str]] = [
        (arm, index, instruction) for arm in _ARMS for index, instruction in enumerate(given[arm])
    ]
    plain = [t for pair in pairs for t in (pair.positive, pair.negative)]
    own = next((text for text in plain if text.token_ids is not None), None)
    if own is not None:
        msg = f"text {own.id!r} brings token ids, which no system prompt can be put before"
        raise InvalidInputError(msg)

    def render(texts: list[Text]) -> list[TokenRow]:
        limit = loaded.max_positions
        return render_texts(texts, loaded.tokenizer, spec=capture, max_positions=limit)

    def under(*, as_system: bool) -> list[TokenRow]:
        texts = [
            _asked(text, instruction, mark=f"{arm}-{index}", as_system=as_system)
            for arm, index, instruction in words
            for text in plain
        ]
        return render(texts)

    try:
        return [*render(plain), *under(as_system=True)], words, "system prompt"
    except InvalidInputError as err:
        if "chat template refuses" not in str(err):
            raise
    return [*render(plain), *under(as_system=False)], words, "the beginning of the user's turn"


def _asked(text: Text, instruction: str, *, mark: str, as_system: bool) -> Text:
    """Return a text under an instruction, with an id of its own."""
    changes: dict[str, object] = {"id": f"{text.id}.{mark}"}
    if text.messages is None:
        if as_system:
            changes["system"] = instruction
        else:
            changes |= {"system": None, "prompt": f"{instruction}\n\n{text.prompt or ''}"}
    else:
        turns = [turn for turn in text.messages if turn.role != "system"]
        if as_system:
            changes["messages"] = (Turn(role="system", content=instruction), *turns)
        else:
            first = turns[0].model_copy(update={"content": f"{instruction}\n\n{turns[0].content}"})
            changes["messages"] = (first, *turns[1:])
    return text.model_copy(update=changes)
