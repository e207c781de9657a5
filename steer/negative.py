"""Negative steering: whether it raises task focus, and with cruelty or without (SCIENCE §6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..schemas import DoseSpec, InvalidInputError, NegativeSpec, NegativeVerdict, ShiftRow
from .dose_samples import baseline_flags, prepare_samples
from .shifts import Estimate, mean_shift
from .tables import record_table, require_columns

__all__ = ["NegativeResult", "contrast_negative"]

_BINARY = {"hostile_share", "coherent_share"}


@dataclass(frozen=True)
class NegativeResult:
    """Rows of :class:`ShiftRow` and verdicts of :class:`NegativeVerdict`."""

    rows: pd.DataFrame
    verdicts: pd.DataFrame


def contrast_negative(table: pd.DataFrame, *, spec: NegativeSpec) -> NegativeResult:
    """Return task focus, sentiment, hostility and coherence against strength 0, with a verdict.

    Every figure is a mean of changes against the same prompt's baseline, at every strength of
    the table, on all texts and on coherent ones; the verdicts are on the negative strengths.

    Raises
    ------
    InvalidInputError
        If a column is missing or holds no numbers, or there is no baseline or no negative
        strength.
    """
    parts, flags = _changes(table, spec)
    strengths = sorted({float(a) for a in parts["task_focus"].alpha_raw if a != 0})
    if not any(a < 0 for a in strengths):
        msg = f"column {spec.alpha!r} has no negative strength; it has {strengths}"
        raise InvalidInputError(msg)
    coherent = parts["coherent_share"].outcome == 1
    rows: list[ShiftRow] = []
    verdicts: list[NegativeVerdict] = []
    for subset in ("all", "coherent"):
        for alpha in strengths:
            found: dict[str, Estimate | None] = {}
            for metric, samples in parts.items():
                kept = samples if subset == "all" else samples[coherent]
                here = kept[kept.alpha_raw == alpha]
                found[metric] = mean_shift(
                    here, "effect", n_draws=spec.n_bootstrap, seed=spec.seed, level=spec.level,
                    binary=metric in _BINARY,
                )  # fmt: skip
                base = samples[samples.alpha_raw == 0].outcome.mean()
                rows.append(_row(metric, found[metric], here, spec=spec, subset=subset,
                                 alpha=alpha, baseline=float(base), flags=flags))  # fmt: skip
            if alpha < 0:
                values = _verdict(found, spec, untestable=flags.get("untestable", False))
                n_prompts = int(parts["task_focus"].prompt.nunique())
                verdicts.append(
                    NegativeVerdict.model_validate(
                        {"alpha_raw": alpha, "subset": subset, "n_prompts": n_prompts, **values}
                    )
                )
    return NegativeResult(record_table(rows, ShiftRow), record_table(verdicts, NegativeVerdict))


def _changes(
    table: pd.DataFrame, spec: NegativeSpec
) -> tuple[dict[str, pd.DataFrame], dict[str, bool]]:
    """Return the samples with their effects by metric, and the flags of the task's baseline."""
    columns = {
        "task_focus": spec.task,
        "sentiment": spec.sentiment,
        "hostile_share": spec.hostility,
        "coherent_share": spec.coherence,
    }
    require_columns(table, [*columns.values(), spec.alpha, spec.prompt])
    parts = {}
    for metric, column in columns.items():
        numbers = pd.to_numeric(table[column], errors="coerce").astype("float64")
        lost = numbers.isna() & table[column].notna()
        if lost.any():
            msg = f"column {column!r} holds {table[column][lost].iloc[0]!r}, expected a number"
            raise InvalidInputError(msg)
        if metric == "hostile_share":
            numbers = numbers.gt(0).astype(float).where(numbers.notna())
        elif metric == "task_focus" and not spec.task_rises:
            numbers = -numbers
        elif metric == "coherent_share" and not numbers.dropna().isin((0, 1)).all():
            msg = f"column {column!r} must hold true or false (1 or 0)"
            raise InvalidInputError(msg)
        asked = DoseSpec(
            outcome=column, alpha=spec.alpha, prompt=spec.prompt, cluster=spec.cluster,
            sample=spec.sample,
        )  # fmt: skip
        parts[metric] = prepare_samples(table.assign(**{column: numbers}), asked)
    flags: dict[str, bool] = {}
    if spec.bounds is not None:
        low, high = spec.bounds if spec.task_rises else (-spec.bounds[1], -spec.bounds[0])
        asked = DoseSpec(bounds=(low, high), ceiling=spec.ceiling, floor=spec.floor)
        _, ceiling, floor = baseline_flags(parts["task_focus"], asked)
        flags = {"ceiling": ceiling, "floor": floor, "untestable": ceiling}
    return parts, flags


