"""What the GPU's stages of a study make: sweeps, patches, mediation, texts of steered models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .intervention_files import save_intervention, write_record
from .schemas import (
    InvalidInputError,
    MatchedSpec,
    MediateSpec,
    PatchSpec,
    SteeredTextsSpec,
    SteerTransferSpec,
    StudyFile,
    StudyModel,
    StudyTexts,
    Text,
)
from .stages import Results
from .study_contrasts import choose_contrasts, choose_prompts
from .sweeps import Tenths, mean_norm

if TYPE_CHECKING:
    import numpy as np

    from .extract import LoadedModel
    from .schemas import Direction, Scenario
    from .steer import AlignedCase
    from .store import Store

__all__ = ["Interventions", "LoadedModels"]

Say = Callable[[str], None]
_METHOD = "diff_means"
_OF_TEXT = ("pair", "scenario", "category", "subset", "task_conflict")


class LoadedModels:
    """The model that was used last, kept so that a study's stages load it once."""

    def __init__(self, study: StudyFile) -> None:
        self.study = study
        self._name: tuple[str, str | None] | None = None
        self._loaded: LoadedModel | None = None

    def get(self, model: StudyModel) -> LoadedModel:
        """Return the model with its head and weights."""
        from .extract import load_model

        name = (model.model, model.revision)
        if self._loaded is None or self._name != name:
            self._loaded = None  # before the next one: two may not fit
            extract = self.study.extract
            self._loaded = load_model(
                model.model,
                revision=model.revision,
                dtype=self.study.capture.dtype,
                device=extract.device,
                attn_implementation=extract.attn_implementation,
                device_map=extract.device_map,
                head=True,
            )
            self._name = name
        return self._loaded


