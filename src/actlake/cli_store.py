"""The commands that look at stores and mend them: ls, info, verify, repair."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from .console import emit, json_option, print_facts, print_table

if TYPE_CHECKING:
    from .store import Fault, RepairPlan, Store

__all__ = ["store"]


@click.group()
def store() -> None:
    """List, describe, verify and repair stores.

    \b
    Example: actlake store ls s3://bucket/store
    """


@store.command("ls")
@click.argument("url")
@json_option
def store_ls(url: str, as_json: bool) -> None:  # noqa: FBT001
    """List the runs of a store, and what was appended to them.

    \b
    Example: actlake store ls s3://bucket/store
    """
    from .store import open_store

    found = open_store(url)
    rows = [_describe_run(found, part) for run in found.run_ids() for part in _parts(found, run)]
    emit(rows, as_json=as_json, show=lambda: print_table(rows))


def _parts(found: Store, run: str) -> list[str]:
    """Return a run and what was appended to it, but for a part that is only about to be."""
    from .store import part_names

    names = part_names(found, run)
    return names[:1] + [n for n in names[1:] if found.backend.size(found.keys(n).manifest)]


def _describe_run(found: Store, run: str) -> dict[str, Any]:
    manifest, seal = found.read_manifest(run), found.read_seal(run)
    pulled = found.read_pulled(run)
    return {
        "run": run,
        "model": manifest.model.name,
        "corpus": manifest.corpus,
        "texts": manifest.n_texts,
        "layers": manifest.n_layers,
        "hidden": manifest.hidden_size,
        "bytes": seal.n_bytes if seal else None,
        "state": ("sealed" if seal else "incomplete") + (", partial copy" if pulled else ""),
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
    from .store import content_digest, open_store
    from .store.notes import summarise_notes

    found = open_store(url)
    manifest, seal = found.read_manifest(run), found.read_seal(run)
    commits = found.read_commits(run)
    notes = [summarise_notes(found.read_commits(part)) for part in _parts(found, run)]
    value: dict[str, Any] = {
        **manifest.to_dict(),
        "arrays": {a.name: list(a.shape) for a in found.read_plan(run).arrays},
        "blocks_committed": len(commits),
        "blocks": found.read_plan(run).n_blocks,
        "nonfinite_texts": sum(part.nonfinite_texts for part in notes),
        "halved_batches": sum(part.halved_batches for part in notes),
        "appended": _parts(found, run)[1:],
        "sealed": seal is not None,
        "partial_copy": found.read_pulled(run) is not None,
        "data_digest": seal.data_digest if seal else None,
        "tree_digest": seal.tree_digest if seal else None,
        "content_digest": content_digest(found, run),
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
@click.argument("run", required=False)
@click.option("--layer", "layers", type=int, multiple=True, help="Of activations only this layer.")
@click.option("--sample", type=float, help="Of activations only this share, above 0 to 1.")
@click.option("--full", is_flag=True, help="Also decode every chunk and check its values.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the sample.")
@json_option
def store_verify(
    url: str,
    run: str | None,
    *,
    layers: tuple[int, ...],
    sample: float | None,
    full: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Check every byte of RUN, or of all runs, against what was committed and sealed.

    What was appended to a run (RUN~1, RUN~2, ...) is checked with it, a report each.

    \b
    Example: actlake store verify s3://bucket/store llama-3-8b --sample 0.1
    """
    from .store import open_store, verify_run

    found = open_store(url)
    reports = [
        verify_run(found, name, layers=layers or None, sample=sample, full=full, seed=seed)
        for of_run in ([run] if run else found.run_ids())
        for name in (
            _parts(found, of_run) if found.backend.size(found.keys(of_run).plan) else [of_run]
        )
    ]
    values = [
        {
            "run": report.run,
            "ok": report.ok,
            "sealed": report.sealed,
            "objects": report.n_objects,
            "bytes": report.n_bytes,
            "faults": [asdict(fault) for fault in report.faults],
        }
        for report in reports
    ]

    def show() -> None:
        for value, report in zip(values, reports, strict=True):
            print_facts({**value, "faults": len(report.faults)})
            for fault in report.faults:
                click.echo(f"  {_describe_fault(fault)}")

    emit(values[0] if run and len(values) == 1 else values, as_json=as_json, show=show)
    if not all(report.ok for report in reports):
        sys.exit(1)


def _describe_fault(fault: Fault) -> str:
    where = "" if fault.rows is None else f"rows {fault.rows[0]} to {fault.rows[1] - 1}"
    if fault.layer is not None:
        where += f", layer {fault.layer}"
    return f"{fault.key}: {where + ': ' if where else ''}{fault.reason}"


@store.command("repair")
@click.argument("url")
@click.argument("run")
@click.option("--apply", "is_applied", is_flag=True, help="Do it; without this nothing changes.")
@click.option("--full", is_flag=True, help="Also decode every chunk to look for faults.")
@json_option
def store_repair(url: str, run: str, *, is_applied: bool, full: bool, as_json: bool) -> None:
    """Say which texts of RUN must be extracted again, and by which command.

    With --apply, what can be made again from what is good is written, and what stands in the
    way of extracting the rest again is removed; objects of good blocks stay as they are. What
    was appended to a run is repaired by its own name, such as RUN~1.

    \b
    Example: actlake store repair s3://bucket/store llama-3-8b --apply
    """
    from .store import apply_repair, open_store, plan_repair

    found = open_store(url)
    repair = plan_repair(found, run, full=full)
    seal = apply_repair(found, repair) if is_applied and repair.is_needed else None
    value: dict[str, Any] = {
        "run": run,
        "applied": is_applied and repair.is_needed,
        "faults": len(repair.faults),
        "blocks": list(repair.blocks),
        "rows": [list(span) for span in repair.rows],
        "texts": list(repair.text_ids),
        "remove": list(repair.remove),
        "rebuild": list(repair.rebuild),
        "by_hand": list(repair.by_hand),
        "command": _repair_command(found, repair),
        "sealed_again": seal is not None,
    }

    def show() -> None:
        print_facts({k: v for k, v in value.items() if not isinstance(v, list)})
        for name in ("blocks", "texts", "remove", "rebuild", "by_hand"):
            for item in value[name]:
                click.echo(f"  {name}: {item}")
        if repair.blocks:
            click.echo(
                "  a GPU does not repeat itself to the bit: the run will be valid again, but its "
                "data digest may be another"
            )

    emit(value, as_json=as_json, show=show)


def _repair_command(found: Store, repair: RepairPlan) -> str | None:
    """Return what to run after the repair was applied, None where nothing is left to run."""
    from .corpus import bundled_names
    from .models import control_names, organism_names
    from .store.command import extraction_command

    if repair.pull_from is not None:
        return f"actlake store pull {repair.pull_from} {found.url} --run {repair.run}"
    if not repair.extract_again:
        return None
    if any(fault.kind == "plan" for fault in repair.faults):
        return "the actlake extract command that made the run"
    plan = found.read_plan(repair.run)
    bundled = (*organism_names(), *control_names())
    is_bundled = plan.model.name in bundled and plan.model.content_digest is not None
    return extraction_command(
        found,
        plan,
        model=f"bundled:{plan.model.name}" if is_bundled else None,
        corpus=f"bundled:{plan.corpus}" if plan.corpus in bundled_names() else None,
    )
