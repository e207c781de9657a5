"""The tasks of a study: what each follows from, what is done, and carrying out the rest.

A task is one stage of one subject (a run, a pair of runs, or the study). Its identity is the
digest of its settings and of the identities of what it needs, so equal work is found wherever it
was done: in the local folder, or in the store that the GPU machine and the laptop share.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ._version import __version__
from .schemas import InvalidInputError, NotFoundError, StorageError, digest_json, near_names
from .schemas.errors import ActlakeError

if TYPE_CHECKING:
    from .stages import Results
    from .store import Store

__all__ = ["Cost", "Graph", "Outcome", "Place", "Task"]

Place: TypeAlias = Literal["gpu", "cpu"]
Say: TypeAlias = Callable[[str], None]


@dataclass(frozen=True)
class Cost:
    """What a task asks of a model: tokens of forward passes, tokens generated, bytes stored."""

    forward_tokens: int = 0
    new_tokens: int = 0
    stored_bytes: int = 0
    n_parameters: int = 0  # of that model


@dataclass(frozen=True)
class Task:
    """One stage of one subject.

    ``make`` writes its results into a folder. A task whose work lies in the store itself, such as
    an extraction, has ``act`` instead, and ``content``, which returns what is there, None as long
    as it is not finished. ``version`` grows when the meaning of a stage's results changes.
    """

    stage: str
    subject: str
    where: Place
    needs: tuple[str, ...] = ()  # names of tasks
    specs: dict[str, Any] = field(default_factory=dict)  # plain JSON values
    version: int = 1
    make: Callable[[Path], None] | None = None
    act: Callable[[Say], None] | None = None
    content: Callable[[], dict[str, Any] | None] | None = None
    cost: Callable[[], Cost] | None = None

    @property
    def name(self) -> str:
        """The stage and its subject: ``probe of phi-3``."""
        return f"{self.stage} of {self.subject}"


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    ``failed`` has the error's message. ``waits`` has what is missing first.
    """

    task: Task
    state: Literal["done", "was done", "failed", "waits"]
    message: str = ""
    seconds: float = 0.0


