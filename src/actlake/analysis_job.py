"""What the stages of a suite of analyses share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .analysis import Bar, no_bar
from .schemas import AnalyzeSpec, NotFoundError, digest_json
from .stages import Results, content_digest, origin_key

if TYPE_CHECKING:
    from .store import Store

__all__ = ["TOGETHER", "AnalysisJob", "LeftOutError"]

TOGETHER = "."  # what compares runs lies beside their folders


class LeftOutError(NotFoundError):
    """A part has nothing to work on here; that is no failure."""


@dataclass(frozen=True)
class AnalysisJob:
    """What the stages of a suite share: where to read and write, what to compute, and how.

    ``ratings`` is a table of scored texts, or None; ``memory`` the most to use, such as ``4GiB``;
    ``site`` None takes ``resid_post``, or a run's first site; ``bar`` makes the progress of a
    named piece of work.
    """

    store: Store
    results: Results
    spec: AnalyzeSpec
    ratings: Path | None = None
    scheduler: str | None = None
    memory: str | None = None
    site: str | None = None
    say: Callable[[str], None] = lambda _: None
    bar: Bar = no_bar

    def contents(self, runs: Sequence[str]) -> dict[str, Any]:
        """Return the content digests of ``runs``, and of partial copies what they hold."""
        return {run: [content_digest(self.store, run), origin_key(self.store, run)] for run in runs}

    def is_done(self, run: str, name: str, key: dict[str, Any]) -> bool:
        """Whether the results of a stage are there under the same key."""
        done = self.results.key(run, name)
        return done is not None and done.get("digest") == digest_json(key)
