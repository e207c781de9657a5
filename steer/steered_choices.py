"""Forced choice by a model that is loaded here, steered or not, many conditions at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..extract import LoadedModel, TokenRow, render_texts
from ..schemas import CaptureSpec, InvalidInputError, Text
from .choices import LABELS, ChoiceItem, ChoiceResult, question_of
from .intervention import intervene
from .model_scores import next_token
from .scoring import Condition, additions, condition_batches, pad_rows

__all__ = ["letter_ids", "model_choices"]


def letter_ids(tokenizer: Any) -> list[list[int]]:  # tokenizers have no common type  # noqa: ANN401
    """Return the tokens that read as each of the letters: ``A`` and `` A`` count together."""
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    out = []
    for label in LABELS:
        # A decoded letter stands in its token: only few have to be decoded.
        likely = [
            i for i, token in enumerate(tokens) if token and label in token and len(token) < 5
        ]
        out.append([i for i in likely if tokenizer.decode([i]).strip() == label])
    return out


@torch.inference_mode()
def model_choices(
    loaded: LoadedModel,
    items: Sequence[ChoiceItem],
    conditions: Sequence[Condition],
    *,
    directions: np.ndarray,
    layer: int | Sequence[int],
    positions: str,
    batch_tokens: int = 16384,
) -> list[ChoiceResult]:
    """Return the preference of each condition between the two answers of its item.

    Each item is asked in both orders under the condition's steering, as
    :func:`~actlake.steer.force_choices` does one by one; the log-probabilities are those of the
    letters as the first token of the answer.

    Parameters
    ----------
    items
        What is asked.
    conditions
        ``row`` is the item; the direction and strength are those of
        :func:`~actlake.steer.score_rows`.
    directions, layer, positions
        As there. The phase ``response`` touches no token that the letter depends on.
    batch_tokens
        Upper bound of rows x longest row of a batch; on a CPU 2048 at most.

    Raises
    ------
    InvalidInputError
        If the tokenizer has no token for a letter, or a question is too long for the context.
    """
    letters = letter_ids(loaded.tokenizer)
    lacking = [label for label, ids in zip(LABELS, letters, strict=True) if not ids]
    if lacking:
        msg = f"{loaded.info.name} has no token for the letters {lacking}, so no such choice"
        raise InvalidInputError(msg)
    rows = _questions(loaded, items)
    both = [
        Condition(2 * condition.row + order, condition.direction, condition.alpha)
        for condition in conditions
        for order in (0, 1)
    ]
    found = np.empty((len(both), 2))
    for chosen in condition_batches(loaded, rows, both, batch_tokens=batch_tokens):
        texts = [rows[both[i].row] for i in chosen]
        batch = pad_rows(
            texts,
            pad_id=loaded.tokenizer.pad_token_id or 0,
            positions=positions,
            bos=loaded.tokenizer.bos_token_id,
        )
        writes = additions(
            [both[i] for i in chosen], directions=directions, layer=layer, steered=batch.steered
        )
        last = torch.tensor([text.n_prompt - 1 for text in texts])
        with intervene(loaded.network, writes):
            log_probs = next_token(loaded, batch, last)
        for k, ids in enumerate(letters):
            found[chosen, k] = log_probs[:, ids].logsumexp(dim=-1).cpu().numpy()
    first = (found[:, 0] - found[:, 1]).reshape(-1, 2)  # (condition, order): A less B
    return [ChoiceResult(float(there - back) / 2, float(there + back) / 2) for there, back in first]


def _questions(loaded: LoadedModel, items: Sequence[ChoiceItem]) -> list[TokenRow]:
    """Return the rows of every item in both orders; what answers them is never read."""
    texts = [
        Text(
            id=f"{i}-{order}",
            system=item.system,
            prompt=question_of(item, swapped=bool(order)),
            response=LABELS[0],
        )
        for i, item in enumerate(items)
        for order in (0, 1)
    ]
    spec = CaptureSpec()
    return render_texts(texts, loaded.tokenizer, spec=spec, max_positions=loaded.max_positions)
