"""The report's findings in plain words, each with its control and its caveat."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pandas as pd

from .report_numbers import (
    CEILING_SENTENCE,
    RunView,
    SubsetNumber,
    decimal,
    interval,
    number,
    p_text,
    percent,
    rows_of,
    string,
    subset_numbers,
)

__all__ = ["Finding", "SteeringEffect", "find", "quote", "steering_effect"]

_NEAR_ZERO = 1.0  # class separations: the slope and the monotone check look no further


@dataclass(frozen=True)
class Finding:
    """One sentence about one model, and what it does not say."""

    topic: str
    sentence: str
    caveat: str = ""


@dataclass(frozen=True)
class SteeringEffect:
    """The steering curve of one direction in a few numbers (effects in nats per token)."""

    alpha: float  # the tested strength nearest to +1 class separation
    effect: float
    ci_low: float | None
    ci_high: float | None
    random_low: float | None
    random_high: float | None
    n_random: int
    rank_p: float | None
    slope: float | None  # nats/token per class separation, least squares through 0, |alpha| <= 1
    n_near: int  # strengths within one class separation, 0 left out
    monotone_near: bool
    monotone: bool

    @property
    def outside(self) -> bool:
        """Whether the effect lies outside every random direction's effect."""
        if self.random_low is None or self.random_high is None:
            return False
        return self.effect > self.random_high or self.effect < self.random_low


def steering_effect(rows: pd.DataFrame, direction: str) -> SteeringEffect | None:
    """Return the numbers of ``direction``'s curve, or None if it has no estimate beside alpha 0.

    The rank p-value is two-sided over the random directions at the same strength,
    (1 + #{|random| >= |effect|}) / (1 + n) (Phipson & Smyth 2010).
    """
    known = rows[rows["estimate"].notna()]
    own = known[known["direction"] == direction].sort_values("alpha_separation")
    alphas = [float(a) for a in own["alpha_separation"]]
    effects = [float(e) for e in own["estimate"]]
    positive = [i for i, a in enumerate(alphas) if a > 0]
    if not positive:
        return None
    at = min(positive, key=lambda i: abs(alphas[i] - 1.0))
    row = own.iloc[at]
    # The same raw strength: random directions are matched in norm.
    others = known[known["direction"] == "random"]
    gap = (others["alpha_raw"] - float(row["alpha_raw"])).abs()
    same = others[gap <= 1e-6 * max(1.0, abs(float(row["alpha_raw"])))]["estimate"]
    n_random = len(same)
    beaten = int((same.abs() >= abs(effects[at])).sum())
    near = [i for i, a in enumerate(alphas) if abs(a) <= _NEAR_ZERO + 1e-9]
    squares = sum(alphas[i] ** 2 for i in near)
    products = sum(alphas[i] * effects[i] for i in near)
    return SteeringEffect(
        alpha=alphas[at],
        effect=effects[at],
        ci_low=number(row.get("ci_low")),
        ci_high=number(row.get("ci_high")),
        random_low=float(same.min()) if n_random else None,
        random_high=float(same.max()) if n_random else None,
        n_random=n_random,
        rank_p=(1 + beaten) / (1 + n_random) if n_random else None,
        slope=products / squares if squares else None,
        n_near=sum(alphas[i] != 0 for i in near),
        monotone_near=_rises([effects[i] for i in near]),
        monotone=_rises(effects),
    )


def _rises(values: list[float]) -> bool:
    """Return whether each value is at least the one before it, and the last above the first."""
    steps = pairwise(values)
    return len(values) > 1 and values[-1] > values[0] and all(b >= a for a, b in steps)


def find(view: RunView, steering: pd.DataFrame) -> list[Finding]:
    """Return the findings about one model: probe by subset, random directions, steering."""
    quoted = subset_numbers(view, view.method)
    return [
        _lead(quoted),
        *(Finding(n.subset, *quote(n)) for n in quoted),
        _random_finding(view),
        _steering_finding(steering),
    ]


def _lead(quoted: list[SubsetNumber]) -> Finding:
    """Return what the subsets together allow one to say about the probe."""
    parts = []
    for reading, words in (
        ("beyond", "above the bag of words on {}"),
        ("level", "not distinguishable from the bag of words on {}"),
        ("below", "below the bag of words on {}"),
        ("ceiling", "on {} the words alone are at the ceiling, so nothing is shown about meaning"),
        ("unknown", "no comparison with the bag of words on {}"),
    ):
        names = [n.subset for n in quoted if n.reading == reading]
        if names:
            parts.append(words.format(_join(names)))
    return Finding("lead", _sentence_case("; ".join(parts)) if parts else "No probe was run.")


