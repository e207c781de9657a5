"""Generating texts: prompts x directions x strengths x seeds share forward passes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from transformers import AutoConfig, GenerationConfig

from ..extract import LoadedModel
from ..schemas import InvalidInputError, SteeredTextsSpec
from .intervention import Intervention, intervene
from .positions import Positions, plan_positions

__all__ = [
    "GenerateRow",
    "Generated",
    "RowEngine",
    "check_rows",
    "end_ids",
    "generate_rows",
    "noise_key",
    "plan_rows",
    "steer_rows",
]


@dataclass(frozen=True)
class GenerateRow:
    """One text to generate: the prompt's ids, a unit vector (hidden,), its strength, a seed.

    Without a vector the row is left alone.
    """

    ids: np.ndarray
    vector: np.ndarray | None = None
    alpha: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Generated:
    """What a row became: ids without the end mark, and whether it came to that mark itself."""

    ids: np.ndarray
    ended: bool


class RowEngine(Protocol):
    """What generates in place of the model in this process: :func:`generate_rows` of its own."""

    def generate_rows(
        self,
        rows: Sequence[GenerateRow],
        *,
        spec: SteeredTextsSpec,
        report: Callable[[list[int], list[Generated]], None] | None = None,
    ) -> list[Generated]:
        """Return the continuation of every row, in the order given."""
        ...


@torch.inference_mode()
def generate_rows(
    loaded: LoadedModel,
    rows: Sequence[GenerateRow],
    *,
    spec: SteeredTextsSpec,
    use_cache: bool = True,
    report: Callable[[list[int], list[Generated]], None] | None = None,
) -> list[Generated]:
    """Return the continuation of every row, in the order given.

    Rows of like length share batches whatever their direction, strength and seed. Greedy at
    temperature 0; else the noise of a token (Gumbel) comes from a generator of the row's own,
    seeded by its seed and its prompt: a text does not depend on its batch, and the same prompt
    and seed meet the same noise under every direction and strength.

    Parameters
    ----------
    spec
        Layer, positions, temperature, length and rows of a batch; its alphas and seeds are not
        read, since the rows have theirs.
    use_cache
        Whether keys and values are kept from token to token; the texts are the same.
    report
        Called with the indices and results of each batch as it is done.

    Raises
    ------
    InvalidInputError
        If a prompt is empty or leaves no room in the context, or a vector or layer does not fit.
    """
    check_rows(loaded, rows, spec)
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].ids), i))
    out: list[Generated | None] = [None] * len(rows)
    for start in range(0, len(order), spec.batch_rows):
        chosen = order[start : start + spec.batch_rows]
        made = _Batch(loaded, [rows[i] for i in chosen], spec, use_cache=use_cache).run()
        for i, found in zip(chosen, made, strict=True):
            out[i] = found
        if report is not None:
            report(chosen, made)
    return [found for found in out if found is not None]


def check_rows(loaded: LoadedModel, rows: Sequence[GenerateRow], spec: SteeredTextsSpec) -> None:
    """Raise InvalidInputError where a row is empty, too long, or steered by another width."""
    limit = loaded.max_positions
    for i, row in enumerate(rows):
        if not len(row.ids):
            msg = f"row {i} has an empty prompt; expected at least one token"
            raise InvalidInputError(msg)
        if limit is not None and len(row.ids) + spec.max_new_tokens > limit:
            msg = (
                f"row {i}: {len(row.ids)} tokens of prompt and {spec.max_new_tokens} new ones are "
                f"more than the context of {limit}; shorten the prompt or max_new_tokens"
            )
            raise InvalidInputError(msg)
        if row.vector is not None and np.shape(row.vector) != (loaded.info.hidden_size,):
            msg = (
                f"row {i}: the direction is {np.shape(row.vector)}, "
                f"{loaded.info.name} is {loaded.info.hidden_size} wide"
            )
            raise InvalidInputError(msg)


def end_ids(loaded: LoadedModel) -> set[int]:
    """Return the ids that end a text: the generation config's, and the tokenizer's."""
    config = getattr(loaded.model, "generation_config", None) or _generation_config(loaded)
    named = getattr(config, "eos_token_id", None)
    ids = named if isinstance(named, list | tuple) else [named]
    return {int(i) for i in (*ids, loaded.tokenizer.eos_token_id) if i is not None}


def _generation_config(loaded: LoadedModel) -> GenerationConfig:
    """Return how a model generates by its files: its own config says it where no other does."""
    source, kwargs = loaded.source, {}
    if source.path is None and source.revision is not None:
        kwargs["revision"] = source.revision
    try:
        return GenerationConfig.from_pretrained(source.location, **kwargs)
    except OSError:
        config = AutoConfig.from_pretrained(source.location, **kwargs)
        return GenerationConfig.from_model_config(config)


def plan_rows(
    loaded: LoadedModel, rows: Sequence[GenerateRow], *, phase: str
) -> tuple[torch.Tensor, torch.Tensor, Positions]:
    """Return ids and attention mask (row, column), padded on the left, and a phase's positions."""
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), loaded.tokenizer.pad_token_id or 0)
    attended = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, width - len(row.ids) :] = torch.from_numpy(np.asarray(row.ids))
        attended[i, width - len(row.ids) :] = 1
    bos = loaded.tokenizer.bos_token_id
    return ids, attended, plan_positions(ids, attended, phase=phase, bos=bos)


