"""t-SNE of activations: pictures only, never numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from ..schemas import InvalidInputError
from .auroc import Floats

__all__ = ["TSNE_CAPTION", "tsne_points"]

TSNE_CAPTION = (
    "t-SNE: distances and cluster sizes are not interpretable; compare the seeds, and read "
    "numbers off the principal components instead."
)
N_COMPONENTS = 50  # of the PCA before it, as van der Maaten & Hinton (2008) have it
MIN_TEXTS = 7  # below, no perplexity of at least 2 is under a third of them


def tsne_points(
    x: Floats, *, seeds: Sequence[int], perplexity: float = 30.0
) -> tuple[Floats, float]:
    """Return t-SNE coordinates, dims (seed, text, axis), and the perplexity that was used.

    Started from the principal components, whose jitter the seed decides. The perplexity is cut
    to below a third of the texts.

    Raises
    ------
    InvalidInputError
        If there are fewer than seven texts, or their activations are all equal.
    """
    n = x.shape[0]
    if n < MIN_TEXTS:
        msg = f"t-SNE needs {MIN_TEXTS} texts or more, got {n}"
        raise InvalidInputError(msg)
    centred = x - x.mean(axis=0)
    if not np.abs(centred).max() > 1e-12 * np.abs(x).max():
        msg = f"t-SNE of {n} texts whose activations are all equal shows nothing"
        raise InvalidInputError(msg)
    used = min(perplexity, (n - 1) / 3 - 1e-3)
    n_kept = min(N_COMPONENTS, n - 1, x.shape[1])
    reduced = PCA(n_kept, svd_solver="full").fit_transform(centred)
    results = []
    for seed in seeds:
        # PCA leaves nothing to chance: without jitter every seed would draw the same picture.
        start = reduced[:, :2] if n_kept > 1 else np.repeat(reduced[:, :1], 2, axis=1)
        start = start / max(float(start[:, 0].std()), 1e-300) * 1e-4
        start = start + np.random.default_rng(seed).normal(0, 1e-5, start.shape)
        model = TSNE(2, perplexity=used, init=start.astype(np.float32), random_state=seed)
        results.append(model.fit_transform(reduced))
    return np.stack(results).astype(np.float64), used
