"""Scores that need the model: perplexity without steering, and the KL of the first token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..extract import LoadedModel, TokenRow
from ..schemas import InvalidInputError
from .intervention import Intervention, intervene
from .positions import Positions
from .scoring import CPU_BATCH_TOKENS, Condition, PaddedRows, pad_rows, score_rows

__all__ = ["first_token_kl", "perplexities"]


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


@torch.inference_mode()
def first_token_kl(
    loaded: LoadedModel,
    rows: Sequence[TokenRow],
    conditions: Sequence[Condition],
    *,
    directions: np.ndarray,
    layer: int,
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
        Which row, which of the ``directions`` (direction, hidden), how strong.
    layer, positions
        As in :func:`~actlake.steer.scoring.score_rows`.
    batch_tokens
        Upper bound of rows x longest row of a batch; on a CPU 2048 at most.

    Raises
    ------
    InvalidInputError
        If a row has no prompt or no response, or an intervention does not fit the model.
    """
    _check(rows)
    if loaded.device.type == "cpu":
        batch_tokens = min(batch_tokens, CPU_BATCH_TOKENS)
    vectors = torch.from_numpy(np.ascontiguousarray(directions, dtype=np.float32))
    out = np.empty(len(conditions))
    order = sorted(
        range(len(conditions)), key=lambda i: (rows[conditions[i].row].n_tokens, conditions[i].row)
    )
    start = 0
    while start < len(order):
        stop = start + 1
        while (
            stop < len(order)
            and (stop + 1 - start) * rows[conditions[order[stop]].row].n_tokens <= batch_tokens
        ):
            stop += 1
        chosen = order[start:stop]
        texts = [rows[conditions[i].row] for i in chosen]
        batch = pad_rows(
            texts,
            pad_id=loaded.tokenizer.pad_token_id or 0,
            positions=positions,
            bos=loaded.tokenizer.bos_token_id,
        )
        last = torch.tensor([text.n_prompt - 1 for text in texts])
        addition = Intervention(
            "add",
            (layer,),
            torch.tensor([conditions[i].alpha for i in chosen], dtype=torch.float32),
            Positions(batch.steered),
            vectors=vectors[[conditions[i].direction for i in chosen]],
        )
        with intervene(loaded.network, [addition]):
            steered = _next_token(loaded, batch, last)
        plain = _next_token(loaded, batch, last)
        out[chosen] = (steered.exp() * (steered - plain)).sum(dim=-1).clamp_min(0).cpu().numpy()
        start = stop
    return out


def _check(rows: Sequence[TokenRow]) -> None:
    bare = [i for i, row in enumerate(rows) if row.n_prompt < 1 or not row.response.any()]
    if bare:
        msg = f"row {bare[0]} has no prompt or no response, and so no such score"
        raise InvalidInputError(msg)


def _next_token(loaded: LoadedModel, batch: PaddedRows, last: torch.Tensor) -> torch.Tensor:
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
