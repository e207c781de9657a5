"""Dose-response: success by strength, slopes, the curve, and where coherence breaks down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..schemas import DoseRow, DoseSpec, DoseVerdict, InvalidInputError
from .clusters import Floats, cluster_weights, effective_size, percentiles, wilson
from .curves import fit_curves
from .dose_samples import UNITS, baseline_flags, count_doses, dose_units
from .dose_samples import prepare_samples as prepare
from .dose_thresholds import find_knee, minimum_effective, why_not_identified
from .dose_verdicts import judge_claim
from .tables import record_table

__all__ = ["DoseResult", "analyse_doses"]

_WILSON = "Wilson, samples over their design effect"
_SIDES = ((1, "positive"), (-1, "negative"))


@dataclass(frozen=True)
class DoseResult:
    """Rows of :class:`DoseRow`, verdicts of :class:`DoseVerdict`, and the samples they are of."""

    rows: pd.DataFrame
    verdicts: pd.DataFrame
    samples: pd.DataFrame


def analyse_doses(
    table: pd.DataFrame,
    *,
    spec: DoseSpec,
    separation: float | None = None,
    mean_norm: float | None = None,
) -> DoseResult:
    """Return the dose-response of a table of samples (SCIENCE §6).

    Per strength: success by the strict rule with Wilson's interval, mean effect and outcome with
    a bootstrap over clusters, coherence; on all samples and on coherent ones. Over both sides:
    slopes per prompt (Tan et al. 2407.12404) and the share of prompts that steer the wrong way.
    Per side: the four-parameter logistic, the minimum effective dose (Dunnett, one-sided, on
    means per prompt, whose pairing across strengths is left unused: the conservative choice), the
    knee as a description, the breakdown of coherence. Per side a verdict on the claimed strength.

    Parameters
    ----------
    table
        One row per sample; see ``spec`` for its columns. Columns alpha_separation, alpha_norm
        and alpha_angle are taken as the other units of the strength.
    spec
        Columns, the rule of success, the claim.
    separation, mean_norm
        Distance of the class means and mean residual norm, for tables without those columns.

    Raises
    ------
    InvalidInputError
        If a column is missing, a value is no number, there is no baseline, or no other strength.
    """
    samples = prepare(table, spec)
    rows: list[DoseRow] = []
    verdicts: list[DoseVerdict] = []
    for name, part in samples.groupby("group", sort=False):
        if (part.alpha_raw == 0).all() or not (part.alpha_raw == 0).any():
            msg = f"group {name!r} needs samples at strength 0 and at another one"
            raise InvalidInputError(msg)
        group = _Group(str(name), part, spec, separation=separation, mean_norm=mean_norm)
        rows += [group.row(**fields) for fields in group.all_fields()]
        verdicts += group.verdicts()
    return DoseResult(record_table(rows, DoseRow), record_table(verdicts, DoseVerdict), samples)


class _Group:
    """The samples that are analysed together."""

    def __init__(
        self,
        name: str,
        samples: pd.DataFrame,
        spec: DoseSpec,
        *,
        separation: float | None,
        mean_norm: float | None,
    ) -> None:
        self.name, self.samples, self.spec = name, samples, spec
        self.units = dose_units(samples, separation=separation, mean_norm=mean_norm)
        self.place, self.ceiling, self.floor = baseline_flags(samples, spec)
        self.clusters = np.unique(samples.cluster.to_numpy().astype(str))
        self.weights = cluster_weights(self.clusters.size, n_draws=spec.n_bootstrap, seed=spec.seed)
        self.boot = f"percentile bootstrap over {self.clusters.size} clusters"

    def row(self, **fields: Any) -> DoseRow:  # noqa: ANN401
        head = {
            "analysis": "doses",
            "group": self.name,
            "outcome": self.spec.outcome,
            "ci_level": self.spec.level,
            "groups": self.spec.cluster or self.spec.prompt,
            "seed": self.spec.seed,
            "n_prompts": self.samples.prompt.nunique(),
            "ceiling": self.ceiling if self.place is not None else None,
            "floor": self.floor if self.place is not None else None,
            "untestable": self.untestable(fields["side"]),
        }
        return DoseRow(**{**head, **fields})

    def untestable(self, side: str) -> bool | None:
        if self.place is None or side == "both":
            return None
        return self.ceiling if side == "positive" else self.floor

    def at(self, alpha: float) -> dict[str, float | None]:
        """Return a strength in the four units, interpolated between those of the grid."""
        grid = self.units["alpha_raw"].to_numpy()
        found: dict[str, float | None] = {"alpha_raw": float(alpha)}
        for unit in UNITS[1:]:
            values = self.units[unit].to_numpy(dtype=np.float64)
            inside = np.isfinite(values).all() and grid[0] <= alpha <= grid[-1]
            found[unit] = float(np.interp(alpha, grid, values)) if inside else None
        return found

    def all_fields(self) -> Iterator[dict[str, Any]]:
        subsets = [("all", self.samples)]
        if self.spec.coherence is not None:
            subsets.append(("coherent", self.samples[self.samples.coherent == 1]))
        for subset, samples in subsets:
            for alpha in self.units.index:
                yield from self._at_dose(samples, float(alpha), subset)
            yield from ({"subset": subset, **row} for row in self._slopes(samples))
            for sign, side in _SIDES:
                if not (np.sign(samples.alpha_raw) == sign).any():
                    continue
                rows = [*self._curve(samples, sign), *self._lowest(samples, sign)]
                yield from ({"side": side, "subset": subset, **row} for row in rows)
        if self.spec.coherence is not None:
            yield from self._coherence()

    def _at_dose(
        self, samples: pd.DataFrame, alpha: float, subset: str
    ) -> Iterator[dict[str, Any]]:
        here = samples[samples.alpha_raw == alpha]
        base = samples[samples.alpha_raw == 0]
        known = here[here.success.notna()]
        head = {
            "subset": subset,
            "side": "both" if alpha == 0 else "positive" if alpha > 0 else "negative",
            **self.at(alpha),
            "n_samples": len(known),
            "n_missing": len(here) - len(known),
            "n_prompts": known.prompt.nunique(),
        }
        rule = "strict" if self.spec.threshold is None else f"outcome >= {self.spec.threshold:g}"
        if known.empty:
            for metric in ("success_rate", "effect_mean", "outcome_mean"):
                yield {**head, "metric": metric, "estimate": None, "reason": "no sample is left"}
            return
        if not (alpha == 0 and self.spec.threshold is None):
            share = float(known.success.mean())
            low, high = wilson(
                share, effective_size(known.success, known.cluster), level=self.spec.level
            )
            yield {
                **head, "metric": "success_rate", "estimate": share, "method": rule,
                "ci_low": low, "ci_high": high, "ci_method": _WILSON, "boundary": share in {0, 1},
                "biased_estimate": float(known.biased.mean()) if rule == "strict" else None,
            }  # fmt: skip
        before = base.outcome.mean()
        for metric, column in (("effect_mean", "effect"), ("outcome_mean", "outcome")):
            interval = percentiles(self._boot_mean(known, column), level=self.spec.level)
            yield {
                **head, "metric": metric, "estimate": float(known[column].mean()),
                "baseline_estimate": float(before) if np.isfinite(before) else None,
                **self._interval(interval, known.cluster.nunique()),
            }  # fmt: skip

    def _interval(self, found: tuple[float, float] | None, n_clusters: int) -> dict[str, Any]:
        if found is None or n_clusters < 2:
            return {"ci_method": f"none: {n_clusters} cluster is too few to resample"}
        return {"ci_low": found[0], "ci_high": found[1], "ci_method": self.boot}

    def _boot_mean(self, samples: pd.DataFrame, column: str) -> Floats:
        code = np.searchsorted(self.clusters, samples.cluster.to_numpy().astype(str))
        size = self.clusters.size
        values = samples[column].to_numpy(dtype=np.float64)
        total = self.weights @ np.bincount(code, weights=values, minlength=size)
        count = self.weights @ np.bincount(code, minlength=size)
        result: Floats = np.divide(total, count, out=np.full(total.size, np.nan), where=count > 0)
        return result

    def _slopes(self, samples: pd.DataFrame) -> Iterator[dict[str, Any]]:
        known = samples[samples.outcome.notna()]
        records = [
            (part.cluster.iloc[0], np.polyfit(part.alpha_raw, part.outcome, 1)[0])
            for _, part in known.groupby("prompt", sort=False)
            if part.alpha_raw.nunique() > 1
        ]
        head = {"side": "both", "n_samples": len(known), "n_prompts": len(records)}
        if not records:
            reason = "no prompt has two strengths"
            yield {**head, "metric": "slope_mean", "estimate": None, "reason": reason}
            yield {**head, "metric": "anti_steerable_share", "estimate": None, "reason": reason}
            return
        slopes = pd.DataFrame(records, columns=["cluster", "slope"])
        # Below rounding a slope has no sign: a prompt that does not move is not anti-steerable.
        small = 1e-12 * max(1.0, float(known.outcome.abs().max()))
        slopes["anti"] = (slopes.slope < -small).astype(float)
        share = float(slopes.anti.mean())
        yield {
            **head, "metric": "slope_mean", "estimate": float(slopes.slope.mean()),
            "method": "least squares per prompt",
            **self._interval(
                percentiles(self._boot_mean(slopes, "slope"), level=self.spec.level),
                slopes.cluster.nunique(),
            ),
        }  # fmt: skip
        low, high = wilson(
            share, effective_size(slopes.anti, slopes.cluster), level=self.spec.level
        )
        yield {
            **head, "metric": "anti_steerable_share", "estimate": share, "method": "slope < 0",
            "ci_low": low, "ci_high": high, "ci_method": "Wilson, prompts over their design effect",
            "boundary": share in {0, 1},
        }  # fmt: skip

    def _curve(self, samples: pd.DataFrame, sign: int) -> Iterator[dict[str, Any]]:
        counts = count_doses(samples, sign=sign)
        # Under the strict rule strength 0 fails by definition, which is no observation.
        kept = counts.trials.sum(axis=0) > 0
        if self.spec.threshold is None:
            kept &= counts.alphas > 0
        names = ("alpha50", "steepness", "guess_rate", "lapse_rate")
        head = {"n_samples": int(counts.trials[:, kept].sum()), "method": "4-parameter logistic"}
        if kept.sum() < 3:
            reason = f"{int(kept.sum())} strengths are too few for a curve"
            for name in names:
                yield {**head, "metric": name, "estimate": None, "reason": reason,
                       "identified": False}  # fmt: skip
            return
        alphas = counts.alphas[kept]
        n_clusters = len(counts.trials)
        weights = np.vstack(
            [
                np.ones((1, n_clusters)),
                cluster_weights(n_clusters, n_draws=self.spec.n_bootstrap, seed=self.spec.seed),
            ]
        )
        curves = fit_curves(
            alphas, weights @ counts.successes[:, kept], weights @ counts.trials[:, kept]
        )
        draws = {
            "alpha50": curves.alpha50, "steepness": curves.steepness,
            "guess_rate": curves.guess, "lapse_rate": curves.lapse,
        }  # fmt: skip
        ends = curves.predict(alphas[[0, -1]])
        rise = percentiles(ends[1:, 1] - ends[1:, 0], level=self.spec.level)
        alpha50 = percentiles(curves.alpha50[1:], level=self.spec.level)
        unclear = why_not_identified(alpha50, rise, alphas=alphas, n_clusters=n_clusters)
        for name in names:
            interval = percentiles(draws[name][1:], level=self.spec.level)
            row = {
                **head, "metric": name, "estimate": float(draws[name][0]),
                "identified": unclear is None, **self._interval(interval, n_clusters),
            }  # fmt: skip
            if name == "alpha50":
                if unclear is not None:
                    row |= {"estimate": None, "reason": unclear}
                else:
                    row |= self.at(sign * float(curves.alpha50[0]))
            yield row

    def _lowest(self, samples: pd.DataFrame, sign: int) -> Iterator[dict[str, Any]]:
        counts = count_doses(samples, sign=sign)
        for row in (minimum_effective(samples, self.spec, sign=sign), find_knee(counts)):
            found = row["estimate"]
            yield row | ({} if found is None else self.at(sign * float(found)))

    def _coherence(self) -> Iterator[dict[str, Any]]:
        shares: dict[float, float] = {}
        rows: dict[float, dict[str, Any]] = {}
        for alpha in self.units.index:
            here = self.samples[self.samples.alpha_raw == alpha]
            known = here[here.coherent.notna()]
            side = "both" if alpha == 0 else "positive" if alpha > 0 else "negative"
            row = {"side": side, "metric": "coherence", **self.at(float(alpha)),
                   "n_samples": len(known), "n_missing": len(here) - len(known)}  # fmt: skip
            if known.empty:
                rows[float(alpha)] = row | {"estimate": None, "reason": "coherence is not known"}
                continue
            share = float(known.coherent.mean())
            low, high = wilson(
                share, effective_size(known.coherent, known.cluster), level=self.spec.level
            )
            shares[float(alpha)] = share
            rows[float(alpha)] = row | {
                "estimate": share, "ci_low": low, "ci_high": high, "ci_method": _WILSON,
                "boundary": share in {0, 1},
            }  # fmt: skip
        band = rows[0.0].get("ci_low")
        for alpha, row in rows.items():
            below = alpha in shares and band is not None and shares[alpha] < band
            yield row | {
                "baseline_estimate": shares.get(0.0),
                "below_baseline": below if alpha in shares and band is not None else None,
            }
        for sign, side in _SIDES:
            if any(np.sign(alpha) == sign for alpha in self.units.index):
                yield {"side": side, **self._breakdown(shares, band, sign)}

    def _breakdown(
        self, shares: dict[float, float], band: float | None, sign: int
    ) -> dict[str, Any]:
        head = {
            "metric": "breakdown", "estimate": None, "baseline_estimate": shares.get(0.0),
            "method": "smallest strength from which on coherence lies below the baseline's band",
        }  # fmt: skip
        if band is None:
            return head | {"reason": "the baseline's coherence is not known"}
        broken = None
        for alpha in sorted((a for a in shares if np.sign(a) == sign), key=abs, reverse=True):
            if shares[alpha] >= band:
                break
            broken = alpha
        if broken is None:
            return head | {
                "reason": f"coherence stays within the baseline's band (at least {band:.2f}) at "
                "the largest strength"
            }
        return head | {"estimate": abs(broken), **self.at(broken)}

    def verdicts(self) -> Iterator[DoseVerdict]:
        for sign, side in _SIDES:
            if not (np.sign(self.samples.alpha_raw) == sign).any():
                continue
            found = judge_claim(count_doses(self.samples, sign=sign), self.spec)
            units: dict[str, float | None] = {}
            for name in ("claimed", "sufficient"):
                raw = found.get(f"{name}_raw")
                if raw is not None:
                    at = self.at(sign * raw)
                    units |= {u.replace("alpha", name): at[u] for u in UNITS[1:]}
                    units[f"{name}_raw"] = sign * raw
            yield DoseVerdict.model_validate(
                {
                    "group": self.name, "side": side, **found, **units,
                    "claimed_coherent": self._claimed_coherent(sign),
                    "untestable": self.untestable(side),
                    "n_prompts": self.samples.prompt.nunique(),
                }
            )  # fmt: skip

    def _claimed_coherent(self, sign: int) -> bool | None:
        if self.spec.coherence is None:
            return None
        for row in self._coherence():
            if row["metric"] == "coherence" and row["alpha_raw"] == sign * self.spec.claimed:
                below: bool | None = row["below_baseline"]
                return None if below is None else not below
        return None
