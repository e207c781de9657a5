"""Scoring completions under teacher forcing, with or without an intervention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from ..extract import LoadedModel, TokenRow, find_blocks, unwrap_hidden
from ..schemas import InvalidInputError
from .intervention import Intervention, intervene
from .positions import Positions

__all__ = [
    "Condition",
    "PaddedRows",
    "ScoreEngine",
    "additions",
    "angle_degrees",
    "angles_of",
    "condition_batches",
    "log_prob_differences",
    "mean_residual_norm",
    "pad_rows",
    "plan_batches",
    "score_rows",
    "steered_mask",
]


# Batches of 16384 tokens leave a CPU's caches: 1.4 times slower on the bundled models.
CPU_BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Condition:
    """One row of a batch: which text, which direction, how strong."""

    row: int
    direction: int
    alpha: float


@dataclass(frozen=True)
class PaddedRows:
    """Token rows padded on the right: ``ids``, ``attended``, ``response`` (row, token)."""

    ids: torch.Tensor
    attended: torch.Tensor
    response: torch.Tensor
    steered: torch.Tensor


class ScoreEngine(Protocol):
    """What runs the model in place of this process, such as :class:`VllmSteering`."""

    def score_rows(
        self,
        rows: Sequence[TokenRow],
        conditions: Sequence[Condition],
        *,
        directions: np.ndarray,
        layer: int | Sequence[int],
        positions: str,
    ) -> np.ndarray:
        """Return what :func:`score_rows` does."""
        ...

    def angle_degrees(
        self,
        rows: Sequence[TokenRow],
        *,
        directions: np.ndarray,
        alphas: Sequence[float] | np.ndarray,
        layer: int,
        positions: str,
    ) -> np.ndarray:
        """Return what :func:`angle_degrees` does."""
        ...


def steered_mask(row: TokenRow, positions: str, *, bos: int | None) -> np.ndarray:
    """Return which tokens of ``row`` are steered, (token,) bool.

    ``prompt-all``: every token before the response; ``prompt-last``: the one right before it;
    ``response``: the response's tokens; ``all``: every token. The BOS never is: it is an
    attention sink, whose change says nothing about the text.
    """
    index = np.arange(row.n_tokens)
    masks = {
        "prompt-all": index < row.n_prompt,
        "prompt-last": index == row.n_prompt - 1,
        "response": row.response,
        "all": np.ones(row.n_tokens, dtype=bool),
    }
    if positions not in masks:
        msg = f"positions {positions!r} are unknown; expected one of {', '.join(masks)}"
        raise InvalidInputError(msg)
    is_bos = (index == 0) & (row.ids == (-1 if bos is None else bos))
    return np.asarray(masks[positions] & ~is_bos)


def pad_rows(
    rows: Sequence[TokenRow], *, pad_id: int, positions: str, bos: int | None
) -> PaddedRows:
    """Return rows as tensors (row, token) with their response and steered positions."""
    shape = (len(rows), max(row.n_tokens for row in rows))
    ids = torch.full(shape, pad_id, dtype=torch.long)
    attended = torch.zeros(shape, dtype=torch.long)
    response = torch.zeros(shape, dtype=torch.bool)
    steered = torch.zeros(shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        n = row.n_tokens
        ids[i, :n] = torch.from_numpy(row.ids)
        attended[i, :n] = 1
        response[i, :n] = torch.from_numpy(row.response)
        steered[i, :n] = torch.from_numpy(steered_mask(row, positions, bos=bos))
    return PaddedRows(ids, attended, response, steered)


def plan_batches(
    lengths: Sequence[int], order: Sequence[int], *, batch_tokens: int
) -> list[list[int]]:
    """Return which items share a batch: ``order`` cut where rows x longest row pass the bound.

    ``lengths`` (item,) are in tokens; ``order`` has rising lengths.
    """
    batches: list[list[int]] = []
    for i in order:
        if batches and (len(batches[-1]) + 1) * lengths[i] <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def condition_batches(
    loaded: LoadedModel,
    rows: Sequence[TokenRow],
    conditions: Sequence[Condition],
    *,
    batch_tokens: int,
) -> list[list[int]]:
    """Return which conditions share a batch; on a CPU of 2048 tokens at most."""
    if loaded.device.type == "cpu":
        batch_tokens = min(batch_tokens, CPU_BATCH_TOKENS)
    lengths = [rows[condition.row].n_tokens for condition in conditions]
    order = sorted(range(len(conditions)), key=lambda i: (lengths[i], conditions[i].row))
    return plan_batches(lengths, order, batch_tokens=batch_tokens)


def additions(
    conditions: Sequence[Condition],
    *,
    directions: np.ndarray,
    layer: int | Sequence[int],
    steered: torch.Tensor,
) -> list[Intervention]:
    """Return the interventions of one batch: one per layer, each row with its own strength.

    Parameters
    ----------
    conditions
        Of the rows of the batch, in their order.
    directions
        (direction, hidden) for one layer, (direction, layer, hidden) for several.
    steered
        (row, token) bool.

    Raises
    ------
    InvalidInputError
        If there are not as many vectors per direction as layers.
    """
    layers = [layer] if isinstance(layer, int) else list(layer)
    whole = directions[:, None] if directions.ndim == 2 else directions
    if whole.shape[1] != len(layers):
        msg = f"got {whole.shape[1]} vectors per direction for the {len(layers)} layers {layers}"
        raise InvalidInputError(msg)
    strengths = torch.tensor([c.alpha for c in conditions], dtype=torch.float32)
    chosen = np.ascontiguousarray(whole[[c.direction for c in conditions]], dtype=np.float32)
    return [
        Intervention(
            "add",
            (at,),
            strengths,
            Positions(steered),
            vectors=torch.from_numpy(np.ascontiguousarray(chosen[:, k])),
        )
        for k, at in enumerate(layers)
    ]


@torch.inference_mode()
def score_rows(
    loaded: LoadedModel,
    rows: Sequence[TokenRow],
    conditions: Sequence[Condition],
    *,
    directions: np.ndarray,
    layer: int | Sequence[int],
    positions: str,
    batch_tokens: int,
    engine: ScoreEngine | None = None,
) -> np.ndarray:
    """Return the mean log-probability per response token of each condition, (condition,).

    Conditions of any direction and strength share batches; each row carries its own.

    Parameters
    ----------
    rows
        The texts, as tokens.
    directions
        What strength 1 adds: (direction, hidden), or (direction, layer, hidden) where several
        layers are steered at once.
    layer
        The block whose output is steered, or several.
    positions
        See :func:`steered_mask`.
    batch_tokens
        Upper bound of rows x longest row of a batch; on a CPU 2048 at most.
    engine
        What runs the model, in batches of its own; None is the model in this process.
    """
    if engine is not None:
        return engine.score_rows(
            rows, conditions, directions=directions, layer=layer, positions=positions
        )
    network, device = loaded.network, loaded.device
    out = np.empty(len(conditions))
    for chosen in condition_batches(loaded, rows, conditions, batch_tokens=batch_tokens):
        batch = pad_rows(
            [rows[conditions[i].row] for i in chosen],
            pad_id=loaded.tokenizer.pad_token_id or 0,
            positions=positions,
            bos=loaded.tokenizer.bos_token_id,
        )
        writes = additions(
            [conditions[i] for i in chosen],
            directions=directions,
            layer=layer,
            steered=batch.steered,
        )
        with intervene(network, writes):
            out[chosen] = _mean_log_probs(network, batch, device)
    return out


def log_prob_differences(
    loaded: LoadedModel,
    rows: Sequence[TokenRow],
    *,
    directions: np.ndarray,
    alphas: Sequence[float],
    layer: int | Sequence[int],
    positions: str,
    batch_tokens: int,
    engine: ScoreEngine | None = None,
) -> np.ndarray:
    """Return positive minus negative completion, (direction, alpha, pair), in nats per token.

    ``rows`` are the completions of the pairs, positive and negative by turns; ``alphas`` are raw
    strengths. The rest is as in :func:`score_rows`.
    """
    conditions = [
        Condition(row, d, alpha)
        for d in range(len(directions))
        for alpha in alphas
        for row in range(len(rows))
    ]
    scores = score_rows(
        loaded,
        rows,
        conditions,
        directions=directions,
        layer=layer,
        positions=positions,
        batch_tokens=batch_tokens,
        engine=engine,
    ).reshape(len(directions), len(alphas), len(rows) // 2, 2)
    return np.asarray(scores[..., 0] - scores[..., 1])


def _mean_log_probs(
    network: torch.nn.Module, batch: PaddedRows, device: torch.device
) -> np.ndarray:
    """Return the mean log-probability of each row's response tokens, (row,)."""
    first = int(batch.response.any(dim=0).nonzero()[0])
    length = batch.ids.shape[1]
    # Logits only from where the first response begins: the vocabulary is the widest axis.
    keep = torch.arange(first - 1, length - 1, device=device)
    logits = network(
        input_ids=batch.ids.to(device),
        attention_mask=batch.attended.to(device),
        position_ids=torch.arange(length, device=device).expand(len(batch.ids), -1),
        use_cache=False,
        logits_to_keep=keep,
    ).logits
    targets = batch.ids[:, first:].to(device)
    mask = batch.response[:, first:].to(device)
    picked = torch.log_softmax(logits.float(), dim=-1).gather(-1, targets[..., None])[..., 0]
    kept = torch.where(mask, picked, 0.0)
    return (kept.sum(dim=1) / mask.sum(dim=1)).cpu().numpy()


