"""The catalog: what lies in a store, for readers that cannot list it."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import FailFast, Field

from .base import Record
from .run import Digest, RunId

__all__ = ["Catalog", "CatalogRun"]


class CatalogRun(Record):
    """One sealed run, as the catalog shows it."""

    run: RunId
    model: str
    corpus: str
    n_texts: int = Field(ge=1)
    n_layers: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    plan_id: Digest
    data_digest: Digest
    tree_digest: Digest
    n_objects: int = Field(ge=0)
    n_bytes: int = Field(ge=0)
    sealed_at: str


class Catalog(Record):
    """catalog.json: rebuilt at every seal, so that plain HTTP hosts can be browsed."""

    encoding_type: ClassVar[str] = "actlake-catalog"
    digested: ClassVar[bool] = True

    runs: Annotated[tuple[CatalogRun, ...], FailFast()] = ()
    corpora: Annotated[tuple[str, ...], FailFast()] = ()
