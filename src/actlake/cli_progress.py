"""The command that says how far a run is, over all its workers."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from .console import emit, json_option, print_facts, print_table

if TYPE_CHECKING:
    from .store import RunProgress

__all__ = ["progress"]


@click.command()
@click.argument("store_url", metavar="STORE")
@click.argument("run")
@click.option(
    "--watch",
    is_flag=True,
    help="One line again and again, until all is committed (with --json: JSON lines).",
)
@click.option(
    "--interval",
    type=click.FloatRange(0, min_open=True),
    default=5.0,
    show_default=True,
    help="With --watch: seconds between two lines.",
)
@json_option
def progress(store_url: str, run: str, *, watch: bool, interval: float, as_json: bool) -> None:
    """Say how far RUN is: what all its workers have committed, and who is at work.

    \b
    Example: actlake progress s3://bucket/store llama-3-8b --watch
    """
    from .store import open_store, run_progress

    found = open_store(store_url)
    while watch:
        now = run_progress(found, run)
        click.echo(json.dumps(asdict(now)) if as_json else _line(now))
        if now.blocks_committed == now.blocks:
            return
        time.sleep(interval)
    now = run_progress(found, run)
    value = asdict(now)

    def show() -> None:
        print_facts({name: item for name, item in value.items() if name != "workers"})
        rows = [
            {
                "writer": worker.writer,
                "blocks": worker.blocks,
                "texts": worker.texts,
                "at work on": " ".join(map(str, worker.claimed)),
                "seconds ago": round(worker.seconds_ago),
            }
            for worker in now.workers
        ]
        if rows:
            click.echo()
            print_table(rows)

    emit(value, as_json=as_json, show=show)


def _line(now: RunProgress) -> str:
    busy = sum(bool(worker.claimed) for worker in now.workers)
    left = "" if now.seconds_left is None else f", {now.seconds_left:,.0f} s left"
    speed = "" if now.texts_per_second is None else f", {now.texts_per_second:,.1f} texts/s"
    return (
        f"{now.run}: {now.texts_committed:,} of {now.texts:,} texts in {now.blocks_committed} of "
        f"{now.blocks} blocks, {now.bytes_committed / 1e6:,.1f} MB{speed}{left}, {busy} at work"
    )