@torch.inference_mode()
def angle_degrees(
    loaded: LoadedModel,
    rows: Sequence[TokenRow],
    *,
    directions: np.ndarray,
    alphas: Sequence[float] | np.ndarray,
    layer: int,
    positions: str,
    engine: ScoreEngine | None = None,
) -> np.ndarray:
    """Return the mean angle between the residual before and after steering, in degrees.

    Taken over the steered positions of unsteered forward passes; (direction, alpha). ``engine``
    is as for :func:`score_rows`.
    """
    if engine is not None:
        return engine.angle_degrees(
            rows, directions=directions, alphas=alphas, layer=layer, positions=positions
        )
    vectors = torch.from_numpy(np.ascontiguousarray(directions, dtype=np.float32))
    strengths = np.atleast_2d(np.asarray(alphas, dtype=np.float64))
    block = find_blocks(loaded.backbone)[layer]
    total = torch.zeros(len(vectors), strengths.shape[1], dtype=torch.float64)
    count = 0
    seen: list[torch.Tensor] = []
    handle = block.register_forward_hook(lambda _m, _a, out: seen.append(unwrap_hidden(out)))
    try:
        for row in rows:
            batch = pad_rows(
                [row], pad_id=0, positions=positions, bos=loaded.tokenizer.bos_token_id
            )
            loaded.backbone(input_ids=batch.ids.to(loaded.device), use_cache=False)
            hidden = seen.pop().float().cpu()[batch.steered]
            total += angles_of(hidden.norm(dim=-1), hidden @ vectors.T, strengths).sum(dim=0)
            count += len(hidden)
    finally:
        handle.remove()
    return (total / count).numpy()


