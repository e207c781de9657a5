"""The commands for rented GPU machines: cloud search, run, ls, down, guard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import emit, json_option, print_facts, print_table, say

if TYPE_CHECKING:
    from .schemas import GpuWish, JobReport

__all__ = ["cloud"]

_provider = click.option(
    "--provider",
    type=click.Choice(["vast", "runpod", "lambda"]),
    required=True,
    help="Its key is VAST_API_KEY, RUNPOD_API_KEY or LAMBDA_API_KEY in the environment.",
)
_commands = click.option(
    "--commands",
    "commands_file",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="A file of shell commands, one per line, such as deploy/gpu-stages.txt.",
)
_max_dollars = click.option(
    "--max-dollars", type=click.FloatRange(0, min_open=True), help="Stop when so much is spent."
)
_max_hours = click.option(
    "--max-hours", type=click.FloatRange(0, min_open=True), help="Stop after so many hours."
)
_idle = click.option(
    "--idle-minutes",
    type=click.FloatRange(0, min_open=True),
    help="Stop when nothing is done for so long.  [default: 30]",
)
_grace = click.option(
    "--grace-seconds",
    type=click.FloatRange(0, min_open=True),
    help="From SIGINT to SIGKILL.  [default: 120]",
)


def _wish_options(command: Any) -> Any:  # click's decorators  # noqa: ANN401
    """Add the options that say what a machine must have."""
    for option in (
        click.option("--max-price-per-hour", type=float, help="US dollars, the whole machine."),
        click.option("--disk", "disk_gb", type=int, help="GB of disk.  [default: 100]"),
        click.option("--gpu-memory", "gpu_memory_gb", type=float, help="GB of each GPU, at least."),
        click.option("--gpus", "n_gpus", type=int, help="How many GPUs.  [default: 1]"),
        click.option("--gpu", help="Words of the GPU's name, such as A100."),
    ):
        command = option(command)
    return command


def _wish(options: dict[str, Any]) -> GpuWish:
    from .schemas import GpuWish

    names = ("gpu", "n_gpus", "gpu_memory_gb", "disk_gb", "max_price_per_hour")
    given = {name: options[name] for name in names if options.get(name) is not None}
    return GpuWish.parse(given, where="options")


@click.group()
def cloud() -> None:
    """Rent a GPU machine, run commands on it within a budget, and give it back.

    \b
    Example: actlake cloud search --provider vast --gpu A100 --max-price-per-hour 1.5
    """


@cloud.command()
@_provider
@_wish_options
@click.option("--limit", type=click.IntRange(1), default=10, show_default=True, help="Rows shown.")
@json_option
def search(provider: str, *, limit: int, as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """List the machines that can be rented now, cheapest first.

    \b
    Example: actlake cloud search --provider runpod --gpu H100 --gpu-memory 80
    """
    from dataclasses import asdict

    from .cloud_providers import connect

    offers = [asdict(offer) for offer in connect(provider).search(_wish(options))[:limit]]
    emit(offers, as_json=as_json, show=lambda: print_table(offers))


@cloud.command()
@_provider
@_commands
@click.option("--store", "store_url", required=True, help="The user's bucket: STORE in commands.")
@_wish_options
@_max_dollars
@_max_hours
@_idle
@_grace
@click.option("--report", help="Where the machine reports.  [default: STORE-jobs]")
@click.option("--image", help="Container image.  [default: PyTorch with CUDA]")
@click.option(
    "--package", help="What pip installs, '' where the image has actlake.  [default: this version]"
)
@click.option("--pass", "variables", multiple=True, metavar="NAME", help="Pass a variable on.")
@click.option("--ssh-key", default="", help="For Lambda: the name of an SSH key of the account.")
@click.option(
    "--attempts", "n_attempts", type=click.IntRange(1), help="Offers tried.  [default: 3]"
)
@click.option(
    "--start-minutes",
    type=click.FloatRange(0, min_open=True),
    help="Give a machine up that does not report by then.  [default: 30]",
)
@click.option(
    "--poll-seconds", type=click.FloatRange(0, min_open=True), help="Between looks.  [default: 15]"
)
@click.option("--detach", is_flag=True, help="Return when the work has begun.")
@click.option("--dry-run", is_flag=True, help="Print what it would rent and cost; rent nothing.")
@json_option
def run(
    provider: str,
    commands_file: Path,
    store_url: str,
    *,
    ssh_key: str,
    variables: tuple[str, ...],
    detach: bool,
    dry_run: bool,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Rent the cheapest fitting machine, run the commands there, and give it back.

    The machine stops itself when the budget is spent, and is destroyed from here when it does not.
    Exits with 0 when all commands are done, 1 when one failed, 3 when the budget ended the work:
    the store stays resumable, and the same command goes on.

    \b
    Example: actlake cloud run --provider vast --gpu A100 --store s3://bucket/empathy \\
        --commands deploy/gpu-stages.txt --max-dollars 5 --max-price-per-hour 1.5 --dry-run
    """
    from .cloud import CloudJob, plan_job, run_job
    from .cloud_providers import connect
    from .guard import read_commands
    from .schemas import JobLimits

    limits = {
        name: options[name]
        for name in ("max_dollars", "max_hours", "idle_minutes", "grace_seconds")
        if options[name] is not None
    }
    if "max_dollars" in limits:
        limits["price_per_hour"] = 1.0  # until an offer says what it is
    chosen = {
        name: options[name]
        for name in ("report", "image", "package", "n_attempts", "start_minutes", "poll_seconds")
        if options[name] is not None
    }
    job = CloudJob(
        commands=read_commands(commands_file),
        store=store_url,
        wish=_wish(options),
        limits=JobLimits.parse(limits, where="options"),
        variables=variables,
        **chosen,
    )
    found = connect(provider, ssh_key=ssh_key)
    if dry_run:
        plan = plan_job(found, job)
        shown = {name: value for name, value in plan.items() if name != "commands"}

        def show() -> None:
            print_facts(shown)
            click.echo("\n" + "\n".join(job.commands))

        emit(plan, as_json=as_json, show=show)
        return
    _finish(run_job(found, job, say=say, detach=detach), as_json=as_json)