def _join(names: list[str]) -> str:
    """Return ``a``, ``a and b`` or ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def quote(n: SubsetNumber) -> tuple[str, str]:
    """Return the sentence about one subset's AUROC, and its caveat."""
    if n.estimate is None:
        return f"Not estimated: {n.reason or 'no reason was recorded'}.", ""
    ci = interval(n.ci_low, n.ci_high)
    sentence = f"Probe {decimal(n.estimate)}" + (f" ({ci})" if ci else " (no interval)")
    if n.bow is None:
        sentence += "; no bag of words was run on these texts."
    else:
        sentence += f", bag of words {decimal(n.bow)}"
        gap = interval(n.delta_low, n.delta_high)
        if n.delta is not None:
            sentence += f"; difference {decimal(n.delta)}" + (f" ({gap})" if gap else "")
        sentence += {
            "ceiling": ". " + _sentence_case(n.verdict or CEILING_SENTENCE),
            "beyond": ", so this bag of words does not account for the probe.",
            "level": ": nothing is shown here that counting words does not show.",
            "below": ": counting words does better.",
            "unknown": ", without an interval, so no claim is made.",
        }[n.reading]
    caveats = []
    if not n.nested:
        caveats.append("not nested: a fixed middle layer, since no layer was chosen inside folds")
    if n.row.get("boundary") is True or n.row.get("boundary") == 1:
        method = string(n.row.get("ci_method"))
        caveats.append("at the boundary" + (f", interval by {method}" if method else ""))
    if n.bow is not None and n.bow < 0.5:
        caveats.append("the bag of words is below chance here, so .5 is the bar to clear")
    if n.ci_low is not None and n.ci_high is not None and n.ci_low <= 0.5 <= n.ci_high:
        caveats.append("the probe's own interval includes chance, .5")
    return sentence, "; ".join(caveats)


def _sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _random_finding(view: RunView) -> Finding:
    """Return how arbitrary directions do at the quoted layer."""
    topic = "random directions"
    subsets = [str(s) for s in view.null["subset"]]
    subset = "all" if "all" in subsets else (subsets[0] if subsets else "all")
    band = view.random_band(subset)
    here = band[band["layer"] == view.layer]
    if here.empty:
        return Finding(topic, "No random directions were scored at this layer.")
    row = rows_of(here)[0]
    n_draws = int(number(row["n_draws"]) or 0)
    share, folded = number(row.get("share_above_95")), number(row.get("share_above_95_folded"))
    sentence = (
        f"Of {n_draws} random directions at layer {view.layer} ({subset}), the largest AUROC is "
        f"{decimal(number(row['max']))} and {percent(share)} exceed .95"
    )
    sentence += f" ({percent(folded)} when the sign is free)" if folded is not None else ""
    where: dict[str, object] = {"pool": view.pool, "method": view.method, "subset": subset}
    probe = view.probe("auroc", **where, layer=view.layer)
    nested = view.probe("auroc_nested", **where)
    p = number(probe["p_value"].iloc[0]) if len(probe) else None
    if p is not None:
        sentence += f"; for the probe there {p_text(p, n_draws)}"
    corrected = nested if len(nested) else probe
    p_max = number(corrected["p_value_max"].iloc[0]) if len(corrected) else None
    if p_max is not None:
        what = "the nested estimate" if len(nested) else "the probe"
        sentence += f"; for {what} against the largest over all layers {p_text(p_max, n_draws)}"
    return Finding(
        topic,
        sentence + ".",
        "asks whether the probe beats an arbitrary readout, not whether there is signal: where "
        "the signal is strong, many random directions pass too",
    )


def _steering_finding(rows: pd.DataFrame) -> Finding:
    """Return what adding the direction does to the texts' probabilities."""
    topic = "steering"
    if rows.empty:
        return Finding(topic, "Not run for this model.")
    names = [str(d) for d in dict.fromkeys(rows["direction"]) if d != "random"]
    if not names:
        return Finding(topic, "Only random directions were run for this model.")
    effect = steering_effect(rows, names[0])
    if effect is None:
        reasons = [r for r in map(string, rows.get("reason", pd.Series(dtype=object))) if r]
        return Finding(topic, f"Not estimated: {reasons[0] if reasons else 'no reason recorded'}.")
    ci = interval(effect.ci_low, effect.ci_high)
    layers = sorted({int(x) for x in rows["layer"].dropna()})
    at = f" (layer {', '.join(map(str, layers))})" if layers else ""
    sentence = (
        f"Adding {names[0]}{at} at {decimal(effect.alpha, 2)} class separations shifts the "
        f"log-probability difference by {decimal(effect.effect)} nats per token"
        + (f" ({ci})" if ci else "")
    )
    if effect.random_low is not None and effect.random_high is not None:
        where = "outside" if effect.outside else "inside"
        band = interval(effect.random_low, effect.random_high)
        sentence += f", {where} the range of {effect.n_random} random directions ({band}"
        if effect.rank_p is not None:
            sentence += f"; rank {p_text(effect.rank_p, effect.n_random)}"
        sentence += ")"
    else:
        sentence += "; no random directions were run, so nothing says that the direction matters"
    sentence += "."
    if effect.slope is not None and effect.n_near >= 2:
        shape = "rises throughout" if effect.monotone_near else "does not rise throughout"
        sentence += (
            f" Within ±1 the curve {shape} (slope {decimal(effect.slope)} nats/token per class "
            "separation)"
        )
        far = "also over the whole grid" if effect.monotone else "but not over the whole grid"
        sentence += f", {far}." if effect.monotone_near else "."
    return Finding(
        topic,
        sentence,
        "teacher-forced probabilities of given completions, not behaviour that was generated",
    )
