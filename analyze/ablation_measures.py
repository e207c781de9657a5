"""What an ablation does to a contrast: changes with intervals, beside random words, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..schemas import AblationFinding
from .auroc import (
    Floats,
    Interval,
    auroc,
    auroc_columns,
    auroc_difference,
    auroc_interval,
    boundary_interval,
    mover_interval,
)
from .bootstrap import bootstrap_d_prime, percentile_interval, wins
from .evaluate import Estimate, HeldOut
from .probes import d_prime

__all__ = ["Ablated", "ablation_estimates", "finding_of", "verdict_of"]


CHANCE = 0.5


@dataclass(frozen=True)
class Ablated:
    """Held-out scores of one condition on one layer.

    ``before`` and ``after`` have dims (arm, pair), ``draws`` (draw, arm, pair): random words in
    the place of those that the condition takes out, none where there were none. ``words`` are
    the bag of words before and after, dims (arm, pair), and ``words_random`` those of some draws.
    """

    before: Floats
    after: Floats
    draws: Floats
    words: tuple[Floats, Floats] | None
    words_random: tuple[Floats, ...] = ()


def ablation_estimates(of: Ablated, held: HeldOut) -> list[Estimate]:
    """Return the metrics ``auroc``, ``d_prime`` and ``paired_change`` on the held-out pairs.

    Every one is the value after the ablation, with its change, and with the change beyond that
    of the mean draw. Intervals of differences are of the same texts: DeLong's or the bootstrap
    of pairs within scenarios; at an AUROC of 0 or 1 the boundary intervals are combined.
    ``paired_change`` is the mean over pairs of the change of s₊ − s₋, in class separations of the
    probe.
    """
    before, after = of.before[:, held.pairs], of.after[:, held.pairs]
    draws = of.draws[:, :, held.pairs]
    return [
        _auroc_row(before, after, draws, held) | _words(of, after, held),
        _d_prime_row(before, after, draws, held),
        _change_row(before, after, draws, held),
    ]


def _auroc_row(before: Floats, after: Floats, draws: Floats, held: HeldOut) -> Estimate:
    labels = held.labels
    area, was = (float(auroc(scores.ravel(), labels)) for scores in (after, before))
    interval = auroc_interval(after.ravel(), labels)
    change = auroc_difference(after.ravel(), before.ravel(), labels)
    row = _row("auroc", area, interval) | {
        "before_estimate": was,
        "delta": change.estimate,
        "delta_ci_low": change.low,
        "delta_ci_high": change.high,
        "delta_ci_method": change.method,
    }
    if not len(draws):
        return row
    areas = auroc_columns(draws.reshape(len(draws), -1).T, labels)
    mean = float(areas.mean())
    kernel = np.zeros((held.pairs.size, held.pairs.size), dtype=np.float64)
    for draw in draws:
        kernel += wins(draw)
    kernel /= len(draws)
    if {area, mean} & {0.0, 1.0}:
        n = held.pairs.size
        of_mean = (
            boundary_interval(mean, n, n)
            if mean in {0.0, 1.0}
            else percentile_interval(_kernel_draws(kernel, held))
        )
        contrast = Interval(*mover_interval((area, interval), (mean, of_mean)), "MOVER")
    else:
        contrast = percentile_interval(_kernel_draws(wins(after) - kernel, held))
    return row | _beside(area, areas, contrast)


def _kernel_draws(kernel: NDArray[Any], held: HeldOut) -> Floats:
    """Return wᵀKw/n² of every bootstrap draw of pairs: an AUROC, or a difference of two.

    The mean AUROC of many draws is the AUROC of their mean kernel: one product for all.
    """
    share = (kernel / held.pairs.size**2).astype(np.float32)
    result: Floats = np.einsum("bp,bp->b", held.weights @ share, held.weights).astype(np.float64)
    return result


def _d_prime_row(before: Floats, after: Floats, draws: Floats, held: HeldOut) -> Estimate:
    spread, was = d_prime(after[0], after[1]), d_prime(before[0], before[1])
    if spread is None or was is None:
        which = "after" if spread is None else "before"
        return _row("d_prime", None, Interval(None, None, "")) | {
            "before_estimate": was,
            "reason": f"the scores have no spread {which} the ablation",
        }
    mine = bootstrap_d_prime(after, held.weights)
    row = _row("d_prime", spread, percentile_interval(mine))
    row |= {"before_estimate": was, "delta": spread - was}
    row |= _delta(percentile_interval(mine - bootstrap_d_prime(before, held.weights)))
    values = [d_prime(draw[0], draw[1]) for draw in draws]
    known = np.array([value for value in values if value is not None])
    if not known.size or known.size < len(values):
        return row
    resampled = np.mean([bootstrap_d_prime(draw, held.weights) for draw in draws], axis=0)
    return row | _beside(spread, known, percentile_interval(mine - resampled))


def _change_row(before: Floats, after: Floats, draws: Floats, held: HeldOut) -> Estimate:
    was = before[0] - before[1]
    change = (after[0] - after[1]) - was
    mean, share = float(change.mean()), held.weights / held.pairs.size
    resampled = (share @ change).astype(np.float64)
    interval = percentile_interval(resampled)
    row = _row("paired_change", mean, interval) | {"before_estimate": 0.0, "delta": mean}
    row |= _delta(interval)
    if not len(draws):
        return row
    others = (draws[:, 0] - draws[:, 1]) - was
    contrast = percentile_interval((share @ (change - others.mean(axis=0))).astype(np.float64))
    return row | _beside(mean, others.mean(axis=1), contrast)


def _row(metric: str, estimate: float | None, interval: Interval) -> Estimate:
    return {
        "metric": metric,
        "estimate": estimate,
        "ci_low": interval.low,
        "ci_high": interval.high,
        "ci_method": interval.method or None,
        "boundary": interval.boundary,
        "reason": interval.reason,
    }


def _delta(interval: Interval) -> Estimate:
    return {
        "delta_ci_low": interval.low,
        "delta_ci_high": interval.high,
        "delta_ci_method": interval.method or None,
    }


def _beside(value: float, draws: Floats, contrast: Interval) -> Estimate:
    """Return the fields that set a value against the draws."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return {
        "random_mean": float(draws.mean()),
        "random_low": float(low),
        "random_high": float(high),
        "n_draws": int(draws.size),
        "percentile": float((draws < value).mean() + 0.5 * (draws == value).mean()),
        "p_value": float((1 + (draws <= value).sum()) / (1 + draws.size)),
        "null": "random_words_removed",
        "contrast": value - float(draws.mean()),
        "contrast_ci_low": contrast.low,
        "contrast_ci_high": contrast.high,
        "contrast_ci_method": contrast.method or None,
    }


