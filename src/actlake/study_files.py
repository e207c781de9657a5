"""Where a study file comes from: a path, one that is bundled, or a URL with what it names."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from .schemas import InvalidInputError, NotFoundError, StudyFile, near_names

if TYPE_CHECKING:
    from .store.backend import Backend

__all__ = ["find_study", "load_study"]

_STUDIES = Path(__file__).parent / "studies"
_BUNDLED = "bundled:"
_MAX_STUDY = 2**20  # bytes of a study file
_MAX_CORPUS = 2**30  # and of the texts beside it


def find_study(source: str | Path, *, folder: Path | None = None) -> Path:
    """Return the file that ``source`` names: a path, ``bundled:NAME``, or a URL.

    A machine that is rented has no file of yours: from a URL (``s3://bucket/my/study.toml``) the
    study is copied into ``folder``, with the texts and scenarios that it names beside it.

    Raises
    ------
    NotFoundError
        If there is no such bundled study, or nothing at the URL.
    InvalidInputError
        If a URL is given without a folder to copy to.
    """
    name = str(source)
    if name.startswith(_BUNDLED):
        return _bundled(name.removeprefix(_BUNDLED))
    if "://" not in name:
        return Path(source)
    if folder is None:
        msg = f"{name} is a URL; give a folder to copy it to"
        raise InvalidInputError(msg)
    return _fetch(name, folder)


def load_study(source: str | Path) -> StudyFile:
    """Return the study that a TOML file describes; ``bundled:NAME`` is one that comes with us.

    Raises
    ------
    NotFoundError
        If there is no such file.
    InvalidInputError
        If it is not TOML, or a key or value is wrong (the nearest known key is named).
    """
    path = find_study(source)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        msg = f"{path}: no such file; expected a study file in TOML"
        raise NotFoundError(msg) from err
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as err:
        msg = f"{path}: not a readable TOML file: {err}"
        raise InvalidInputError(msg) from err
    return StudyFile.parse(data, where=str(path))


def _bundled(name: str) -> Path:
    known = sorted(path.stem for path in _STUDIES.glob("*.toml"))
    if name not in known:
        near = near_names(name, known)
        msg = f"no bundled study {name!r}{near}; there are: {', '.join(known)}"
        raise NotFoundError(msg)
    return _STUDIES / f"{name}.toml"


def _fetch(url: str, folder: Path) -> Path:
    """Copy a study file, and the files beside it that it names, into ``folder``."""
    from .store.clients import open_backend
    from .store.location import parse_location

    place, _, name = url.rpartition("/")
    there = open_backend(parse_location(place))
    path = _copy(there, name, folder, max_bytes=_MAX_STUDY)
    corpus = load_study(path).corpus
    for given in (corpus.source, corpus.scenarios):
        if given is not None and not given.startswith(_BUNDLED) and not Path(given).is_absolute():
            _copy(there, given, folder, max_bytes=_MAX_CORPUS)
    return path


def _copy(there: Backend, key: str, folder: Path, *, max_bytes: int) -> Path:
    from .store.backend import check_key

    data = there.get(check_key(key), max_bytes=max_bytes)
    if data is None:
        msg = f"{there.location.url}/{key}: nothing is there; upload the study and what it names"
        raise NotFoundError(msg)
    target = folder / key
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    return target
