"""Samples at strengths, each with its effect against its own prompt's baseline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..schemas import DoseSpec, InvalidInputError
from .clusters import Floats
from .tables import require_columns

__all__ = ["DoseCounts", "baseline_flags", "count_doses", "dose_units", "prepare_samples"]

UNITS = ("alpha_raw", "alpha_separation", "alpha_norm", "alpha_angle")


def prepare_samples(table: pd.DataFrame, spec: DoseSpec) -> pd.DataFrame:
    """Return one row per sample with its effect and whether it is a success.

    Columns group, alpha_raw, prompt, cluster, outcome, effect (outcome minus that of the same
    prompt at strength 0), success, biased (the rule under which a zero effect at a negative
    strength counts), coherent, and those of the other units that the table has. What cannot be
    told is NaN.

    Raises
    ------
    InvalidInputError
        If a column is missing, a strength is not finite, or there is no sample at strength 0.
    """
    wanted = [spec.outcome, spec.alpha, spec.prompt, *spec.by]
    wanted += [name for name in (spec.cluster, spec.sample, spec.coherence) if name is not None]
    require_columns(table, wanted)
    alpha = _numbers(table, spec.alpha)
    if not np.isfinite(alpha).all():
        row = int(np.flatnonzero(~np.isfinite(alpha))[0])
        msg = (
            f"row {row}: column {spec.alpha!r} holds {alpha[row]:g}, expected "
            "a finite strength in every row"
        )
        raise InvalidInputError(msg)
    groups = [table[name].astype(str) for name in spec.by]
    out = pd.DataFrame(
        {
            "group": _joined(groups) if groups else "all",
            "alpha_raw": alpha,
            "prompt": table[spec.prompt].astype(str).to_numpy(),
            "cluster": table[spec.cluster or spec.prompt].astype(str).to_numpy(),
            "outcome": _numbers(table, spec.outcome),
        }
    )
    keys = ["group", "prompt"]
    if spec.sample is not None:
        out["sample"] = table[spec.sample].astype(str).to_numpy()
        keys.append("sample")
    out["coherent"] = _flags(table, spec.coherence) if spec.coherence else np.nan
    for unit in UNITS[1:]:
        if unit in table.columns:
            out[unit] = _numbers(table, unit)
    baseline = out[out.alpha_raw == 0].groupby(keys, sort=False).outcome.mean()
    if baseline.empty:
        msg = f"no sample has strength 0 in column {spec.alpha!r}: an effect needs its baseline"
        raise InvalidInputError(msg)
    before = baseline.reindex(pd.MultiIndex.from_frame(out[keys])).to_numpy()
    out["effect"] = out.outcome.to_numpy() - before
    return _with_success(out, spec)


def _with_success(samples: pd.DataFrame, spec: DoseSpec) -> pd.DataFrame:
    sign = np.sign(samples.alpha_raw.to_numpy())
    if spec.threshold is not None:
        known = np.isfinite(samples.outcome.to_numpy())
        above = samples.outcome.to_numpy() >= spec.threshold
        success = np.where(sign < 0, ~above, above)
        biased = success
    else:
        effect = samples.effect.to_numpy()
        known = np.isfinite(effect)
        success = (np.sign(effect) == sign) & (sign != 0)
        biased = (effect > 0) == (sign > 0)
    samples["success"] = np.where(known, success, np.nan)
    samples["biased"] = np.where(known, biased, np.nan)
    return samples


def _joined(parts: list[pd.Series]) -> np.ndarray:
    joined = parts[0]
    for part in parts[1:]:
        joined = joined + "/" + part
    return joined.to_numpy()


def _numbers(table: pd.DataFrame, name: str) -> Floats:
    column = table[name]
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    words = column.notna().to_numpy() & np.isnan(numbers)
    if words.any():
        row = int(np.flatnonzero(words)[0])
        msg = f"row {row}: column {name!r} holds {column.iloc[row]!r}, expected a number"
        raise InvalidInputError(msg)
    return np.asarray(numbers, dtype=np.float64)


def _flags(table: pd.DataFrame, name: str) -> Floats:
    values = _numbers(table.assign(**{name: table[name].replace({True: 1, False: 0})}), name)
    other = np.isfinite(values) & (values != 0) & (values != 1)
    if other.any():
        msg = f"column {name!r} holds {values[other][0]:g}, expected true or false (1 or 0)"
        raise InvalidInputError(msg)
    return values


@dataclass(frozen=True)
class DoseCounts:
    """Samples of one side counted by cluster and strength, dims (cluster, dose).

    ``alphas`` (dose,) are the sizes of the strengths in rising order, 0 first.
    """

    alphas: Floats
    trials: Floats
    successes: Floats
    effects: Floats  # sums, in the direction of the side

    def rates(self, weights: Floats) -> Floats:
        """Return the success rates when clusters are weighted, dims (draw, dose)."""
        return _ratio(weights @ self.successes, weights @ self.trials)

    def mean_effects(self, weights: Floats) -> Floats:
        """Return the mean effects towards the side, dims (draw, dose)."""
        return _ratio(weights @ self.effects, weights @ self.trials)


def _ratio(above: Floats, below: Floats) -> Floats:
    result: Floats = np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
    return result


def count_doses(samples: pd.DataFrame, *, sign: int) -> DoseCounts:
    """Return the counts of the strengths of one sign, with the baseline; unknown ones left out.

    Under a threshold the baseline's success is counted for the side: below it for negative
    strengths.
    """
    side = samples[(np.sign(samples.alpha_raw) == sign) | (samples.alpha_raw == 0)]
    side = side[side.success.notna() & side.effect.notna()]
    alphas, dose = np.unique(side.alpha_raw.abs().to_numpy(), return_inverse=True)
    names, cluster = np.unique(side.cluster.to_numpy().astype(str), return_inverse=True)
    shape = (names.size, alphas.size)
    flat = cluster * alphas.size + dose

    def count(values: Floats | None) -> Floats:
        counted = np.bincount(flat, weights=values, minlength=shape[0] * shape[1])
        return counted.astype(np.float64).reshape(shape)

    success = side.success.to_numpy(dtype=np.float64)
    return DoseCounts(
        alphas=alphas,
        trials=count(None),
        successes=count(success),
        effects=count(sign * side.effect.to_numpy(dtype=np.float64)),
    )


def dose_units(
    samples: pd.DataFrame, *, separation: float | None, mean_norm: float | None
) -> pd.DataFrame:
    """Return the strengths of the grid in four units, by raw strength; NaN where not known.

    A column of the table counts before ``separation`` (the distance of the class means) and
    ``mean_norm`` (the mean residual norm). Without a column the angle is taken as if residuals
    were orthogonal to the direction: tan = alpha/mean_norm.

    Raises
    ------
    InvalidInputError
        If ``separation`` or ``mean_norm`` is not above 0.
    """
    for name, size in (("separation", separation), ("mean_norm", mean_norm)):
        if size is not None and not (np.isfinite(size) and size > 0):
            msg = f"{name} must be a number above 0, got {size}"
            raise InvalidInputError(msg)
    grid = np.unique(samples.alpha_raw.to_numpy())
    known = {
        "alpha_separation": grid / separation if separation else None,
        "alpha_norm": grid / mean_norm if mean_norm else None,
        "alpha_angle": np.degrees(np.arctan(np.abs(grid) / mean_norm)) if mean_norm else None,
    }
    units = pd.DataFrame({"alpha_raw": grid}, index=grid)
    means = samples.groupby("alpha_raw").mean(numeric_only=True)
    for unit, values in known.items():
        if unit in means.columns:
            units[unit] = means[unit].reindex(grid)
        else:
            units[unit] = np.nan if values is None else values
    return units


def baseline_flags(samples: pd.DataFrame, spec: DoseSpec) -> tuple[float | None, bool, bool]:
    """Return the baseline's place in the outcome's range (0 to 1), and whether it is at an end.

    With a threshold the place is the share at or above it; else the mean within ``bounds``, and
    None where they are not given.
    """
    outcome = samples[samples.alpha_raw == 0].outcome.dropna()
    if outcome.empty or (spec.threshold is None and spec.bounds is None):
        return None, False, False
    if spec.threshold is not None:
        place = float((outcome >= spec.threshold).mean())
    else:
        low, high = spec.bounds or (0.0, 1.0)
        place = float((outcome.mean() - low) / (high - low))
    return place, place >= spec.ceiling, place <= spec.floor
