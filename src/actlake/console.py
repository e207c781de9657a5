"""Printing for people and for machines, and reading of options that are lists."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .schemas.errors import InvalidInputError

if TYPE_CHECKING:
    from .schemas import CaptureSpec, ExtractSpec

__all__ = [
    "emit",
    "estimate_options",
    "extract_specs",
    "json_option",
    "parse_alphas",
    "parse_layers",
    "print_facts",
    "print_table",
    "probe_seconds",
    "read_toml",
    "say",
    "show_progress",
]

PROBE_SECONDS = 20.0

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")


def estimate_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options by which a dry run says how long and how dear the whole would be."""
    command = click.option(
        "--price-per-hour",
        "price",
        type=click.FloatRange(0),
        help="With --dry-run: what it would cost.",
    )(command)
    return click.option(
        "--probe",
        type=click.FloatRange(0),
        metavar="SECONDS",
        help="With --dry-run: how long to try, which reads the weights.",
    )(command)


def probe_seconds(probe: float | None, price: float | None, *, dry_run: bool) -> float | None:
    """Return how long a dry run probes; None where neither a time nor a price is asked for."""
    if probe is None and price is None:
        return None
    if not dry_run:
        msg = "--probe and --price-per-hour say what a run would take; add --dry-run"
        raise InvalidInputError(msg)
    return PROBE_SECONDS if probe is None else probe


def say(line: str) -> None:
    """Print a line of progress to stderr."""
    click.echo(line, err=True)


def emit(value: object, *, as_json: bool, show: Callable[[], None]) -> None:
    """Print ``value`` as JSON, or what ``show`` prints."""
    if as_json:
        click.echo(json.dumps(value, indent=2))
    else:
        show()


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print dicts of like keys as an aligned table."""
    if not rows:
        click.echo("nothing")
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names] + [["" if row.get(n) is None else str(row[n]) for n in names] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    for line in cells:
        padded = [c.ljust(w) for c, w in zip(line, widths, strict=True)]
        click.echo("  ".join(padded).rstrip())


def print_facts(facts: dict[str, Any]) -> None:
    """Print one dict as aligned lines."""
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
        click.echo(f"{name.ljust(width)}  {shown}")


def read_toml(file: Path) -> dict[str, Any]:
    """Return the keys of a TOML file; InvalidInputError says where it is none."""
    import tomllib

    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        msg = f"{file}: not valid TOML: {err}"
        raise InvalidInputError(msg) from err


def extract_specs(
    options: dict[str, Any], *, base: tuple[CaptureSpec, ExtractSpec] | None = None
) -> tuple[CaptureSpec, ExtractSpec]:
    """Return the capture and execution specs of the extract command's options.

    What is not given is as in ``base``, or the default.
    """
    from .schemas import CaptureSpec, ExtractSpec

    given = {name: value for name, value in options.items() if value not in (None, False)}
    for name in ("pools", "sites"):
        if name in given:
            given[name] = [part.strip() for part in given[name].split(",")]
    if "layers" in given:
        given["layers"] = parse_layers(given["layers"])
    token_sites = given.pop("token_sites", None)
    if "tokens" in given:
        given["tokens"] = {"layers": parse_layers(given["tokens"])}
        if token_sites:
            given["tokens"]["sites"] = [part.strip() for part in token_sites.split(",")]
    elif token_sites:
        msg = "--token-sites needs --tokens, the layers whose tokens are stored"
        raise InvalidInputError(msg)
    for name in ("batch_tokens", "chunk_size"):
        if str(given.get(name, "")).isdigit():
            given[name] = int(given[name])
    capture = {} if base is None else base[0].model_dump()
    execution = {} if base is None else base[1].model_dump()
    capture |= {k: v for k, v in given.items() if k in CaptureSpec.model_fields}
    execution |= {k: v for k, v in given.items() if k in ExtractSpec.model_fields}
    return (
        CaptureSpec.parse(capture, where="options"),
        ExtractSpec.parse(execution, where="options"),
    )


def parse_layers(text: str) -> list[int] | str:
    """Return the layers that ``0,4,8-12`` names, or ``all``."""
    if text == "all":
        return text
    layers: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            layers.extend(range(int(first), int(last or first) + 1))
    except ValueError as err:
        msg = f"layers {text!r} cannot be read; expected something like 0,4,8-12 or all"
        raise InvalidInputError(msg) from err
    return layers


def parse_alphas(text: str) -> list[float]:
    """Return the strengths that ``-2,-1,0`` names."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as err:
        msg = f"alphas {text!r} cannot be read; expected something like -2,-1,0,1,2"
        raise InvalidInputError(msg) from err


@contextmanager
def show_progress(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """Give a bar of finished conditions on a terminal, and nothing anywhere else."""
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with tqdm(desc=what, unit="condition", leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