def angles_of(norm: torch.Tensor, projected: torch.Tensor, alphas: np.ndarray) -> torch.Tensor:
    """Return the angle by which steering turns each residual, in degrees (token, direction, alpha).

    With norm n (token,) and projection p (token, direction) of a residual,
    cos = (n² + αp) / (n √(n² + 2αp + α²)). ``alphas`` are (alpha,) or (direction, alpha).
    """
    strengths = torch.from_numpy(np.atleast_2d(np.asarray(alphas, dtype=np.float64)))
    norm, projected = norm.double()[:, None, None], projected.double()[:, :, None]
    after = (norm**2 + 2 * strengths * projected + strengths**2).clamp_min(1e-30).sqrt()
    cosine = (norm**2 + strengths * projected) / (norm * after)
    return torch.rad2deg(torch.arccos(cosine.clamp(-1, 1)))


@torch.inference_mode()
def mean_residual_norm(
    loaded: LoadedModel, rows: Sequence[TokenRow], *, layer: int, positions: str | None = None
) -> float:
    """Return the mean norm of a block's unsteered output: of each row's tokens, then of the rows.

    Of ``positions`` (:func:`steered_mask`); None is every token that is not special, as a run
    stores it.
    """
    seen: list[torch.Tensor] = []
    block = find_blocks(loaded.backbone)[layer]
    handle = block.register_forward_hook(lambda _m, _a, out: seen.append(unwrap_hidden(out)[0]))
    bos, means = loaded.tokenizer.bos_token_id, []
    try:
        for row in rows:
            wanted = ~row.special if positions is None else steered_mask(row, positions, bos=bos)
            ids = torch.from_numpy(row.ids).long()[None]
            loaded.backbone(input_ids=ids.to(loaded.device), use_cache=False)
            means.append(float(seen.pop().float().cpu()[wanted].norm(dim=-1).mean()))
    finally:
        handle.remove()
    return float(np.mean(means))
