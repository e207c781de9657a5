"""Persona files: the matched instructions of the arms."""

from __future__ import annotations

from pathlib import Path

from ..schemas import PersonaSet
from .lines import read_toml

__all__ = ["read_personas"]

_BUNDLED = Path(__file__).resolve().parent / "data" / "personas.toml"


def read_personas(path: str | Path | None = None) -> PersonaSet:
    """Return the personas of a TOML file, the bundled ones if None.

    Raises
    ------
    NotFoundError
        If there is no such file.
    InvalidInputError
        If it is no persona file, or its arms are not matched in number or length.
    """
    source = _BUNDLED if path is None else Path(path)
    return PersonaSet.parse(read_toml(source, noun="persona"), where=str(source))
