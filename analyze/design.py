"""What every analysis of a run starts from: its pairs, folds, held-out subsets and origin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..schemas import ProbeSpec, Text, digest_json
from .arrays import run_pools
from .splits import Folds, PairTable, generator_folds, pair_table, scenario_folds
from .table import dataset_provenance, relative_depth
from .words import pair_responses

__all__ = ["Design", "dataset_digest", "make_design", "outer_folds"]

Ints: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Design:
    """The pairs of a run under one cross-validation.

    ``subsets`` are the held-out pairs of ``all`` and of every designed subset; ``responses`` the
    texts of the pairs, positives first.
    """

    ds: xr.Dataset
    site: str
    pools: list[str]
    table: PairTable
    folds: Folds
    responses: list[str]
    subsets: dict[str, Ints]
    seed: int

    @property
    def layers(self) -> list[int]:
        """Layers of the run, in its order."""
        return [int(layer) for layer in self.ds["layer"].values]

    @property
    def members(self) -> tuple[Ints, ...]:
        """Pairs of every subset, in the order of ``subsets``."""
        return tuple(self.subsets.values())

    def provenance(self) -> dict[str, Any]:
        """Return the fields that say where all rows come from."""
        return {
            **dataset_provenance(self.ds),
            "dataset_digest": dataset_digest(self.table, self.responses),
            "split_digest": self.folds.digest,
            "cv": self.folds.scheme,
            "groups": self.folds.groups,
            "seed": self.seed,
        }

    def counts(self, subset: str) -> dict[str, Any]:
        """Return the fields of a row that count the texts of a subset."""
        pairs = self.subsets[subset]
        return {
            "subset": subset,
            "n_texts": 2 * int(pairs.size),
            "n_pairs": int(pairs.size),
            "n_scenarios": int(np.unique(self.table.scenario[pairs]).size),
            "n_generators": int(np.unique(self.table.generator[pairs]).size),
        }

    def place(self, pool: str, layer: int) -> dict[str, Any]:
        """Return the fields of a row that say where in the model it was read."""
        return {
            "site": self.site,
            "pool": pool,
            "layer": layer,
            "depth": relative_depth(layer, self.ds),
        }


def outer_folds(table: PairTable, spec: ProbeSpec) -> Folds:
    """Return the outer folds that ``spec`` asks for: over scenarios, or over generators."""
    make = generator_folds if spec.groups == "generator" else scenario_folds
    return make(table, max_folds=spec.max_folds, seed=spec.seed)


def dataset_digest(table: PairTable, responses: Sequence[str]) -> str:
    """Return the digest of the pairs with their scenarios and responses."""
    return digest_json(
        [
            [
                *table.texts[:, k].tolist(),
                str(table.pair[k]),
                str(table.scenario[k]),
                responses[k],
                responses[k + table.n_pairs],
            ]
            for k in range(table.n_pairs)
        ]
    )


def make_design(
    ds: xr.Dataset, texts: Sequence[Text], *, spec: ProbeSpec, site: str | None = None
) -> Design:
    """Return the pairs and folds of a run.

    Parameters
    ----------
    ds
        An opened run.
    texts
        The corpus of the run.
    spec
        Pools, groups of the folds, seed.
    site
        None takes ``resid_post``, or the run's first site.

    Raises
    ------
    InvalidInputError
        If there are fewer than two scenarios (or generators), one class, or no complete pair.
    NotFoundError
        If a site, a pool or a text of the corpus is missing.
    """
    chosen, pools = run_pools(ds, site=site, pools=spec.pools)
    table = pair_table(ds)
    folds = outer_folds(table, spec)
    held = {
        subset: np.intersect1d(table.members(subset), folds.held_out)
        for subset in ("all", *table.subsets())
    }
    return Design(
        ds=ds,
        site=chosen,
        pools=pools,
        table=table,
        folds=folds,
        responses=pair_responses(texts, table),
        subsets={subset: pairs for subset, pairs in held.items() if pairs.size},
        seed=spec.seed,
    )