def _row(
    metric: str,
    found: Estimate | None,
    here: pd.DataFrame,
    *,
    spec: NegativeSpec,
    subset: str,
    alpha: float,
    baseline: float,
    flags: dict[str, bool],
) -> ShiftRow:
    fields = {"estimate": None, "reason": "no sample with a baseline"}
    n_known = int(here.effect.notna().sum())
    own = flags if metric == "task_focus" else {}
    return ShiftRow.model_validate(
        {
            "analysis": "negative", "metric": f"{metric}_shift", "subset": subset,
            "alpha_raw": alpha, "baseline_estimate": baseline if np.isfinite(baseline) else None,
            "ci_level": spec.level, "seed": spec.seed, "groups": spec.cluster or spec.prompt,
            "n_samples": n_known, "n_missing": len(here) - n_known,
            "n_prompts": here.prompt.nunique(), **own,
            **(fields if found is None else found.fields),
        }
    )  # fmt: skip


def _verdict(
    found: dict[str, Estimate | None], spec: NegativeSpec, *, untestable: bool
) -> dict[str, Any]:
    known = {k: v for k, v in found.items() if v is not None and v.low is not None}
    missing = [name for name in ("task_focus", "hostile_share") if name not in known]
    if missing:
        reason = f"no interval for {' and '.join(missing)}"
        return {"verdict": "undecided", "reason": reason}
    task, hostile = known["task_focus"], known["hostile_share"]
    sentiment, coherence = known.get("sentiment"), known.get("coherent_share")
    falls = None if sentiment is None or sentiment.high is None else sentiment.high < 0
    head = {"sentiment_falls": falls}
    if coherence is not None and _beyond(coherence.high, -spec.coherence_margin):
        reason = f"the share of coherent texts falls by {_shown(coherence)}"
        return head | {"verdict": "incoherent", "reason": reason}
    if untestable:
        reason = "the baseline is as task-focused as the outcome can tell"
        return head | {"verdict": "untestable", "reason": reason}
    focus = f"task focus rises by {_shown(task)}"
    cruelty = f"the share of hostile texts by {_shown(hostile)}"
    if task.low is None or task.low <= 0:
        return head | {"verdict": "no rise shown", "reason": f"{focus}, {cruelty}"}
    if hostile.low is not None and hostile.low > 0:
        return head | {"verdict": "raises task focus with cruelty", "reason": f"{focus}, {cruelty}"}
    if _beyond(hostile.high, spec.hostile_margin):
        return head | {
            "verdict": "raises task focus without cruelty", "reason": f"{focus}, {cruelty}"
        }  # fmt: skip
    reason = f"{focus}, {cruelty}: more than {spec.hostile_margin:g} is not excluded"
    return head | {"verdict": "undecided", "reason": reason}


def _beyond(end: float | None, margin: float) -> bool:
    return end is not None and end < margin


def _shown(found: Estimate) -> str:
    return f"{found.value:+.3g} ({found.low:+.3g} to {found.high:+.3g})"
