"""Steering as a stage of a study: sweeps of a run's direction beside their controls."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .schemas import (
    CaptureSpec,
    Direction,
    DirectionSet,
    NotFoundError,
    digest_json,
)
from .stages import Results, content_digest, stage_key
from .sweeps import (
    Sweeps,
    choose_layers,
    choose_train,
    given_layers,
    prepare_sweeps,
    usable_layers,
)

if TYPE_CHECKING:
    import pandas as pd

    from .schemas import ExtractSpec, SteerSpec
    from .steer import PatchCost
    from .store import Store

__all__ = ["steer_stage", "steered_layer", "weigh_steering", "write_sweeps"]


def _stage_key(
    store: Store,
    run: str,
    results: Results,
    *,
    spec: SteerSpec,
    capture: CaptureSpec,
    against: Sequence[Direction],
    extract: ExtractSpec | None,
) -> dict[str, Any]:
    """Return everything that the sweeps of a run are made from."""
    probed = results.key(run, "probe")
    if probed is None:
        msg = f"run {run!r} has no probe results in {results.folder}: run `actlake probe` first"
        raise NotFoundError(msg)
    key = stage_key(content_digest(store, run), steer=spec, capture=capture)
    key["probe"] = str(probed["digest"])
    if extract is not None and extract.engine == "vllm":  # it rounds in its own way
        key["engine"] = "vllm"
    if against:
        key["against"] = digest_json([one.to_dict() for one in against])
    return key


def steer_stage(
    store: Store,
    run: str,
    results: Results,
    *,
    model: str,
    revision: str | None,
    spec: SteerSpec,
    capture: CaptureSpec,
    device: str = "auto",
    attn_implementation: str | None = None,
    batch_tokens: int = 16384,
    against: Sequence[Direction] = (),
    extract: ExtractSpec | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> bool:
    """Sweep the run's diff-of-means direction through its model; returns whether done now.

    ``steering.parquet`` has a row per direction, strength and place, controls included, and
    ``samples.parquet`` one per prompt as well, both with the strength in four units;
    ``placebos`` the placebo directions, ``spec.json`` what was asked. Conditions are committed
    as they are measured, so that the same call goes on after an interruption. With
    ``extract.engine`` vllm the model runs in vLLM.

    Raises
    ------
    NotFoundError
        If the run has not been probed, so that there is no direction.
    """
    key = _stage_key(
        store, run, results, spec=spec, capture=capture, against=against, extract=extract
    )

    def make(folder: Path) -> None:
        sweeps = prepare_sweeps(
            store, run, results, model=model, revision=revision, spec=spec, capture=capture,
            device=device, attn_implementation=attn_implementation, batch_tokens=batch_tokens,
            against=against, weights=True, say=say, extract=extract,
        )  # fmt: skip
        with sweeps.running(extract) as running:
            write_sweeps(running, folder)

    return results.build(run, "steer", key=key, make=make)


def write_sweeps(sweeps: Sweeps, folder: Path) -> None:
    """Measure the sweeps and write their tables, placebos and settings into ``folder``."""
    from .analyze import save_directions
    from .steer import prompt_baseline
    from .store import corpus_digest

    layers, tuned, compared = choose_layers(sweeps)
    if compared is not None:
        compared.to_csv(folder / "layers.csv", index=False)
    placebos, prompts, personas = sweeps.placebos(layers), sweeps.prompts(), sweeps.personas()
    found = [
        sweeps.sweep(place, prompts=prompts, placebos=placebos) for place in sweeps.places(layers)
    ]
    if personas is not None:
        found.append(
            prompt_baseline(
                sweeps.loaded,
                prompts,
                personas,
                spec=sweeps.spec,
                capture=sweeps.capture,
                batch_tokens=sweeps.batch_tokens,
                engine=sweeps.engine,
            )
        )
    manifest = sweeps.store.read_manifest(sweeps.run)
    rows = _stack([one.rows for one in found]).assign(
        run=sweeps.run,
        tuned=tuned,
        code_version=__version__,
        store_url=sweeps.store.url,
        content_digest=content_digest(sweeps.store, sweeps.run),
        dataset_digest=corpus_digest(sweeps.store, sweeps.run),
        template_digest=manifest.tokenizer.chat_template_digest,
        dtype=sweeps.loaded.info.dtype,
    )
    rows.to_parquet(folder / "steering.parquet")
    rows.to_csv(folder / "steering.csv", index=False)
    _stack([one.samples for one in found]).to_parquet(folder / "samples.parquet")
    if placebos:
        save_directions(DirectionSet(directions=placebos), folder / "placebos")
    record: dict[str, Any] = {
        "spec": sweeps.spec.to_dict(),
        "layers": layers,
        "personas": None if personas is None else personas.to_dict(),
        "prompts": [pair.id for pair in prompts],
        "model": sweeps.loaded.info.model_dump(mode="json"),
    }
    (folder / "spec.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def steered_layer(folder: Path) -> int:
    """Return the layer that the sweep in ``folder`` steered, the first where it steered several.

    Raises
    ------
    NotFoundError
        If no sweep lies there.
    """
    record = folder / "spec.json"
    try:
        return int(json.loads(record.read_text(encoding="utf-8"))["layers"][0])
    except (OSError, ValueError, KeyError, IndexError) as err:
        msg = f"{record} cannot be read: {err}; steer the run first"
        raise NotFoundError(msg) from err


def _stack(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Return tables one below the other, with the columns of all."""
    import pandas as pd

    # An empty column would decide its own type: pandas warns, and is told none.
    filled = [table.dropna(axis="columns", how="all") for table in tables]
    columns = list(dict.fromkeys(name for table in tables for name in table.columns))
    return pd.concat(filled, ignore_index=True).reindex(columns=columns)


