"""Scores that need the model: perplexity without steering, and the KL of the first token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from ..extract import LoadedModel, TokenRow, render_texts
from ..schemas import CaptureSpec, InvalidInputError, Text
from .intervention import intervene
from .scoring import (
    Condition,
    PaddedRows,
    additions,
    condition_batches,
    pad_rows,
    score_rows,
)
from .tables import require_columns

__all__ = ["first_token_kl", "next_token", "perplexities", "table_perplexities"]


def perplexities(
    loaded: LoadedModel, rows: Sequence[TokenRow], *, batch_tokens: int = 16384
) -> np.ndarray:
    """Return the perplexity of each response under the model as it is, (row,).

    exp of minus the mean log-probability per response token, given the prompt: text that was
    made under steering is scored without any.

    Raises
    ------
    InvalidInputError
        If a row has no response.
    """
    _check(rows)
    zero = np.zeros((1, loaded.info.hidden_size))
    scores = score_rows(
        loaded,
        rows,
        [Condition(row, 0, 0.0) for row in range(len(rows))],
        directions=zero,
        layer=0,
        positions="all",
        batch_tokens=batch_tokens,
    )
    return np.asarray(np.exp(-scores))


def table_perplexities(
    loaded: LoadedModel, table: pd.DataFrame, *, batch_tokens: int = 16384
) -> np.ndarray:
    """Return the perplexity of each row's ``text`` under the model as it is, (row,).

    Given its ``prompt`` and ``system``, where the table has such columns. NaN for a text without
    a word to score.

    Raises
    ------
    InvalidInputError
        If the table has no texts or a perplexity already, or a text is beyond the context.
    """
    require_columns(table, ["text"])
    if "perplexity" in table.columns:
        msg = "the table already has a column 'perplexity'; rename it, the score would take it"
        raise InvalidInputError(msg)
    columns = {
        name: [value if isinstance(value, str) and value else None for value in table[name]]
        for name in ("text", "prompt", "system")
        if name in table.columns
    }
    texts = [
        Text(
            id=f"row-{i}",
            response=response,
            prompt=columns["prompt"][i] if "prompt" in columns else None,
            system=columns["system"][i] if "system" in columns else None,
        )
        for i, response in enumerate(columns["text"])
        if response is not None and response.strip()
    ]
    out = np.full(len(table), np.nan)
    if texts:
        limit = loaded.max_positions
        rows = render_texts(texts, loaded.tokenizer, spec=CaptureSpec(pools=("mean_response",)),
                            max_positions=limit)  # fmt: skip
        # Without a prompt the first token has nothing before it that it could follow from.
        rows = [row if row.n_prompt else _from_second(row) for row in rows]
        able = [row for row in rows if row.response.any()]
        where = [int(row.text.id.removeprefix("row-")) for row in able]
        out[where] = perplexities(loaded, able, batch_tokens=batch_tokens)
    return out


def _from_second(row: TokenRow) -> TokenRow:
    return replace(row, response=row.response & (np.arange(row.n_tokens) > 0))


@torch.inference_mode()
def first_token_kl(
    loaded: LoadedModel,
    rows: Sequence[TokenRow],
    conditions: Sequence[Condition],
    *,
    directions: np.ndarray,
    layer: int | Sequence[int],
    positions: str,
    batch_tokens: int = 16384,
) -> np.ndarray:
    """Return KL(steered || unsteered) of the response's first token, in nats, (condition,).

    Both distributions are read at the last token of the prompt; strength 0 gives exactly 0.

    Parameters
    ----------
    rows
        The texts, as tokens; their responses are not read.
    conditions
        Which row, which of the ``directions``, how strong.
    directions, layer, positions
        As in :func:`~actlake.steer.scoring.score_rows`.
    batch_tokens
        Upper bound of rows x longest row of a batch; on a CPU 2048 at most.

    Raises
    ------
    InvalidInputError
        If a row has no prompt or no response, or an intervention does not fit the model.
    """
    _check(rows)
    out = np.empty(len(conditions))
    for chosen in condition_batches(loaded, rows, conditions, batch_tokens=batch_tokens):
        texts = [rows[conditions[i].row] for i in chosen]
        batch = pad_rows(
            texts,
            pad_id=loaded.tokenizer.pad_token_id or 0,
            positions=positions,
            bos=loaded.tokenizer.bos_token_id,
        )
        last = torch.tensor([text.n_prompt - 1 for text in texts])
        writes = additions(
            [conditions[i] for i in chosen],
            directions=directions,
            layer=layer,
            steered=batch.steered,
        )
        with intervene(loaded.network, writes):
            steered = next_token(loaded, batch, last)
        plain = next_token(loaded, batch, last)
        out[chosen] = (steered.exp() * (steered - plain)).sum(dim=-1).clamp_min(0).cpu().numpy()
    return out


def _check(rows: Sequence[TokenRow]) -> None:
    bare = [i for i, row in enumerate(rows) if row.n_prompt < 1 or not row.response.any()]
    if bare:
        msg = f"row {bare[0]} has no prompt or no response, and so no such score"
        raise InvalidInputError(msg)


def next_token(loaded: LoadedModel, batch: PaddedRows, last: torch.Tensor) -> torch.Tensor:
    """Return the log-probabilities of the token behind position ``last``, (row, vocabulary)."""
    device = loaded.device
    places, which = torch.unique(last, return_inverse=True)
    logits = loaded.network(
        input_ids=batch.ids.to(device),
        attention_mask=batch.attended.to(device),
        position_ids=torch.arange(batch.ids.shape[1], device=device).expand(len(batch.ids), -1),
        use_cache=False,
        logits_to_keep=places.to(device),
    ).logits
    picked = logits[torch.arange(len(last), device=device), which.to(device)]
    return torch.log_softmax(picked.double(), dim=-1)
