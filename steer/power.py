"""How many samples an answer needs, and how sure a number of samples can be."""

from __future__ import annotations

import math

from scipy.special import ndtr, ndtri

from ..schemas import InvalidInputError

__all__ = ["design_effect", "margin_of", "power_of", "samples_for_difference", "samples_for_margin"]


def _check(**shares: float) -> None:
    for name, value in shares.items():
        if not 0 < value < 1:
            msg = f"{name} must lie between 0 and 1, got {value}"
            raise InvalidInputError(msg)


def design_effect(per_prompt: float, correlation: float) -> float:
    """Return by how much samples of one prompt inflate a variance: 1 + (m - 1) ICC.

    Kish 1965, Survey Sampling, section 5.4; ``correlation`` is the intraclass correlation.
    """
    if per_prompt < 1 or not 0 <= correlation <= 1:
        msg = (
            f"got {per_prompt} samples per prompt with correlation {correlation}; expected at "
            "least 1, and 0 to 1"
        )
        raise InvalidInputError(msg)
    return 1 + (per_prompt - 1) * correlation


def samples_for_margin(
    margin: float, *, share: float = 0.5, level: float = 0.95, inflation: float = 1.0
) -> int:
    """Return the samples per strength for a success share to be known to ± ``margin``.

    z² p(1 - p)/margin², times the design effect ``inflation``; ± 0.1 at a share of one half needs
    97 (96.04 rounded up).

    Raises
    ------
    InvalidInputError
        If a share does not lie between 0 and 1.
    """
    _check(margin=margin, share=share, level=level)
    z = float(ndtri(0.5 + level / 2))
    return math.ceil(z * z * share * (1 - share) / margin**2 * inflation - 1e-9)


def margin_of(
    n_samples: int, *, share: float = 0.5, level: float = 0.95, inflation: float = 1.0
) -> float:
    """Return half the width of the interval of a share from ``n_samples`` samples."""
    _check(share=share, level=level)
    if n_samples < 1:
        msg = f"expected one sample or more, got {n_samples}"
        raise InvalidInputError(msg)
    return float(ndtri(0.5 + level / 2)) * math.sqrt(share * (1 - share) * inflation / n_samples)


def _effect_size(first: float, second: float) -> float:
    """Return Cohen's h of two shares (Cohen 1988, section 6.2)."""
    return abs(2 * math.asin(math.sqrt(first)) - 2 * math.asin(math.sqrt(second)))


def power_of(
    baseline: float,
    share: float,
    *,
    n_samples: int,
    level: float = 0.95,
    inflation: float = 1.0,
    n_comparisons: int = 1,
) -> float:
    """Return the probability to tell a share from the baseline's, ``n_samples`` of each.

    Two-sided, by the arcsine transform (Cohen 1988, section 6.2); ``n_comparisons`` strengths
    against one baseline divide the error (Bonferroni).
    """
    _check(baseline=baseline, share=share, level=level)
    z = float(ndtri(1 - (1 - level) / 2 / n_comparisons))
    shift = _effect_size(baseline, share) * math.sqrt(n_samples / 2 / inflation)
    return float(ndtr(shift - z) + ndtr(-shift - z))


def samples_for_difference(
    baseline: float,
    share: float,
    *,
    power: float = 0.8,
    level: float = 0.95,
    inflation: float = 1.0,
    n_comparisons: int = 1,
) -> int:
    """Return the samples per strength at which :func:`power_of` reaches ``power``.

    Raises
    ------
    InvalidInputError
        If the two shares are equal, or one does not lie between 0 and 1.
    """
    _check(baseline=baseline, share=share, level=level, power=power)
    h = _effect_size(baseline, share)
    if h == 0:
        msg = f"both shares are {share}: no number of samples tells them apart"
        raise InvalidInputError(msg)
    z = float(ndtri(1 - (1 - level) / 2 / n_comparisons)) + float(ndtri(power))
    return math.ceil(2 * inflation * (z / h) ** 2 - 1e-9)
