"""Scores of generated texts that need the model: how likely, how far moved, how they choose."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd

from ..extract import LoadedModel, TokenRow, render_texts
from ..schemas import CaptureSpec, InvalidInputError, ModelScore, Text, digest_json
from .choices import ChoiceItem
from .costs import PatchCost, weigh_rows
from .kept import KeptRows
from .model_scores import first_token_kl, perplexities
from .scoring import (
    Condition,
    angle_degrees,
    mean_residual_norm,
    score_rows,
)
from .steered_choices import model_choices

__all__ = ["Asked", "score_generated", "weigh_scores"]

_CHOICE = "choice_digest"  # what is chosen between is no part of a generated table
_KEY = ["prompt_digest", "direction_digest", "alpha", "seed", _CHOICE]
_PART = 256  # samples that are committed together


@dataclass(frozen=True)
class Asked:
    """A prompt as it was run: its ids, and the two answers of a forced choice where there are."""

    ids: np.ndarray
    choice: ChoiceItem | None = None


def score_generated(
    loaded: LoadedModel,
    table: pd.DataFrame,
    asked: Mapping[str, Asked],
    directions: Mapping[str, np.ndarray],
    *,
    scores: Sequence[ModelScore] = get_args(ModelScore),
    mean_norm: float | None = None,
    separation: float | None = None,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    batch_tokens: int = 16384,
) -> pd.DataFrame:
    """Return generated texts with what the model says of them, one row each.

    Columns ``perplexity`` (of the text under the unsteered model, given its prompt),
    ``first_token_kl`` (of the condition's steering, in nats), ``choice_log_odds`` and
    ``choice_order_bias`` (the letters of a forced choice), ``logprob_difference`` (of the two
    answers under teacher forcing, per token), all three under the condition's steering, in nats,
    and missing where a prompt has no two answers; and the strength in four units: ``alpha_raw``,
    ``alpha_separation``, ``alpha_norm``, ``alpha_angle`` (mean over the prompts of the table).

    Parameters
    ----------
    table
        Of :func:`~actlake.steer.generate_table`, of one layer and one kind of positions.
    asked, directions
        What the names in columns ``prompt`` and ``direction`` stand for.
    scores
        Which of them; all by default.
    mean_norm, separation
        Mean residual norm at the layer, and distance of the class means; without, the norm is
        measured on the prompts and the strength per separation is missing.
    folder
        Where scores are committed part by part: the same call goes on.
    progress
        Called with the samples done and in all.

    Raises
    ------
    InvalidInputError
        If the table lacks a column, is of several layers or positions, or names a prompt or a
        direction that is not given; if the folder holds scores of something else.
    """
    place = _check(table, asked, directions)
    plan = _Scoring(loaded, asked, directions, tuple(scores), place, batch_tokens)
    wanted = _with_choices(table, asked)
    kept = None if folder is None else plan.kept(folder)
    # Samples of one condition share its KL and its choice: they stay together.
    missing = wanted if kept is None else kept.missing(wanted)
    todo = missing.sort_values(["prompt", "direction", "alpha"])
    parts = []
    for start in range(0, len(todo), _PART):
        part = plan.score(todo.iloc[start : start + _PART])[[*_KEY, *plan.columns]]
        parts.append(part)
        if kept is not None:
            kept.commit(part)
        if progress is not None:
            progress(len(table) - len(todo) + start + len(part), len(table))
    scored = pd.concat(parts, ignore_index=True) if kept is None else kept.read()
    out = wanted.merge(scored.drop_duplicates(_KEY), on=_KEY, how="left", validate="many_to_one")
    return out.drop(columns=_CHOICE).merge(
        plan.units(table, mean_norm=mean_norm, separation=separation),
        on=["direction", "alpha"],
        how="left",
    )


def weigh_scores(
    loaded: LoadedModel,
    table: pd.DataFrame,
    asked: Mapping[str, Asked],
    *,
    scores: Sequence[ModelScore] = get_args(ModelScore),
    folder: Path | None = None,
    batch_tokens: int = 16384,
) -> PatchCost:
    """Return about what :func:`score_generated` would run for a table: passes, rows, tokens.

    No weights are needed. What ``folder`` holds is left out; a choice and an answer are counted
    at twice the length of the prompt.
    """
    if folder is not None:
        plan = _Scoring(loaded, asked, {}, tuple(scores), _check(table, asked, None), batch_tokens)
        table = plan.kept(folder, read_only=True).missing(_with_choices(table, asked))
    first = table.drop_duplicates(["prompt", "direction", "alpha"])
    lengths: list[int] = []
    if "perplexity" in scores:
        lengths += (table["n_prompt"] + table["n_new"]).tolist()
    if "first_token_kl" in scores:  # with and without steering
        lengths += 2 * first["n_prompt"].tolist()
    has_answers = [asked[name].choice is not None for name in first["prompt"]]
    able = (2 * first["n_prompt"][np.array(has_answers, dtype=bool)]).tolist()
    # Each order of a choice, and each of the two answers, is a row.
    lengths += able * (2 * ("forced_choice" in scores) + 2 * ("logprob_difference" in scores))
    # Their tokens are not known yet; a pass takes as long whatever they are.
    rows = [_row(np.zeros(n, dtype=np.int32), n - 1) for n in lengths]
    conditions = [Condition(row, 0, 0.0) for row in range(len(rows))]
    return weigh_rows(loaded, rows, conditions, batch_tokens=batch_tokens)


def _with_choices(table: pd.DataFrame, asked: Mapping[str, Asked]) -> pd.DataFrame:
    """Return the table with the digest of what each sample's prompt is a choice between."""
    digests = {name: digest_json(repr(one.choice))[7:23] for name, one in asked.items()}
    return table.assign(**{_CHOICE: [digests[name] for name in table["prompt"]]})


def _check(
    table: pd.DataFrame, asked: Mapping[str, Asked], directions: Mapping[str, np.ndarray] | None
) -> tuple[int, str]:
    """Return the layer and positions that all samples share."""
    for name, known in (("prompt", asked), ("direction", directions)):
        if known is None:
            continue
        lacking = sorted(set(table[name].astype(str)) - set(known))
        if lacking:
            msg = f"the table has {name}s that are not given, such as {lacking[0]!r}"
            raise InvalidInputError(msg)
    places = table[["layer", "positions"]].drop_duplicates()
    if len(places) != 1:
        msg = f"expected samples of one layer and positions, got {places.to_dict('records')}"
        raise InvalidInputError(msg)
    return int(places["layer"].iloc[0]), str(places["positions"].iloc[0])


def _row(ids: np.ndarray, n_prompt: int) -> TokenRow:
    response = np.arange(len(ids)) >= n_prompt
    return TokenRow(Text(id="t", response="-"), ids, np.zeros(len(ids), bool), response, len(ids))


@dataclass(frozen=True)
class _Scoring:
    """The model, the prompts and the directions of a table's conditions."""

    loaded: LoadedModel
    asked: Mapping[str, Asked]
    directions: Mapping[str, np.ndarray]
    scores: tuple[ModelScore, ...]
    place: tuple[int, str]
    batch_tokens: int

    @property
    def columns(self) -> list[str]:
        made = {
            "perplexity": ["perplexity"],
            "first_token_kl": ["first_token_kl"],
            "forced_choice": ["choice_log_odds", "choice_order_bias"],
            "logprob_difference": ["logprob_difference"],
        }
        return [column for score in self.scores for column in made[score]]

    def kept(self, folder: Path, *, read_only: bool = False) -> KeptRows:
        """Return the scores that a folder keeps."""
        made_with = {
            "model": self.loaded.info.model_dump(mode="json"),
            "layer": self.place[0],
            "positions": self.place[1],
            "scores": list(self.scores),
        }
        return KeptRows(folder, key=_KEY, made_with=made_with, noun="scores", read_only=read_only)

    @property
    def _steering(self) -> dict[str, Any]:
        vectors = np.stack([np.asarray(v, dtype=np.float32) for v in self.directions.values()])
        return {
            "directions": vectors, "layer": self.place[0], "positions": self.place[1],
            "batch_tokens": self.batch_tokens,
        }  # fmt: skip

    def score(self, samples: pd.DataFrame) -> pd.DataFrame:
        """Return samples with the columns of the scores."""
        found: dict[str, Any] = {}
        if "perplexity" in self.scores:
            found["perplexity"] = self._perplexity(samples)
        names = list(self.asked)
        order = list(self.directions)
        cells = samples[["prompt", "direction", "alpha"]].drop_duplicates()
        conditions = [
            Condition(names.index(prompt), order.index(direction), float(alpha))
            for prompt, direction, alpha in cells.itertuples(index=False, name=None)
        ]
        per_cell = cells.copy()
        if "first_token_kl" in self.scores:
            per_cell["first_token_kl"] = self._kl(conditions)
        if "forced_choice" in self.scores:
            chosen = self._choices(conditions)
            per_cell["choice_log_odds"] = chosen[:, 0]
            per_cell["choice_order_bias"] = chosen[:, 1]
        if "logprob_difference" in self.scores:
            per_cell["logprob_difference"] = self._differences(conditions)
        merged = samples.merge(per_cell, on=["prompt", "direction", "alpha"], how="left")
        return merged.assign(**found)

    def _perplexity(self, samples: pd.DataFrame) -> np.ndarray:
        out = np.full(len(samples), math.nan)
        rows, where = [], []
        for i, (prompt, ids) in enumerate(zip(samples["prompt"], samples["ids"], strict=True)):
            if len(ids):  # an empty text has no perplexity
                whole = np.concatenate([self.asked[prompt].ids, np.asarray(ids)]).astype(np.int32)
                rows.append(_row(whole, len(self.asked[prompt].ids)))
                where.append(i)
        if rows:
            out[where] = perplexities(self.loaded, rows, batch_tokens=self.batch_tokens)
        return out

    def _kl(self, conditions: Sequence[Condition]) -> np.ndarray:
        end = np.zeros(1, dtype=np.int32)  # stands for the first token, and is not read
        rows = [
            _row(np.concatenate([one.ids, end]).astype(np.int32), len(one.ids))
            for one in self.asked.values()
        ]
        return first_token_kl(self.loaded, rows, conditions, **self._steering)

    def _able(
        self, conditions: Sequence[Condition]
    ) -> tuple[list[int], list[ChoiceItem], list[Condition]]:
        """Return which conditions have two answers, the prompts that do, the conditions of them."""
        all_items = [one.choice for one in self.asked.values()]
        able = [i for i, c in enumerate(conditions) if all_items[c.row] is not None]
        at = np.cumsum([item is not None for item in all_items]) - 1
        wanted = [replace(conditions[i], row=int(at[conditions[i].row])) for i in able]
        return able, [item for item in all_items if item is not None], wanted

    def _choices(self, conditions: Sequence[Condition]) -> np.ndarray:
        out = np.full((len(conditions), 2), math.nan)
        able, items, wanted = self._able(conditions)
        if able:
            found = model_choices(self.loaded, items, wanted, **self._steering)
            out[able] = [[one.log_odds, one.order_bias] for one in found]
        return out

    def _differences(self, conditions: Sequence[Condition]) -> np.ndarray:
        out = np.full(len(conditions), math.nan)
        able, items, wanted = self._able(conditions)
        if able:
            texts = [
                Text(id=f"{i}-{arm}", system=item.system, prompt=item.prompt, response=answer)
                for i, item in enumerate(items)
                for arm, answer in enumerate((item.positive, item.negative))
            ]
            limit = self.loaded.max_positions
            rows = render_texts(
                texts, self.loaded.tokenizer, spec=CaptureSpec(), max_positions=limit
            )
            both = [replace(c, row=2 * c.row + arm) for c in wanted for arm in (0, 1)]
            scores = score_rows(self.loaded, rows, both, **self._steering).reshape(-1, 2)
            out[able] = scores[:, 0] - scores[:, 1]
        return out

    def units(
        self, table: pd.DataFrame, *, mean_norm: float | None, separation: float | None
    ) -> pd.DataFrame:
        """Return the strength of every direction and alpha in four units."""
        names = list(dict.fromkeys(table["direction"]))
        alphas = sorted(set(table["alpha"].astype(float)))
        ids = [self.asked[name].ids for name in dict.fromkeys(table["prompt"])]
        prompts = [_row(np.append(one, 0).astype(np.int32), len(one)) for one in ids]
        vectors = np.stack([self.directions[name] for name in names])
        # What is to come is not there yet: a response is taken to be moved as its prompt would be.
        positions = "prompt-all" if self.place[1] in {"response", "all"} else self.place[1]
        options: dict[str, Any] = {"layer": self.place[0], "positions": positions}
        angles = angle_degrees(self.loaded, prompts, directions=vectors, alphas=alphas, **options)
        norm = mean_norm or mean_residual_norm(self.loaded, prompts, **options)
        return pd.DataFrame(
            [
                {
                    "direction": name, "alpha": alpha, "alpha_raw": alpha,
                    "alpha_separation": alpha / separation if separation else math.nan,
                    "alpha_norm": alpha / norm, "alpha_angle": float(angles[d, a]),
                }
                for d, name in enumerate(names)
                for a, alpha in enumerate(alphas)
            ]
        )  # fmt: skip
