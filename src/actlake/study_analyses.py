"""What the laptop's stages of a study make: checks of the corpus, analyses of stored runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .schemas import (
    AblationSpec,
    AnalyzeSpec,
    CorpusInfo,
    DoseSpec,
    GeometrySpec,
    NegativeSpec,
    ScenarioSpec,
    SimilaritySpec,
    StatsSpec,
    StudyFile,
    Text,
    TransferSpec,
    ValidateSpec,
    VariantSpec,
)
from .stages import write_pca, write_probe

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from .schemas import AnalysisPart, Scenario
    from .store import Store

__all__ = ["Analyses"]


@dataclass(frozen=True)
class Analyses:
    """The CPU stages of one study; each method writes one stage's results into a folder.

    ``texts`` are the corpus without variants; ``folder_of`` returns where the results of another
    stage and subject lie.
    """

    study: StudyFile
    store: Store
    info: CorpusInfo
    texts: Sequence[Text]
    scenarios: Sequence[Scenario] | None
    folder_of: Callable[[str, str], Path]

    def corpus(self, folder: Path) -> None:
        """Validate the corpus and measure its diversity; a check that fails is a result."""
        from .corpus import corpus_stats, validate_corpus

        spec = self.study.validation or ValidateSpec()
        report = validate_corpus(self.info, self.texts, spec=spec, scenarios=self.scenarios)
        (folder / "validation.json").write_text(report.to_json(), encoding="utf-8")
        measured = corpus_stats(
            self.info,
            self.texts,
            spec=self.study.stats or StatsSpec(),
            scenarios=self.scenarios,
        )
        (folder / "stats.json").write_text(measured.to_json(), encoding="utf-8")

    def variants(self, folder: Path) -> None:
        """Write the lexical arms of the corpus, what was changed, and their bags of words."""
        from .corpus import make_variants, write_jsonl

        made = make_variants(self.texts, spec=self.study.variants or VariantSpec())
        write_jsonl(made.texts, folder / "texts.jsonl")
        lines = "".join(entry.to_json(indent=None) for entry in made.log)
        (folder / "log.jsonl").write_text(lines, encoding="utf-8")
        facts = {"bow": made.bow, "removed": list(made.removed), "reached": made.reached}
        (folder / "variants.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    def probe(self, folder: Path, run: str) -> None:
        """Probe every layer of a run under its controls."""
        study = self.study
        write_probe(self.store, run, folder, probe=study.probe, random=study.random, bow=study.bow)

    def pca(self, folder: Path, run: str) -> None:
        """Compute the principal components of a run."""
        write_pca(self.store, run, folder, spec=self.study.pca)

    def part(self, folder: Path, run: str, *, part: AnalysisPart) -> None:
        """Compute the nulls or the confounds of a run."""
        from .analyze import analyze_run, save_part
        from .store import read_texts

        study = self.study
        sections = {"nulls": study.nulls, "confounds": study.confounds}
        given = {name: section for name, section in sections.items() if section is not None}
        spec = AnalyzeSpec.model_validate(
            {"probe": study.probe, "random": study.random, "bow": study.bow, **given}
        )
        _, texts = read_texts(self.store, run)
        save_part(analyze_run(self._open(run), texts, spec=spec, parts=[part])[part], folder)

    def ablation(self, folder: Path, run: str) -> None:
        """Leave words out of both classes, and see what is left of the contrast."""
        from .analyze import ablation_run, save_ablation
        from .store import read_texts

        _, texts = read_texts(self.store, run)
        spec = self.study.ablation or AblationSpec()
        save_ablation(ablation_run(self._open(run), texts, spec=spec), folder)

    def geometry(self, folder: Path, run: str) -> None:
        """Compute components, cosines between directions, and t-SNE of a run."""
        from .analyze.geometry_run import geometry_run, save_geometry_result

        spec = self.study.geometry or GeometrySpec()
        save_geometry_result(geometry_run(self._open(run), spec=spec), folder)

    def similarity(self, folder: Path, runs: Sequence[str]) -> None:
        """Compare the layers of the models with each other."""
        from .analyze.similarity_run import similarity_run

        spec = self.study.similarity or SimilaritySpec()
        _write(similarity_run(self._open_all(runs), spec=spec), folder, "similarity")

    def transfer(self, folder: Path, runs: Sequence[str]) -> None:
        """Carry the probes of the models to each other."""
        from .analyze.transfer_run import transfer_run

        spec = self.study.transfer or TransferSpec()
        frame = transfer_run(self._open_all(runs), list(self.texts), spec=spec)
        _write(frame, folder, "transfer")

    def map(self, folder: Path, source: str, target: str, *, swept: Collection[str]) -> None:
        """Map the direction of one run to another, with the controls of a transfer.

        Where a run was ``swept``, its direction is that of the layer that was steered.
        """
        from .analyze import map_directions, save_directions

        found = map_directions(
            self._open_all([source, target]),
            source=source,
            target=target,
            layers=self._mapped_layers(source, target, swept),
            pool=self.study.steer.pool,
            spec=self.study.transfer or TransferSpec(),
        )
        save_directions(found, folder)

    def _mapped_layers(
        self, source: str, target: str, swept: Collection[str]
    ) -> tuple[int, int] | None:
        """Return the steered layers; of a source that was not steered the one as deep."""
        from .steering import steered_layer

        if target not in swept:
            return None
        to = steered_layer(self.folder_of("steer", target))
        if source in swept:
            return steered_layer(self.folder_of("steer", source)), to
        depths = [self.store.read_plan(run).model.n_layers for run in (source, target)]
        return max(0, round((to + 1) / depths[1] * depths[0]) - 1), to

    def doses(self, folder: Path, run: str) -> None:
        """Analyse the sweep's dose-response, and ask whether the claimed strength is needed."""
        import pandas as pd

        from .analyze import load_probe_result
        from .steer import analyse_doses
        from .steering import steered_layer

        samples = pd.read_parquet(self.folder_of("steer", run) / "samples.parquet")
        layer = steered_layer(self.folder_of("steer", run))
        own = samples[samples["direction"] == "diff_means"]
        # Each layer is a question of its own; the first is asked.
        own = own[own["layers"] == str(layer)].rename(columns={"pair": "prompt"})
        probe = load_probe_result(self.folder_of("probe", run))
        place = {"method": "diff_means", "pool": self.study.steer.pool}
        norms = probe.directions["norm"].sel(place)
        separation = float(norms.sel({"layer": layer}))
        found = analyse_doses(own, spec=self.study.doses or DoseSpec(), separation=separation)
        self._save(found.rows, found.verdicts, folder, "doses", run=run)

    def negative(self, folder: Path, run: str) -> None:
        """Ask whether steering away raises task focus, and with cruelty or without."""
        from .steer import contrast_negative

        found = contrast_negative(self._scored(run), spec=self.study.negative or NegativeSpec())
        self._save(found.rows, found.verdicts, folder, "negative", run=run)

    def task_free(self, folder: Path, run: str) -> None:
        """Ask whether steering works in scenarios without a task conflict."""
        from .steer import contrast_scenarios

        found = contrast_scenarios(self._scored(run), spec=self.study.task_free or ScenarioSpec())
        self._save(found.rows, found.verdicts, folder, "task-free", run=run)

    def _scored(self, run: str) -> pd.DataFrame:
        import pandas as pd

        scored = pd.read_parquet(self.folder_of("texts", run) / "scored.parquet")
        return scored[scored["direction"] == "diff_means"]

    def _save(
        self,
        rows: pd.DataFrame,
        verdicts: pd.DataFrame,
        folder: Path,
        name: str,
        *,
        run: str,
    ) -> None:
        stamp = {"run": run, "code_version": __version__}
        _write(rows.assign(**stamp), folder, name)
        _write(verdicts.assign(**stamp), folder, f"{name}-verdicts")

    def _open(self, run: str) -> xr.Dataset:
        from .store import open_run

        return open_run(self.store, run, pulled_only=True, chunks="job")

    def _open_all(self, runs: Sequence[str]) -> Any:  # noqa: ANN401
        from .store import open_runs

        return open_runs(self.store, list(runs), pulled_only=True, chunks="job")


def _write(frame: pd.DataFrame, folder: Path, name: str) -> None:
    from .analyze.table import write_table

    write_table(frame, folder, name=name, formats=("parquet", "csv"))
