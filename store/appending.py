"""Appending texts to a run: what it has already, and the plan of the part to come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..schemas import (
    AlreadyExistsError,
    Continuation,
    CorruptError,
    InvalidInputError,
    NotFoundError,
    RunPlan,
    Seal,
    Text,
)
from .catalog import write_catalog
from .deciding import sweep_run
from .documents import read_documents
from .partial import pulled_key, read_pulled
from .parts import MAX_PARTS, part_differences, part_names, sealed_parts
from .stored_coordinates import read_text_ids

if TYPE_CHECKING:
    from .store import Store

__all__ = ["Append", "appended_part", "finish_append", "new_texts", "plan_append", "text_ids_of"]

_SHOWN = 8


@dataclass(frozen=True)
class Append:
    """Where the next texts of a run go.

    Parameters
    ----------
    part
        Name of the part: a new one, or the first that was begun and is not sealed.
    continues
        What it is appended to.
    run
        The plan of the run.
    present
        Ids of the texts that the other parts have.
    is_begun
        Whether the part was begun: then only the same texts can be appended now.
    """

    part: str
    continues: Continuation
    run: RunPlan
    present: frozenset[str] = field(repr=False)
    is_begun: bool


def plan_append(store: Store, run_id: str) -> Append:
    """Return where texts that are appended to a run go; nothing is written.

    Raises
    ------
    NotFoundError
        If there is no such run.
    AlreadyExistsError
        If the run here is a partial copy, or has the most parts that a run can have.
    """
    run = store.read_plan(run_id)
    names = part_names(store, run_id)
    begun = next((n for n in names[1:] if store.backend.size(store.keys(n).seal) is None), None)
    part = begun or f"{run_id}~{len(names)}"
    if "~" in run_id or (begun is None and len(names) > MAX_PARTS):
        msg = f"nothing can be appended to {run_id!r} in {store.url}: "
        msg += "it is a part itself" if "~" in run_id else f"it has {MAX_PARTS} parts"
        raise AlreadyExistsError(msg)
    before = names[names.index(begun) - 1] if begun else names[-1]
    present: set[str] = set()
    for name in names:
        if store.backend.size(pulled_key(name)) is not None:
            msg = (
                f"run {run_id!r} in {store.url} is a partial copy, nothing is appended to it; "
                "pull the rest of it, or append to the run it was pulled from"
            )
            raise AlreadyExistsError(msg)
        if name != begun:
            present |= set(text_ids_of(store, name))
    continues = Continuation(run=run_id, plan_id=store.read_plan_and_id(before)[1])
    return Append(part, continues, run, frozenset(present), is_begun=begun is not None)


def text_ids_of(store: Store, name: str) -> list[str]:
    """Return the ids of the texts of one part, in row order; raise CorruptError."""
    plan, plan_id = store.read_plan_and_id(name)
    partial = read_pulled(store, plan, plan_id) is not None
    documents = read_documents(store, plan, store.read_seal(name), partial=partial)
    return read_text_ids(store, plan, documents)


def appended_part(store: Store, plan: RunPlan, *, ids: Sequence[str]) -> RunPlan:
    """Return the plan of the part that appends the texts ``ids``, planned as a run of their own.

    Raises
    ------
    AlreadyExistsError
        See ``Store.append_run``.
    """
    if plan.continues is not None:
        msg = f"append_run needs the name of the run, got that of its part {plan.run!r}"
        raise InvalidInputError(msg)
    append = plan_append(store, plan.run)
    wrong = part_differences(append.run, plan)
    if wrong:
        msg = (
            f"run {plan.run!r} in {store.url} was made otherwise: {'; '.join(wrong[:_SHOWN])}. "
            "Append with what it was made with, or give the new texts a run of their own"
        )
        raise AlreadyExistsError(msg)
    twice = [name for name in ids if name in append.present]
    if twice:
        msg = (
            f"run {plan.run!r} in {store.url} has {len(twice)} of these texts already: "
            f"{_shown(twice)}; append only the others"
        )
        raise AlreadyExistsError(msg)
    part = plan.model_copy(update={"run": append.part, "continues": append.continues})
    if append.is_begun and store.read_plan(append.part) != part:
        msg = (
            f"an append to run {plan.run!r} in {store.url} was begun with other texts or settings "
            f"and is not finished ({append.part}): repeat it as it was begun, or delete "
            f"{store.keys(append.part).folder}"
        )
        raise AlreadyExistsError(msg)
    return part


def new_texts(store: Store, append: Append, texts: Sequence[Text]) -> list[Text]:
    """Return those of ``texts`` that the run does not have.

    Raises
    ------
    AlreadyExistsError
        If one of them has the id of a text of the run, but other words: the ids are named.
    """
    known: dict[str, Text] = {}
    for name in part_names(store, append.run.run):
        try:
            known |= {text.id: text for text in store.read_corpus(store.read_plan(name).corpus)[1]}
        except (NotFoundError, InvalidInputError, CorruptError):
            continue  # the ids alone decide then
    changed = [t.id for t in texts if t.id in append.present and known.get(t.id, t) != t]
    if changed:
        msg = (
            f"run {append.run.run!r} in {store.url} was made with other words under the ids of "
            f"{len(changed)} of these texts: {_shown(changed)}; give changed texts new ids"
        )
        raise AlreadyExistsError(msg)
    return [text for text in texts if text.id not in append.present]


def finish_append(store: Store, run_id: str) -> tuple[str, Seal | None]:
    """Return the last part that readers see and its seal, where nothing is left to append.

    What a writer that was killed right after it sealed had still to do is done: the catalog, and
    the claims that it left.
    """
    last = sealed_parts(store, run_id)[-1]
    seal = store.read_seal(last)
    if seal is not None:
        sweep_run(store, last)
        write_catalog(store)
    return last, seal


def _shown(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