@dataclass(frozen=True)
class Interventions:
    """The GPU stages of one study; each method writes one stage's results into a folder.

    ``texts`` are the corpus without variants. Conditions are kept in ``results`` as they are
    measured, beside the stages, so that an interrupted stage goes on.
    """

    study: StudyFile
    store: Store
    results: Results
    texts: Sequence[Text]
    scenarios: Sequence[Scenario] | None
    models: LoadedModels
    say: Say = field(default=lambda _: None)

    def patch(self, folder: Path, run: str, model: StudyModel) -> None:
        """Patch states of one run into another, at every layer and position."""
        from .steer import sweep_patches

        spec = self.study.patch or PatchSpec()
        loaded, cases = self._cases(model)
        found = sweep_patches(
            loaded, cases, spec=spec, direction=self._directions(run, loaded),
            batch_tokens=self._batch_tokens(run), **self._kept(run, loaded, "patching"),
        )  # fmt: skip
        save_intervention(found, folder, name="patching", run=run, spec=spec, facts=_facts(loaded))

    def mediate(self, folder: Path, run: str, model: StudyModel) -> None:
        """Split the effect of the system prompts into what passes through a state and the rest."""
        from .steer import mediate

        spec = self.study.mediate or MediateSpec()
        loaded, cases = self._cases(model)
        found = mediate(
            loaded, cases, spec=spec, direction=self._directions(run, loaded),
            batch_tokens=self._batch_tokens(run), **self._kept(run, loaded, "mediation"),
        )  # fmt: skip
        save_intervention(found, folder, name="mediation", run=run, spec=spec, facts=_facts(loaded))

    def match(self, folder: Path, run: str, model: StudyModel) -> None:
        """Compare patching with steering as far, at every layer."""
        from .steer import compare_with_steering

        spec = self.study.match or MatchedSpec()
        loaded, cases = self._cases(model)
        found = compare_with_steering(
            loaded, cases, self._directions(run, loaded), spec=spec,
            batch_tokens=self._batch_tokens(run), **self._kept(run, loaded, "matched"),
        )  # fmt: skip
        save_intervention(found, folder, name="matched", run=run, spec=spec, facts=_facts(loaded))

    def steer(self, folder: Path, run: str, model: StudyModel) -> None:
        """Sweep the run's direction through its model, beside every control."""
        from .steering import write_sweeps
        from .sweeps import prepare_sweeps

        sweeps = prepare_sweeps(
            self.store, run, self.results, model=model.model, revision=model.revision,
            spec=self.study.steer, capture=self.study.capture,
            device=self.study.extract.device,
            attn_implementation=self.study.extract.attn_implementation,
            batch_tokens=self._batch_tokens(run), against=(), weights=True, say=self.say,
            loaded=self.models.get(model),
        )  # fmt: skip
        write_sweeps(sweeps, folder)

    def texts_of(self, folder: Path, run: str, model: StudyModel) -> None:
        """Have the steered model answer prompts, and score what it writes by rules and a judge."""
        import pandas as pd

        from .corpus import pair_texts
        from .steer import generate_table, prompt_ids, score_table, write_table
        from .steer.sweep import with_random
        from .steering import steered_layer

        wanted = self.study.texts or StudyTexts()
        loaded = self.models.get(model)
        layer = steered_layer(self.results.stage(run, "steer"))
        direction = self._direction(run, layer)
        scale = self._scale(run, direction, unit=wanted.unit)
        prompts = choose_prompts(pair_texts(list(self.texts)), wanted)
        spec = SteeredTextsSpec(
            alphas=tuple(alpha * scale for alpha in wanted.alphas),
            layer=layer,
            positions=wanted.positions,
            seeds=tuple(range(wanted.n_seeds)),
            temperature=wanted.temperature,
            max_new_tokens=wanted.max_new_tokens,
            batch_rows=wanted.batch_rows,
        )
        labels = [_METHOD, *(f"random-{i}" for i in range(wanted.n_random))]
        vectors = with_random(direction, n_random=wanted.n_random, seed=self.study.steer.seed)
        kept = self.results.stage(run, "texts-conditions") / spec.fingerprint()[7:23]
        table = generate_table(
            loaded,
            prompt_ids(loaded, prompts),
            dict(zip(labels, vectors, strict=True)),
            spec=spec,
            folder=kept,
            progress=Tenths(f"{run}: texts", self.say),
        )
        by_id = {text.id: text for text in prompts}
        asked = [by_id[name] for name in table["prompt"]]
        table = table.assign(
            run=run,
            prompt_text=[text.prompt or "" for text in asked],
            alpha_raw=table["alpha"],
            alpha_separation=table["alpha"] / direction.norm,
            **{name: pd.Series([getattr(text, name) for text in asked]) for name in _OF_TEXT},
        )
        judge = wanted.judge
        scored = score_table(
            table.assign(prompt=table["prompt_text"]) if judge else table,
            spec=wanted.score,
            judge=judge,
            scenarios={s.id: s for s in self.scenarios or ()} if judge else None,
            kept=kept / "judgements.jsonl" if judge else None,
        )
        write_table(scored.table.assign(prompt=table["prompt"]), folder / "scored.parquet")
        (folder / "summary.json").write_text(scored.summary.to_json(), encoding="utf-8")
        write_record(folder / "texts.json", spec=wanted, facts=_facts(loaded) | {"layer": layer})

    def steer_transfer(self, folder: Path, source: str, target: str, model: StudyModel) -> None:
        """Steer the target with the source's mapped direction, beside its own and the controls."""
        from .analyze import load_directions
        from .corpus import pair_texts
        from .schemas import SteerSpec
        from .steer import choose_pairs, compare_transfer

        spec = self.study.steer_transfer or SteerTransferSpec()
        loaded = self.models.get(model)
        chosen = SteerSpec(n_prompts=spec.n_prompts, subsets=spec.subsets)
        found = compare_transfer(
            loaded,
            load_directions(self.results.stage(f"{source}--{target}", "map")),
            choose_pairs(pair_texts(list(self.texts)), spec=chosen),
            spec=spec,
            capture=self.study.capture,
            **self._kept(f"{source}--{target}", loaded, "steer-transfer"),
        )
        verdicts = [verdict.to_dict() for verdict in found.verdicts]
        save_intervention(
            found, folder, name="steer-transfer", run=target, spec=spec,
            facts=_facts(loaded) | {"verdicts": verdicts},
        )  # fmt: skip

    # -- what they share

    def _cases(self, model: StudyModel) -> tuple[LoadedModel, list[AlignedCase]]:
        from .corpus import pair_texts

        if self.study.contrasts is None:
            msg = "patching and mediation need contrasts: a section [contrasts] with personas"
            raise InvalidInputError(msg)
        loaded = self.models.get(model)
        pairs = pair_texts(list(self.texts))
        return loaded, choose_contrasts(loaded, pairs, spec=self.study.contrasts)

    def _directions(self, run: str, loaded: LoadedModel) -> np.ndarray:
        """Return the probe's unit vectors (layer, hidden) over all layers of the model."""
        import numpy as np

        vectors = [self._direction(run, layer).vector for layer in range(loaded.info.n_layers)]
        return np.asarray(vectors, dtype=np.float64)

    def _direction(self, run: str, layer: int) -> Direction:
        from .analyze import directions_record, load_probe_result

        probe = load_probe_result(self.results.stage(run, "probe"))
        return directions_record(probe.directions, _METHOD, self.study.steer.pool, layer=layer)

    def _scale(self, run: str, direction: Direction, *, unit: str) -> float:
        """Return what a strength of one is in raw length."""
        if unit == "norm":
            return mean_norm(self.store, run, direction.layer, site=direction.site)
        return direction.norm if unit == "separation" else 1.0

    def _batch_tokens(self, run: str) -> int:
        return self.store.read_plan(run).batch_tokens

    def _kept(self, subject: str, loaded: LoadedModel, noun: str) -> dict[str, Any]:
        """Return where conditions of this model are kept, and whom to tell of progress."""
        folder = self.results.stage(subject, f"{noun}-conditions") / _name_of(loaded)
        return {"folder": folder, "progress": Tenths(f"{subject}: {noun}", self.say)}


def _name_of(loaded: LoadedModel) -> str:
    return loaded.info.fingerprint()[7:23]


def _facts(loaded: LoadedModel) -> dict[str, Any]:
    return {"model": loaded.info.model_dump(mode="json")}
