"""The parts of a run: the run as it was begun, and what was appended to it since.

A part is stored as a run of its own, below the run: with its own plan, commits, seal and Zarr
group. So appending touches nothing that is there, and one create-only object, the part's seal,
makes it visible.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..schemas import AlreadyExistsError, CorpusInfo, CorruptError, RunPlan, Text, digest_json
from .run_claim import differences

if TYPE_CHECKING:
    from .store import Store

__all__ = [
    "MAX_PARTS",
    "check_part",
    "content_digest",
    "corpus_digest",
    "existing_parts",
    "joined_digest",
    "part_differences",
    "part_names",
    "read_texts",
    "run_of",
    "sealed_parts",
]

MAX_PARTS = 999
_SHARED = ("model", "tokenizer", "capture", "layers", "engine", "codec", "seed")


def run_of(name: str) -> str:
    """Return the run that a part belongs to."""
    return name.partition("~")[0]


def part_names(store: Store, run_id: str) -> list[str]:
    """Return the names of a run's parts in order, the run itself first, finished or not."""
    return _present(store, run_id, "plan")


def existing_parts(store: Store, run_id: str) -> list[str]:
    """Return the names of a run's parts in order, but for one that is only about to be.

    A part is a run: without run.json it does not exist yet.
    """
    names = part_names(store, run_id)
    sizes = [store.backend.size(store.keys(name).manifest) for name in names[1:]]
    return names[:1] + [n for n, size in zip(names[1:], sizes, strict=True) if size is not None]


def sealed_parts(store: Store, run_id: str) -> list[str]:
    """Return the run and those of its parts that readers see: up to the first without a seal."""
    return _present(store, run_id, "seal")


def _present(store: Store, run_id: str, record: str) -> list[str]:
    names = [run_id]
    # One request for a run that nothing was appended to, also where keys cannot be listed.
    while "~" not in run_id and len(names) <= MAX_PARTS:
        name = f"{run_id}~{len(names)}"
        if store.backend.size(getattr(store.keys(name), record)) is None:
            break
        names.append(name)
    return names


def part_differences(run: RunPlan, part: RunPlan) -> list[str]:
    """Return the keys in which a part is not of the same kind as its run, with both values."""
    return list(differences(_kind(run), _kind(part)))


def _kind(plan: RunPlan) -> dict[str, object]:
    """Return what a part has in common with its run: of arrays all but the number of rows."""
    values = plan.to_dict()
    arrays = [{**spec, "shape": spec["shape"][1:]} for spec in values["arrays"]]
    token_layers = list(plan.token_axis.layers) if plan.token_axis else None
    return {
        **{key: values.get(key) for key in _SHARED},
        "arrays": arrays,
        "token_axis": {"layers": token_layers},
    }


def check_part(store: Store, plan: RunPlan) -> None:
    """Raise CorruptError where a part does not continue the part before it."""
    if plan.continues is None:
        return
    run, number = run_of(plan.run), int(plan.run.partition("~")[2])
    before = f"{run}~{number - 1}" if number > 1 else run
    there, plan_id = store.read_plan_and_id(before)
    wrong = part_differences(there, plan)
    if plan.continues.plan_id != plan_id:
        wrong.insert(0, f"it continues plan {plan.continues.plan_id}, {before!r} has {plan_id}")
    if wrong:
        msg = f"{plan.run!r} in {store.url} cannot be a part of run {run!r}: {wrong[0][:200]}"
        raise CorruptError(msg)


def content_digest(store: Store, run_id: str) -> str | None:
    """Return the digest of what readers see of a run's activations, None where it is not sealed.

    It is the seal's ``data_digest``; of a run with parts the digest of the list of theirs.
    """
    seals = [store.read_seal(name) for name in sealed_parts(store, run_id)]
    return joined_digest([seal.data_digest if seal else None for seal in seals])


def corpus_digest(store: Store, run_id: str) -> str:
    """Return the digest of the texts that readers see: as :func:`content_digest`, of corpora."""
    plans = [store.read_plan(name) for name in sealed_parts(store, run_id)]
    digest = joined_digest([plan.corpus_digest for plan in plans])
    return digest or plans[0].corpus_digest


def joined_digest(digests: Sequence[str | None]) -> str | None:
    """Return one digest over those of a run's parts; of a single one itself."""
    if len(digests) == 1 or None in digests:
        return digests[0] if len(digests) == 1 else None
    return digest_json(list(digests))


def read_texts(store: Store, run_id: str) -> tuple[CorpusInfo, list[Text]]:
    """Return the corpus of a run and its texts, with those that readers see appended.

    The record is that of the corpus the run was begun with; its ``n_texts`` and digest count the
    texts of that corpus.

    Raises
    ------
    NotFoundError
        If there is no such run, or the store has not its corpus.
    AlreadyExistsError
        If two corpora have unlike texts under one id.
    """
    infos: list[CorpusInfo] = []
    found: dict[str, Text] = {}
    for name in sealed_parts(store, run_id):
        info, texts = store.read_corpus(store.read_manifest(name).corpus)
        infos.append(info)
        for text in texts:
            if found.setdefault(text.id, text) != text:
                msg = f"corpora of run {run_id!r} in {store.url} have two texts {text.id!r}"
                raise AlreadyExistsError(msg)
    return infos[0], list(found.values())
