"""Tables of every stage for the tests of a paper: few layers, known numbers."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pandas as pd

from tests.analyze.report_data import MODELS, realistic_input

LAYERS = 4
POSITIONS = ("prompt-all", "response")
RUNS = tuple(MODELS)


def each_run(rows):
    rows = list(rows)
    return pd.DataFrame([{"run": run, "model": run, "n_pairs": 12, **row}
                         for run in RUNS for row in rows])  # fmt: skip


def interval(value, half=0.1):
    return {"estimate": value, "ci_low": value - half, "ci_high": value + half}


def patching(*, small=False):
    arms = [("full", 0, 1.0), ("coordinate", 0, 0.4), ("random", 0, 0.01), ("random", 1, -0.02)]
    return each_run(
        {
            "mode": mode, "arm": arm, "index": index, "position": position, "layer": layer,
            "small_total": small, "total": 0.6, "interchange": 0.5, "p_value_max": 0.1,
            **interval(share * layer / LAYERS), "effect": 0.6 * share * layer / LAYERS,
            "effect_ci_low": -0.1, "effect_ci_high": 0.7,
        }
        for mode in ("denoise", "noise") for arm, index, share in arms
        for position in POSITIONS for layer in range(LAYERS)
    )  # fmt: skip


def mediation():
    return each_run(
        {
            "metric": metric, "way": way, "mediator": mediator, "index": index, "scale": "log_odds",
            "position": "response", "layer": layer, "p_value": 0.1, "p_value_max": 0.2,
            **interval(size * (layer + 1) / LAYERS),
        }
        for metric in ("TE", "NIE") for way in ("forward", "reverse")
        for mediator, index, size in (("full", 0, 0.6), ("coordinate", 0, 0.3), ("random", 0, 0.02),
                                      ("random", 1, -0.03))
        for layer in range(LAYERS)
    )  # fmt: skip


def matched():
    arms = [("patch", 0, 0.2), ("steer", 0, 0.5), ("steer - patch", 0, 0.3),
            ("random", 0, 0.01), ("random", 1, -0.04)]  # fmt: skip
    return each_run(
        {
            "metric": "effect",
            "what": what,
            "index": index,
            "arm": "full",
            "layer": layer,
            "position": "response",
            "change_norm": 3.0,
            "p_value": 0.05,
            **interval(size),
        }
        for what, index, size in arms
        for layer in range(LAYERS)
    )


def transfer():
    rows = []
    kinds = [
        ("ridge", None, 0.8), ("none", "target_trained", 0.97), ("ridge", "random_source", 0.5),
        ("none", "bag_of_words", 0.84),
    ]  # fmt: skip
    for i, (source, target) in enumerate(permutations(RUNS, 2)):
        for layer in range(MODELS[target]):
            rows += [
                {
                    "run": target, "source_run": source, "metric": "auroc", "subset": "all",
                    "pool": pool, "layer": layer, "source_layer": layer, "map": name,
                    "control": control, "n_draws": None, "p_value": 0.1,
                    **interval(value + i / 100 + layer / 1000, 0.05),
                }
                for name, control, value in kinds for pool in ("last_prompt", "mean_response")
            ]  # fmt: skip
    return pd.DataFrame(rows)


def steer_transfer():
    rows = []
    roles = [
        ("own", None, 0.5), ("mapped", "ridge", 0.3), ("random_source", "ridge", 0.02),
        ("permuted_anchors", "ridge", -0.02), ("random_orthogonal", "orthogonal", 0.01),
    ]  # fmt: skip
    for source, target in permutations(RUNS, 2):
        for metric in ("effect", "shift"):
            rows += [
                {
                    "run": target, "source_run": None if role == "own" else source, "role": role,
                    "map": name, "metric": metric, "direction": role, "direction_index": 0,
                    "alpha_separation": 1.0, "layer": 3, "source_layer": 2, "n_pairs": 12,
                    **interval(size),
                }
                for role, name, size in roles
            ]  # fmt: skip
    return pd.DataFrame(rows)


def ablation():
    arms = [("keywords_removed", "empathy+task", -0.3), ("random_words_removed", None, -0.02)]
    return each_run(
        {
            "metric": "auroc", "subset": "all", "readout": readout, "way": way, "arm": arm,
            "lexicon": lexicon, "k": None, "pool": "mean_response", "layer": layer,
            "before_estimate": 0.9, "estimate": 0.9 + delta, "ci_low": None, "ci_high": None,
            "delta": delta, "delta_ci_low": delta - 0.05, "delta_ci_high": delta + 0.05,
            "random_mean": 0.88, "random_low": 0.86, "random_high": 0.91, "contrast": delta + 0.02,
            "contrast_ci_low": delta - 0.04, "contrast_ci_high": delta + 0.08, "bow_before": 0.84,
            "bow_estimate": 0.6,
        }
        for way in ("repooled", "reextracted") for readout in ("refit", "fixed")
        for arm, lexicon, delta in arms for layer in range(LAYERS)
    )  # fmt: skip


def scored():
    return pd.DataFrame(
        [
            {
                "run": run, "direction": direction, "alpha_separation": alpha,
                "alpha_raw": 3 * alpha, "coherent": not (alpha == 2 and i == 0), "prompt": str(i),
            }
            for run in RUNS for direction in ("diff_means", "random-0")
            for alpha in (-2.0, 0.0, 2.0) for i in range(4)
        ]
    )  # fmt: skip


def every_table():
    return {
        "patching": patching(),
        "mediation": mediation(),
        "matched": matched(),
        "transfer": transfer(),
        "steer-transfer": steer_transfer(),
        "ablation": ablation(),
        "scored": scored(),
    }


def paper_input(**changes):
    """A study of three models in which every stage was run."""
    return realistic_input(**({"tables": every_table()} | changes))


def renamed(results, old, new):
    """The same study whose run and model ``old`` are called ``new``, everywhere."""
    from dataclasses import replace

    def of(frame):
        return None if frame is None else frame.replace({old: new})

    return replace(
        results, rows=of(results.rows), null=of(results.null), steering=of(results.steering),
        tables={name: of(table) for name, table in results.tables.items()},
        selected_layers={new if run == old else run: layers
                         for run, layers in results.selected_layers.items()},
    )  # fmt: skip


def values_of(line):
    return np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
