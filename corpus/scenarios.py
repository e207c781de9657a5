"""Scenario files: what texts are written for and scored by."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..schemas import InvalidInputError, Scenario
from .lines import read_lines, write_lines

__all__ = ["read_scenarios", "write_scenarios"]


def read_scenarios(path: str | Path) -> list[Scenario]:
    """Return the scenarios of a JSONL file, one per line.

    Raises
    ------
    NotFoundError
        If there is no such file.
    InvalidInputError
        If a line is broken, names an unknown category or no rubric, or an id stands twice.
    """

    def parse(data: object, where: str) -> Scenario:
        return Scenario.parse(data, where=where)

    found, lines = read_lines(path, parse, noun="scenario")
    first: dict[str, int] = {}
    for scenario, line in zip(found, lines, strict=True):
        if scenario.id in first:
            msg = (
                f"{path}:{line}: duplicate id {scenario.id!r} (first at line {first[scenario.id]})"
            )
            raise InvalidInputError(msg)
        first[scenario.id] = line
    return found


def write_scenarios(scenarios: Iterable[Scenario], path: str | Path) -> None:
    """Write scenarios as JSONL, one compact object per line."""
    write_lines((item.model_dump(mode="json", exclude_none=True) for item in scenarios), path)
