"""The report's provenance block: which models, data, code and seeds stand behind the numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .report_numbers import number, printable, string
from .report_page import Page, details, esc, facts

__all__ = ["add_provenance"]

# (fact, places in the run's record; the first one that is present is shown)
_RUN_FACTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("model", ("model.name",)),
    ("revision", ("model.revision",)),
    ("weights digest", ("model.content_digest",)),
    ("architecture", ("model.architecture",)),
    ("layers × hidden", ()),
    ("parameters", ("model.n_parameters",)),
    ("dtype", ("model.dtype",)),
    ("attention implementation", ("model.attn_implementation",)),
    ("quantization", ("model.quantization",)),
    ("tokenizer digest", ("tokenizer.digest",)),
    ("chat template digest", ("tokenizer.chat_template_digest",)),
    ("corpus", ("corpus",)),
    ("corpus digest", ("corpus_digest",)),
    ("texts", ("n_texts",)),
    ("tokens", ("n_tokens",)),
    ("sites", ("capture.sites",)),
    ("pools", ("capture.pools",)),
    ("plan id", ("plan_id",)),
    ("data digest", ("data_digest", "seal.data_digest")),
    ("tree digest", ("tree_digest", "seal.tree_digest")),
    ("objects", ("n_objects", "seal.n_objects")),
    ("bytes", ("n_bytes", "seal.n_bytes")),
    ("store", ("store_url", "store")),
    ("seed", ("seed",)),
    ("created", ("created_at",)),
    ("sealed", ("sealed_at", "seal.sealed_at")),
    ("actlake", ("environment.actlake",)),
    ("python", ("environment.python",)),
    ("platform", ("environment.platform",)),
    ("hardware", ("environment.hardware",)),
    ("threads", ("environment.n_threads",)),
)


def add_provenance(
    page: Page,
    runs: Sequence[Mapping[str, Any]],
    *,
    study: Mapping[str, Any],
    environment: Mapping[str, Any],
    store_url: str | None,
) -> None:
    """Add the provenance section: runs side by side, seeds, this machine, the study file."""
    parts = ["<h3>Runs</h3>"]
    if runs:
        columns = {}
        for i, run in enumerate(runs):
            name = string(run.get("run")) or f"run {i + 1}"
            columns[name if name not in columns else f"{name} ({i + 1})"] = _run_facts(
                run, store_url
            )
        packages = dict.fromkeys(k for c in columns.values() for k in c if k.startswith("package "))
        names = [n for n, _ in _RUN_FACTS if any(c.get(n) for c in columns.values())]
        parts.append(facts([*names, *packages], columns, label="Runs"))
    else:
        parts.append('<p class="absent">No manifest was handed to the report.</p>')
    seeds = {name: str(value) for name, value in _flat(study).items() if name.endswith("seed")}
    if seeds:
        parts += ["<h3>Seeds of the study</h3>", facts([*seeds], {"seed": seeds}, label="Seeds")]
    here = {name: _shown(value) for name, value in _flat(environment).items()}
    if here:
        parts += [
            "<h3>Analysis</h3>",
            facts([*here], {"value": here}, label="Analysis environment"),
        ]
    resolved = json.dumps(study, indent=2, ensure_ascii=False, default=str)
    parts.append(details("The resolved study file", f"<pre tabindex='0'>{esc(resolved)}</pre>"))
    page.add("provenance", "Provenance", "".join(parts))


def _run_facts(run: Mapping[str, Any], store_url: str | None) -> dict[str, str]:
    out = {}
    for name, places in _RUN_FACTS:
        found = (_at(run, place) for place in places)
        value = next((v for v in found if v is not None), None)
        if value is not None:
            out[name] = _shown(value)
    n_layers = _at(run, "n_layers") or _at(run, "model.n_layers")
    hidden = _at(run, "hidden_size") or _at(run, "model.hidden_size")
    if n_layers and hidden:
        out["layers × hidden"] = f"{_shown(n_layers)} × {_shown(hidden)}"
    if store_url and "store" not in out:
        out["store"] = printable(store_url)
    packages = _at(run, "environment.packages")
    if isinstance(packages, Mapping):
        out |= {f"package {printable(k)}": _shown(v) for k, v in packages.items()}
    return out


def _at(record: Mapping[str, Any], place: str) -> object:
    """Return the value at a dotted place, or None."""
    value: object = record
    for part in place.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Return nested mappings as dotted names."""
    out: dict[str, object] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{name}.")
        else:
            out[f"{prefix}{name}"] = value
    return out


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_shown(v) for v in value)
    size = number(value)
    if size is not None and size.is_integer():
        return f"{int(size):,}".replace(",", "\N{THIN SPACE}")
    return printable(value) if value is not None else ""
