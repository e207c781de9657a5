"""The stages of a study, each of which can be run alone, skipped when done, and run again.

A stage's results are a folder that appears whole or not at all, with the key of everything it
was made from; the same key means the stage is done.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .schemas import (
    CorpusInfo,
    IncompleteError,
    PcaSpec,
    ProbeSpec,
    Record,
    StorageError,
    StudyCorpus,
    Text,
    digest_json,
)

if TYPE_CHECKING:
    from .schemas import BagOfWordsSpec, RandomSpec, Scenario
    from .store import Store

__all__ = [
    "Results",
    "content_digest",
    "load_corpus",
    "load_scenarios",
    "origin_key",
    "pca_stage",
    "probe_stage",
    "run_provenance",
    "stage_key",
    "write_pca",
    "write_probe",
]

_KEY_FILE = "stage.json"


def load_corpus(corpus: StudyCorpus, *, base: Path | None = None) -> tuple[CorpusInfo, list[Text]]:
    """Return the texts that ``corpus`` names: ``bundled:NAME`` or a JSONL file.

    A relative path is taken from ``base``, the folder of the study file.
    """
    from .corpus import bundled_corpus, corpus_info, read_jsonl

    if corpus.source.startswith("bundled:"):
        info, texts = bundled_corpus(corpus.source.removeprefix("bundled:"))
        return (info.model_copy(update={"id": corpus.id}) if corpus.id else info), texts
    path = _from_base(corpus.source, base)
    texts = read_jsonl(path, arms=corpus.arms)
    return corpus_info(corpus.id or path.stem, texts, arms=corpus.arms), texts


def load_scenarios(
    source: str, path: str | Path | None, *, base: Path | None = None
) -> list[Scenario] | None:
    """Return the scenarios of a file, or those that come with a bundled corpus; else None.

    A relative path is taken from ``base``, the folder of the study file.
    """
    from .corpus import bundled_scenarios, read_scenarios

    if path is not None:
        return read_scenarios(_from_base(path, base))
    if source.startswith("bundled:"):
        return bundled_scenarios(source.removeprefix("bundled:"))
    return None


def _from_base(path: str | Path, base: Path | None) -> Path:
    found = Path(path).expanduser()
    return found if found.is_absolute() or base is None else base / found


@dataclass(frozen=True)
class Results:
    """A folder of results: ``<run>/probe``, ``<run>/pca``, ``<run>/steer`` and their keys."""

    folder: Path

    def stage(self, run: str, name: str) -> Path:
        """Return the folder of one stage of one run."""
        return self.folder / run / name

    def runs(self) -> list[str]:
        """Return the runs that have probe results."""
        found = self.folder.glob(f"*/probe/{_KEY_FILE}")
        return sorted(path.parent.parent.name for path in found)

    def finished(self) -> Iterator[tuple[str, str]]:
        """Yield the subject and the stage of everything that is finished here, in order."""
        found = [*self.folder.glob(f"*/{_KEY_FILE}"), *self.folder.glob(f"*/*/{_KEY_FILE}")]
        for folder in sorted(path.parent for path in found):
            yield folder.parent.relative_to(self.folder).as_posix(), folder.name

    def key(self, run: str, name: str) -> dict[str, Any] | None:
        """Return what a finished stage was made from, None where it is not finished."""
        try:
            found: dict[str, Any] = json.loads((self.stage(run, name) / _KEY_FILE).read_text())
        except (OSError, ValueError):
            return None
        return found

    def build(
        self, run: str, name: str, *, key: dict[str, Any], make: Callable[[Path], object]
    ) -> bool:
        """Make a stage's folder with ``make`` unless it is there under the same key.

        Returns whether it was made now. The old folder stays until the new one is whole.
        """
        digest = digest_json(key)
        done = self.key(run, name)
        if done is not None and done.get("digest") == digest:
            return False
        target = self.stage(run, name)
        fresh = target.with_name(f".{name}-{uuid.uuid4().hex[:8]}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            for stale in target.parent.glob(f".{name}-*"):
                shutil.rmtree(stale, ignore_errors=True)
            fresh.mkdir()
            make(fresh)
            (fresh / _KEY_FILE).write_text(json.dumps({"digest": digest, **key}, indent=2) + "\n")
            if target.exists():
                shutil.rmtree(target)
            fresh.rename(target)
        except OSError as err:
            shutil.rmtree(fresh, ignore_errors=True)
            msg = f"{target}: the results cannot be written: {err.strerror or err}"
            raise StorageError(msg) from err
        return True


def stage_key(content: str, **specs: Record) -> dict[str, Any]:
    """Return what a stage is made from: the code, a run's content and the specs."""
    return {
        "actlake": __version__,
        "content_digest": content,
        "specs": {name: spec.to_dict() for name, spec in specs.items()},
    }


