"""Realistic tables of a study's interventions for the report's tests, in the stages' own columns.

The shape of the numbers is that of a demo study: a state at the response carries everything, one
coordinate of it a third, random directions next to nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from tests.analyze.report_data import MODELS

RUNS = tuple(MODELS)
POSITIONS = ("prompt-all", "suffix", "response")
N_RANDOM = 5
ALPHAS = (-2.0, -1.0, 0.0, 1.0, 2.0)
RAW = 12.0  # raw units to a class separation


def with_interval(value: float, half: float) -> dict[str, float]:
    return {"estimate": value, "ci_low": value - half, "ci_high": value + half}


def patching(runs=RUNS, *, total: float = 0.9, n_random: int = N_RANDOM) -> pd.DataFrame:
    rows = []
    for run in runs:
        n_layers = MODELS.get(run, 4)
        for mode in ("denoise", "noise"):
            for layer in range(n_layers):
                for position in POSITIONS:
                    here = (layer + 1) / n_layers if position == "response" else 0.002
                    arms = [("full", 0, here), ("coordinate", 0, 0.3 * here)]
                    arms += [("complement", 0, 0.5 * here), ("wrong_layer", 0, 0.05 * here)]
                    arms += [("random", i, 0.01 * (i - 2) * here) for i in range(n_random)]
                    for arm, index, share in arms:
                        value = share if mode == "denoise" else 1 - share
                        rows.append(
                            {
                                "analysis": "patch", "metric": "recovered", "run": run,
                                "model": run, "mode": mode, "arm": arm, "layer": layer,
                                "position": position, "index": index,
                                **with_interval(value, 0.04), "reason": None,
                                "effect": total * share, "effect_ci_low": total * share - 0.03,
                                "effect_ci_high": total * share + 0.03, "total": total,
                                "total_ci_low": total - 0.1, "total_ci_high": total + 0.1,
                                "small_total": total < 0.01, "change_norm": 2.0, "n_pairs": 12,
                                "p_value": 1 / 6 if arm == "coordinate" else np.nan,
                                "p_value_max": 1 / 6 if arm == "coordinate" else np.nan,
                                "n_draws": n_random if arm == "coordinate" else np.nan,
                                "interchange": 0.5,
                            }
                        )  # fmt: skip
    return pd.DataFrame(rows)


def matched(runs=RUNS) -> pd.DataFrame:
    rows = []
    for run in runs:
        for layer in range(MODELS.get(run, 4)):
            head = {"analysis": "matched", "metric": "effect", "run": run, "model": run,
                    "layer": layer, "arm": "full", "position": "response", "n_pairs": 12,
                    "reason": None}  # fmt: skip
            rise = (layer + 1) / 8
            p = {"p_value": 1 / 6, "n_draws": N_RANDOM}
            rows += [
                head | with_interval(rise, 0.1) | p | {"what": "patch", "index": 0},
                head | with_interval(0.4 * rise, 0.1) | p | {"what": "steer", "index": 0},
                head | with_interval(-0.6 * rise, 0.1) | {"what": "steer - patch", "index": 0},
            ]
            rows += [
                head | with_interval(0.02 * (i - 2), 0.05) | {"what": "random", "index": i}
                for i in range(N_RANDOM)
            ]
    return pd.DataFrame(rows)


def mediation(runs=RUNS) -> pd.DataFrame:
    rows = []
    for run in runs:
        n_layers = MODELS.get(run, 4)
        for way in ("forward", "reverse"):
            for layer in range(n_layers):
                head = {"analysis": "mediate", "run": run, "model": run, "way": way,
                        "layer": layer, "position": "response", "index": 0, "n_pairs": 12,
                        "reason": None}  # fmt: skip
                peak = np.exp(-abs(layer - 3))
                for mediator, nie in (("full", 0.9), ("coordinate", 0.4 * peak)):
                    own = head | {"mediator": mediator}
                    p = {"p_value": 1 / 6, "p_value_max": 1 / 6, "n_draws": N_RANDOM}
                    rows += [
                        own | with_interval(0.9, 0.1) | {"metric": "TE"},
                        own | with_interval(0.9 - nie, 0.1) | {"metric": "NDE"},
                        own | with_interval(nie, 0.05) | p | {"metric": "NIE"},
                        own | with_interval(0.0, 0.01) | {"metric": "interaction"},
                        own | with_interval(nie / 0.9, 0.06) | {"metric": "proportion"},
                    ]
                rows += [
                    head | with_interval(0.01 * (i - 2), 0.02)
                    | {"mediator": "random", "metric": "NIE", "index": i}
                    for i in range(N_RANDOM)
                ]  # fmt: skip
    return pd.DataFrame(rows)


def units(alpha: float) -> dict[str, float]:
    """A strength in class separations, in all four units."""
    return {"alpha_raw": alpha * RAW, "alpha_separation": alpha, "alpha_norm": alpha * 0.4,
            "alpha_angle": abs(alpha) * 9}  # fmt: skip


def doses(runs=RUNS, *, coherence: bool = True) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    none = dict.fromkeys(("alpha_raw", "alpha_separation", "alpha_norm", "alpha_angle"))
    for run in runs:
        head = {"analysis": "doses", "run": run, "group": "all", "subset": "all",
                "outcome": "shift", "reason": None, "n_prompts": 24, "n_samples": 24}  # fmt: skip
        for alpha in ALPHAS:
            side = "both" if alpha == 0 else "positive" if alpha > 0 else "negative"
            at = {**head, "side": side, **units(alpha)}
            if alpha:
                rows.append(at | with_interval(0.4 + 0.2 * abs(alpha), 0.1)
                            | {"metric": "success_rate", "biased_estimate": 0.5})  # fmt: skip
            rows.append(at | with_interval(0.1 * alpha, 0.03) | {"metric": "effect_mean"})
            if coherence:
                share = 0.4 if alpha == 2 else 1.0
                rows.append(at | with_interval(share, 0.05) | {"metric": "coherence"})
        both = {**head, **none, "side": "both"}
        rows += [
            both | with_interval(0.016, 0.002) | {"metric": "slope_mean"},
            both | with_interval(0.125, 0.06) | {"metric": "anti_steerable_share"},
        ]
        for side, sign in (("positive", 1), ("negative", -1)):
            own = {**head, **none, "side": side}
            rows.append(
                own | units(sign * 1.0)
                | {"metric": "minimum_effective_dose", "estimate": RAW, "p_value": 0.001}
            )  # fmt: skip
            if side == "positive":
                rows.append(own | units(0.8) | with_interval(0.8 * RAW, 1) | {"metric": "alpha50"})
                if coherence:
                    rows.append(own | units(2.0) | {"metric": "breakdown", "estimate": 2 * RAW})
            else:
                why = "not identified: success does not rise over the grid"
                rows.append(own | {"metric": "alpha50", "estimate": None, "reason": why})
    return pd.DataFrame(rows)


def dose_verdicts(runs=RUNS, **changes: object) -> pd.DataFrame:
    row = {
        "group": "all", "side": "positive", "verdict": "not needed",
        "reason": "12 lacks no more than 0.1 of the success at 20", "rule": "…",
        "claimed_raw": 20.0, "claimed_separation": 1.67, "claimed_norm": 0.67, "claimed_angle": 15,
        "sufficient_raw": 12.0, "sufficient_separation": 1.0, "sufficient_norm": 0.4,
        "sufficient_angle": 9.0, "difference": 0.02, "difference_low": -0.03,
        "difference_high": 0.07, "claimed_coherent": False, "n_prompts": 24,
    }  # fmt: skip
    return pd.DataFrame([{**row, "run": run, **changes} for run in runs])


_SLOPES = {
    "task_focus_shift": -0.2,
    "sentiment_shift": 0.1,
    "hostile_share_shift": 0.0,
    "coherent_share_shift": 0.01,
}


def negative(runs=RUNS) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows, verdicts = [], []
    for run in runs:
        for alpha in (-2.0, -1.0, 1.0, 2.0):
            for metric, slope in _SLOPES.items():
                rows.append(
                    {"run": run, "analysis": "negative", "metric": metric, "subset": "all",
                     "alpha_raw": alpha * RAW, "reason": None,
                     **with_interval(slope * alpha, 0.05)}
                )  # fmt: skip
            if alpha < 0:
                verdicts.append(
                    {"run": run, "alpha_raw": alpha * RAW, "subset": "all",
                     "verdict": "raises task focus without cruelty",
                     "reason": "task focus rises by +0.2 (+0.15 to +0.25), the share of hostile "
                     "texts by +0 (-0.05 to +0.05)",
                     "sentiment_falls": True, "n_prompts": 12}
                )  # fmt: skip
    return pd.DataFrame(rows), pd.DataFrame(verdicts)


def task_free(runs=RUNS) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows, verdicts = [], []
    for run in runs:
        head = {"run": run, "analysis": "task_free", "subset": "all", "reason": None,
                "n_prompts": 6}  # fmt: skip
        for kind, slope in (("free", 0.05), ("conflict", 0.2)):
            for alpha in ALPHAS:
                rows.append({**head, "metric": "effect_mean", "kind": kind, "ceiling": False,
                             "floor": kind == "free", "alpha_raw": alpha * RAW,
                             **with_interval(slope * alpha, 0.05)})  # fmt: skip
            rows.append({**head, "metric": "slope_positive", "kind": kind,
                         **with_interval(slope / RAW, 0.001)})  # fmt: skip
        rows.append({**head, "metric": "interaction_positive", "kind": "interaction",
                     **with_interval(-0.15 / RAW, 0.001)})  # fmt: skip
        verdicts.append(
            {"run": run, "direction": "positive", "verdict": "weaker without conflict",
             "reason": "slope without conflict +0.004 (+0.003 to +0.005); with conflict +0.017 "
             "(+0.016 to +0.018); difference -0.013 (-0.014 to -0.012)",
             "n_prompts_free": 6, "n_prompts_conflict": 12}
        )  # fmt: skip
    return pd.DataFrame(rows), pd.DataFrame(verdicts)


def steer_transfer(runs=RUNS) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows, verdicts = [], []
    for target in runs:
        for source in runs:
            if source == target:
                continue
            head = {"run": target, "model": target, "source_run": source, "source_model": source,
                    "reason": None, "analysis": "steer-transfer"}  # fmt: skip
            roles = [("own", "diff_means", None, 0.2), ("mapped", "mapped-ridge", "ridge", 0.1)]
            roles += [
                (role, f"{role}-ridge-{i}", "ridge", 0.01 * (i - 2))
                for role in ("random_source", "permuted_anchors", "random_orthogonal")
                for i in range(N_RANDOM)
            ]
            for role, direction, name, value in roles:
                own = {"source_run": None, "source_model": None} if role == "own" else {}
                rows.append({**head, **own, "metric": "effect", "role": role, "map": name,
                             "direction": direction, **with_interval(value, 0.03)})  # fmt: skip
            rows.append(
                {**head, "metric": "ratio", "role": "mapped", "map": "ridge",
                 "direction": "mapped-ridge", **with_interval(0.5, 0.15), "p_value": 0.04,
                 "p_broken": 0.04, "p_orthogonal": 0.03, "cosine": 0.4, "map_r2": 0.7,
                 "share_kept": 0.6}
            )  # fmt: skip
            verdicts.append(
                {"run": target, "source_run": source, "map": "ridge", "answer": "transfers",
                 "words": f"the direction of {source} does 50 % of the own direction's effect"}
            )  # fmt: skip
    return pd.DataFrame(rows), pd.DataFrame(verdicts)


def scored(runs=RUNS, *, n_prompts: int = 6, text: str = "") -> pd.DataFrame:
    rows = []
    for run in runs:
        for direction in ("diff_means", "random-0"):
            for i in range(n_prompts):
                for alpha in ALPHAS:
                    own = alpha if direction == "diff_means" else 0
                    words = "help " * int(3 + own) + "and work " * int(3 - own)
                    rows.append(
                        {
                            "run": run, "model": run, "direction": direction,
                            "prompt": f"plain-{i:03d}-pos", "scenario": f"place_{i % 3}",
                            "prompt_text": f"You are at work in place {i}.", "seed": 0,
                            "alpha": alpha * RAW, "alpha_raw": alpha * RAW,
                            "alpha_separation": alpha,
                            "text": text or f"{words}({run}, {direction}, prompt {i}, {alpha:g})",
                            "empathy_share": max(0.0, 0.3 + 0.1 * own), "sentiment": 0.1 * own,
                            "coherent": abs(alpha) < 2, "n_words": 12,
                        }
                    )  # fmt: skip
    return pd.DataFrame(rows)


def all_tables(runs=RUNS) -> dict[str, pd.DataFrame]:
    away, away_verdicts = negative(runs)
    free, free_verdicts = task_free(runs)
    moved, moved_verdicts = steer_transfer(runs)
    return {
        "patching": patching(runs), "matched": matched(runs), "mediation": mediation(runs),
        "doses": doses(runs), "doses-verdicts": dose_verdicts(runs), "negative": away,
        "negative-verdicts": away_verdicts, "task-free": free,
        "task-free-verdicts": free_verdicts, "steer-transfer": moved,
        "steer-transfer-verdicts": moved_verdicts, "scored": scored(runs),
    }  # fmt: skip
