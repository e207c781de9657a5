"""Placebo directions of a run: from shuffled labels, and without what confounds explain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from ..schemas import (
    BagOfWordsSpec,
    Direction,
    DirectionSet,
    InvalidInputError,
    ProbeSpec,
    Text,
    array_name,
    require_like,
)
from .arrays import read_layer
from .auroc import Floats
from .design import Design, make_design
from .splits import split_fold
from .surface import SURFACE_FEATURES, surface_features
from .words import bag_of_words_scores

__all__ = ["orthogonal_direction", "placebo_directions"]

CONFOUNDS = ("length", "markdown", "first_person")
METHOD = "diff_means"
_NOTHING = 1e-8  # of a vector's length: what is left is rounding
_SAME = 0.95  # two directions with a larger cosine are one by construction (SCIENCE §4)


def placebo_directions(
    ds: xr.Dataset,
    texts: Sequence[Text],
    *,
    pool: str,
    layers: Sequence[int],
    kinds: Sequence[str] = ("shuffled", "orthogonal"),
    n_shuffled: int = 5,
    against: Sequence[Direction] = (),
    seed: int = 0,
) -> DirectionSet:
    """Return what is steered beside a difference of means to see that the direction matters.

    All are fitted on the pairs of the train split, as the probe's own direction is. ``shuffled-N``
    is the difference of means after half of the pairs, drawn anew for each N, changed their
    labels. ``orthogonal`` is the difference of means without its part in the span of what
    confounds move (length, markdown, first person, and the held-out score of a bag of words) and
    of the directions ``against``; its ``norm`` is what is left of the class separation. What a
    confound moves is the slope of the activations on it within the arms: the concept itself, by
    which the arms differ, is not among it.

    Parameters
    ----------
    ds
        An opened run.
    texts
        The corpus of the run.
    pool, layers
        Where.
    kinds
        ``shuffled`` and ``orthogonal``, or one of them.
    against
        Directions of the same place that are projected out as well, such as a task probe; those
        of other layers are not read.

    Raises
    ------
    InvalidInputError
        If there is no training pair to split, a direction of ``against`` lives elsewhere or is
        the concept's own, or the confounds explain all of the direction.
    NotFoundError
        If the pool or a layer is missing.
    """
    probe = ProbeSpec.parse({"pools": [pool], "seed": seed}, where="pool")
    design = make_design(ds, texts, spec=probe, site="resid_post")
    train = split_fold(design.table, max_folds=2, seed=seed).train
    if train.size < 2:
        msg = f"{train.size} training pairs cannot be split into two halves; expected two or more"
        raise InvalidInputError(msg)
    features = _confounds(design, train) if "orthogonal" in kinds else np.zeros((2, train.size, 0))
    signs = _balanced_signs(train.size, n_draws=n_shuffled, seed=seed)
    lacking = [layer for layer in layers if layer not in design.layers]
    if lacking:
        msg = f"the run has no layers {lacking}; it has {design.layers}"
        raise InvalidInputError(msg)
    found: list[Direction] = []
    for layer in layers:
        at = design.layers.index(layer)
        values = read_layer(ds, array_name(design.site, pool), at)
        points = values[design.table.rows[:, train]].astype(np.float64)
        half = (points[0] - points[1]) / 2
        own = _direction(design, pool, layer, method=METHOD, vector=2 * half.mean(axis=0),
                         seed=seed)  # fmt: skip
        if "shuffled" in kinds:
            found += [
                _direction(design, pool, layer, method=f"shuffled-{n}",
                           vector=2 * (sign[:, None] * half).mean(axis=0), seed=seed)
                for n, sign in enumerate(signs)
            ]  # fmt: skip
        if "orthogonal" in kinds:
            here = [one for one in against if one.layer == layer]
            found.append(orthogonal_direction(own, _slopes(points, features), against=here))
    return DirectionSet(directions=tuple(found))


def orthogonal_direction(
    direction: Direction, slopes: Floats, *, against: Sequence[Direction] = ()
) -> Direction:
    """Return a direction without its part in the span of ``slopes`` (slope, hidden) and others.

    Raises
    ------
    InvalidInputError
        If a direction of ``against`` lives elsewhere or is (minus) this one, or nothing is left.
    """
    vector = np.asarray(direction.vector)
    for other in against:
        require_like([direction, other])
        cosine = float(vector @ np.asarray(other.vector))
        if abs(cosine) > _SAME:
            msg = (
                f"{other.name} has cosine {cosine:.2f} with the direction: both are fitted on the "
                "same contrast, so nothing would be left; fit the other on a contrast of its own"
            )
            raise InvalidInputError(msg)
    span = np.vstack([slopes, *([one.vector] for one in against)])
    span = span[np.linalg.norm(span, axis=1) > 0]
    span = span / np.linalg.norm(span, axis=1, keepdims=True)
    if len(span):
        _, sizes, basis = np.linalg.svd(span, full_matrices=False)
        basis = basis[sizes > _NOTHING * sizes[0]]
        left = vector - basis.T @ (basis @ vector)
    else:
        left = vector
    length = float(np.linalg.norm(left))
    if length <= _NOTHING:
        msg = f"the confounds explain all of {direction.name}: no orthogonal part is left"
        raise InvalidInputError(msg)
    changes = {
        "method": "orthogonal",
        "vector": tuple((left / length).tolist()),
        "norm": direction.norm * length,
        "fitted_on": f"{direction.fitted_on}, {length:.3f} of the direction",
    }
    return direction.model_copy(update=changes)


def _confounds(design: Design, train: np.ndarray) -> Floats:
    """Return the confounds of the training texts, dims (arm, pair, feature)."""
    columns = [SURFACE_FEATURES.index(name) for name in CONFOUNDS]
    surface = surface_features(design.responses)[:, columns].reshape(2, design.table.n_pairs, -1)
    words = bag_of_words_scores(design.responses, design.folds.folds, spec=BagOfWordsSpec())
    both = np.concatenate([surface, np.nan_to_num(words)[:, :, None]], axis=2)
    return np.asarray(both[:, train])


def _slopes(points: Floats, features: Floats) -> Floats:
    """Return how activations move with each feature within the arms, dims (feature, hidden).

    The features are taken together (least squares): what length does is not counted again as
    what words do.
    """
    x = (points - points.mean(axis=1, keepdims=True)).reshape(-1, points.shape[-1])
    f = (features - features.mean(axis=1, keepdims=True)).reshape(len(x), -1)
    spread = f.std(axis=0)
    f = f[:, spread > 1e-12 * np.maximum(np.abs(features).max(axis=(0, 1)), 1)]
    if f.shape[1] == 0:
        return np.zeros((0, points.shape[-1]))
    result: Floats = np.linalg.lstsq(f / f.std(axis=0), x, rcond=1e-10)[0]
    return result


def _balanced_signs(n_pairs: int, *, n_draws: int, seed: int) -> Floats:
    """Return +1 and -1 for halves of the pairs, dims (draw, pair): the concept itself cancels."""
    rng = np.random.default_rng(seed)
    signs = np.ones(n_pairs)
    signs[: n_pairs // 2] = -1
    return np.stack([rng.permutation(signs) for _ in range(n_draws)])


def _direction(
    design: Design, pool: str, layer: int, *, method: str, vector: Floats, seed: int
) -> Direction:
    norm = float(np.linalg.norm(vector))
    if norm <= 0:
        msg = f"{method} at layer {layer} has no direction: the arms do not differ there"
        raise InvalidInputError(msg)
    origin = design.provenance()
    names = ("content_digest", "store_url", "dataset_digest", "split_digest", "code_version")
    return Direction(
        method=method,
        site=design.site,
        layer=layer,
        pool=pool,
        vector=tuple((vector / norm).tolist()),
        norm=norm,
        bias=0.0,
        model=str(design.ds.attrs.get("model", "unknown")),
        run=str(design.ds.attrs.get("run", "unknown")),
        fitted_on=split_fold(design.table, max_folds=2, seed=seed).name,
        seed=seed,
        reliability_reason="a placebo",
        **{name: origin.get(name) for name in names},
    )
