"""The parts of a study file that say how runs are made, probed and steered."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from .base import Record, check_distinct
from .capture import Pool, SpanPool
from .errors import InvalidInputError
from .generation import PersonaSet
from .run import EngineName, RunId
from .sizes import parse_size
from .text import ArmNames

__all__ = [
    "RAW_GRID",
    "SEPARATION_GRID",
    "BagOfWordsSpec",
    "ExtractSpec",
    "PcaSpec",
    "ProbeMethod",
    "ProbeSpec",
    "RandomSpec",
    "SteerControl",
    "SteerSpec",
    "StudyCorpus",
    "StudyModel",
]

ProbeMethod = Literal["diff_means", "logistic", "lda", "ridge", "pca_diff"]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
SteerControl = Literal["shuffled", "orthogonal", "system_prompt"]


def _both_sides(sizes: tuple[float, ...]) -> tuple[float, ...]:
    return (*(-size for size in reversed(sizes)), 0.0, *sizes)


RAW_GRID = _both_sides((1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 25.0, 30.0))
SEPARATION_GRID = _both_sides((0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0))


class StudyCorpus(Record):
    """Where the texts come from: ``bundled:demo`` or a JSONL file beside the study file.

    ``scenarios`` is the file of their scenarios; a bundled corpus brings its own.
    """

    source: str = "bundled:demo"
    scenarios: str | None = None
    id: str | None = None
    arms: ArmNames = ArmNames()


class StudyModel(Record):
    """One model: a hub id, a local folder, or ``bundled:NAME``; ``run`` names its run."""

    model: str
    run: RunId | None = None
    revision: str | None = None
    steer: bool = True

    @property
    def run_name(self) -> str:
        """The run's name: its own, or the last part of the model's."""
        return self.run or self.model.removeprefix("bundled:").rstrip("/").rsplit("/", 1)[-1]


class ExtractSpec(Record):
    """How extraction is carried out; nothing here changes what is stored but for rounding.

    ``engine`` and ``batch_tokens`` are part of the plan, since other kernels and batches of
    another shape round differently. ``batch_tokens`` bounds rows x longest row of a batch, and
    with vLLM the tokens of a forward pass; ``auto`` takes as many as fit into the memory that is
    free, or for a run that was begun what it was begun with. ``tensor_parallel`` is vLLM's.
    ``chunk_size`` is the rows of a block (a number), or the most that an object takes
    uncompressed (``16MiB``); ``token_chunk`` the tokens of one object of a token array, else
    chosen by size.
    ``codec`` "none" leaves out compression. ``bits16`` stores arrays of single positions as the
    16-bit patterns of the model's own type; means stay float32. ``nonfinite`` says what becomes
    of NaN or infinity in an activation: ``stop`` ends the run and names text, layer and token;
    ``record`` stores the vector of that text and layer as NaN and notes the row in the commit
    record. ``compile`` runs compiled blocks, where a trial at load shows that what is captured
    around them (``resid_pre``, ``resid_post``) is the same. ``device_map`` spreads a model over
    all GPUs, then over host memory and disk, as accelerate does.
    """

    engine: EngineName = "transformers"
    batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = 16384
    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    chunk_size: Annotated[int, Field(ge=1)] | str = "16MiB"
    token_chunk: Annotated[int, Field(ge=1)] | None = None
    codec: Literal["blosc", "none"] = "blosc"
    bits16: bool = False
    nonfinite: Literal["stop", "record"] = "stop"
    device: str = "auto"
    device_map: Literal["auto", "balanced", "sequential"] | None = None
    compile: bool = False
    attn_implementation: str | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _readable(self) -> Self:
        if self.tensor_parallel > 1 and self.engine != "vllm":
            msg = "tensor_parallel needs engine = 'vllm'"
            raise ValueError(msg)
        if self.engine == "vllm" and (
            self.device != "auto" or self.attn_implementation or self.device_map
        ):
            msg = "device, device_map and attn_implementation are vLLM's own choice; leave them out"
            raise ValueError(msg)
        if self.compile and (self.engine == "vllm" or self.device_map):
            msg = "compile is for the transformers engine on one device, without device_map"
            raise ValueError(msg)
        if isinstance(self.chunk_size, str):
            try:
                parse_size(self.chunk_size)
            except InvalidInputError as err:
                msg = f"chunk_size: {err}, or the rows of a block as a bare number"
                raise ValueError(msg) from err
        return self


class ProbeSpec(Record):
    """Probes per layer under leave-one-scenario-out, or leave-one-generator-out.

    Every hyperparameter is chosen in folds over scenarios inside the training pairs:
    ``c_grid`` of the logistic probe, ``lambda_grid`` of ridge in units of the mean scatter per
    text. ``shrinkage`` of LDA's covariance has a closed form. ``n_reliability`` halves and
    resamples of the training pairs say how firm each direction is.
    """

    methods: Annotated[tuple[ProbeMethod, ...], Field(min_length=1)] = ("diff_means", "logistic")
    pools: tuple[Pool | SpanPool, ...] | None = None  # None: every pool of the run
    max_folds: Annotated[int, Field(ge=2)] = 100
    c_grid: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (1e-4, 1e-2, 1.0, 1e2)
    lambda_grid: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (
        1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2,
    )  # fmt: skip
    shrinkage: Literal["ledoit_wolf", "oas"] = "ledoit_wolf"
    groups: Literal["scenario", "generator"] = "scenario"
    n_bootstrap: Annotated[int, Field(ge=0)] = 1000
    n_reliability: Annotated[int, Field(ge=0)] = 20  # split halves, and bootstrap draws
    seed: int = 0


class RandomSpec(Record):
    """Isotropic random directions, the same draws in every layer."""

    n_directions: Annotated[int, Field(ge=1)] = 1000
    seed: int = 0


class BagOfWordsSpec(Record):
    """TF-IDF unigrams with logistic regression on the same folds as the probes."""

    ngram_max: Annotated[int, Field(ge=1, le=3)] = 1
    c: Annotated[float, Field(gt=0)] = 1.0


class PcaSpec(Record):
    """Principal components of the pooled activations, per layer."""

    n_components: Annotated[int, Field(ge=2)] = 10


class SteerSpec(Record):
    """An alpha sweep of the diff-of-means direction.

    ``alphas`` are in class separations unless ``unit`` says otherwise. ``layer`` None takes the
    layer where one class separation has the largest effect beyond random directions', on pairs
    of the train split; where the corpus has no such split, the layer that the probe's inner folds
    selected. ``top_layers`` sweeps as many of the best layers, each by itself, ``layers`` those
    that it names; with ``together`` all of them are steered at once as well, each along its own
    direction and in its own units.

    Beside ``n_random`` random directions ``controls`` are run: ``shuffled``, the direction of
    ``n_shuffled`` draws of shuffled labels; ``orthogonal``, the direction without what length,
    markdown, first person and a bag of words explain; ``system_prompt``, instructions of
    ``system_prompts`` (None: the bundled personas) in place of steering.
    """

    enabled: bool = True
    pool: Pool = "mean_response"
    layer: Annotated[int, Field(ge=0)] | None = None
    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    top_layers: Annotated[int, Field(ge=1)] = 1
    together: bool = False
    subsets: tuple[str, ...] | None = None  # of the corpus, for the prompts; None: all
    alphas: Annotated[tuple[FiniteFloat, ...], Field(min_length=1)] = (
        -4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0,
    )  # fmt: skip
    unit: Literal["raw", "separation", "norm"] = "separation"
    positions: Literal["prompt-all", "prompt-last", "response", "all"] = "all"
    n_random: Annotated[int, Field(ge=0)] = 20
    controls: tuple[SteerControl, ...] = ("shuffled", "orthogonal", "system_prompt")
    n_shuffled: Annotated[int, Field(ge=1)] = 5
    system_prompts: PersonaSet | None = None
    n_prompts: Annotated[int, Field(ge=1)] = 12
    seed: int = 0

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        chosen = [self.layer is not None, self.layers is not None, self.top_layers > 1]
        if sum(chosen) > 1:
            msg = "layer, layers and top_layers each choose what is steered; give one of them"
            raise ValueError(msg)
        for name, values in (("layers", self.layers), ("controls", self.controls)):
            check_distinct(name, values)
        several = self.top_layers > 1 if self.layers is None else len(self.layers) > 1
        if self.together and not several:
            msg = "together needs several layers: name layers, or top_layers of 2 or more"
            raise ValueError(msg)
        return self
