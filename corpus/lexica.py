"""Reading of lexica: the bundled ones by name, others by their file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..schemas import InvalidInputError, Lexicon, NotFoundError, near_names
from .lines import read_toml

__all__ = ["bundled_lexica", "check_lexica", "load_lexicon"]

_DATA = Path(__file__).resolve().parent / "data" / "lexica"


def bundled_lexica() -> tuple[Lexicon, ...]:
    """Return the bundled empathy and task lexica."""
    return load_lexicon("empathy"), load_lexicon("task")


def load_lexicon(source: str | Path) -> Lexicon:
    """Return the lexicon of a TOML file, or the bundled one of that name.

    Raises
    ------
    NotFoundError
        If there is neither.
    InvalidInputError
        If the file is no lexicon.
    """
    names = sorted(path.stem for path in _DATA.glob("*.toml"))
    path = _DATA / f"{source}.toml" if str(source) in names else Path(source)
    if not path.exists():
        near = near_names(str(source), names)
        msg = f"no lexicon {str(source)!r}{near}; give a TOML file or one of: {', '.join(names)}"
        raise NotFoundError(msg)
    return Lexicon.parse(read_toml(path, noun="keyword"), where=str(path))


def check_lexica(lexica: Sequence[Lexicon]) -> None:
    """Check that no replacement holds a keyword: else what is replaced would come back.

    Raises
    ------
    InvalidInputError
        Naming the lexicon, the keyword and its replacement.
    """
    keywords = frozenset[str]().union(*(lexicon.keywords for lexicon in lexica))
    for lexicon in lexica:
        for form, other in lexicon.table.items():
            if keywords.intersection(other.split()):
                msg = f"lexicon {lexicon.name!r} replaces {form!r} by {other!r}, which is a keyword"
                raise InvalidInputError(msg)
