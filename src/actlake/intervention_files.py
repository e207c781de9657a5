"""The files of an intervention: its rows, its samples, and the record of what was run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ._version import __version__

if TYPE_CHECKING:
    import pandas as pd

    from .schemas import Record

__all__ = ["save_intervention", "write_record"]


class _Tables(Protocol):
    """What every intervention finds: estimates, and the samples that they are of."""

    @property
    def rows(self) -> pd.DataFrame: ...
    @property
    def samples(self) -> pd.DataFrame: ...


def save_intervention(
    found: _Tables,
    folder: Path,
    *,
    name: str,
    spec: Record,
    facts: Mapping[str, Any],
    run: str | None = None,
) -> pd.DataFrame:
    """Write ``NAME.parquet``, ``.csv``, ``-samples.parquet`` and ``.json``; return the rows.

    The rows say the code's version, and ``run`` where they follow from one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    of_run = {} if run is None else {"run": run}
    rows = found.rows.assign(**of_run, code_version=__version__)
    rows.to_parquet(folder / f"{name}.parquet", index=False)
    rows.to_csv(folder / f"{name}.csv", index=False)
    found.samples.to_parquet(folder / f"{name}-samples.parquet", index=False)
    write_record(folder / f"{name}.json", spec=spec, facts=facts)
    return rows


def write_record(path: Path, *, spec: Record, facts: Mapping[str, Any]) -> None:
    """Write what was run, as JSON: the code's version, the facts, and the settings."""
    record = {"actlake": __version__, **facts, "spec": spec.to_dict()}
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
