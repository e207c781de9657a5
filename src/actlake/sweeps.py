"""What sweeps of a run are made of: its directions, placebos, prompts and layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .schemas import CaptureSpec, Direction, InvalidInputError, NotFoundError, digest_json
from .stages import Results

if TYPE_CHECKING:
    import pandas as pd

    from .analyze import ProbeResult
    from .extract import LoadedModel
    from .schemas import ExtractSpec, Pair, PersonaSet, SteerSpec
    from .steer import SweepResult
    from .steer.scoring import ScoreEngine
    from .store import Store

__all__ = [
    "Sweeps",
    "Tenths",
    "choose_layers",
    "choose_train",
    "given_layers",
    "mean_norm",
    "prepare_sweeps",
    "usable_layers",
]

_CONDITIONS = "steer-conditions"  # beside the stage: what was measured is never measured again


@dataclass(frozen=True)
class Sweeps:
    """Everything that is read before a sweep: the probe, the pairs, the model."""

    store: Store
    run: str
    results: Results
    spec: SteerSpec
    capture: CaptureSpec
    loaded: LoadedModel
    probe: ProbeResult
    pairs: list[Pair]
    batch_tokens: int
    against: tuple[Direction, ...]
    say: Callable[[str], None]
    engine: ScoreEngine | None = None

    def direction(self, layer: int) -> Direction:
        """Return the run's own direction of a layer."""
        from .analyze import directions_record

        return directions_record(self.probe.directions, "diff_means", self.spec.pool, layer=layer)

    def mean_norm(self, layer: int) -> float:
        """Return the mean residual norm at a layer, as the run stored it."""
        return mean_norm(self.store, self.run, layer, site=self.direction(layer).site)

    def placebos(self, layers: Sequence[int]) -> tuple[Direction, ...]:
        """Return the placebo directions that the spec asks for."""
        from .analyze import placebo_directions
        from .store import open_run, read_texts

        kinds = [name for name in ("shuffled", "orthogonal") if name in self.spec.controls]
        if not kinds:
            return ()
        _, texts = read_texts(self.store, self.run)
        return placebo_directions(
            open_run(self.store, self.run),
            texts,
            pool=self.spec.pool,
            layers=layers,
            kinds=kinds,
            n_shuffled=self.spec.n_shuffled,
            against=self.against,
            seed=self.spec.seed,
        ).directions

    def personas(self) -> PersonaSet | None:
        """Return the system prompts of the baseline, None where it is not asked for."""
        from .corpus import read_personas

        if "system_prompt" not in self.spec.controls:
            return None
        return self.spec.system_prompts or read_personas()

    def prompts(self) -> list[Pair]:
        """Return the held-out pairs that are reported."""
        from .steer import choose_pairs

        return choose_pairs(self.pairs, spec=self.spec)

    def places(self, layers: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the sets of layers that are steered: each by itself, and all at once."""
        alone: list[tuple[int, ...]] = [(layer,) for layer in layers]
        return [*alone, tuple(sorted(layers))] if self.spec.together else alone

    def folder(self) -> Path:
        """Return where the conditions of this model and these positions are kept."""
        made_with = [self.loaded.info.model_dump(mode="json"), self.spec.positions]
        return self.results.stage(self.run, _CONDITIONS) / digest_json(made_with)[7:23]

    def sweep(
        self, layers: tuple[int, ...], *, prompts: list[Pair], placebos: Sequence[Direction]
    ) -> SweepResult:
        """Return the sweep of one set of layers."""
        from .steer import sweep_direction

        place = "+".join(map(str, layers))
        return sweep_direction(
            self.loaded,
            [self.direction(layer) for layer in layers],
            prompts,
            spec=self.spec,
            capture=self.capture,
            mean_norm=[self.mean_norm(layer) for layer in layers],
            placebos=placebos,
            folder=self.folder(),
            progress=Tenths(f"{self.run}: steering layer {place}", self.say),
            batch_tokens=self.batch_tokens,
            engine=self.engine,
        )

    @contextmanager
    def running(self, extract: ExtractSpec | None) -> Iterator[Sweeps]:
        """Give the sweeps with vLLM loaded where ``extract`` asks for it."""
        if extract is None or extract.engine != "vllm":
            yield self
            return
        from .steer import VllmSteering

        engine = VllmSteering(
            self.loaded,
            longest=self._longest() + 1,  # vLLM generates a token behind each
            batch_tokens=self.batch_tokens,
            tensor_parallel=extract.tensor_parallel,
            seed=extract.seed,
        )
        with engine.ready():
            yield replace(self, engine=engine)

    def _longest(self) -> int:
        """Return the tokens of the longest row that any part of the sweeps runs."""
        from .extract import render_texts
        from .steer.prompting import prompt_rows

        train = choose_train(self)
        texts = [t for p in (*train, *self.prompts()) for t in (p.positive, p.negative)]
        limit = self.loaded.max_positions
        rows = render_texts(texts, self.loaded.tokenizer, spec=self.capture, max_positions=limit)
        personas = self.personas()
        if personas is not None:
            rows += prompt_rows(self.loaded, self.prompts(), personas, capture=self.capture)[0]
        return max(row.n_tokens for row in rows)


def mean_norm(store: Store, run: str, layer: int, *, site: str) -> float:
    """Return the mean norm of a site at a layer, as the run stored it.

    Raises
    ------
    InvalidInputError
        If the run holds none: activations that were imported bring no norms.
    """
    from .schemas import norm_name
    from .store import open_run

    stored, norm = open_run(store, run), norm_name(site)
    if norm not in stored:
        msg = (
            f"run {run!r} holds no {norm}, so strengths have no scale: imported "
            "activations bring no norms; steer a run that `actlake extract` wrote"
        )
        raise InvalidInputError(msg)
    return float(stored[norm].sel(layer=layer).mean().compute())


class Tenths:
    """A progress that says how far it is about ten times."""

    def __init__(self, head: str, say: Callable[[str], None]) -> None:
        self.head, self.say, self.said = head, say, 0

    def __call__(self, done: int, total: int) -> None:
        """Say so when another tenth of ``total`` is done."""
        tenth = 10 * done // max(total, 1)
        if tenth > self.said:
            self.said = tenth
            self.say(f"{self.head}: {done:,} of {total:,} conditions")


def prepare_sweeps(
    store: Store,
    run: str,
    results: Results,
    *,
    model: str,
    revision: str | None,
    spec: SteerSpec,
    capture: CaptureSpec,
    device: str,
    attn_implementation: str | None,
    batch_tokens: int,
    against: Sequence[Direction],
    weights: bool,
    say: Callable[[str], None],
    loaded: LoadedModel | None = None,
    extract: ExtractSpec | None = None,
) -> Sweeps:
    """Return what the sweeps of a run read; without ``weights`` they can only be weighed.

    ``loaded`` is the model where it is there already, ``extract`` what runs it where that is not
    the model in this process.
    """
    from .analyze import load_probe_result
    from .corpus import pair_texts
    from .extract import load_model
    from .extract.engines import check_engine, load_for_plan
    from .store import read_texts

    if extract is not None and extract.engine == "vllm":
        check_engine(extract)
        loaded = load_for_plan(model, revision=revision, capture=capture, extract=extract)
    _, texts = read_texts(store, run)
    return Sweeps(
        store=store,
        run=run,
        results=results,
        spec=spec,
        capture=capture,
        loaded=loaded
        or load_model(
            model,
            revision=revision,
            dtype=capture.dtype,
            device=device,
            attn_implementation=attn_implementation,
            head=True,
            weights=weights,
        ),
        probe=load_probe_result(results.stage(run, "probe")),
        pairs=pair_texts(texts),
        batch_tokens=batch_tokens,
        against=tuple(against),
        say=say,
    )


def usable_layers(sweeps: Sweeps) -> list[int]:
    """Return the layers whose arms differ, so that they have a direction.

    Raises
    ------
    NotFoundError
        If the run was not probed in this pool, or not by the difference of means.
    """
    there, pool = sweeps.probe.directions, sweeps.spec.pool
    if pool not in there["pool"].values or "diff_means" not in there["method"].values:
        msg = (
            f"no diff_means directions of pool {pool!r}; the probe results have "
            f"{there['method'].values.tolist()} on {there['pool'].values.tolist()}"
        )
        raise NotFoundError(msg)
    found = sweeps.probe.directions.sel({"method": "diff_means", "pool": sweeps.spec.pool})
    return [
        int(layer)
        for layer in found["layer"].values
        if float(found["norm"].sel({"layer": layer})) > 0
    ]


def given_layers(sweeps: Sweeps) -> tuple[list[int], str] | None:
    """Return the layers that need no comparison and where they are from; None where one is due.

    Raises
    ------
    InvalidInputError
        If there are fewer layers with a direction than are asked for, or nothing to choose on.
    """
    spec = sweeps.spec
    if spec.layers is not None:
        return list(spec.layers), "layers given"
    if spec.layer is not None:
        return [spec.layer], "layer given"
    n_usable = len(usable_layers(sweeps))
    if spec.top_layers > n_usable:
        msg = f"top_layers is {spec.top_layers}, but only {n_usable} layers have a direction"
        raise InvalidInputError(msg)
    if len({pair.positive.split for pair in sweeps.pairs}) > 1:
        return None
    layer = sweeps.probe.selected_layer.get((spec.pool, "diff_means"))
    if layer is None or spec.top_layers > 1:
        msg = "too few scenarios to choose layers from; name the layer or layers to steer"
        raise InvalidInputError(msg)
    return [layer], "layer that the probe's inner folds selected"


def choose_train(sweeps: Sweeps) -> list[Pair]:
    """Return the pairs that layers are compared on."""
    from .steer import choose_pairs

    return choose_pairs(sweeps.pairs, spec=sweeps.spec, split="train")


def choose_layers(sweeps: Sweeps) -> tuple[list[int], str, pd.DataFrame | None]:
    """Return the layers to steer, how they were chosen, and the layers that were compared."""
    from .steer import compare_layers

    given = given_layers(sweeps)
    if given is not None:
        return *given, None
    table = compare_layers(
        sweeps.loaded,
        [sweeps.direction(layer) for layer in usable_layers(sweeps)],
        choose_train(sweeps),
        positions=sweeps.spec.positions,
        capture=sweeps.capture,
        seed=sweeps.spec.seed + 1,  # other draws than the sweep reports
        batch_tokens=sweeps.batch_tokens,
        engine=sweeps.engine,
    )
    best = table.iloc[: sweeps.spec.top_layers]
    which = "layer" if len(best) == 1 else f"{len(best)} layers"
    how = (
        f"{which} of the largest effect beyond that of random directions on "
        f"{best.iloc[0]['n_pairs']:.0f} pairs of the train split"
    )
    return [int(layer) for layer in best["layer"]], how, table