def steer_rows(
    rows: Sequence[GenerateRow],
    positions: Positions,
    *,
    layer: int,
    hidden_size: int,
    device: torch.device | None = None,
) -> list[Intervention]:
    """Return what steers the rows, its vectors on ``device``: nothing where none has a vector."""
    if all(row.vector is None for row in rows):
        return []
    nothing = np.zeros(hidden_size)
    vectors = np.stack([nothing if row.vector is None else row.vector for row in rows])
    strengths = [0.0 if row.vector is None else row.alpha for row in rows]
    return [
        Intervention(
            "add",
            (layer,),
            torch.tensor(strengths, dtype=torch.float32),
            positions,
            vectors=torch.from_numpy(vectors.astype(np.float32)).to(device),
        )
    ]


class _Batch:
    """Left-padded rows that are generated together, token by token.

    Rows that are done leave the batch once they are half of it.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        rows: Sequence[GenerateRow],
        spec: SteeredTextsSpec,
        *,
        use_cache: bool,
    ) -> None:
        self.loaded, self.rows, self.spec, self.use_cache = loaded, rows, spec, use_cache
        ids, attended, self.positions = plan_rows(loaded, rows, phase=spec.positions)
        self.ids, self.attended = ids.to(loaded.device), attended.to(loaded.device)
        self.noise = (
            [np.random.default_rng(noise_key(row)) for row in rows] if spec.temperature else []
        )
        self.end = torch.tensor(sorted(end_ids(loaded)), device=loaded.device)

    def run(self) -> list[Generated]:
        """Return what every row became."""
        self.new: list[list[int]] = [[] for _ in self.rows]
        self.ended = [False] * len(self.rows)
        self.active = list(range(len(self.rows)))  # rows that are still in the tensors
        self.fresh = self.ids
        self.cache: Any = None
        self.n_new = 0
        while self.n_new < self.spec.max_new_tokens and self._drop_ended():
            with ExitStack() as hooks:
                writes = self._writes()
                if writes:
                    hooks.enter_context(intervene(self.loaded.network, writes))
                while self.n_new < self.spec.max_new_tokens and not self._half_ended():
                    self._step()
        return [
            Generated(np.array(tokens, dtype=np.int32), is_done)
            for tokens, is_done in zip(self.new, self.ended, strict=True)
        ]

    def _half_ended(self) -> bool:
        return sum(self.ended[i] for i in self.active) * 2 >= len(self.active)

    def _drop_ended(self) -> bool:
        """Leave only rows that are not done in the tensors; returns whether there is one."""
        keep = [k for k, i in enumerate(self.active) if not self.ended[i]]
        if keep and len(keep) < len(self.active):
            chosen = torch.tensor(keep, device=self.ids.device)
            self.ids, self.attended = self.ids[chosen], self.attended[chosen]
            self.fresh = self.fresh[chosen]
            if self.cache is not None:
                self.cache.batch_select_indices(chosen)
        self.active = [self.active[k] for k in keep]
        return bool(keep)

    def _writes(self) -> list[Intervention]:
        positions = replace(
            self.positions, planned=self.positions.planned[torch.tensor(self.active)]
        )
        return steer_rows(
            [self.rows[i] for i in self.active],
            positions,
            layer=self.spec.layer,
            hidden_size=self.loaded.info.hidden_size,
            device=self.loaded.device,
        )

    def _step(self) -> None:
        """Run the model once and put one token behind every row."""
        places = (self.attended.cumsum(dim=1) - 1).clamp_min(0)
        seen = self.fresh if self.use_cache else self.ids
        out = self.loaded.network(
            input_ids=seen,
            attention_mask=self.attended,
            position_ids=places[:, -seen.shape[1] :],
            past_key_values=self.cache,
            use_cache=self.use_cache,
            logits_to_keep=1,
        )
        self.cache = out.past_key_values if self.use_cache else None
        scores = out.logits[:, -1].float()
        if self.noise:
            noise = np.stack([self.noise[i].standard_exponential(
                scores.shape[1], dtype=np.float32) for i in self.active])  # fmt: skip
            # argmax(logit / T + Gumbel noise) is a draw from softmax(logit / T).
            gumbel = -torch.from_numpy(noise).to(scores.device).log()
            scores = scores / self.spec.temperature + gumbel
        self.fresh = scores.argmax(dim=-1, keepdim=True)
        is_end = torch.isin(self.fresh[:, 0], self.end).tolist()
        for i, token, ends in zip(self.active, self.fresh[:, 0].tolist(), is_end, strict=True):
            if self.ended[i]:
                continue
            self.ended[i] = ends
            if not ends:
                self.new[i].append(token)
        self.ids = torch.cat([self.ids, self.fresh], dim=1)
        self.attended = torch.cat([self.attended, torch.ones_like(self.fresh)], dim=1)
        self.n_new += 1


def noise_key(row: GenerateRow) -> list[int]:
    """Return the seed of a row's noise: of its seed and prompt, whatever steers it."""
    digest = hashlib.sha256(np.asarray(row.ids, dtype="<i4").tobytes()).digest()
    return [row.seed, int.from_bytes(digest[:8], "little")]
