"""The four-parameter logistic of success against strength, many curves at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, softmax, xlogy

from ..schemas import InvalidInputError
from .clusters import Floats

__all__ = ["LogisticCurves", "fit_curves"]

_STARTS = [(m, k) for m in (0.2, 0.5, 0.8) for k in (np.log(6.0), np.log(25.0))]
# Without a prior a flat curve has no finite maximum. In units of the width of the grid: guess
# and lapse rates of a few per cent that may reach one half, a steepness from 0.5 to 200.
_CENTRE = np.array([-3.5, -3.5, np.log(10.0), 0.5])
_PRECISION = 1 / np.array([2.5, 2.5, 1.5, 10.0]) ** 2
_LOW = np.array([-12.0, -12.0, np.log(0.3), -0.5])
_HIGH = np.array([6.0, 6.0, np.log(300.0), 1.5])
_N_STEPS = 60
_SMALL = 1e-9


@dataclass(frozen=True)
class LogisticCurves:
    """Curves P = guess + (1 - guess - lapse)/(1 + exp(-steepness (alpha - alpha50))), (curve,).

    ``log_likelihood`` has no constant and no prior.
    """

    guess: Floats
    lapse: Floats
    steepness: Floats
    alpha50: Floats
    log_likelihood: Floats

    def predict(self, alpha: ArrayLike) -> Floats:
        """Return the success rates at strengths (dose,), dims (curve, dose)."""
        x = np.asarray(alpha, dtype=np.float64)[None, :] - self.alpha50[:, None]
        rise = (1 - self.guess - self.lapse)[:, None]
        result: Floats = self.guess[:, None] + rise * expit(self.steepness[:, None] * x)
        return result


def fit_curves(alphas: ArrayLike, successes: ArrayLike, trials: ArrayLike) -> LogisticCurves:
    """Return the most likely curve of every row of counts, under a weak prior.

    Fisher scoring with Levenberg's damping from six starts, all rows at once. alpha50 is kept
    within half a grid's width of the grid.

    Parameters
    ----------
    alphas
        Strengths, dims (dose,), three or more unlike ones.
    successes, trials
        Counts, dims (curve, dose), or (dose,) for one curve; need not be whole.

    Raises
    ------
    InvalidInputError
        If there are fewer than three strengths, the counts have another shape, or successes
        exceed trials.
    """
    x = np.asarray(alphas, dtype=np.float64)
    s, n = (np.atleast_2d(np.asarray(v, dtype=np.float64)) for v in (successes, trials))
    if x.ndim != 1 or np.unique(x).size < 3 or not np.isfinite(x).all():
        msg = f"a logistic curve needs three unlike finite strengths or more, got {x.tolist()}"
        raise InvalidInputError(msg)
    if s.shape != n.shape or s.shape[1] != x.size or (s > n + _SMALL).any() or (s < 0).any():
        msg = (
            f"expected as many successes {s.shape} as trials {n.shape}, one per strength "
            f"({x.size}), and no more successes than trials"
        )
        raise InvalidInputError(msg)
    low, width = float(x.min()), float(np.ptp(x))
    scaled = (x - low) / width
    n_curves, n_starts = len(s), len(_STARTS)
    theta = np.tile(_CENTRE, (n_starts, n_curves, 1))
    for i, (middle, steepness) in enumerate(_STARTS):
        theta[i, :, 2], theta[i, :, 3] = steepness, middle
    flat = theta.reshape(-1, 4)
    s_all, n_all = (np.tile(v, (n_starts, 1)) for v in (s, n))
    flat, objective = _climb(flat, scaled, s_all, n_all)
    best = objective.reshape(n_starts, n_curves).argmax(axis=0)
    chosen = flat.reshape(n_starts, n_curves, 4)[best, np.arange(n_curves)]
    guess, lapse, p = _rates(chosen, scaled)
    return LogisticCurves(
        guess=guess,
        lapse=lapse,
        steepness=np.exp(chosen[:, 2]) / width,
        alpha50=low + width * chosen[:, 3],
        log_likelihood=(xlogy(s, p) + xlogy(n - s, 1 - p)).sum(axis=1),
    )


def _rates(theta: Floats, x: Floats) -> tuple[Floats, Floats, Floats]:
    """Return guess and lapse rates (curve,) and success rates (curve, dose)."""
    zero = np.zeros((len(theta), 1))
    shares = softmax(np.concatenate([theta[:, :2], zero], axis=1), axis=1)
    sigma = expit(np.exp(theta[:, 2:3]) * (x[None] - theta[:, 3:4]))
    p = shares[:, :1] + shares[:, 2:] * sigma
    return shares[:, 0], shares[:, 1], p.clip(_SMALL, 1 - _SMALL)


def _objective(theta: Floats, x: Floats, s: Floats, n: Floats) -> Floats:
    p = _rates(theta, x)[2]
    prior = (_PRECISION * (theta - _CENTRE) ** 2).sum(axis=1) / 2
    result: Floats = (xlogy(s, p) + xlogy(n - s, 1 - p)).sum(axis=1) - prior
    return result


def _climb(theta: Floats, x: Floats, s: Floats, n: Floats) -> tuple[Floats, Floats]:
    """Return the parameters (curve, 4) at a maximum of the penalised likelihood, and its value."""
    damping = np.full(len(theta), 1e-2)
    value = _objective(theta, x, s, n)
    going = np.arange(len(theta))
    for _ in range(_N_STEPS):
        here = theta[going]
        slope, p = _slopes(here, x)
        score = ((s[going] - n[going] * p) / (p * (1 - p)))[:, :, None] * slope
        gradient = score.sum(axis=1) - _PRECISION * (here - _CENTRE)
        weight = (n[going] / (p * (1 - p)))[:, :, None]
        information = np.swapaxes(slope * weight, 1, 2) @ slope
        diagonal = np.einsum("bii->bi", information)
        diagonal += _PRECISION
        diagonal *= 1 + damping[going, None]
        step = np.linalg.solve(information, gradient[:, :, None])[:, :, 0]
        tried = np.clip(here + step.clip(-2, 2), _LOW, _HIGH)
        new = _objective(tried, x, s[going], n[going])
        better = new > value[going]
        gained = new - value[going]
        theta[going[better]] = tried[better]
        value[going[better]] = new[better]
        damping[going] = np.where(better, damping[going] / 5, damping[going] * 5)
        done = (better & (gained < 1e-8)) | (damping[going] > 1e8)
        going = going[~done]
        if going.size == 0:
            break
    return theta, value


def _slopes(theta: Floats, x: Floats) -> tuple[Floats, Floats]:
    """Return dP/dtheta (curve, dose, 4) and P (curve, dose)."""
    guess, lapse, p = (v[:, None] if v.ndim == 1 else v for v in _rates(theta, x))
    steepness = np.exp(theta[:, 2:3])
    away = x[None] - theta[:, 3:4]
    sigma = expit(steepness * away)
    rise = (1 - guess - lapse) * sigma * (1 - sigma) * steepness
    by_u = guess * (1 - guess) * (1 - sigma) + guess * lapse * sigma
    by_v = -guess * lapse * (1 - sigma) - lapse * (1 - lapse) * sigma
    return np.stack([by_u, by_v, rise * away, -rise], axis=-1), p
