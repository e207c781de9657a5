"""The catalog of a store: what a host that cannot be listed shows of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ..schemas import CorruptError, RunManifest, Seal
from ..schemas.catalog import Catalog, CatalogRun
from .layout import CATALOG_KEY
from .parts import part_names

if TYPE_CHECKING:
    from .store import Store

__all__ = ["catalog_entry", "read_catalog", "write_catalog"]

CATALOG_BYTES = 16 * 2**20  # about 30 000 runs


def read_catalog(store: Store) -> Catalog:
    """Return the catalog as it was written at the last seal; empty where there is none."""
    return store.read_record(Catalog, CATALOG_KEY, max_bytes=CATALOG_BYTES) or Catalog()


def write_catalog(store: Store) -> Catalog:
    """Rebuild the catalog from the sealed runs and their parts, and write it where it changed."""
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda run: part_names(store, run), store.run_ids()))
        names = [name for of_run in parts for name in of_run]
        entries = list(pool.map(lambda name: _entry(store, name), names))
    catalog = Catalog(
        runs=tuple(entry for entry in entries if entry is not None),
        corpora=tuple(store.corpus_ids()),
    )
    if catalog != _readable(store):
        store.backend.put(CATALOG_KEY, catalog.to_json().encode())
    return catalog


def _readable(store: Store) -> Catalog | None:
    """Return the catalog that is there; one that is damaged is none, and is rebuilt."""
    try:
        return read_catalog(store)
    except CorruptError:
        return None


def _entry(store: Store, run: str) -> CatalogRun | None:
    seal = store.read_seal(run)
    manifest = store.read_record(RunManifest, store.keys(run).manifest)
    if seal is None or manifest is None:
        return None
    return catalog_entry(manifest, seal)


def catalog_entry(manifest: RunManifest, seal: Seal) -> CatalogRun:
    """Return what the catalog shows of a sealed run."""
    return CatalogRun(
        run=manifest.run,
        model=manifest.model.name,
        corpus=manifest.corpus,
        n_texts=manifest.n_texts,
        n_layers=manifest.n_layers,
        hidden_size=manifest.hidden_size,
        plan_id=seal.plan_id,
        data_digest=seal.data_digest,
        tree_digest=seal.tree_digest,
        n_objects=seal.n_objects,
        n_bytes=seal.n_bytes,
        sealed_at=seal.sealed_at,
    )
