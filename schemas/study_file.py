"""The study file: one TOML that says what a study runs."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from .ablation import AblationSpec
from .analysis import ConfoundSpec, NullSpec
from .base import Record
from .capture import CaptureSpec
from .comparison import GeometrySpec, SimilaritySpec, TransferSpec
from .diversity import StatsSpec
from .doses import DoseSpec
from .intervention import MatchedSpec, MediateSpec, PatchSpec
from .scoring import JudgeSpec, ScoreSpec
from .shift import NegativeSpec, ScenarioSpec
from .steer_transfer import SteerTransferSpec
from .study import (
    BagOfWordsSpec,
    ExtractSpec,
    PcaSpec,
    ProbeSpec,
    RandomSpec,
    SteerSpec,
    StudyCorpus,
    StudyModel,
)
from .text import Split
from .validation import ValidateSpec
from .variant import VariantSpec

__all__ = ["MatchedPersonas", "StudyBudget", "StudyContrasts", "StudyFile", "StudyTexts"]

Words = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class MatchedPersonas(Record):
    """Two system prompts of opposite disposition that have as many tokens as each other.

    The same words in another order are matched under every tokenizer. ``same_class`` is another
    wording of the base's disposition, for the placebo of patching.
    """

    source: Words
    base: Words
    same_class: Words | None = None


class StudyContrasts(Record):
    """What is patched and mediated: pairs of the corpus under matched personas.

    Pairs are spread over scenarios; each takes the next persona whose prompts have equal length
    under the model's tokenizer.
    """

    personas: Annotated[tuple[MatchedPersonas, ...], Field(min_length=1)]
    n: Count = 24
    split: Split | None = "test"
    subsets: tuple[str, ...] | None = None


class StudyTexts(Record):
    """Texts that steered models write, and how they are scored.

    ``alphas`` are in ``unit``. A fraction of prompts is not drawn: they are the first
    ``n_prompts`` of the split, spread over scenarios. ``judge`` None leaves the rubric out.
    """

    alphas: Annotated[tuple[Finite, ...], Field(min_length=1)] = (-2.0, -1.0, 0.0, 1.0, 2.0)
    unit: Literal["raw", "separation", "norm"] = "separation"
    positions: Literal["prompt-all", "prompt-last", "response", "all"] = "all"
    n_prompts: Count = 24
    split: Split | None = None
    subsets: tuple[str, ...] | None = None
    n_random: Annotated[int, Field(ge=0)] = 3
    n_seeds: Count = 1
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    max_new_tokens: Count = 128
    batch_rows: Count = 64
    score: ScoreSpec = ScoreSpec()
    judge: JudgeSpec | None = None

    @model_validator(mode="after")
    def _answerable(self) -> Self:
        if 0.0 not in self.alphas:
            msg = "alphas lack 0, the baseline that every effect is against"
            raise ValueError(msg)
        if self.temperature == 0 and self.n_seeds > 1:
            msg = "at temperature 0 every seed gives the same text; leave n_seeds at 1"
            raise ValueError(msg)
        return self


class StudyBudget(Record):
    """What the rented machine costs, and how fast it is taken to be before it was measured.

    ``tflops`` is what a forward pass reaches, ``new_tokens_per_second`` what generation reaches
    per billion parameters: a plan's hours are estimates, and the run says what it took. A plan
    says when it is above ``max_dollars``; what stops a machine is ``cloud run --max-dollars``.
    """

    price_per_hour: Positive = 1.5
    max_dollars: Positive | None = None
    tflops: Positive = 150.0
    new_tokens_per_second: Positive = 12000.0


class StudyFile(Record):
    """A whole study: corpus, models, capture, analyses, interventions.

    A section that is None is a stage that the study does not have.
    """

    encoding_type: ClassVar[str] = "actlake-study"

    name: Annotated[str, StringConstraints(pattern=r"^[\w.-]+$", max_length=80)]
    title: str = ""
    corpus: StudyCorpus = StudyCorpus()
    models: Annotated[tuple[StudyModel, ...], Field(min_length=1)]
    capture: CaptureSpec = CaptureSpec()
    extract: ExtractSpec = ExtractSpec()
    probe: ProbeSpec = ProbeSpec()
    random: RandomSpec = RandomSpec()
    bow: BagOfWordsSpec = BagOfWordsSpec()
    pca: PcaSpec = PcaSpec()
    steer: SteerSpec = SteerSpec()
    budget: StudyBudget = StudyBudget()

    validation: ValidateSpec | None = None
    stats: StatsSpec | None = None
    variants: VariantSpec | None = None
    nulls: NullSpec | None = None
    confounds: ConfoundSpec | None = None
    ablation: AblationSpec | None = None
    geometry: GeometrySpec | None = None
    similarity: SimilaritySpec | None = None
    transfer: TransferSpec | None = None
    contrasts: StudyContrasts | None = None
    patch: PatchSpec | None = None
    mediate: MediateSpec | None = None
    match: MatchedSpec | None = None
    texts: StudyTexts | None = None
    doses: DoseSpec | None = None
    negative: NegativeSpec | None = None
    task_free: ScenarioSpec | None = None
    steer_transfer: SteerTransferSpec | None = None

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [model.run_name for model in self.models]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            msg = f"models have the runs {twice} twice; give each its own run"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for name, other in (
            ("patch", "contrasts"), ("mediate", "contrasts"), ("match", "contrasts"),
            ("negative", "texts"), ("task_free", "texts"),
        ):  # fmt: skip
            if getattr(self, name) is not None and getattr(self, other) is None:
                msg = f"[{name}] needs a section [{other}]"
                raise ValueError(msg)
        return self
