"""Appending the texts of a grown corpus to a run, with the run's own settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..corpus import corpus_info
from ..schemas import (
    CaptureSpec,
    CorpusInfo,
    ExtractSpec,
    IncompleteError,
    RunPlan,
    Text,
    texts_digest,
)
from ..store import Store, finish_append, new_texts, plan_append
from .engines import check_engine
from .environment import extraction_environment
from .run import ExtractResult, extract_blocks, plan_extraction
from .worker import Worker

__all__ = ["append_texts", "settings_of"]


def settings_of(plan: RunPlan) -> tuple[CaptureSpec, ExtractSpec]:
    """Return what a run was made with, as far as it decides what is stored."""
    by_vllm = plan.engine == "vllm"  # which chooses its own attention
    extract = ExtractSpec(
        engine=plan.engine,
        batch_tokens=plan.batch_tokens,
        codec="none" if plan.codec == "crc32c" else "blosc",
        bits16=any(spec.dtype != "float32" for spec in plan.arrays),
        attn_implementation=None if by_vllm else plan.model.attn_implementation,
        seed=plan.seed,
    )
    return plan.capture, extract


def append_texts(
    store: Store,
    texts: Sequence[Text],
    info: CorpusInfo,
    *,
    model: str,
    run: str,
    revision: str | None = None,
    capture: CaptureSpec | None = None,
    extract: ExtractSpec | None = None,
    worker: Worker | None = None,
    show_progress: bool | None = None,
) -> ExtractResult:
    """Add those of ``texts`` to a run that it does not have; resume if that was begun.

    The new texts become a part of the run, in blocks of their own; nothing that is stored is
    touched, and readers see the run as it was until the part is sealed. They are stored as a
    corpus of their own beside the one that the run was begun with: ``<corpus>+<8 hex digits of
    its digest>``. Nothing is done where the run has all texts.

    Parameters
    ----------
    store, model, revision, run, worker, show_progress
        See :func:`extract_run`.
    texts, info
        The grown corpus, or only what is new in it.
    capture, extract
        None takes what the run was made with.

    Returns
    -------
    ExtractResult
        Of the new part alone.

    Raises
    ------
    NotFoundError
        If there is no such run.
    AlreadyExistsError
        If the run was made with another model, tokenizer or capture, if a text has the id of
        one of the run's but other words, or if an append of other texts is not finished; and as
        :func:`extract_run`.
    IncompleteError
        If the run has all of these texts, but not all of those that were begun to be appended.
    """
    append = plan_append(store, run)
    added = new_texts(store, append, texts)
    if not added:
        if append.is_begun:
            msg = (
                f"these texts are all in run {run!r}, but appending others was begun and is not "
                "finished: repeat that with the corpus it was begun with"
            )
            raise IncompleteError(msg)
        return ExtractResult(*finish_append(store, run), 0, 0)
    of_run = settings_of(append.run)
    capture, extract = capture or of_run[0], extract or of_run[1]
    check_engine(extract)
    corpus = f"{info.id}+{texts_digest(added).removeprefix('sha256:')[:8]}"
    prepared = plan_extraction(
        added,
        model=model,
        run=run,
        corpus=corpus,
        revision=revision or append.run.model.revision,
        capture=capture,
        extract=extract,
    )
    writer = store.append_run(
        prepared.plan,
        coords=prepared.coords,
        environment=extraction_environment(),
        token_data=prepared.token_data,
    )
    about = corpus_info(
        corpus,
        added,
        arms=info.arms,
        title=info.title,
        licence=info.licence,
        provenance=info.provenance,
    )
    store.write_corpus(about, added)
    return extract_blocks(
        writer,
        replace(prepared, plan=writer.plan),
        model=model,
        revision=revision or append.run.model.revision,
        extract=extract,
        worker=worker,
        show_progress=show_progress,
    )
