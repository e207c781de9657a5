"""Specs and rows of the analyses that compare: directions, models, scores with behaviour."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from .base import Record
from .capture import Pool
from .result import ResultRow
from .text import Arm, Split

__all__ = [
    "ContrastSpec",
    "CorrelationRow",
    "CorrelationSpec",
    "GeometryRow",
    "GeometrySpec",
    "MapMethod",
    "SimilarityRow",
    "SimilaritySpec",
    "TextSelector",
    "TransferRow",
    "TransferSpec",
]

MapMethod = Literal["procrustes", "ridge", "cca"]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class TextSelector(Record):
    """Which texts an arm of a contrast is made of; what is None is not asked about.

    ``half`` takes the first or the second of two disjoint halves of the texts that the other
    keys select, drawn by the seed of the analysis: contrasts against one neutral arm each take
    a half of it, so that they share no text.
    """

    arm: Arm | None = None
    category: str | None = None
    scenario: str | None = None
    generator: str | None = None
    subset: str | None = None
    split: Split | None = None
    variant: str = "original"
    half: Literal[1, 2] | None = None


class ContrastSpec(Record):
    """A direction to be built: mean of the ``positive`` texts minus mean of the ``negative``."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=80)]
    positive: TextSelector
    negative: TextSelector


class GeometrySpec(Record):
    """Principal components, t-SNE, and the cosines between directions (SCIENCE §4).

    ``contrasts`` None takes positive against negative on the train split, or, where there are
    neutral texts, each of the two arms against its own half of them. ``shared`` says what to do
    with contrasts that have texts in common: refuse them, or flag every row of theirs.
    ``tsne_layers`` None takes the layer nearest two thirds of the depth.
    """

    encoding_type: ClassVar[str] = "actlake-geometry"

    contrasts: tuple[ContrastSpec, ...] | None = None
    pools: tuple[Pool, ...] | None = None
    n_components: Annotated[int, Field(ge=1)] = 10
    outlier_dims: Annotated[int, Field(ge=0)] = 3
    n_permutations: Count = 1000
    n_splits: Count = 200
    n_bootstrap: Count = 1000
    shared: Literal["refuse", "flag"] = "refuse"
    tsne_layers: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    tsne_seeds: tuple[int, ...] = (0, 1, 2)
    perplexity: Positive = 30.0
    seed: int = 0

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [contrast.name for contrast in self.contrasts or ()]
        if len(set(names)) < len(names) or self.contrasts == ():
            msg = f"contrasts need at least one, each with its own name, got {names}"
            raise ValueError(msg)
        return self


class GeometryRow(ResultRow):
    """One number of the geometry of a layer.

    ``space`` says in which coordinates a cosine is taken: raw, standardised, whitened or
    outliers_removed. ``construction`` is the cosine that independent noise alone would give,
    because the two contrasts have texts in common. ``disattenuated`` is the estimate over the
    root of the product of the two reliabilities.
    """

    encoding_type: ClassVar[str] = "actlake-geometry-row"

    contrast: str | None = None
    other: str | None = None
    component: int | None = None
    space: str | None = None
    null_mean: float | None = None
    null_sd: float | None = None
    isotropic_sd: float | None = None
    construction: float | None = None
    n_shared: int | None = None
    reliability: float | None = None
    reliability_other: float | None = None
    disattenuated: float | None = None
    disattenuated_reason: str | None = None


class SimilaritySpec(Record):
    """Debiased linear CKA and RSA between the layers of two models (SCIENCE §5).

    Memory grows with layers × (n_jackknife + 1) × max_texts²: 22 MB a layer at the defaults.
    """

    encoding_type: ClassVar[str] = "actlake-similarity"

    pools: tuple[Pool, ...] | None = None
    max_texts: Annotated[int, Field(ge=4)] = 700
    n_jackknife: Annotated[int, Field(ge=0)] = 10  # groups of scenarios left out in turn
    seed: int = 0


class SimilarityRow(ResultRow):
    """The similarity of a layer of this run with a layer of another run."""

    encoding_type: ClassVar[str] = "actlake-similarity-row"

    other_run: str
    other_model: str | None = None
    other_layer: int
    other_depth: float | None = None


class TransferSpec(Record):
    """A probe of one model carried to another by a map between them (SCIENCE §5).

    ``anchors`` are the texts that maps are fitted on: neutral texts, or the labelled texts of
    the train split (then only pairs of the test split are scored). ``layers`` None pairs every
    layer of the target with the source's layer at the nearest relative depth.
    """

    encoding_type: ClassVar[str] = "actlake-transfer"

    maps: Annotated[tuple[MapMethod, ...], Field(min_length=1)] = ("procrustes", "ridge", "cca")
    pools: tuple[Pool, ...] | None = None
    anchors: Literal["neutral", "train"] = "neutral"
    layers: tuple[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]], ...] | None = (
        None
    )
    n_components: Count = 64  # of Procrustes and CCA, at most what the anchors allow
    ridge_grid: Annotated[tuple[Positive, ...], Field(min_length=1)] = (
        1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0,
    )  # fmt: skip
    cca_grid: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1e-3, 1e-2, 1e-1, 0.5, 0.9)
    n_folds: Annotated[int, Field(ge=2)] = 5  # of the anchors
    max_folds: Annotated[int, Field(ge=2)] = 100  # of the pairs
    n_permuted: Count = 20
    n_random: Count = 200
    n_bootstrap: Annotated[int, Field(ge=0)] = 1000
    seed: int = 0


class TransferRow(ResultRow):
    """What a probe of ``source_run`` reaches on this run through a map, or a control of it."""

    encoding_type: ClassVar[str] = "actlake-transfer-row"

    source_run: str
    source_model: str | None = None
    source_layer: int
    source_depth: float | None = None
    map: str
    control: str | None = None
    map_r2: float | None = None
    n_anchors: int | None = None
    anchor_groups: str | None = None
    ceiling_estimate: float | None = None
    ceiling_delta: float | None = None  # estimate − ceiling_estimate on the same texts
    ceiling_delta_ci_low: float | None = None
    ceiling_delta_ci_high: float | None = None


class CorrelationSpec(Record):
    """Probe scores against rubric scores of the same texts (SCIENCE §10).

    Ratings at ``positive_from`` and above count as the positive class of the binary accuracy,
    those at ``negative_to`` and below as the negative one; what lies between is left out of it.
    A rating outside ``lowest`` … ``highest`` is missing, as is one that is no number.
    """

    encoding_type: ClassVar[str] = "actlake-correlation"

    id_column: str = "text"
    rating_column: str = "rating"
    lowest: float = 0.0
    highest: float = 2.0
    negative_to: float = 0.5
    positive_from: float = 1.5
    threshold: float = 0.0  # of the probe score
    n_bootstrap: Annotated[int, Field(ge=0)] = 2000
    seed: int = 0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.lowest <= self.negative_to < self.positive_from <= self.highest:
            msg = (
                "expected lowest <= negative_to < positive_from <= highest, got "
                f"{self.lowest}, {self.negative_to}, {self.positive_from}, {self.highest}"
            )
            raise ValueError(msg)
        return self


class CorrelationRow(ResultRow):
    """One agreement of probe scores with ratings, with what was missing."""

    encoding_type: ClassVar[str] = "actlake-correlation-row"

    rule: str | None = None
    n_missing: int | None = None  # texts with a score whose rating is missing or no number
    n_unknown: int | None = None  # rated texts that have no score
    cluster_ci_low: float | None = None
    cluster_ci_high: float | None = None
    cluster_ci_method: str | None = None
