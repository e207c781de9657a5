"""Results of analyses: what they hold, and how they are kept in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ..schemas import CorruptError, Direction, InvalidInputError, NotFoundError, Reliability
from .table import plain_strings, write_table

__all__ = [
    "PcaResult",
    "ProbeResult",
    "directions_record",
    "load_pca_result",
    "load_probe_result",
    "save_pca_result",
    "save_probe_result",
]


@dataclass(frozen=True)
class ProbeResult:
    """Probes of one run at one site.

    ``rows`` has the fields of ResultRow; ``null`` the isotropic band per pool, layer and
    subset; ``scores`` the held-out score of every text; ``directions`` the probes fitted on the
    train split, with the counts of texts that were left out in its attributes.
    """

    rows: pd.DataFrame
    null: pd.DataFrame
    scores: pd.DataFrame
    directions: xr.Dataset

    @property
    def selected_layer(self) -> dict[tuple[str, str], int]:
        """The layer most outer folds selected, by (pool, method); absent without inner folds."""
        chosen = self.directions["selected_layer"]
        return {
            (str(pool), str(method)): int(chosen.values[i, j])
            for i, method in enumerate(self.directions["method"].values)
            for j, pool in enumerate(self.directions["pool"].values)
            if chosen.values[i, j] >= 0
        }


@dataclass(frozen=True)
class PcaResult:
    """Principal components of one run at one site: variance table and points."""

    rows: pd.DataFrame
    points: pd.DataFrame


def directions_record(directions: xr.Dataset, method: str, pool: str, *, layer: int) -> Direction:
    """Return one direction as a record.

    Raises
    ------
    NotFoundError
        If the method, pool or layer is not there; what is there is named.
    InvalidInputError
        If the classes do not differ on that layer, so that there is no direction.
    """
    for name, value in (("method", method), ("pool", pool), ("layer", layer)):
        known = directions[name].values.tolist()
        if value not in known:
            msg = f"no direction with {name} {value!r}; these are there: {known}"
            raise NotFoundError(msg)
    # A dict, since ``method=`` is a keyword of sel itself.
    at = directions.sel({"method": method, "pool": pool, "layer": layer})
    attrs = directions.attrs
    norm = float(at["norm"])
    if norm <= 0:
        msg = (
            f"{method} on {pool}, layer {layer} has no direction: the activations of the two "
            "arms do not differ there; choose another layer"
        )
        raise InvalidInputError(msg)
    return Direction(
        method=method,
        site=str(attrs["site"]),
        layer=layer,
        pool=pool,
        vector=tuple(np.asarray(at["vector"].values, dtype=np.float64).tolist()),
        norm=norm,
        bias=float(at["bias"]),
        model=str(attrs.get("model", "unknown")),
        run=str(attrs.get("run", "unknown")),
        fitted_on=str(attrs["fitted_on"]),
        seed=int(attrs["seed"]),
        separation=_known(at, "separation"),
        penalty=_known(at, "c") if method == "logistic" else _known(at, "penalty"),
        **_reliability(at, attrs),
        **{name: attrs.get(name) for name in _ORIGINS},
    )


_ORIGINS = ("content_digest", "store_url", "dataset_digest", "split_digest", "code_version")


def _known(at: xr.Dataset, name: str) -> float | None:
    """Return a number of one direction, None where it has none."""
    value = float(at[name]) if name in at else np.nan
    return value if np.isfinite(value) else None


def _reliability(at: xr.Dataset, attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the reliability of one direction, or why it has none."""
    names = ("split_half", "spearman_brown", "bootstrap", "bootstrap_low")
    values = {name: _known(at, name) for name in names}
    if None not in values.values():
        n_draws = int(attrs["n_reliability"])
        return {"reliability": Reliability.model_validate({**values, "n_draws": n_draws})}
    n_pairs = int(attrs.get("n_pairs", 0))
    asked = int(attrs.get("n_reliability", 0)) > 0
    reason = f"too few training pairs ({n_pairs})" if asked else "no draws were asked for"
    return {"reliability_reason": reason}


def save_probe_result(result: ProbeResult, folder: str | Path) -> Path:
    """Write ``result`` into ``folder`` and return it; what is there already is replaced.

    probe, null and scores as .parquet and .csv, directions.zarr (Zarr v3).
    """
    target = Path(folder)
    write_table(result.rows, target, name="probe", formats=("parquet", "csv"))
    write_table(result.null, target, name="null", formats=("parquet", "csv"))
    write_table(result.scores, target, name="scores", formats=("parquet", "csv"))
    _write_directions(result.directions, target / "directions.zarr")
    return target


def load_probe_result(folder: str | Path) -> ProbeResult:
    """Return what :func:`save_probe_result` wrote; raise NotFoundError if it is not there."""
    source = Path(folder)
    frames = {name: _read_table(source, name) for name in ("probe", "null", "scores")}
    directions = _read_directions(source / "directions.zarr")
    return ProbeResult(
        rows=frames["probe"],
        null=frames["null"],
        scores=frames["scores"],
        directions=directions,
    )


def save_pca_result(result: PcaResult, folder: str | Path) -> Path:
    """Write pca and pca_points as .parquet and .csv into ``folder`` and return it."""
    target = Path(folder)
    write_table(result.rows, target, name="pca", formats=("parquet", "csv"))
    write_table(result.points, target, name="pca_points", formats=("parquet", "csv"))
    return target


def load_pca_result(folder: str | Path) -> PcaResult:
    """Return what :func:`save_pca_result` wrote; raise NotFoundError if it is not there."""
    source = Path(folder)
    return PcaResult(_read_table(source, "pca"), _read_table(source, "pca_points"))


def _read_table(folder: Path, name: str) -> pd.DataFrame:
    path = folder / f"{name}.parquet"
    if not path.is_file():
        msg = f"no {name}.parquet in {folder}; run the analysis, or name the folder it wrote to"
        raise NotFoundError(msg)
    return plain_strings(pd.read_parquet(path))


def _write_directions(directions: xr.Dataset, path: Path) -> None:
    """Write directions as Zarr v3; names of methods and pools go into attributes.

    Zarr v3 has no settled string type yet, and a reader in another language should open this.
    """
    names = {name: [str(x) for x in directions[name].values] for name in ("method", "pool")}
    plain = directions.drop_vars(["method", "pool"]).assign_attrs(
        {f"{name}_names": values for name, values in names.items()}
    )
    plain.to_zarr(path, mode="w", zarr_format=3, consolidated=False)


def _read_directions(path: Path) -> xr.Dataset:
    if not path.is_dir():
        msg = f"no {path.name} in {path.parent}; run the probes, or name the folder they wrote to"
        raise NotFoundError(msg)
    plain = xr.open_zarr(path, chunks=None, consolidated=False).load()
    if plain.attrs.get("encoding-type") != "actlake-directions":
        msg = (
            f"{path} has encoding-type {plain.attrs.get('encoding-type')!r}, expected "
            "'actlake-directions'; run the probes again"
        )
        raise CorruptError(msg)
    names = {
        name: np.array(plain.attrs.pop(f"{name}_names"), dtype=object)
        for name in ("method", "pool")
    }
    result: xr.Dataset = plain.assign_coords(names)
    return result
