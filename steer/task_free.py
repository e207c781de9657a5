"""Steering in task-free scenarios against those with a task conflict (SCIENCE §6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..schemas import DoseSpec, InvalidInputError, ScenarioSpec, ScenarioVerdict, ShiftRow
from .clusters import Floats, percentiles
from .dose_samples import baseline_flags, prepare_samples
from .shifts import mean_shift, prompt_slopes, weighted_draws
from .tables import record_table, require_columns

__all__ = ["ScenarioResult", "contrast_scenarios"]

_KINDS = ("free", "conflict")


@dataclass(frozen=True)
class ScenarioResult:
    """Rows of :class:`ShiftRow` and verdicts of :class:`ScenarioVerdict`."""

    rows: pd.DataFrame
    verdicts: pd.DataFrame


def contrast_scenarios(table: pd.DataFrame, *, spec: ScenarioSpec) -> ScenarioResult:
    """Return the effect of steering by type of scenario, and type x strength interactions.

    Per type and strength the mean change against the same prompts' baseline. Per direction
    (strengths at or above 0, at or below 0) the mean slope of the prompts of each type, positive
    where the outcome follows the strength on either side of 0, and the difference task-free minus
    conflict: the interaction. Intervals resample clusters within types. A type whose baseline
    lies at the ceiling (positive strengths) or floor (negative ones) is flagged and not judged.

    Raises
    ------
    InvalidInputError
        If a column is missing, one of the two types has no rows, or there is no baseline.
    """
    require_columns(table, [spec.kind])
    kinds = table[spec.kind].astype(str)
    kept = table[~kinds.isin(spec.left_out)]
    free = kept[spec.kind].astype(str).isin(spec.free)
    if free.all() or not free.any():
        known = sorted(set(kinds))
        msg = (
            f"column {spec.kind!r} needs task-free rows ({', '.join(spec.free)}) and others; it "
            f"has {known}"
        )
        raise InvalidInputError(msg)
    asked = DoseSpec(
        outcome=spec.outcome, alpha=spec.alpha, prompt=spec.prompt, cluster=spec.cluster,
        bounds=spec.bounds, ceiling=spec.ceiling, floor=spec.floor, by=("_kind",),
    )  # fmt: skip
    named = kept.assign(_kind=np.where(free, "free", "conflict"))
    samples = prepare_samples(named, asked)
    parts = {kind: samples[samples.group == kind] for kind in _KINDS}
    empty = [kind for kind, part in parts.items() if not (part.alpha_raw == 0).any()]
    if empty:
        msg = f"the {empty[0]} scenarios have no sample at strength 0: an effect needs its baseline"
        raise InvalidInputError(msg)
    rows: list[ShiftRow] = []
    flags = {kind: baseline_flags(part, asked) for kind, part in parts.items()}
    for kind, part in parts.items():
        rows += _effects(kind, part, spec, flags[kind])
    verdicts: list[ScenarioVerdict] = []
    for sign, direction in ((1, "positive"), (-1, "negative")):
        if not (np.sign(samples.alpha_raw) == sign).any():
            continue
        slopes = {
            kind: prompt_slopes(part[part.alpha_raw * sign >= 0]) for kind, part in parts.items()
        }
        if any(part.empty for part in slopes.values()):
            continue
        fields = _slope_fields(slopes, spec)
        for kind, row in fields.items():
            own = {} if kind == "interaction" else _flag_fields(flags[kind], sign)
            metric = "interaction" if kind == "interaction" else "slope"
            rows.append(
                ShiftRow.model_validate(
                    {
                        **_head(spec), "metric": f"{metric}_{direction}", "kind": kind,
                        "method": "least squares per prompt", **own, **row,
                    }
                )
            )  # fmt: skip
        verdicts.append(
            ScenarioVerdict.model_validate(
                {
                    "direction": direction,
                    "n_prompts_free": len(slopes["free"]),
                    "n_prompts_conflict": len(slopes["conflict"]),
                    **_verdict(fields, flags, sign=sign),
                }
            )
        )
    return ScenarioResult(record_table(rows, ShiftRow), record_table(verdicts, ScenarioVerdict))


def _head(spec: ScenarioSpec) -> dict[str, Any]:
    return {
        "analysis": "task_free", "ci_level": spec.level, "seed": spec.seed,
        "groups": spec.cluster or spec.prompt,
    }  # fmt: skip


def _flag_fields(flags: tuple[float | None, bool, bool], sign: float) -> dict[str, bool | None]:
    place, ceiling, floor = flags
    if place is None:
        return {}
    beyond = None if sign == 0 else ceiling if sign > 0 else floor
    return {"ceiling": ceiling, "floor": floor, "untestable": beyond}


def _effects(
    kind: str,
    part: pd.DataFrame,
    spec: ScenarioSpec,
    flags: tuple[float | None, bool, bool],
) -> list[ShiftRow]:
    rows = []
    base = float(part[part.alpha_raw == 0].outcome.mean())
    for alpha in sorted({float(a) for a in part.alpha_raw}):
        here = part[part.alpha_raw == alpha]
        found = mean_shift(
            here, "effect", n_draws=spec.n_bootstrap, seed=spec.seed, level=spec.level
        )
        missing = {"estimate": None, "reason": "no sample with a baseline"}
        n_known = int(here.effect.notna().sum())
        rows.append(
            ShiftRow.model_validate(
                {
                    **_head(spec), "metric": "effect_mean", "kind": kind, "alpha_raw": alpha,
                    "baseline_estimate": base if np.isfinite(base) else None,
                    "n_samples": n_known, "n_missing": len(here) - n_known,
                    "n_prompts": here.prompt.nunique(), **_flag_fields(flags, alpha),
                    **(missing if found is None else found.fields),
                }
            )
        )  # fmt: skip
    return rows


def _slope_fields(slopes: dict[str, pd.DataFrame], spec: ScenarioSpec) -> dict[str, dict[str, Any]]:
    """Return the fields of the mean slope of each type and of their difference."""
    draws: dict[str, Floats] = {}
    fields: dict[str, dict[str, Any]] = {}
    for offset, (kind, part) in enumerate(slopes.items()):
        values = part.slope.to_numpy(dtype=np.float64)
        n_clusters = part.cluster.nunique()
        # Types are drawn apart: other draws than those of the other type.
        draws[kind] = weighted_draws(
            values, part.cluster.to_numpy(), n_draws=spec.n_bootstrap, seed=2 * spec.seed + offset
        )
        interval = percentiles(draws[kind], level=spec.level) if n_clusters > 1 else None
        fields[kind] = {
            "estimate": float(values.mean()), "n_prompts": len(part), **_ends(interval, n_clusters)
        }  # fmt: skip
    fewest = min(part.cluster.nunique() for part in slopes.values())
    interval = (
        percentiles(draws["free"] - draws["conflict"], level=spec.level) if fewest > 1 else None
    )
    difference = fields["free"]["estimate"] - fields["conflict"]["estimate"]
    fields["interaction"] = {
        "estimate": difference,
        "n_prompts": sum(len(part) for part in slopes.values()),
        **_ends(interval, fewest),
    }
    return fields


def _ends(interval: tuple[float, float] | None, n_clusters: int) -> dict[str, Any]:
    if interval is None:
        return {"ci_method": f"none: {n_clusters} cluster is too few to resample"}
    return {
        "ci_low": interval[0],
        "ci_high": interval[1],
        "ci_method": "expanded percentile bootstrap over clusters within types",
    }


def _verdict(
    fields: dict[str, dict[str, Any]],
    flags: dict[str, tuple[float | None, bool, bool]],
    *,
    sign: int,
) -> dict[str, str]:
    stuck = [kind for kind in _KINDS if _flag_fields(flags[kind], sign).get("untestable")]
    if stuck:
        end = "ceiling" if sign > 0 else "floor"
        reason = f"the baseline of {' and '.join(stuck)} scenarios lies at the {end}"
        return {"verdict": "untestable", "reason": reason}
    if any("ci_low" not in row for row in fields.values()):
        return {"verdict": "undecided", "reason": "one cluster has no interval"}
    free, conflict, both = (fields[k] for k in (*_KINDS, "interaction"))
    reason = "; ".join(
        f"{name} {row['estimate']:+.3g} ({row['ci_low']:+.3g} to {row['ci_high']:+.3g})"
        for name, row in (
            ("slope without conflict", free), ("with conflict", conflict), ("difference", both)
        )
    )  # fmt: skip
    weaker = both["ci_high"] < 0
    if free["ci_low"] > 0:
        verdict = "weaker without conflict" if weaker else "steers without conflict too"
    elif conflict["ci_low"] > 0:
        # One interval that holds 0 and one that does not are no difference yet.
        verdict = "fails without conflict" if weaker else "undecided"
    else:
        verdict = "no effect shown"
    return {"verdict": verdict, "reason": reason}
