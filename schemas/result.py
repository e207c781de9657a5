"""Results: tidy rows that carry their own controls and provenance."""

from __future__ import annotations

import math
from typing import ClassVar, Self

from pydantic import model_validator

from .base import Record

__all__ = ["ResultRow", "SteeringRow"]


class ResultRow(Record):
    """One estimate with everything a reader needs to judge it (one row of a tidy table).

    A missing ``estimate`` always has a ``reason``. ``subset`` is ``all`` or a designed subset of
    the corpus. ``layer`` is None for estimates that no layer owns (the bag of words).
    """

    encoding_type: ClassVar[str] = "actlake-result"

    analysis: str
    metric: str
    estimate: float | None
    reason: str | None = None
    run: str | None = None
    model: str | None = None
    site: str | None = None
    pool: str | None = None
    layer: int | None = None
    depth: float | None = None  # relative depth, (layer + 1) / n_layers
    method: str | None = None
    subset: str = "all"

    ci_low: float | None = None
    ci_high: float | None = None
    ci_level: float = 0.95
    ci_method: str | None = None
    boundary: bool = False  # the estimate lies at 0 or 1, where the usual interval has width 0

    null: str | None = None
    n_draws: int | None = None
    p_value: float | None = None
    p_value_max: float | None = None  # corrected over layers by the maximum statistic

    bow_estimate: float | None = None
    bow_delta: float | None = None  # estimate - bow_estimate on the same texts
    bow_delta_ci_low: float | None = None
    bow_delta_ci_high: float | None = None
    surface_estimate: float | None = None  # of length, markdown, person and readability
    surface_delta: float | None = None
    surface_delta_ci_low: float | None = None
    surface_delta_ci_high: float | None = None
    concept: str | None = None  # what is read where it is not the arm (control concepts)
    control_estimate: float | None = None  # the same probe on a random label of the same texts
    selectivity: float | None = None  # estimate - control_estimate (Hewitt & Liang 1909.03368)
    verdict: str | None = None

    cv: str | None = None
    groups: str | None = None
    tuned: str | None = None
    n_texts: int | None = None
    n_pairs: int | None = None
    n_scenarios: int | None = None
    n_generators: int | None = None

    token_mask: str | None = None
    template_digest: str | None = None
    dtype: str | None = None
    dataset_digest: str | None = None
    split_digest: str | None = None
    seed: int | None = None
    code_version: str | None = None
    store_url: str | None = None
    content_digest: str | None = None

    @model_validator(mode="after")
    def _reasoned(self) -> Self:
        if (self.estimate is None or not math.isfinite(self.estimate)) and not self.reason:
            msg = f"{self.analysis}/{self.metric}: a missing estimate needs a reason"
            raise ValueError(msg)
        return self


class SteeringRow(ResultRow):
    """One steering condition: a direction at a strength, in all four units.

    ``alpha_raw`` multiplies the unit vector; ``alpha_separation`` is alpha over the distance of
    the class means; ``alpha_norm`` alpha over the mean residual norm without special tokens;
    ``alpha_angle`` the mean angle in degrees between the residual before and after. Where
    several layers are steered at once, ``layers`` names them (``2+3+4``), ``layer`` is None and
    every unit is the mean over them. A system prompt in place of steering (direction
    ``system_prompt``, ``prompt`` its arm) has strength 0 in all units.
    """

    encoding_type: ClassVar[str] = "actlake-steering"

    direction: str
    direction_index: int = 0
    layers: str | None = None
    prompt_set: str = "all"
    prompt: str | None = None
    alpha_raw: float
    alpha_separation: float
    alpha_norm: float
    alpha_angle: float
