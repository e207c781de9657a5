"""What the GPU stages of a study ask of their models, known before any weight is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .graph import Cost
from .schemas import (
    MatchedSpec,
    MediateSpec,
    PatchSpec,
    SteerTransferSpec,
    StudyBudget,
    StudyFile,
    StudyModel,
    StudyTexts,
    Text,
)
from .study_contrasts import choose_contrasts, choose_prompts

if TYPE_CHECKING:
    import numpy as np

    from .extract import LoadedModel
    from .schemas import Pair
    from .steer import AlignedCase, PatchCost

__all__ = ["Costs", "gpu_hours"]

_FLOPS_PER_TOKEN = 2  # and parameter, of a forward pass (Kaplan et al. 2001.08361, section 2.1)


def gpu_hours(cost: Cost, budget: StudyBudget) -> float:
    """Return the hours that a cost is taken to be, from the speeds that the budget states."""
    forward = _FLOPS_PER_TOKEN * cost.n_parameters * cost.forward_tokens / (budget.tflops * 1e12)
    generation = cost.new_tokens * cost.n_parameters / 1e9 / budget.new_tokens_per_second
    return (forward + generation) / 3600


@dataclass(frozen=True)
class Costs:
    """Costs of the GPU stages, from each model's config and tokenizer and the corpus.

    Sweeps, patches and texts are weighed as if every condition were still to be run.
    """

    study: StudyFile
    texts: Sequence[Text]
    _models: dict[tuple[str, str | None], LoadedModel] = field(default_factory=dict)
    _pairs: list[Pair] = field(default_factory=list)

    def steer(self, model: StudyModel) -> Cost:
        """Return the cost of a sweep with its controls, at one layer or at each that is named."""
        spec, pairs = self.study.steer, self._all_pairs()
        loaded = self._model(model)
        n_directions = 1 + spec.n_random
        n_directions += spec.n_shuffled if "shuffled" in spec.controls else 0
        n_directions += "orthogonal" in spec.controls
        n_places = len(spec.layers) if spec.layers is not None else spec.top_layers
        n_places += spec.together
        n_rows = spec.n_prompts * 2 * len(spec.alphas) * n_directions * n_places
        if spec.layer is None and spec.layers is None:  # every layer is tried on train pairs
            n_rows += spec.n_prompts * 2 * 3 * n_directions * loaded.info.n_layers
        tokens = self._tokens_per_row(loaded, pairs)
        return Cost(int(n_rows * tokens), n_parameters=loaded.info.n_parameters)

    def patch(self, model: StudyModel) -> Cost:
        """Return the cost of the patches over layers and positions."""
        from .steer import weigh_sweep

        loaded, cases, direction = self._cases(model)
        spec = self.study.patch or PatchSpec()
        return _of(weigh_sweep(loaded, cases, spec=spec, direction=direction), loaded)

    def mediate(self, model: StudyModel) -> Cost:
        """Return the cost of mediation by layer."""
        from .steer import weigh_mediation

        loaded, cases, direction = self._cases(model)
        spec = self.study.mediate or MediateSpec()
        return _of(weigh_mediation(loaded, cases, spec=spec, direction=direction), loaded)

    def match(self, model: StudyModel) -> Cost:
        """Return the cost of patching and steering at matched size."""
        from .steer import weigh_comparison

        loaded, cases, direction = self._cases(model)
        spec = self.study.match or MatchedSpec()
        return _of(weigh_comparison(loaded, cases, direction, spec=spec), loaded)

    def texts_of(self, model: StudyModel) -> Cost:
        """Return the cost of the texts, as if each grew to its full length."""
        from .steer import prompt_ids

        wanted, loaded = self.study.texts or StudyTexts(), self._model(model)
        chosen = choose_prompts(self._all_pairs(), wanted)
        n_conditions = len(wanted.alphas) * (1 + wanted.n_random) * wanted.n_seeds
        prompt_tokens = sum(len(ids) for ids in prompt_ids(loaded, chosen).values())
        return Cost(
            forward_tokens=prompt_tokens * n_conditions,
            new_tokens=len(chosen) * n_conditions * wanted.max_new_tokens,
            n_parameters=loaded.info.n_parameters,
        )

    def steer_transfer(self, model: StudyModel) -> Cost:
        """Return the cost of steering with another model's direction and all its controls."""
        from .schemas import TransferSpec

        spec, loaded = self.study.steer_transfer or SteerTransferSpec(), self._model(model)
        maps = self.study.transfer or TransferSpec()
        per_map = 1 + maps.n_random + maps.n_permuted
        n_directions = 1 + len(maps.maps) * per_map
        n_rows = spec.n_prompts * 2 * len(spec.alphas) * n_directions
        tokens = self._tokens_per_row(loaded, self._all_pairs())
        return Cost(int(n_rows * tokens), n_parameters=loaded.info.n_parameters)

    def _model(self, model: StudyModel) -> LoadedModel:
        from .extract import load_model

        name = (model.model, model.revision)
        if name not in self._models:
            self._models[name] = load_model(
                model.model,
                revision=model.revision,
                dtype=self.study.capture.dtype,
                device="cpu",
                head=True,
                weights=False,
            )
        return self._models[name]

    def _cases(self, model: StudyModel) -> tuple[LoadedModel, list[AlignedCase], np.ndarray]:
        import numpy as np

        loaded = self._model(model)
        if self.study.contrasts is None:
            return loaded, [], np.eye(1, loaded.info.hidden_size)[0]
        cases = choose_contrasts(loaded, self._all_pairs(), spec=self.study.contrasts)
        return loaded, cases, np.eye(1, loaded.info.hidden_size)[0]

    def _all_pairs(self) -> list[Pair]:
        from .corpus import pair_texts

        if not self._pairs:
            self._pairs.extend(pair_texts(list(self.texts)))
        return self._pairs

    def _tokens_per_row(self, loaded: LoadedModel, pairs: Sequence[Pair]) -> float:
        """Return the mean tokens of a prompt with its response, over a sample of the pairs."""
        from .extract import render_texts

        sample = [text for pair in pairs[:32] for text in (pair.positive, pair.negative)]
        rows = render_texts(
            sample,
            loaded.tokenizer,
            spec=self.study.capture,
            max_positions=loaded.max_positions,
        )
        return sum(len(row.ids) for row in rows) / len(rows)


def _of(cost: PatchCost, loaded: LoadedModel) -> Cost:
    return Cost(cost.n_tokens, n_parameters=loaded.info.n_parameters)
