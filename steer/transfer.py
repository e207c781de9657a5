"""Steering a model with directions of another one, beside its own direction and every control."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..extract import LoadedModel, TokenRow
from ..schemas import (
    CaptureSpec,
    DirectionSet,
    InvalidInputError,
    Pair,
    SteerTransferRow,
    SteerTransferSpec,
    SteerTransferVerdict,
)
from .clusters import cluster_weights
from .costs import PatchCost
from .kept_scores import score_conditions, weigh_conditions
from .resampling import Floats, interval_of_mean, interval_of_ratio, p_of_null
from .scoring import angle_degrees, mean_residual_norm
from .sweep import pair_rows
from .transfer_plan import TransferPlan, plan_transfer, role_of
from .transfer_verdicts import decide_transfer

__all__ = ["TransferResult", "compare_transfer", "weigh_transfer"]


@dataclass(frozen=True)
class TransferResult:
    """A transfer: ``rows`` per direction and strength, ``samples`` per pair, one verdict per map.

    ``samples`` has columns direction, direction_index, role, map, alpha_raw, alpha_separation,
    pair, scenario, difference (nats per token, positive minus negative completion) and shift
    (against no steering of the same pair).
    """

    rows: pd.DataFrame
    samples: pd.DataFrame
    verdicts: tuple[SteerTransferVerdict, ...]


def weigh_transfer(
    loaded: LoadedModel,
    directions: DirectionSet,
    pairs: Sequence[Pair],
    *,
    spec: SteerTransferSpec,
    capture: CaptureSpec,
    batch_tokens: int = 16384,
    folder: Path | None = None,
) -> PatchCost:
    """Return what :func:`compare_transfer` would run, without running it.

    The passes that measure angles and norms, one or two per pair, are not counted.
    """
    plan = plan_transfer(loaded, directions, spec)
    rows = _render(loaded, pairs, capture)
    return weigh_conditions(
        loaded,
        rows,
        plan.conditions(len(rows)),
        directions=plan.vectors,
        layer=plan.own.layer,
        positions=spec.positions,
        batch_tokens=batch_tokens,
        folder=folder,
    )


def compare_transfer(
    loaded: LoadedModel,
    directions: DirectionSet,
    pairs: Sequence[Pair],
    *,
    spec: SteerTransferSpec,
    capture: CaptureSpec,
    mean_norm: float | None = None,
    batch_tokens: int = 16384,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TransferResult:
    """Return what directions of another model do to this one, as a share of its own's effect.

    By default every direction is added at the same raw strengths, so that they differ in where
    they point alone. The outcome is the mean log-probability per token of the positive
    completion minus that of the negative one. The target's own direction and the mapped ones run
    over the whole grid; random directions of the source through the same map, maps of texts that
    do not correspond and random rotations at +at and -at (SCIENCE §5, §6). A ratio is of means
    over pairs; intervals resample scenarios.

    Parameters
    ----------
    directions
        What :func:`~actlake.analyze.map_directions` returns; the own direction's ``norm`` is the
        class separation.
    pairs
        Pairs that no direction and no map was fitted on.
    mean_norm
        Mean residual norm at the layer, without special tokens; measured on the pairs if None.
    folder, progress
        Where scores are kept as they come, and whom to tell; see
        :func:`~actlake.steer.kept_scores.score_conditions`.

    Raises
    ------
    InvalidInputError
        If there is no pair, the set lacks an own or a mapped direction, or a direction does not
        fit the model.
    """
    plan = plan_transfer(loaded, directions, spec)
    rows = _render(loaded, pairs, capture)
    vectors, layer, cells = plan.vectors, plan.own.layer, plan.cells
    scores = score_conditions(
        loaded,
        rows,
        plan.conditions(len(rows)),
        directions=vectors,
        layer=layer,
        positions=spec.positions,
        batch_tokens=batch_tokens,
        folder=folder,
        progress=progress,
    ).reshape(len(cells), len(pairs), 2)
    difference = scores[..., 0] - scores[..., 1]
    every = sorted({a for _, a in cells})
    angles = angle_degrees(
        loaded,
        rows[::2],
        directions=vectors,
        alphas=np.outer(plan.scales, every),
        layer=layer,
        positions=spec.positions,
    )
    norm = mean_residual_norm(loaded, rows, layer=layer) if mean_norm is None else mean_norm
    table = _Table(plan, cells, difference, pairs=pairs, spec=spec, loaded=loaded)
    found = table.rows(angles={a: angles[:, i] for i, a in enumerate(every)}, mean_norm=norm)
    frame = pd.DataFrame.from_records([row.model_dump() for row in found])
    return TransferResult(frame, table.samples(), decide_transfer(found, at=spec.at))


def _render(loaded: LoadedModel, pairs: Sequence[Pair], capture: CaptureSpec) -> list[TokenRow]:
    if not pairs:
        msg = "there is no pair to steer on; expected at least one"
        raise InvalidInputError(msg)
    return pair_rows(loaded, pairs, capture=capture)


class _Table:
    """The differences (cell, pair) of a transfer, and the rows that they give."""

    def __init__(
        self,
        plan: TransferPlan,
        cells: list[tuple[int, float]],
        difference: Floats,
        *,
        pairs: Sequence[Pair],
        spec: SteerTransferSpec,
        loaded: LoadedModel,
    ) -> None:
        self.plan, self.cells, self.difference = plan, cells, difference
        self.pairs, self.spec, self.loaded = pairs, spec, loaded
        self.shift = difference - difference[0]
        scenarios = np.array([pair.positive.scenario for pair in pairs])
        names, member = np.unique(scenarios, return_inverse=True)
        drawn = cluster_weights(len(names), n_draws=spec.n_bootstrap, seed=spec.seed)[:, member]
        self.weights: Floats = drawn / drawn.sum(axis=1, keepdims=True)
        self.n_scenarios = len(names)
        at = {cell: k for k, cell in enumerate(cells)}
        self.effects: Floats = np.array(
            [
                (self.shift[at[d, spec.at]] - self.shift[at[d, -spec.at]]) / 2
                for d in range(len(plan.directions))
            ]
        )

    def samples(self) -> pd.DataFrame:
        """Return one record per direction, strength and pair."""
        records = []
        for k, (d, alpha) in enumerate(self.cells):
            direction = self.plan.directions[d]
            mapped = direction.mapped
            head = {
                "direction": "unsteered" if k == 0 else direction.method,
                "direction_index": 0 if mapped is None else mapped.index,
                "role": "unsteered" if k == 0 else role_of(direction),
                "map": None if mapped is None else mapped.map,
                "alpha_raw": alpha * self.plan.scales[d],
                "alpha_separation": alpha * self.plan.scales[d] / self.plan.own.norm,
            }
            records += [
                {
                    **head,
                    "pair": pair.id,
                    "scenario": pair.positive.scenario,
                    "difference": self.difference[k, p],
                    "shift": self.shift[k, p],
                }
                for p, pair in enumerate(self.pairs)
            ]
        return pd.DataFrame.from_records(records)

    def rows(self, *, angles: dict[float, Floats], mean_norm: float) -> list[SteerTransferRow]:
        """Return the rows of every metric."""
        out = []
        for k, (d, alpha) in enumerate(self.cells):
            strength = self._strength(d, alpha, angles, mean_norm)
            values = self.difference[0] if k == 0 else self.shift[k]
            out.append(self._row(d, "baseline" if k == 0 else "shift", values, strength))
        own, spec = self.effects[0], self.spec
        for d, direction in enumerate(self.plan.directions):
            strength = self._strength(d, spec.at, angles, mean_norm)
            out.append(self._row(d, "effect", self.effects[d], strength))
            if role_of(direction) == "mapped":
                out.append(self._ratio(d, strength))
                out.append(self._row(d, "difference", self.effects[d] - own, strength))
        return out

    def _strength(
        self, d: int, alpha: float, angles: dict[float, Floats], mean_norm: float
    ) -> dict[str, float]:
        """Return a direction's strength in all four units."""
        raw = alpha * self.plan.scales[d]
        return {
            "alpha_raw": raw,
            "alpha_separation": raw / self.plan.own.norm,
            "alpha_norm": raw / mean_norm,
            "alpha_angle": float(angles[alpha][d]),
        }

    def _row(
        self, d: int, metric: str, values: Floats, strength: dict[str, float], **more: object
    ) -> SteerTransferRow:
        direction, spec = self.plan.directions[d], self.spec
        mapped = direction.mapped
        low, high = interval_of_mean(values, self.weights)
        role = "unsteered" if metric == "baseline" else role_of(direction)
        fields: dict[str, object] = {
            "analysis": "steer-transfer",
            "metric": metric,
            "estimate": float(values.mean()),
            "ci_low": low,
            "ci_high": high,
            "ci_method": "percentile bootstrap over scenarios",
            "run": direction.run,
            "model": direction.model,
            "site": direction.site,
            "pool": direction.pool,
            "layer": direction.layer,
            "depth": (direction.layer + 1) / self.loaded.info.n_layers,
            "method": self.plan.own.method,
            "direction": role if role == "unsteered" else direction.method,
            "direction_index": 0 if mapped is None else mapped.index,
            "prompt_set": "all" if spec.subsets is None else "+".join(spec.subsets),
            **strength,
            "n_pairs": len(self.pairs),
            "n_scenarios": self.n_scenarios,
            "groups": "scenario",
            "token_mask": f"steered at {spec.positions}, without BOS",
            "dtype": self.loaded.info.dtype,
            "seed": spec.seed,
            "content_digest": direction.content_digest,
            "store_url": direction.store_url,
            "role": role,
        }
        if mapped is not None:
            names = (
                "map", "map_r2", "cosine", "share_kept", "source_model", "source_run",
                "source_layer",
            )  # fmt: skip
            fields |= {name: getattr(mapped, name) for name in names}
        return SteerTransferRow.model_validate({**fields, **more})

    def _ratio(self, d: int, strength: dict[str, float]) -> SteerTransferRow:
        """Return the row of a mapped direction's effect as a share of the own one's."""
        own, values = self.effects[0], self.effects[d]
        mapped = self.plan.directions[d].mapped
        map_ = None if mapped is None else mapped.map
        low, high = interval_of_mean(own, self.weights)
        missing = {
            "estimate": None,
            "ci_low": None,
            "ci_high": None,
            "reason": f"the interval of the own direction's effect, {low:.3g} to {high:.3g}, "
            "holds 0",
        }
        share: dict[str, object] = dict(missing)
        if not low <= 0 <= high:
            ratio_low, ratio_high = interval_of_ratio(values, own, self.weights)
            share = {
                "estimate": float(values.mean() / own.mean()),
                "ci_low": ratio_low,
                "ci_high": ratio_high,
                "ci_method": "percentile bootstrap of a ratio of means over scenarios",
            }
        random, broken, turned = (
            self._null(role, map_ if role != "random_orthogonal" else None)
            for role in ("random_source", "permuted_anchors", "random_orthogonal")
        )
        observed = float(values.mean())
        nulls = {
            "null": "random source directions through the same map",
            "n_draws": len(random),
            "p_value": p_of_null(observed, random) if len(random) else None,
            "n_broken": len(broken),
            "p_broken": p_of_null(observed, broken) if len(broken) else None,
            "n_orthogonal": len(turned),
            "p_orthogonal": p_of_null(observed, turned) if len(turned) else None,
        }
        return self._row(d, "ratio", values, strength, **share, **nulls)

    def _null(self, role: str, map_: str | None) -> Floats:
        """Return the mean effects of a control's draws."""
        return np.array(
            [
                self.effects[k].mean()
                for k, other in enumerate(self.plan.directions)
                if other.mapped is not None
                and other.mapped.role == role
                and map_ in {None, other.mapped.map}
            ]
        )
