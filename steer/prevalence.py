"""What a judge's errors do to a share, and how far raters agree."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from ..corpus.agreement import ordinal_alpha
from ..schemas import InvalidInputError, Prevalence, RaterAgreement
from .clusters import percentiles

__all__ = ["correct_prevalence", "rater_agreement"]


def correct_prevalence(
    n_called: int,
    n_texts: int,
    *,
    true_called: int,
    n_positive: int,
    false_called: int,
    n_negative: int,
    level: float = 0.95,
) -> Prevalence:
    """Return the share of positive texts behind the share that a judge calls positive.

    (observed + specificity - 1)/(sensitivity + specificity - 1), cut off at 0 and 1 (Rogan &
    Gladen 1978, doi 10.1093/oxfordjournals.aje.a112510), with the interval of Lang & Reiczigel
    2014 (doi 10.1016/j.prevetmed.2013.09.015), which counts the calibration set's own error.

    Parameters
    ----------
    n_called, n_texts
        Texts that the judge calls positive, of all.
    true_called, n_positive
        Of the calibration set's positive texts, those that the judge calls positive.
    false_called, n_negative
        Of its negative texts, those that the judge calls positive.
    level
        Of the interval.

    Raises
    ------
    InvalidInputError
        If a count is negative or exceeds what it is of, or a class of the calibration is empty.
    """
    parts = ((n_called, n_texts), (true_called, n_positive), (false_called, n_negative))
    if any(not 0 <= part <= whole or whole < 1 for part, whole in parts):
        shown = ", ".join(f"{part} of {whole}" for part, whole in parts)
        msg = (
            f"got {shown}; expected counts of texts, of positive and of negative calibration "
            "texts, with one text or more in each"
        )
        raise InvalidInputError(msg)
    observed = n_called / n_texts
    sensitivity, specificity = true_called / n_positive, 1 - false_called / n_negative
    head = {
        "observed": observed, "sensitivity": sensitivity, "specificity": specificity,
        "n_texts": n_texts, "n_positive": n_positive, "n_negative": n_negative, "ci_level": level,
    }  # fmt: skip
    z = float(ndtri(0.5 + level / 2))
    # Agresti-Coull counts of all three shares.
    share = (n_called + z * z / 2) / (n_texts + z * z)
    se, n_se = (true_called + 1) / (n_positive + 2), n_positive + 2
    sp, n_sp = (n_negative - false_called + 1) / (n_negative + 2), n_negative + 2
    youden = sensitivity + specificity - 1
    if youden <= 0 or se + sp - 1 <= 0:
        reason = (
            f"the judge tells nothing: sensitivity {sensitivity:.2f} and specificity "
            f"{specificity:.2f} add up to 1 or less"
        )
        return Prevalence.parse({**head, "estimate": None, "reason": reason})
    raw = (observed + specificity - 1) / youden
    adjusted = (share + sp - 1) / (se + sp - 1)
    by_se, by_sp = se * (1 - se) / n_se, sp * (1 - sp) / n_sp
    shift = 2 * z * z * (adjusted * by_se - (1 - adjusted) * by_sp)
    variance = (
        share * (1 - share) / (n_texts + z * z) + adjusted**2 * by_se + (1 - adjusted) ** 2 * by_sp
    ) / (se + sp - 1) ** 2
    ends = [adjusted + shift + side * z * math.sqrt(variance) for side in (-1, 1)]
    low, high = (min(1.0, max(0.0, end)) for end in ends)
    estimate = min(1.0, max(0.0, raw))
    conflict = None
    if ends[1] < 0 or ends[0] > 1:
        conflict = (
            "the judge calls fewer or more texts positive than its errors on the calibration set "
            "allow: that set is unlike these texts"
        )
    return Prevalence.parse(
        {
            **head,
            "estimate": estimate,
            "reason": conflict,
            "boundary": estimate != raw,
            "ci_low": min(low, estimate),
            "ci_high": max(high, estimate),
        }
    )


def rater_agreement(
    ratings: ArrayLike, *, n_bootstrap: int = 1000, level: float = 0.95, seed: int = 0
) -> RaterAgreement:
    """Return Krippendorff's ordinal alpha of ``ratings``, dims (rater, text), NaN for none.

    Krippendorff 2011, Computing Krippendorff's Alpha-Reliability. The interval resamples texts.

    Raises
    ------
    InvalidInputError
        If there are fewer than two raters.
    """
    values = np.asarray(ratings, dtype=np.float64)
    if values.ndim != 2 or len(values) < 2:
        msg = f"agreement needs the ratings of two raters or more, got shape {values.shape}"
        raise InvalidInputError(msg)
    values = values[:, np.isfinite(values).sum(axis=0) >= 2]
    head = {"n_texts": values.shape[1], "n_raters": len(values), "ci_level": level, "seed": seed}
    if values.shape[1] < 2:
        return RaterAgreement.parse(
            {**head, "estimate": None, "reason": "two texts have no two ratings"}
        )

    def alpha(part: np.ndarray) -> float:
        found = ordinal_alpha(part)
        return math.nan if found is None else found

    estimate = alpha(values)
    if not math.isfinite(estimate):
        return RaterAgreement.parse({**head, "estimate": None, "reason": "all ratings are equal"})
    rng = np.random.default_rng(seed)
    n = values.shape[1]
    draws = np.array([alpha(values[:, rng.integers(0, n, n)]) for _ in range(n_bootstrap)])
    interval = percentiles(draws, level=level)
    low, high = interval if interval is not None else (None, None)
    return RaterAgreement.parse({**head, "estimate": estimate, "ci_low": low, "ci_high": high})