def _words(of: Ablated, after: Floats, held: HeldOut) -> Estimate:
    """Return the bag of words before and after, and the probe's distance from the latter."""
    if of.words is None:
        return {}
    labels = held.labels
    was, now = (scores[:, held.pairs].ravel() for scores in of.words)
    difference = auroc_difference(after.ravel(), now, labels)
    random = [auroc(scores[:, held.pairs].ravel(), labels) for scores in of.words_random]
    return {
        "bow_before": auroc(was, labels),
        "bow_estimate": auroc(now, labels),
        "bow_delta": difference.estimate,
        "bow_delta_ci_low": difference.low,
        "bow_delta_ci_high": difference.high,
        "bow_random": float(np.mean(random)) if random else None,
    }


def finding_of(
    area: Estimate, spread: Estimate, before: Interval, *, repooled: bool
) -> AblationFinding:
    """Return what the rows of ``auroc`` and ``d_prime`` show; only intervals decide.

    ``shortcut``: before the ablation above chance, after it not, and the words cost more than as
    many random ones. ``partly_lexical``: they cost more, and the rest is above chance.
    ``not_lexical``: they cost no more, and the rest is above chance; of a re-pooling this cannot
    be said, since the tokens that are left have attended to the words. AUROC saturates, so a cost
    in d′ counts as well.
    """
    if before.low is None or before.low <= CHANCE:
        return "no_signal"
    highs = [row.get("contrast_ci_high") for row in (area, spread)]
    known = [high for high in highs if high is not None]
    if not known:
        return "undecided"
    costs = any(high < 0 for high in known)
    if area["ci_low"] is None or area["ci_low"] <= CHANCE:
        return "shortcut" if costs else "undecided"
    if costs:
        return "partly_lexical"
    return "undecided" if repooled else "not_lexical"


def verdict_of(
    finding: AblationFinding, area: Estimate, spread: Estimate, *, repooled: bool, words: str
) -> str:
    """Return the finding as a sentence with its figures; ``words`` names what was taken out."""
    after = f"{area['estimate']:.2f}{_bounds(area)}"
    was = f"{area['before_estimate']:.2f}"
    if finding == "no_signal":
        return f"no signal: before the ablation AUROC {was} is not above chance"
    if area.get("contrast") is None:
        return f"undecided: AUROC {after} is left without {words}; no random words to compare with"
    random = f"as many random words leave {area['random_mean']:.2f}"
    if finding == "shortcut":
        said = f"shortcut: without {words} AUROC falls from {was} to {after}, no longer above "
        said += f"chance; {random}"
    elif finding == "partly_lexical":
        said = f"partly lexical: {words} cost {_cost(area, spread)} more than as many random "
        said += f"words; AUROC {after} of {was} is left"
    else:
        name = "not lexical" if finding == "not_lexical" else "undecided"
        said = f"{name}: AUROC {after} of {was} is left without {words}, {random}"
    if repooled:
        said += "; the tokens that are left have attended to those words"
        if finding == "undecided":
            said += ", so only re-extracted variants can tell"
    return said


def _cost(area: Estimate, spread: Estimate) -> str:
    """Return how much more the words cost, in AUROC where that shows it, otherwise in d′."""
    for name, row in (("AUROC", area), ("d′", spread)):
        high = row.get("contrast_ci_high")
        if high is not None and high < 0:
            low = -row["contrast_ci_low"]
            return f"{name} {-row['contrast']:.2f} [{-high:.2f}, {low:.2f}]"
    return "no"


def _bounds(row: Estimate) -> str:
    low, high = row["ci_low"], row["ci_high"]
    return "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
