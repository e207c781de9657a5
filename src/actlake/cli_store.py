"""The commands that look at stores: ls, info, verify."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from .console import emit, json_option, print_facts, print_table

if TYPE_CHECKING:
    from .store import Store

__all__ = ["store"]


@click.group()
def store() -> None:
    """List, describe and verify stores.

    \b
    Example: actlake store ls s3://bucket/store
    """


@store.command("ls")
@click.argument("url")
@json_option
def store_ls(url: str, as_json: bool) -> None:  # noqa: FBT001
    """List the runs of a store.

    \b
    Example: actlake store ls s3://bucket/store
    """
    from .store import open_store

    found = open_store(url)
    rows = [_describe_run(found, run) for run in found.run_ids()]
    emit(rows, as_json=as_json, show=lambda: print_table(rows))


def _describe_run(found: Store, run: str) -> dict[str, Any]:
    manifest, seal = found.read_manifest(run), found.read_seal(run)
    return {
        "run": run,
        "model": manifest.model.name,
        "corpus": manifest.corpus,
        "texts": manifest.n_texts,
        "layers": manifest.n_layers,
        "hidden": manifest.hidden_size,
        "bytes": seal.n_bytes if seal else None,
        "state": "sealed" if seal else "incomplete",
        "data_digest": seal.data_digest[:19] if seal else None,
    }


@store.command("info")
@click.argument("url")
@click.argument("run")
@json_option
def store_info(url: str, run: str, as_json: bool) -> None:  # noqa: FBT001
    """Describe a run: what was run, on what, and whether it is whole.

    \b
    Example: actlake store info s3://bucket/store llama-3-8b
    """
    from .store import open_store

    found = open_store(url)
    manifest, seal = found.read_manifest(run), found.read_seal(run)
    commits = found.read_commits(run)
    value: dict[str, Any] = {
        **manifest.to_dict(),
        "arrays": {a.name: list(a.shape) for a in found.read_plan(run).arrays},
        "blocks_committed": len(commits),
        "blocks": found.read_plan(run).n_blocks,
        "sealed": seal is not None,
        "data_digest": seal.data_digest if seal else None,
        "tree_digest": seal.tree_digest if seal else None,
        "objects": seal.n_objects if seal else None,
        "bytes": seal.n_bytes if seal else None,
    }

    def show() -> None:
        flat = {
            f"{name}.{key}" if isinstance(part, dict) else name: item
            for name, part in value.items()
            for key, item in (part.items() if isinstance(part, dict) else [("", part)])
        }
        print_facts(flat)

    emit(value, as_json=as_json, show=show)


@store.command("verify")
@click.argument("url")
@click.argument("run")
@click.option("--layer", "layers", type=int, multiple=True, help="Only these layers.")
@click.option("--sample", type=click.IntRange(1), help="Only this many objects, drawn.")
@json_option
def store_verify(
    url: str, run: str, *, layers: tuple[int, ...], sample: int | None, as_json: bool
) -> None:
    """Check every object of a run against its manifest.

    \b
    Example: actlake store verify s3://bucket/store llama-3-8b
    """
    from dataclasses import asdict

    from .store import open_store, verify_run

    found = verify_run(open_store(url), run, layers=layers or None, sample=sample)
    value = {
        "run": found.run,
        "ok": found.ok,
        "sealed": found.sealed,
        "objects": found.n_objects,
        "bytes": found.n_bytes,
        "faults": [asdict(fault) for fault in found.faults],
    }
    emit(value, as_json=as_json, show=lambda: print_facts(value))
    if not found.ok:
        sys.exit(1)
