"""A direction of one model as one of another, with the controls that a transfer needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from ..schemas import (
    Direction,
    DirectionSet,
    InvalidInputError,
    MapMethod,
    MappedFrom,
    TransferSpec,
    array_name,
)
from .arrays import read_layer
from .auroc import Floats
from .common import common_texts, nearest_layers
from .geometry_run import finite_rows
from .maps import AnchorMaps, carry_vector, random_orthogonal_map
from .probes import fit_diff_means
from .schedule import one_blas_thread
from .splits import PairTable, pair_table
from .table import dataset_provenance
from .transfer import GRIDS
from .transfer_run import layer_place, map_anchors

__all__ = ["map_directions"]

METHOD = "diff_means"


def map_directions(
    runs: Mapping[str, xr.Dataset],
    *,
    source: str,
    target: str,
    layers: tuple[int, int] | None = None,
    pool: str = "mean_response",
    site: str = "resid_post",
    spec: TransferSpec | None = None,
) -> DirectionSet:
    """Return the source's direction as directions of the target, beside the target's own.

    Both directions are differences of means over the training pairs (all pairs where no split is
    named), the maps are fitted on neutral texts, which these pairs do not use, unless
    ``spec.anchors`` says ``train``. A steering vector maps as v_B = M v_A with h_B ≈ M h_A + c
    (SCIENCE §5). The set holds the target's own direction
    (method ``diff_means``) and, for every map, ``mapped-MAP``, ``random_source-MAP-I``,
    ``permuted_anchors-MAP-I`` and ``random_orthogonal-I``: see
    :class:`~actlake.schemas.MappedFrom`.

    Parameters
    ----------
    runs
        Opened runs by name.
    source, target
        Names of the two runs.
    layers
        Blocks (of source, of target); None takes the target's at two thirds of the depth and the
        source's at the nearest relative depth.
    spec
        Maps, anchors, penalties and numbers of draws: of ``n_random`` random directions and
        ``n_permuted`` broken maps and rotations. None takes 20 of each.

    Raises
    ------
    InvalidInputError
        If the runs have too few texts, pairs or anchors in common, an arm does not differ, or a
        map carries nothing of the direction.
    NotFoundError
        If a run, layer, site or pool is missing.
    """
    spec = TransferSpec(n_random=20) if spec is None else spec
    missing = sorted({source, target} - set(runs))
    if missing or source == target:
        msg = f"a map needs two of the runs {sorted(runs)}, got {source!r} and {target!r}"
        raise InvalidInputError(msg)
    opened = common_texts({name: runs[name] for name in (source, target)})
    pair = layers or _default_layers(opened[source], opened[target])
    with one_blas_thread():
        return _Job(opened, (source, target), pair, pool=pool, site=site, spec=spec).run()


def _default_layers(source: xr.Dataset, target: xr.Dataset) -> tuple[int, int]:
    pairs = nearest_layers(source, target)
    return pairs[round(2 / 3 * (len(pairs) - 1))]


class _Job:
    """One pair of layers: both directions, both sets of anchors, every map."""

    def __init__(
        self,
        runs: Mapping[str, xr.Dataset],
        names: tuple[str, str],
        layers: tuple[int, int],
        *,
        pool: str,
        site: str,
        spec: TransferSpec,
    ) -> None:
        self.runs, self.names, self.layers = runs, names, layers
        self.pool, self.site, self.spec = pool, site, spec
        first = runs[names[0]]
        table = pair_table(first)
        anchors, groups = map_anchors(first, table, spec)
        self.n_anchors = int(anchors.size)
        texts = np.asarray(first["text"].values).astype(str)
        train = _train_pairs(table)
        weights, x = [], []
        for name, layer in zip(names, layers, strict=True):
            ds, where = runs[name], f"run {name}, pool {pool}, layer {layer}"
            if array_name(site, pool) not in ds.data_vars:
                there = sorted(str(n) for n in ds.data_vars if "hidden" in ds[n].dims)
                msg = f"run {name!r} has no {array_name(site, pool)}; it has {there}"
                raise InvalidInputError(msg)
            values = read_layer(ds, array_name(site, pool), layer_place(ds, layer, name))
            paired = finite_rows(values, table.rows[:, train].ravel(), texts=texts, where=where)
            weights.append(fit_diff_means(paired.reshape(2, train.size, -1)).weight)
            if not np.linalg.norm(weights[-1]) > 0:
                msg = f"{where}: the two arms do not differ, so there is no direction to map"
                raise InvalidInputError(msg)
            x.append(finite_rows(values, anchors, texts=texts, where=where))
        self.of_source, self.of_target = weights
        self.n_pairs = int(train.size)
        self.maps = AnchorMaps(
            x[0],
            x[1],
            groups=groups,
            n_folds=spec.n_folds,
            n_components=spec.n_components,
            seed=spec.seed,
        )

    def run(self) -> DirectionSet:
        """Return the target's own direction, and every map's with its controls."""
        found = [self._direction(METHOD, self.of_target)]
        for method in self.spec.maps:
            found += self._mapped(method)
        rng = np.random.default_rng(self.spec.seed)
        for index in range(self.spec.n_permuted):
            turn = random_orthogonal_map(
                self.maps.source, self.maps.target, n_components=self.spec.n_components, rng=rng
            )
            vector = carry_vector(turn, self.of_source)
            found.append(self._as_mapped("random_orthogonal", "orthogonal", vector, index=index))
        return DirectionSet(directions=tuple(found))

    def _mapped(self, method: MapMethod) -> list[Direction]:
        spec, rng = self.spec, np.random.default_rng(self.spec.seed)
        grid = getattr(spec, GRIDS[method]) if method in GRIDS else (0.0,)
        penalty = self.maps.choose_penalty(method, grid)
        fitted = self.maps.fit(method, penalty=penalty)
        more: dict[str, Any] = {
            "map_r2": self.maps.held_out_r2(method, grid),
            "penalty": None if method == "procrustes" else penalty,
        }
        of_source = self.of_source
        unit = of_source / np.linalg.norm(of_source)
        kept = float(((fitted.right @ unit) ** 2).sum())
        vector = carry_vector(fitted, of_source)
        found = [self._as_mapped("mapped", method, vector, share_kept=kept, **more)]
        for index in range(spec.n_random):
            draw = rng.standard_normal(of_source.size)
            draw *= np.linalg.norm(of_source) / np.linalg.norm(draw)
            vector = carry_vector(fitted, draw)
            found.append(self._as_mapped("random_source", method, vector, index=index, **more))
        for index in range(spec.n_permuted):
            r2 = self.maps.permuted_r2(method, penalty=penalty, rng=rng)
            broken = self.maps.fit(method, penalty=penalty, rng=rng)
            vector = carry_vector(broken, of_source)
            found.append(
                self._as_mapped(
                    "permuted_anchors", method, vector, index=index, **{**more, "map_r2": r2}
                )
            )
        return found

    def _as_mapped(
        self, role: str, method: str, vector: Floats, *, index: int = 0, **more: float | None
    ) -> Direction:
        (name, _), (layer, _) = self.names, self.layers
        length = float(np.linalg.norm(vector) * np.linalg.norm(self.of_target))
        if not length > 0:
            msg = (
                f"the map {method!r} carries nothing of the direction of {name!r}: its anchors do "
                "not vary along it; add neutral texts, or take anchors = 'train'"
            )
            raise InvalidInputError(msg)
        mapped = MappedFrom.model_validate(
            {
                "role": role,
                "map": method,
                "index": index,
                "source_model": str(dataset_provenance(self.runs[name])["model"]),
                "source_run": name,
                "source_layer": layer,
                "source_method": METHOD,
                "n_anchors": self.n_anchors,
                "cosine": float(vector @ self.of_target) / length,
                **more,
            }
        )
        label = role if role == "random_orthogonal" else f"{role}-{method}"
        label = label if role == "mapped" else f"{label}-{index}"
        return self._direction(label, vector, mapped=mapped)

    def _direction(
        self, method: str, vector: Floats, *, mapped: MappedFrom | None = None
    ) -> Direction:
        name, layer = self.names[1], self.layers[1]
        ds = self.runs[name]
        norm = float(np.linalg.norm(vector))
        origin = dataset_provenance(ds)
        return Direction(
            method=method,
            site=self.site,
            layer=layer,
            pool=self.pool,
            vector=tuple((vector / norm).tolist()),
            norm=norm,
            bias=0.0,
            model=str(origin["model"]),
            run=name,
            content_digest=origin.get("content_digest"),
            fitted_on=f"{self.n_pairs} training pairs, maps on {self.n_anchors} anchors",
            seed=self.spec.seed,
            separation=norm if mapped is None else None,
            reliability_reason="made for a transfer",
            store_url=origin.get("store_url"),
            code_version=origin.get("code_version"),
            mapped=mapped,
        )


def _train_pairs(table: PairTable) -> np.ndarray:
    """Return the pairs that directions are fitted on: all but the test split, if that is some."""
    train = np.flatnonzero(table.split != "test")
    return train if train.size else np.arange(table.n_pairs)
