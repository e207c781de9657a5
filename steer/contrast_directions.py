"""Directions fitted on the runs of contrasts themselves, for the positions that patches touch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..extract import LoadedModel
from ..schemas import InvalidInputError, Place
from .aligned import AlignedCase
from .patched_runs import capture_runs

__all__ = ["fit_contrast_direction"]


@torch.inference_mode()
def fit_contrast_direction(
    loaded: LoadedModel,
    cases: Sequence[AlignedCase],
    *,
    place: Place,
    shuffle_seed: int | None = None,
) -> np.ndarray:
    """Return the mean difference of source and base at a place as unit vectors (layer, hidden).

    Fit it on other contrasts than those that are patched along it.

    Parameters
    ----------
    shuffle_seed
        Give half of the contrasts, drawn at random, the opposite sign: the direction from
        shuffled labels.

    Raises
    ------
    InvalidInputError
        If there is no contrast, or the runs do not differ at this place in some layer.
    """
    if not cases:
        msg = "there is no contrast to fit a direction on; expected at least one"
        raise InvalidInputError(msg)
    n_layers, hidden = loaded.info.n_layers, loaded.info.hidden_size
    signs = np.ones(len(cases))
    if shuffle_seed is not None:
        order = np.random.default_rng(shuffle_seed).permutation(len(cases))
        signs[order[: (len(cases) + 1) // 2]] = -1
    total = np.zeros((n_layers, hidden))
    for case, sign in zip(cases, signs, strict=True):
        clean, _ = capture_runs(loaded, case, place=place)
        for layer in range(n_layers):
            for c in (0, 1):
                where = torch.from_numpy(case.columns(place, c)).to(loaded.device)
                moved = clean.states("source", c, layer) - clean.states("base", c, layer)
                total[layer] += sign * moved[where].double().mean(dim=0).cpu().numpy()
    norms = np.linalg.norm(total, axis=1, keepdims=True)
    if (norms == 0).any():
        layers = np.flatnonzero(norms[:, 0] == 0).tolist()
        msg = f"at {place!r} the runs do not differ in layers {layers}, so there is no direction"
        raise InvalidInputError(msg)
    return np.asarray(total / norms)
