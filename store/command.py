"""The command line that makes a run, from its plan."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from ..schemas import RunPlan
from .parts import run_of

if TYPE_CHECKING:
    from .store import Store

__all__ = ["extraction_command"]


def extraction_command(
    store: Store, plan: RunPlan, *, model: str | None = None, corpus: str | None = None
) -> str:
    """Return the command line that extracts a run as its plan says.

    Parameters
    ----------
    model, corpus
        What the extraction was given, where it is known: a plan holds a model's name and digest
        but no path, and a corpus's id but no file. Otherwise a word in capitals stands for them.
    """
    capture = plan.capture
    known = plan.model.name if plan.model.content_digest is None else f"FOLDER/{plan.model.name}"
    texts = "GROWN.jsonl" if plan.continues else f"{plan.corpus}.jsonl"  # GROWN: with the part's
    parts = ["actlake", "extract", model or known, "--corpus"]
    parts += [corpus or texts]
    parts += ["--store", store.url, "--run", run_of(plan.run)]
    parts += ["--append"] if plan.continues else []
    if plan.model.revision:
        parts += ["--revision", plan.model.revision]
    if capture.layers != "all":
        parts += ["--layers", ",".join(map(str, capture.layers))]
    parts += ["--pools", ",".join(capture.pools), "--sites", ",".join(capture.sites)]
    if capture.tokens is not None:
        layers = capture.tokens.layers
        parts += ["--tokens", layers if layers == "all" else ",".join(map(str, layers))]
        parts += ["--token-sites", ",".join(capture.tokens.sites)]
    parts += ["--dtype", capture.dtype, "--render", capture.render]
    parts += ["--max-tokens", str(capture.max_tokens)]
    parts += ["--truncate"] if capture.truncate else []
    parts += ["--batch-tokens", str(plan.batch_tokens), "--chunk-size", str(plan.rows_per_block)]
    if plan.token_axis is not None:  # not to be told from the size that it was chosen by
        parts += ["--token-chunk", str(plan.token_axis.rows_per_chunk)]
    parts += ["--codec", "none"] if plan.codec == "crc32c" else []
    parts += ["--bits16"] if any(spec.dtype != "float32" for spec in plan.arrays) else []
    if plan.engine != "transformers":  # which chooses its own attention
        parts += ["--engine", plan.engine]
    else:
        parts += ["--attn", plan.model.attn_implementation]
    return shlex.join(parts)
