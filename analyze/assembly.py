"""What all tables of one probe run are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import xarray as xr

from .evaluate import HeldOut
from .layer import LayerJob, LayerResult

__all__ = ["NULL", "WORDS", "Assembly"]

NULL = "isotropic"
WORDS = "tfidf_logistic"


@dataclass(frozen=True)
class Assembly:
    """A run's dataset, the job of its layers and their results by pool and layer."""

    ds: xr.Dataset
    site: str
    job: LayerJob
    results: Mapping[tuple[str, int], LayerResult]
    provenance: Mapping[str, Any]

    @property
    def pools(self) -> list[str]:
        """Pools in the order they were analysed."""
        return list(dict.fromkeys(pool for pool, _ in self.results))

    @property
    def layers(self) -> list[int]:
        """Layers in the order of the run."""
        return list(dict.fromkeys(layer for _, layer in self.results))

    @property
    def sets(self) -> list[HeldOut]:
        """Held-out sets: of the cross-validation, then of the train-to-test split."""
        return [*self.job.held, *self.job.held_test]

    def in_cv(self, held: HeldOut) -> bool:
        """Whether ``held`` was held out by the cross-validation, not by the corpus's split."""
        return held.cv == self.job.folds.scheme

    def fields(self, analysis: str, held: HeldOut) -> dict[str, Any]:
        """Return the fields that all rows of a held-out set share.

        The analysis of a row from the train-to-test split ends in ``_test``: one metric of one
        layer stands once under one analysis, whatever a reader filters by.
        """
        return {
            **self.provenance,
            **held.counts,
            "analysis": analysis if self.in_cv(held) else f"{analysis}_test",
            "subset": held.subset,
            "cv": held.cv,
            "groups": self.job.folds.groups if self.in_cv(held) else "scenario",
            "seed": self.job.spec.seed,
        }