def weigh_steering(
    store: Store,
    run: str,
    results: Results,
    *,
    model: str,
    revision: str | None,
    spec: SteerSpec,
    capture: CaptureSpec,
    device: str = "auto",
    batch_tokens: int = 16384,
    against: Sequence[Direction] = (),
    extract: ExtractSpec | None = None,
    probe_seconds: float | None = None,
    price_per_hour: float | None = None,
) -> dict[str, Any]:
    """Return what :func:`steer_stage` would run: forward passes, rows, tokens, by part.

    Weights are read for time and price alone, which a probe measures. Nothing is left of a stage
    that is done. Conditions that are kept from before are left out where the layers are known;
    where they are still to be chosen, any have the same cost.
    """
    from .steer import PatchCost
    from .steer.costs import describe_cost

    key = _stage_key(
        store, run, results, spec=spec, capture=capture, against=against, extract=extract
    )
    estimate = {"probe_seconds": probe_seconds, "price_per_hour": price_per_hour}
    done = results.key(run, "steer")
    if done is not None and done.get("digest") == digest_json(key):
        return {**describe_cost(PatchCost(), **estimate), "layers": "done"}
    is_probed = probe_seconds is not None
    sweeps = prepare_sweeps(
        store, run, results, model=model, revision=revision, spec=spec, capture=capture,
        device=device, attn_implementation=None, batch_tokens=batch_tokens, against=against,
        weights=is_probed, say=lambda _: None, extract=extract,
    )  # fmt: skip
    with sweeps.running(extract if is_probed else None) as running:
        layers, costs = _weigh_parts(running)
        facts = describe_cost(sum(costs.values(), PatchCost()), **estimate)
    return {
        **facts,
        "parts": {name: cost.n_rows for name, cost in costs.items()},
        "layers": layers,
        "prompts": len(sweeps.prompts()),
    }


def _weigh_parts(sweeps: Sweeps) -> tuple[list[int] | str, dict[str, PatchCost]]:
    """Return the layers, or that they are to be chosen, and the cost of every part."""
    from .steer import PatchCost, weigh_direction, weigh_layers, weigh_prompts

    common: dict[str, Any] = {
        "capture": sweeps.capture,
        "batch_tokens": sweeps.batch_tokens,
        "engine": sweeps.engine,
    }
    given = given_layers(sweeps)
    prompts, personas = sweeps.prompts(), sweeps.personas()
    choosing = PatchCost()
    folder: Path | None = sweeps.folder()
    if given is not None:
        layers = given[0]
    else:
        usable = usable_layers(sweeps)
        layers, folder = usable[: sweeps.spec.top_layers], None
        choosing = weigh_layers(sweeps.loaded, len(usable), choose_train(sweeps), **common)
    placebos = sweeps.placebos(layers)
    costs: dict[str, PatchCost] = {"choosing layers": choosing}
    for place in sweeps.places(layers):
        costs["sweep of layers " + "+".join(map(str, place))] = weigh_direction(
            sweeps.loaded,
            [sweeps.direction(layer) for layer in place],
            prompts,
            spec=sweeps.spec,
            mean_norm=[sweeps.mean_norm(layer) for layer in place],
            placebos=placebos,
            folder=folder,
            **common,
        )
    if personas is not None:
        costs["system prompts"] = weigh_prompts(sweeps.loaded, prompts, personas, **common)
    return layers if folder is not None else "to be chosen", costs
