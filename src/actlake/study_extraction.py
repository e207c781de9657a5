"""The extraction stage of a study: every text, and every lexical arm of it, through each model."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .graph import Cost
from .schemas import CorpusInfo, NotFoundError, StudyFile, StudyModel, Text
from .stages import origin_key

if TYPE_CHECKING:
    from .store import Store

__all__ = ["Extraction"]


@dataclass(frozen=True)
class Extraction:
    """Runs the models of a study over its texts, and tells what is there of them.

    ``texts`` are the corpus without variants; those that the stage ``variants`` made join them.
    ``folder_of`` returns where the results of another stage and subject lie.
    """

    study: StudyFile
    store: Store
    info: CorpusInfo
    texts: Sequence[Text]
    folder_of: Callable[[str, str], Path]

    def extract(self, say: Callable[[str], None], *, run: str, model: StudyModel) -> None:
        """Extract a model's run to the end, or to where other workers are still at it."""
        from .extract import extract_run

        info, texts = self._corpus()
        done = extract_run(
            self.store,
            texts,
            info,
            model=model.model,
            run=run,
            revision=model.revision,
            capture=self.study.capture,
            extract=self.study.extract,
        )
        kept = f" ({done.n_blocks_kept} were there)" if done.n_blocks_kept else ""
        digest = done.seal.data_digest[:19] if done.seal else "not sealed"
        say(f"{done.n_blocks} blocks{kept}, {digest}")

    def content(self, *, run: str, model: StudyModel) -> dict[str, Any] | None:
        """Return what of the run is there, where it is sealed and of this study, else None."""
        from .store import content_digest, corpus_digest

        try:
            manifest = self.store.read_manifest(run)
            info, _ = self._corpus()
        except NotFoundError:
            return None
        digest = content_digest(self.store, run)
        ours = (
            manifest.capture == self.study.capture
            and corpus_digest(self.store, run) == info.texts_digest
            # A bundled model and a local folder go by their last part.
            and manifest.model.name in {model.model, re.split("[:/]", model.model.rstrip("/"))[-1]}
            # A branch or tag moves: only of a commit is it known what it names.
            and (not _is_commit(model.revision) or manifest.model.revision == model.revision)
        )
        if digest is None or not ours:
            return None
        return {"content": digest, **origin_key(self.store, run)}

    def cost(self, *, run: str, model: StudyModel) -> Cost:
        """Return the tokens and bytes of a run; the model's config and tokenizer are read."""
        from .extract import plan_extraction

        info, texts = self._corpus()
        prepared = plan_extraction(
            texts,
            model=model.model,
            run=run,
            corpus=info.id,
            revision=model.revision,
            capture=self.study.capture,
            extract=self.study.extract,
        )
        found = prepared.summary()
        return Cost(
            forward_tokens=found["tokens"],
            stored_bytes=found["bytes"],
            n_parameters=prepared.plan.model.n_parameters,
        )

    def _corpus(self) -> tuple[CorpusInfo, list[Text]]:
        """Return the corpus that models run over; NotFoundError while its variants are missing."""
        if self.study.variants is None:
            return self.info, list(self.texts)
        from .corpus import corpus_info, read_jsonl

        made = self.folder_of("variants", "study") / "texts.jsonl"
        texts = [*self.texts, *read_jsonl(made)]
        return corpus_info(f"{self.info.id}-variants", texts, arms=self.info.arms), texts


def _is_commit(revision: str | None) -> bool:
    return re.fullmatch("[0-9a-f]{40}", revision or "") is not None
