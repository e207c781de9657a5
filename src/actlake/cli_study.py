"""The commands that run a whole study: study plan and study run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import emit, json_option, print_facts, print_table, say

if TYPE_CHECKING:
    from .graph import Graph, Task
    from .schemas import StudyFile

__all__ = ["run_opened", "study"]

_out = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for store, results and report.  [default: the file's name]",
)
_store = click.option("--store", "store_url", help="Another place for the store: any fsspec URL.")


def _chosen(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that choose stages."""
    for option in (
        click.option(
            "--where", type=click.Choice(["gpu", "cpu"]), help="The stages of one machine alone."
        ),
        click.option("--until", metavar="STAGE", help="This stage and all that it needs."),
        click.option("--only", metavar="STAGES", help="These stages, comma-separated."),
    ):
        command = option(command)
    return command


@click.group()
def study() -> None:
    """Plan and run a whole study from one TOML file.

    \b
    Example: actlake study run study.toml
    """


@study.command("plan")
@click.argument("file")
@_out
@_store
@_chosen
@json_option
def study_plan(
    file: str,
    out: Path | None,
    store_url: str | None,
    *,
    as_json: bool,
    **chosen: Any,  # noqa: ANN401
) -> None:
    """Show the stages of FILE: what is done, and what the rest takes.

    Hours and dollars are estimates from the speeds that the file's [budget] states; nothing is
    written.

    \b
    Example: actlake study plan studies/empathy.toml --store s3://bucket/empathy
    """
    from .study import open_study

    found, path = _found(file)
    graph = open_study(
        found, out=out or Path(path.stem), store_url=store_url, base=path.parent, write=False,
        say=say,
    )  # fmt: skip
    tasks = graph.select(**_selection(chosen))
    records = [_planned(graph, task, found) for task in tasks]
    totals = {
        "tasks": len(records),
        "done": sum(record["state"] == "done" for record in records),
        "gpu_hours": round(sum(record["hours"] or 0 for record in records), 2),
        "dollars": round(sum(record["dollars"] or 0 for record in records), 2),
        "max_dollars": found.budget.max_dollars,
        "unknown": [record["task"] for record in records if record["note"]],
    }

    def show() -> None:
        print_table([{k: v for k, v in record.items() if k != "note"} for record in records])
        click.echo()
        print_facts({name: value for name, value in totals.items() if name != "unknown"})
        for record in records:
            if record["note"]:
                click.echo(f"{record['task']}: cost unknown: {record['note']}")

    emit({"tasks": records, "totals": totals}, as_json=as_json, show=show)
    most, dollars = found.budget.max_dollars, totals["dollars"]
    if most is not None and dollars > most:
        say(
            f"this is more than [budget] max_dollars = {most:g}; "
            "`cloud run --max-dollars` stops there"
        )


def _planned(graph: Graph, task: Task, file: StudyFile) -> dict[str, Any]:
    """Return one line of the plan; what cannot be known yet says why in ``note``."""
    from .graph import Cost
    from .schemas.errors import ActlakeError
    from .study_costs import gpu_hours

    done, cost, note = graph.is_done(task), Cost(), ""
    if not done and task.cost is not None:
        try:
            cost = task.cost()
        except ActlakeError as err:
            note = str(err)
        except ModuleNotFoundError as err:  # the laptop has no torch, and need not
            note = f"{err.name} is not installed here; the extra is actlake[extract]"
    hours = gpu_hours(cost, file.budget)
    known = task.where == "gpu" and not done and not note
    return {
        "task": task.name,
        "where": task.where,
        "state": "done" if done else "to do",
        "tokens": cost.forward_tokens or None,
        "new_tokens": cost.new_tokens or None,
        "bytes": cost.stored_bytes or None,
        "hours": round(hours, 3) if known else None,
        "dollars": round(hours * file.budget.price_per_hour, 2) if known else None,
        "note": note,
    }


@study.command("run")
@click.argument("file")
@_out
@_store
@_chosen
@json_option
def study_run(
    file: str,
    out: Path | None,
    store_url: str | None,
    *,
    as_json: bool,
    **chosen: Any,  # noqa: ANN401
) -> None:
    """Run the stages of FILE that are not done, and write the report.

    FILE is TOML; or bundled:demo or bundled:empathy, which come with actlake; or a URL, beside
    which the texts lie that it names.

    Machines that name the same store share what is done: the rented one runs --where gpu, the
    laptop --where cpu.

    \b
    Example: actlake study run empathy.toml --store s3://bucket/empathy
    """
    found, path = _found(file)
    run_opened(
        found, out=out or Path(path.stem), store_url=store_url, base=path.parent,
        as_json=as_json, **_selection(chosen),
    )  # fmt: skip


def _found(file: str) -> tuple[StudyFile, Path]:
    """Return a study and its file; what a URL names lies here until the command ends."""
    import tempfile

    from .study_files import find_study, load_study

    folder = click.get_current_context().with_resource(tempfile.TemporaryDirectory())
    path = find_study(file, folder=Path(folder))
    return load_study(path), path


def _selection(chosen: dict[str, Any]) -> dict[str, Any]:
    only = [name.strip() for name in (chosen["only"] or "").split(",") if name.strip()]
    return {**chosen, "only": only}


def run_opened(
    found: StudyFile,
    *,
    out: Path,
    store_url: str | None,
    base: Path | None,
    as_json: bool,
    **selection: Any,  # noqa: ANN401
) -> None:
    """Run a study and print its summary; exit 1 where a stage failed."""
    from .study import run_study

    outcome = run_study(found, out=out, store_url=store_url, base=base, say=say, **selection)
    value = {
        "summary": outcome.summary,
        "report": None if outcome.report is None else str(outcome.report),
        "store": outcome.store_url,
        "seconds": outcome.seconds,
        "tasks": [
            {"task": one.task.name, "state": one.state, "seconds": one.seconds}
            for one in outcome.outcomes
        ],
        "unfinished": [
            {"task": one.task.name, "state": one.state, "message": one.message}
            for one in outcome.unfinished
        ],
    }

    def show() -> None:
        for line in outcome.summary:
            print_facts(line)
            click.echo()
        where = f"report: {outcome.report}" if outcome.report else "no report yet"
        click.echo(f"done in {outcome.seconds} s; {where}")

    emit(value, as_json=as_json, show=show)
    failed = [one for one in outcome.unfinished if one.state == "failed"]
    waiting = len(outcome.unfinished) - len(failed)
    if failed:
        say("")
        for one in failed:
            say(f"failed: {one.task.name}: {one.message}")
        say(f"{waiting} tasks wait for these; mend what they say and run the same command again")
        sys.exit(1)
    if waiting:
        say(f"{waiting} tasks wait for stages that were not run here")
