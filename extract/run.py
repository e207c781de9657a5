"""Extraction of one run: plan, forward passes, commits, seal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from tqdm import tqdm

from ..schemas import CaptureSpec, CorpusInfo, ExtractSpec, Seal, Text
from ..store import RunWriter, Store
from .costs import fit_batches
from .engines import check_engine, load_for_plan, open_engine
from .environment import extraction_environment
from .loading import pick_device
from .pipeline import Progress, stream_blocks
from .planning import PreparedRun, prepare_run
from .worker import Worker, local_device

__all__ = ["ExtractResult", "extract_blocks", "extract_run", "plan_extraction"]


@dataclass(frozen=True)
class ExtractResult:
    """What an extraction did; ``seal`` is None while blocks of other workers are missing."""

    run: str
    seal: Seal | None
    n_blocks: int
    n_blocks_run: int
    missing: tuple[int, ...] = ()

    @property
    def n_blocks_kept(self) -> int:
        """Blocks that were committed, but not by this call."""
        return self.n_blocks - self.n_blocks_run - len(self.missing)


def plan_extraction(
    texts: Sequence[Text],
    *,
    model: str,
    run: str,
    corpus: str,
    revision: str | None = None,
    capture: CaptureSpec | None = None,
    extract: ExtractSpec | None = None,
) -> PreparedRun:
    """Return the plan of a run from the model's config and tokenizer alone (``--dry-run``).

    The memory that is free decides where ``batch_tokens`` is ``auto``.
    """
    capture, extract = capture or CaptureSpec(), extract or ExtractSpec()
    loaded = load_for_plan(model, revision=revision, capture=capture, extract=extract)
    prepared = prepare_run(texts, loaded, run=run, corpus=corpus, capture=capture, extract=extract)
    if extract.batch_tokens == "auto":
        return fit_batches(prepared, pick_device(extract.device))
    return prepared


def extract_run(
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
    """Run a model over a corpus once and store its pooled activations; resume if it was begun.

    A run that is already sealed under the same plan is left as it is, without reading weights.

    Parameters
    ----------
    store
        Where to write.
    texts, info
        The corpus; it is written to the store beside the run.
    model, revision
        See :func:`~actlake.extract.load_model`.
    run
        Name of the run.
    worker
        Do only this worker's blocks, and seal only when those of all others are committed.
        Where the storage honours create-only PUTs, blocks that another living worker has
        claimed are left to it: the same worker may be started twice.
    show_progress
        None shows a bar on a terminal only.

    Raises
    ------
    AlreadyExistsError
        If the store holds another plan under this run, or (BlockClaimedError) another living
        process is at work on one of the blocks.
    MissingDependencyError
        If the engine that ``extract`` names is not installed.
    NumericalError
        If an activation is not finite, unless ``extract.nonfinite`` is ``record``.
    StorageError
        If the store fails; running again resumes.
    """
    capture, extract = capture or CaptureSpec(), extract or ExtractSpec()
    check_engine(extract)
    if extract.batch_tokens == "auto" and run in store.run_ids():
        begun = store.read_plan(run).batch_tokens
        extract = extract.model_copy(update={"batch_tokens": begun})
    prepared = plan_extraction(
        texts,
        model=model,
        run=run,
        corpus=info.id,
        revision=revision,
        capture=capture,
        extract=extract,
    )
    store.write_corpus(info, texts)
    writer = store.create_run(
        prepared.plan,
        coords=prepared.coords,
        environment=extraction_environment(),
        token_data=prepared.token_data,
    )
    return extract_blocks(
        writer,
        prepared,
        model=model,
        revision=revision,
        extract=extract,
        worker=worker,
        show_progress=show_progress,
    )


def extract_blocks(
    writer: RunWriter,
    prepared: PreparedRun,
    *,
    model: str,
    revision: str | None,
    extract: ExtractSpec,
    worker: Worker | None = None,
    show_progress: bool | None = None,
) -> ExtractResult:
    """Run the blocks of a run that nobody has committed, and seal it; see :func:`extract_run`."""
    store = writer.store
    share = worker or Worker()
    device = local_device(extract.device, worker, n_devices=torch.cuda.device_count())
    here = extract.model_copy(update={"device": device})
    pending = share.blocks(writer.pending_blocks())
    skips_claimed = worker is not None and store.info.create_only
    n_run = 0
    if pending:
        with (
            open_engine(prepared, model=model, revision=revision, extract=here) as engine,
            closing(writer),
            _ProgressBar(prepared, pending, show=show_progress) as report,
        ):
            n_run = stream_blocks(
                prepared,
                engine,
                writer,
                blocks=pending,
                skips_claimed=skips_claimed,
                records_nonfinite=extract.nonfinite == "record",
                notes={"compiled": True} if extract.compile else None,
                on_progress=report,
            )
    return _finish(writer, n_run=n_run, may_wait=worker is not None)


def _finish(writer: RunWriter, *, n_run: int, may_wait: bool) -> ExtractResult:
    """Seal the run, or say which blocks other workers have still to commit."""
    plan = writer.plan
    # Listed after this worker's last commit: of all workers, at least the last sees no gap.
    missing = tuple(writer.pending_blocks()) if may_wait else ()
    seal = None if missing else writer.seal()
    return ExtractResult(plan.run, seal, plan.n_blocks, n_run, missing)


class _ProgressBar:
    """A bar of texts with tokens per second and bytes committed, on stderr."""

    def __init__(self, prepared: PreparedRun, pending: Sequence[int], *, show: bool | None) -> None:
        spans = [prepared.plan.block_rows(b) for b in pending]
        total = sum(s.stop - s.start for s in spans)
        self._tokens = 0
        self._bytes = 0
        hidden = not (sys.stderr.isatty() if show is None else show)
        self._bar = tqdm(
            total=total,
            initial=0,
            desc=prepared.plan.run,
            unit="text",
            disable=hidden,
            file=sys.stderr,
            dynamic_ncols=True,
        )

    def __enter__(self) -> Callable[[Progress], None]:
        return self._report

    def __exit__(self, *exc: object) -> None:
        self._bar.close()

    def _report(self, progress: Progress) -> None:
        self._tokens += progress.tokens
        self._bytes += progress.committed_bytes
        self._bar.update(progress.texts)
        elapsed = self._bar.format_dict["elapsed"] or 1e-9
        self._bar.set_postfix_str(
            f"{self._tokens / elapsed:,.0f} tok/s, {self._bytes / 1e6:.1f} MB committed",
            refresh=False,
        )