def origin_key(store: Store, run: str) -> dict[str, Any]:
    """Return what results follow from beside the activations: the texts with their labels.

    And what a partial copy holds: more of it is another stage.
    """
    from .store import corpus_digest

    record = store.read_pulled(run)
    pulled = {} if record is None else {"pulled": record.to_dict()}
    return {"corpus_digest": corpus_digest(store, run), **pulled}


def content_digest(store: Store, run: str) -> str:
    """Return the digest of a sealed run's data; IncompleteError if it is not sealed."""
    from .store import content_digest as digest_of

    digest = digest_of(store, run)
    if digest is None:
        msg = f"run {run!r} is not sealed: extract it to the end before it is analysed"
        raise IncompleteError(msg)
    return digest


def probe_stage(
    store: Store,
    run: str,
    results: Results,
    *,
    probe: ProbeSpec,
    random: RandomSpec,
    bow: BagOfWordsSpec,
    scheduler: str | None = None,
) -> bool:
    """Probe a run and keep the tables and directions; returns whether it was done now."""
    key = stage_key(content_digest(store, run), probe=probe, random=random, bow=bow)
    key |= origin_key(store, run)
    specs: dict[str, Any] = {"probe": probe, "random": random, "bow": bow}

    def make(folder: Path) -> None:
        write_probe(store, run, folder, **specs, scheduler=scheduler)

    return results.build(run, "probe", key=key, make=make)


def write_probe(
    store: Store,
    run: str,
    folder: Path,
    *,
    probe: ProbeSpec,
    random: RandomSpec,
    bow: BagOfWordsSpec,
    scheduler: str | None = None,
) -> None:
    """Probe a run, and write the tables, the directions and where they are from into ``folder``."""
    from .analyze import probe_run, save_probe_result
    from .store import open_run, read_texts

    _, texts = read_texts(store, run)
    result = probe_run(
        open_run(store, run, pulled_only=True, chunks="job"),
        texts,
        spec=probe,
        random=random,
        bow=bow,
        scheduler=scheduler,
    )
    save_probe_result(result, folder)
    (folder / "provenance.json").write_text(json.dumps(run_provenance(store, run), indent=2))


def run_provenance(store: Store, run: str) -> dict[str, Any]:
    """Return the manifest of a run with the digests and sizes of its seal."""
    from .store import sealed_parts

    manifest, seal = store.read_manifest(run), store.read_seal(run)
    digests = {} if seal is None else seal.model_dump(mode="json", exclude={"objects"})
    info, _ = store.read_corpus(manifest.corpus)
    appended = [store.read_manifest(part).to_dict() for part in sealed_parts(store, run)[1:]]
    return {
        **manifest.to_dict(),
        "seal": digests,
        **origin_key(store, run),
        **({"appended": appended} if appended else {}),
        "store": store.url,
        "arms": info.arms.model_dump(),
    }


def pca_stage(
    store: Store, run: str, results: Results, *, spec: PcaSpec, scheduler: str | None = None
) -> bool:
    """Compute principal components of a run; returns whether it was done now."""
    key = stage_key(content_digest(store, run), pca=spec) | origin_key(store, run)

    def make(folder: Path) -> None:
        write_pca(store, run, folder, spec=spec, scheduler=scheduler)

    return results.build(run, "pca", key=key, make=make)


def write_pca(
    store: Store, run: str, folder: Path, *, spec: PcaSpec, scheduler: str | None = None
) -> None:
    """Compute principal components of a run, and write them into ``folder``."""
    from .analyze import pca_run, save_pca_result
    from .store import open_run

    dataset = open_run(store, run, pulled_only=True, chunks="job")
    save_pca_result(pca_run(dataset, spec=spec, scheduler=scheduler), folder)
