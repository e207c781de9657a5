"""What the analyses beside the probes are asked for: nulls and confounds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .base import Record

__all__ = ["ConfoundSpec", "ControlConcept", "NullKind", "NullSpec"]

NullKind = Literal["label_flip_refit", "isotropic", "covariance_matched"]
ControlConcept = Literal["generator", "scenario", "markdown", "length", "sentiment", "random_label"]


class NullSpec(Record):
    """Null distributions of the held-out AUROC, the same draws in every layer.

    ``label_flip_refit`` exchanges the labels of whole pairs and refits under the same folds: the
    test of signal. ``isotropic`` and ``covariance_matched`` are random readouts, w ~ N(0, I) and
    w = X_cᵀg: whether a probe beats an arbitrary one. Each has its maximum over layers beside it.
    """

    kinds: Annotated[tuple[NullKind, ...], Field(min_length=1)] = (
        "label_flip_refit", "isotropic", "covariance_matched",
    )  # fmt: skip
    n_draws: Annotated[int, Field(ge=1)] = 1000
    seed: int = 0


class ConfoundSpec(Record):
    """Control concepts on the same texts, and what is regressed out of the activations."""

    concepts: tuple[ControlConcept, ...] = (
        "generator", "scenario", "markdown", "length", "sentiment", "random_label",
    )  # fmt: skip
    residualise: tuple[
        Literal["length", "markdown", "first_person", "generator", "scenario"], ...
    ] = ("length", "markdown", "first_person", "generator", "scenario")
    seed: int = 0
