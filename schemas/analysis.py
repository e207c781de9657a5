"""What the analyses of a run are asked for."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from .ablation import AblationSpec
from .base import Record
from .comparison import CorrelationSpec, GeometrySpec, SimilaritySpec, TransferSpec
from .study import BagOfWordsSpec, ProbeSpec, RandomSpec

__all__ = [
    "AnalysisPart",
    "AnalyzeSpec",
    "ConfoundSpec",
    "ControlConcept",
    "NullKind",
    "NullSpec",
]

AnalysisPart = Literal["probe", "generators", "random", "nulls", "confounds"]

NullKind = Literal["label_flip_refit", "isotropic", "covariance_matched"]
ControlConcept = Literal["generator", "scenario", "markdown", "length", "sentiment", "random_label"]


class NullSpec(Record):
    """Null distributions of the held-out AUROC, the same draws in every layer.

    ``label_flip_refit`` exchanges the labels of whole pairs and refits under the same folds: the
    test of signal. ``isotropic`` and ``covariance_matched`` are random readouts, w ~ N(0, I) and
    w = X_cᵀg: whether a probe beats an arbitrary one. Each has its maximum over layers beside it.
    ``logistic_draws`` are the refits of the logistic probe, each of which costs about what the
    probe does; with 0 its row says that there are none.
    """

    kinds: Annotated[tuple[NullKind, ...], Field(min_length=1)] = (
        "label_flip_refit", "isotropic", "covariance_matched",
    )  # fmt: skip
    n_draws: Annotated[int, Field(ge=1)] = 1000
    logistic_draws: Annotated[int, Field(ge=0)] = 0  # at most n_draws are made
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


class AnalyzeSpec(Record):
    """Everything that ``actlake analyze`` computes.

    ``probe`` to ``confounds`` come from one reading of a run's layers: ``probe`` says the folds
    and pools of all of them; ``generators`` are the same probes under leave-one-generator-out.
    ``geometry`` and ``ablation`` read a run again, ``similarity`` and ``transfer`` the runs that
    have texts in common, ``correlation`` the kept scores and a table of ratings.
    """

    encoding_type: ClassVar[str] = "actlake-analysis"

    probe: ProbeSpec = ProbeSpec(methods=("diff_means", "lda", "logistic", "ridge", "pca_diff"))
    random: RandomSpec = RandomSpec()
    bow: BagOfWordsSpec = BagOfWordsSpec()
    nulls: NullSpec = NullSpec()
    confounds: ConfoundSpec = ConfoundSpec()
    geometry: GeometrySpec = GeometrySpec()
    ablation: AblationSpec = AblationSpec()
    similarity: SimilaritySpec = SimilaritySpec()
    transfer: TransferSpec = TransferSpec()
    correlation: CorrelationSpec = CorrelationSpec()

    def of(self, part: AnalysisPart) -> dict[str, Record]:
        """Return the specs that decide what a part computes."""
        names = {
            "probe": ("probe", "random", "bow"),
            "generators": ("probe", "random", "bow"),
            "random": ("probe", "random"),
            "nulls": ("probe", "nulls"),
            "confounds": ("probe", "bow", "confounds"),
        }[part]
        return {name: getattr(self, name) for name in names}