class Graph:
    """The tasks of a study in an order in which each comes after what it needs.

    Parameters
    ----------
    tasks
        In that order.
    results
        The local folder of results.
    store
        Where results are shared; the store of the runs.

    Raises
    ------
    InvalidInputError
        If two tasks have one name, or one needs what does not come before it.
    """

    def __init__(self, tasks: Iterable[Task], *, results: Results, store: Store) -> None:
        self.tasks = list(tasks)
        self.results = results
        self.store = store
        self._by_name: dict[str, Task] = {}
        self._made_from: dict[str, dict[str, Any] | None] = {}
        self._done: dict[str, bool] = {}
        for task in self.tasks:
            lacking = [need for need in task.needs if need not in self._by_name]
            if lacking or task.name in self._by_name:
                what = f"needs {lacking}, which do not come before it" if lacking else "is twice"
                msg = f"the study's task {task.name!r} {what}"
                raise InvalidInputError(msg)
            self._by_name[task.name] = task

    def task(self, name: str) -> Task:
        """Return the task of that name."""
        return self._by_name[name]

    # -- what there is

    def made_from(self, task: Task) -> dict[str, Any] | None:
        """Return what the task's results follow from, None while an extraction is missing."""
        if task.name not in self._made_from:
            self._made_from[task.name] = self._find_made_from(task)
        return self._made_from[task.name]

    def is_done(self, task: Task) -> bool:
        """Return whether the task's results are here, or in the store."""
        if task.name not in self._done:
            made_from = self.made_from(task)
            self._done[task.name] = made_from is not None and (
                task.content is not None
                or self._is_local(task, made_from)
                or self._shared(task, made_from) is not None
            )
        return self._done[task.name]

    def _find_made_from(self, task: Task) -> dict[str, Any] | None:
        if task.content is not None:
            return task.content()
        needs = {need: self.made_from(self._by_name[need]) for need in task.needs}
        if any(found is None for found in needs.values()):
            return None
        return {
            "stage": task.stage,
            "version": task.version,
            "specs": task.specs,
            "needs": {need: digest_json(found) for need, found in needs.items()},
        }

    def _is_local(self, task: Task, made_from: dict[str, Any]) -> bool:
        key = self.results.key(task.subject, task.stage)
        return key is not None and key.get("digest") == digest_json(made_from)

    def _shared(self, task: Task, made_from: dict[str, Any]) -> Any:  # noqa: ANN401
        from .store import find_result

        return find_result(self.store, made_from, subject=task.subject, stage=task.stage)

    # -- what is to be done

    def select(
        self,
        *,
        only: Sequence[str] = (),
        until: str | None = None,
        where: Place | None = None,
    ) -> list[Task]:
        """Return the tasks of some stages, of those up to one, or of one kind of machine.

        A GPU machine also does the CPU stages that its own stages wait for: a direction must be
        known before it is steered.

        Raises
        ------
        InvalidInputError
            If a stage is unknown; the nearest is named.
        """
        stages = list(dict.fromkeys(task.stage for task in self.tasks))
        for name in [*only, *([until] if until else [])]:
            if name not in stages:
                msg = f"no stage {name!r}{near_names(name, stages)}; the stages are {stages}"
                raise InvalidInputError(msg)
        chosen = {task.name for task in self.tasks if not only or task.stage in only}
        if until:
            wanted = self._with_needs(t for t in self.tasks if t.stage == until)
            chosen &= {task.name for task in wanted}
        if where == "gpu":
            wanted = self._with_needs(
                t for t in self.tasks if t.where == "gpu" and t.name in chosen
            )
            chosen = {t.name for t in wanted if t.name in chosen or t.where == "cpu"}
        elif where == "cpu":
            chosen &= {task.name for task in self.tasks if task.where == "cpu"}
        return [task for task in self.tasks if task.name in chosen]

    def _with_needs(self, tasks: Iterable[Task]) -> list[Task]:
        names: set[str] = set()
        waiting = list(tasks)
        while waiting:
            task = waiting.pop()
            if task.name not in names:
                names.add(task.name)
                waiting.extend(self._by_name[need] for need in task.needs)
        return [task for task in self.tasks if task.name in names]

    def carry_out(self, tasks: Sequence[Task], *, say: Say) -> list[Outcome]:
        """Do what is not done of ``tasks``; a failure stops only what needs it.

        KeyboardInterrupt passes through: what is done stays.
        """
        outcomes: list[Outcome] = []
        for number, task in enumerate(tasks, start=1):
            began = time.monotonic()
            head = f"[{number}/{len(tasks)}] {task.name}"
            outcome = self._attempt(task, say=_behind(head, say))
            seconds = round(time.monotonic() - began, 1)
            outcome = Outcome(task, outcome.state, outcome.message, seconds)
            tail = f": {outcome.message}" if outcome.message else f" ({seconds} s)"
            say(f"{head}: {outcome.state}{tail}")
            outcomes.append(outcome)
        return outcomes

    def _attempt(self, task: Task, *, say: Say) -> Outcome:
        try:
            lacking = [need for need in task.needs if not self.is_done(self._by_name[need])]
            if lacking:
                return Outcome(task, "waits", f"needs {', '.join(lacking)} first")
            for need in task.needs:
                self.bring(self._by_name[need])
            if self.is_done(task):
                self.bring(task)
                return Outcome(task, "was done")
            self._do(task, say=say)
        except ActlakeError as err:
            return Outcome(task, "failed", str(err))
        except Exception as err:  # noqa: BLE001  # one stage's defect must not cost the others
            path = self._details(task)
            path.write_text(traceback.format_exc(), encoding="utf-8")
            return Outcome(task, "failed", f"{type(err).__name__}: {err} (details: {path})")
        self._details(task).unlink(missing_ok=True)  # of an attempt before
        return Outcome(task, "done")

    def _details(self, task: Task) -> Path:
        return self.results.folder / f"failed-{task.stage}-{task.subject}.txt"

    def bring(self, task: Task) -> Path:
        """Return the folder of a finished task's results, fetched from the store where needed.

        Raises
        ------
        NotFoundError
            If the task is not done.
        """
        folder = self.results.stage(task.subject, task.stage)
        if task.make is None:
            return folder  # what it made lies in the store itself
        made_from = self.made_from(task)
        if made_from is None:
            msg = f"{task.name} is not done: run it first"
            raise NotFoundError(msg)
        if not self._is_local(task, made_from):
            from .store import fetch_result

            record = self._shared(task, made_from)
            if record is None:
                msg = f"{task.name} is not done: run it first"
                raise NotFoundError(msg)
            self.results.build(
                task.subject,
                task.stage,
                key=made_from,
                make=lambda fresh: fetch_result(self.store, record, fresh),
            )
        return folder

    def bring_finished(self) -> list[Task]:
        """Fetch the results of everything that is done here or elsewhere; return those tasks."""
        done = [task for task in self.tasks if task.make is not None and self.is_done(task)]
        for task in done:
            self.bring(task)
        return done

    def _do(self, task: Task, *, say: Say) -> None:
        began = time.monotonic()
        made_from = self.made_from(task)
        if task.act is not None:
            task.act(say)
        elif task.make is not None and made_from is not None:
            self.results.build(task.subject, task.stage, key=made_from, make=task.make)
            self._share(task, made_from, seconds=time.monotonic() - began, say=say)
        self._made_from.clear()
        self._done.clear()

    def _share(self, task: Task, made_from: dict[str, Any], *, seconds: float, say: Say) -> None:
        from .store import publish_result

        try:
            publish_result(
                self.store,
                self.results.stage(task.subject, task.stage),
                subject=task.subject,
                stage=task.stage,
                made_from=made_from,
                actlake=__version__,
                seconds=seconds,
            )
        except StorageError as err:
            # A collaborator reads the store and cannot write it: the results are still theirs.
            say(f"kept in {self.results.folder} only: {err}")


def _behind(head: str, say: Say) -> Say:
    return lambda line: say(f"{head}: {line}")