@cloud.command("ls")
@_provider
@json_option
def list_(provider: str, *, as_json: bool) -> None:
    """List the machines of the account, whoever rented them.

    \b
    Example: actlake cloud ls --provider vast
    """
    from dataclasses import asdict

    from .cloud_providers import connect

    machines = [asdict(machine) for machine in connect(provider).machines()]
    emit(machines, as_json=as_json, show=lambda: print_table(machines))


@cloud.command()
@click.argument("label")
@_provider
def down(label: str, *, provider: str) -> None:
    """Destroy the machines with LABEL, as `ls` shows it, until none is listed.

    \b
    Example: actlake cloud down actlake-1a2b3c4d --provider vast
    """
    from .cloud import sweep
    from .cloud_providers import connect
    from .schemas.errors import NotFoundError

    if sweep(connect(provider), label, say=say) == 0:
        msg = f"no machine has the label {label!r}; `actlake cloud ls` lists them"
        raise NotFoundError(msg)


@cloud.command()
@_commands
@_max_dollars
@_max_hours
@click.option("--price-per-hour", type=click.FloatRange(0), help="US dollars.")
@_idle
@_grace
@click.option(
    "--limits", "limits_json", default="", help="All limits, as JSON (actlake-job-limits)."
)
@click.option("--job", default="", help="A name for the report.")
@click.option("--started-at", default="", help="When costs began, in seconds since 1970.")
@click.option("--report", "report_url", default="", help="Folder or URL for report and log.")
@click.option(
    "--log",
    type=click.Path(dir_okay=False, path_type=Path),
    help="With --report: a log whose end is stored there, without credentials.",
)
@json_option
def guard(
    commands_file: Path,
    *,
    limits_json: str,
    job: str,
    started_at: str,
    report_url: str,
    log: Path | None,
    as_json: bool,
    **limits: Any,  # noqa: ANN401
) -> None:
    """Run commands on this machine under a budget: in the end they get SIGINT, and can resume.

    Exits as `cloud run` does. It gives no machine back: where it runs, a script does that.

    \b
    Example: actlake cloud guard --commands deploy/gpu-stages.txt --max-hours 2
    """
    from .guard import hide_secrets, read_commands, run_guarded
    from .schemas import JobLimits
    from .schemas.errors import StorageError

    given = {name: value for name, value in limits.items() if value is not None}
    if limits_json:
        given = {**JobLimits.parse_json(limits_json, where="--limits").model_dump(), **given}
    reports = None
    if report_url:
        from .cloud import Reports

        reports = Reports(report_url)

    def store(report: JobReport) -> None:
        if reports is None:
            return
        text = None
        if log is not None and log.exists():
            text = hide_secrets(log.read_text(encoding="utf-8", errors="replace"))
        try:
            reports.write(report, log=text)
        except StorageError as err:
            say(f"the report could not be stored: {err}")

    _finish(
        run_guarded(
            read_commands(commands_file),
            JobLimits.parse(given, where="options"),
            job=job,
            started_at=_seconds(started_at),
            report=store,
            say=say,
        ),
        as_json=as_json,
    )


def _seconds(text: str) -> float | None:
    """Return a time that a script may leave empty."""
    from .schemas.errors import InvalidInputError

    try:
        return float(text) if text else None
    except ValueError as err:
        msg = f"--started-at {text!r}: expected seconds since 1970, such as `date +%s` prints"
        raise InvalidInputError(msg) from err


def _finish(report: JobReport, *, as_json: bool) -> None:
    """Print the report, and exit as its state demands."""
    from .schemas.errors import BudgetSpentError, CancelledError, CloudError

    value = report.to_dict()
    shown = {name: item for name, item in value.items() if not name.startswith("encoding")}
    emit(value, as_json=as_json, show=lambda: print_facts(shown))
    message = f"{report.message}; what was committed stays, the same command goes on"
    if report.state == "failed":
        raise CloudError(message)
    if report.state in {"budget", "idle"}:
        raise BudgetSpentError(message)
    if report.state == "interrupted":
        raise CancelledError(message)
