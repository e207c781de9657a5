"""A study file as tasks: which stage needs which, for every model and pair of models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .graph import Cost, Graph, Task
from .schemas import CorpusInfo, Record, StudyFile, StudyModel, Text, digest_json
from .stages import Results
from .study_analyses import Analyses
from .study_costs import Costs
from .study_extraction import Extraction
from .study_interventions import Interventions, LoadedModels

if TYPE_CHECKING:
    from .schemas import AnalysisPart, Scenario
    from .store import Store

__all__ = ["ALL", "StudyParts", "study_graph"]

ALL = "study"  # the subject of what is not of one model


@dataclass(frozen=True)
class StudyParts:
    """What the tasks of a study are made of."""

    study: StudyFile
    store: Store
    results: Results
    info: CorpusInfo
    texts: Sequence[Text]
    scenarios: Sequence[Scenario] | None
    say: Callable[[str], None]


def study_graph(parts: StudyParts) -> Graph:
    """Return the tasks of a study; a section that the file lacks is a stage that it lacks."""

    def folder_of(stage: str, subject: str) -> Path:
        # Asked for while tasks are carried out, when the graph is there.
        return graph.bring(graph.task(_name(stage, subject)))

    tasks = _Builder(parts, folder_of).tasks()
    graph = Graph(tasks, results=parts.results, store=parts.store)
    return graph


class _Builder:
    """Collects the tasks in an order in which each comes after what it needs."""

    def __init__(self, parts: StudyParts, folder_of: Callable[[str, str], Path]) -> None:
        self.study = parts.study
        self.models = {model.run_name: model for model in parts.study.models}
        self.of = {"corpus": parts.info.texts_digest}
        scenarios = [scenario.to_dict() for scenario in parts.scenarios or ()]
        self.judged = {**self.of, "scenarios": digest_json(scenarios)}
        self.analyses = Analyses(
            parts.study, parts.store, parts.info, parts.texts, parts.scenarios, folder_of
        )  # fmt: skip
        self.extraction = Extraction(parts.study, parts.store, parts.info, parts.texts, folder_of)
        self.interventions = Interventions(
            parts.study, parts.store, parts.results, parts.texts, parts.scenarios,
            LoadedModels(parts.study), parts.say,
        )  # fmt: skip
        self.costs = Costs(parts.study, parts.texts)
        self.found: list[Task] = []

    def tasks(self) -> list[Task]:
        """Return the tasks: corpus, models one by one, models together, interventions."""
        study, analyses = self.study, self.analyses
        if study.validation is not None or study.stats is not None:
            self._add(
                "corpus", ALL, analyses.corpus, specs=("validation", "stats"), given=self.judged
            )
        if study.variants is not None:
            self._add("variants", ALL, analyses.variants, specs=("variants",), given=self.of)
        for run, model in self.models.items():
            self._extract(run, model)
            self._analyse(run)
        for stage, make in (("similarity", analyses.similarity), ("transfer", analyses.transfer)):
            if getattr(study, stage) is not None and len(self.models) > 1:
                every = partial(make, runs=list(self.models))
                needs = [("extract", run) for run in self.models]
                self._add(stage, ALL, every, specs=(stage,), needs=needs)
        for run, model in self.models.items():
            if model.steer and study.steer.enabled:
                self._steer(run, model)
            if model.steer:
                self._patch(run, model)
        if study.steer_transfer is not None:
            for source, target in permutations(self.models, 2):
                if self.models[target].steer:
                    self._transfer_steering(source, target)
        return self.found

    def _extract(self, run: str, model: StudyModel) -> None:
        made = self.extraction
        task = Task(
            "extract",
            run,
            "gpu",
            needs=(_name("variants", ALL),) if self.study.variants is not None else (),
            act=partial(made.extract, run=run, model=model),
            content=partial(made.content, run=run, model=model),
            cost=partial(made.cost, run=run, model=model),
        )
        self.found.append(task)

    def _analyse(self, run: str) -> None:
        study, analyses = self.study, self.analyses
        probing = ("probe", "random", "bow")
        here = [("extract", run)]
        self._add("probe", run, partial(analyses.probe, run=run), specs=probing, needs=here)
        self._add("pca", run, partial(analyses.pca, run=run), specs=("pca",), needs=here)
        parts: tuple[AnalysisPart, ...] = ("nulls", "confounds")
        for part in parts:
            if getattr(study, part) is not None:
                one = partial(analyses.part, run=run, part=part)
                self._add(part, run, one, specs=(*probing, part), needs=here)
        for stage, make in (("ablation", analyses.ablation), ("geometry", analyses.geometry)):
            if getattr(study, stage) is not None:
                self._add(stage, run, partial(make, run=run), specs=(stage,), needs=here)

    def _steer(self, run: str, model: StudyModel) -> None:
        """Add the sweep of strengths, the texts of the steered model, and what is asked of both."""
        study, made, analyses = self.study, self.interventions, self.analyses
        probed = [("extract", run), ("probe", run)]
        swept = [*probed, ("steer", run)]
        self._add(
            "steer",
            run,
            partial(made.steer, run=run, model=model),
            specs=("steer", "capture"),
            needs=probed,
            cost=partial(self.costs.steer, model),
        )
        if study.doses is not None:
            doses = partial(analyses.doses, run=run)
            self._add("doses", run, doses, specs=("doses",), needs=swept[1:])
        if study.texts is None:
            return
        self._add(
            "texts",
            run,
            partial(made.texts_of, run=run, model=model),
            specs=("texts",),
            needs=swept,
            given=self.judged,
            cost=partial(self.costs.texts_of, model),
        )
        written = [("texts", run)]
        for stage, make in (("negative", analyses.negative), ("task_free", analyses.task_free)):
            if getattr(study, stage) is not None:
                self._add(stage, run, partial(make, run=run), specs=(stage,), needs=written)

    def _patch(self, run: str, model: StudyModel) -> None:
        """Add patching, mediation, and their comparison with steering."""
        made, costs = self.interventions, self.costs
        for stage, make, cost in (
            ("patch", made.patch, costs.patch),
            ("mediate", made.mediate, costs.mediate),
            ("match", made.match, costs.match),
        ):
            if getattr(self.study, stage) is not None:
                self._add(
                    stage,
                    run,
                    partial(make, run=run, model=model),
                    specs=(stage, "contrasts"),
                    needs=[("extract", run), ("probe", run)],
                    given={**self.of, "pool": self.study.steer.pool},
                    cost=partial(cost, model),
                )

    def _transfer_steering(self, source: str, target: str) -> None:
        """Add the map of a direction to another model, and steering with it."""
        pair, model = f"{source}--{target}", self.models[target]
        swept = [
            run for run in (source, target) if self.models[run].steer and self.study.steer.enabled
        ]
        self._add(
            "map",
            pair,
            partial(self.analyses.map, source=source, target=target, swept=swept),
            specs=("transfer",),
            needs=[
                ("extract", source),
                ("extract", target),
                *(("steer", run) for run in swept),
            ],
            given={"pool": self.study.steer.pool},
        )
        self._add(
            "steer_transfer",
            pair,
            partial(self.interventions.steer_transfer, source=source, target=target, model=model),
            specs=("steer_transfer", "capture"),
            needs=[("map", pair)],
            given=self.of,
            cost=partial(self.costs.steer_transfer, model),
        )

    def _add(
        self,
        stage: str,
        subject: str,
        make: Callable[[Path], None],
        *,
        specs: Sequence[str],
        needs: Sequence[tuple[str, str]] = (),
        given: Mapping[str, Any] | None = None,
        cost: Callable[[], Cost] | None = None,
    ) -> None:
        """Add a task that follows from sections of the file; what has a cost needs the GPU."""
        settings = {name: _plain(getattr(self.study, name)) for name in specs}
        task = Task(
            stage,
            subject,
            "cpu" if cost is None else "gpu",
            needs=tuple(_name(*need) for need in needs),
            specs={**settings, **(given or {})},
            make=make,
            cost=cost,
        )
        self.found.append(task)


def _name(stage: str, subject: str) -> str:
    return f"{stage} of {subject}"


def _plain(section: Record | None) -> dict[str, Any] | None:
    return None if section is None else section.to_dict()
