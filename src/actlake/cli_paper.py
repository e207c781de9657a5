"""The command that writes a study's figures and tables for a paper."""

from __future__ import annotations

from pathlib import Path

import click

from .console import emit, json_option, say

__all__ = ["paper"]


@click.command()
@click.argument("results", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("paper"),
    show_default=True,
    help="The folder to write into.",
)
@json_option
def paper(results: Path, out: Path, *, as_json: bool) -> None:
    """Write figures (PDF) and tables (LaTeX) of a folder of results, each with its CSV.

    Every figure has a NAME.tex with its caption; index.tex takes all of them. What was not run is
    left out, with the reason. Needs actlake[paper].

    \b
    Example: actlake paper my-study/results --out paper
    """
    from .analyze.paper import write_paper
    from .reporting import report_input
    from .stages import Results

    done = write_paper(report_input(Results(results)), out)
    value = {
        "folder": str(done.folder),
        "written": {name: [str(path) for path in paths] for name, paths in done.written.items()},
        "left_out": done.left_out,
    }

    def show() -> None:
        for paths in done.written.values():
            for path in paths:
                click.echo(path)
        for name, reason in done.left_out.items():
            click.echo(f"left out: {name}: {reason}")

    emit(value, as_json=as_json, show=show)
    say(f"{len(done.written)} figures and tables; \\input{{index}} takes them all")
