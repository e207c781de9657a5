"""A realistic study's tables for the report's tests: three models, three pools, four subsets.

The shape of the numbers is that of a demo study: a concept that grows with depth, a shortcut that
a bag of words reads, a balanced subset that it cannot read.
"""

from __future__ import annotations

import tempfile
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from actlake.analyze.report import ReportInput, write_report
from actlake.schemas import ArmNames, StudyFile, StudyModel

MODELS = {"phi3-organism": 8, "llama-organism": 6, "gemma2-organism": 7}
POOLS = ("mean_response", "last_prompt", "last_response")
SUBSETS = {"all": 260, "plain": 100, "shortcut": 80, "balanced": 80}
METHODS = ("diff_means", "logistic")
BOW = {"all": 0.842, "plain": 0.931, "shortcut": 1.0, "balanced": 0.487}
CEILING = "ceiling: this dataset cannot separate semantic from lexical evidence"
DIGEST = "sha256:" + "5e2d91ab" * 8


def study() -> dict[str, Any]:
    models = tuple(StudyModel(model=f"bundled:{m}", run=m) for m in MODELS)
    return StudyFile(name="demo", title="Demo study", models=models).to_dict()


def probe_rows(rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for model, n_layers in MODELS.items():
        head = {"run": model, "model": model, "site": "resid_post", "cv": "leave-one-scenario-out"}
        for subset, n_pairs in SUBSETS.items():
            counts = {"n_pairs": n_pairs, "n_scenarios": 26}
            shared = {**head, **counts, "subset": subset}
            bow = BOW[subset]
            rows.append(
                {
                    **shared,
                    "analysis": "bow",
                    "metric": "auroc",
                    "method": "bag_of_words",
                    "estimate": bow,
                    "ci_low": max(bow - 0.06, 0.0),
                    "ci_high": min(bow + 0.06, 1.0),
                    "verdict": CEILING if bow >= 0.99 else None,
                }
            )
            for pool in POOLS:
                for method in METHODS:
                    rows += _curve(rng, shared, pool=pool, method=method, n_layers=n_layers)
            # Beside the folds the probes are also judged on the test split: never mix the two.
            split = {**shared, "cv": "train→test split", "n_pairs": n_pairs // 4}
            curve = _curve(rng, split, pool="mean_response", method="diff_means", n_layers=n_layers)
            rows += [row | {"analysis": "probe_test"} for row in curve]
    return pd.DataFrame(rows)


def _curve(rng, shared, *, pool, method, n_layers):
    subset = shared["subset"]
    strength = {"mean_response": 1.0, "last_prompt": 0.25, "last_response": 0.75}[pool]
    top = {"all": 0.95, "plain": 0.93, "shortcut": 1.0, "balanced": 0.83}[subset]
    base = {**shared, "analysis": "probe", "pool": pool, "method": method, "seed": 0}
    rows = []
    values = []
    for layer in range(n_layers):
        rise = 1 - np.exp(-1.1 * (layer + 1))
        auroc = 0.5 + (top - 0.5) * strength * rise + rng.normal(0, 0.012)
        auroc = float(np.clip(auroc + (0.015 if method == "logistic" else 0), 0, 1))
        values.append(auroc)
        rows += [
            _row(base, "auroc", auroc, layer=layer, n_layers=n_layers),
            _row(base, "auroc_within", min(auroc + 0.01, 1), layer=layer, n_layers=n_layers),
            _row(base, "d_prime", 4 * (auroc - 0.5), layer=layer, n_layers=n_layers),
            _row(base, "accuracy", 0.5 + 0.8 * (auroc - 0.5), layer=layer, n_layers=n_layers),
            _row(base, "paired_accuracy", min(auroc + 0.02, 1), layer=layer, n_layers=n_layers),
        ]
    chosen = n_layers // 2 + 1
    nested = _row(base, "auroc_nested", values[chosen] - 0.004, layer=chosen, n_layers=n_layers)
    rows.append(nested | {"layer": None, "depth": None, "p_value": None})
    return rows


def _row(base, metric, estimate, *, layer, n_layers):
    row = {**base, "metric": metric, "estimate": estimate, "layer": layer}
    row["depth"] = (layer + 1) / n_layers
    if metric.startswith("auroc"):
        half = 1.96 * np.sqrt(max(estimate * (1 - estimate), 1e-3) / base["n_pairs"])
        bow = BOW[base["subset"]]
        row |= {
            "ci_low": max(estimate - half, 0.0),
            "ci_high": min(estimate + half, 1.0),
            "ci_method": "bootstrap over pairs within scenarios",
            "boundary": estimate == 1.0,
            "bow_estimate": bow,
            "bow_delta": estimate - bow,
            "bow_delta_ci_low": estimate - bow - half,
            "bow_delta_ci_high": estimate - bow + half,
            "verdict": CEILING if bow >= 0.99 else None,
            "null": "isotropic",
            "n_draws": 1000,
            "p_value": 1 / 1001 if estimate > 0.75 else 0.21,
            "p_value_max": 2 / 1001 if estimate > 0.75 else 0.48,
        }
    return row


def null_table(rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for model, n_layers in MODELS.items():
        for pool in POOLS:
            for subset in SUBSETS:
                for layer in range(n_layers):
                    sd = 0.06 + 0.09 * (layer + 1) / n_layers + rng.uniform(0, 0.005)
                    rows.append(
                        {
                            "run": model, "model": model, "site": "resid_post", "pool": pool,
                            "layer": layer, "depth": (layer + 1) / n_layers, "subset": subset,
                            "n_draws": 1000, "mean": 0.5, "sd": sd, "sd_formula": sd * 1.01,
                            "q025": 0.5 - 1.96 * sd, "q50": 0.5, "q975": 0.5 + 1.96 * sd,
                            "max": min(0.5 + 3.1 * sd, 1), "max_folded": min(0.5 + 3.2 * sd, 1),
                            "share_above_95": 0.002 if sd > 0.13 else 0.0,
                            "share_above_95_folded": 0.005 if sd > 0.13 else 0.0,
                        }
                    )  # fmt: skip
    return pd.DataFrame(rows)


def pca_tables(rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    variance, points = [], []
    for model, n_layers in MODELS.items():
        for pool in POOLS:
            for layer in range(n_layers):
                head = {"run": model, "model": model, "pool": pool, "layer": layer}
                variance += [
                    {
                        **head, "component": c, "explained_variance_ratio": 0.42 * 0.6**c,
                        "cosine_with_probe": (0.81, -0.33, 0.12, 0.05)[c], "effective_rank": 6.4,
                    }
                    for c in range(4)
                ]  # fmt: skip
                if pool != "mean_response":
                    continue
                for i in range(560):
                    subset = ("plain", "shortcut", "balanced", "neutral")[min(i // 160, 3)]
                    arm = "neutral" if subset == "neutral" else ("positive", "negative")[i % 2]
                    sign = {"positive": 1, "negative": -1, "neutral": 0}[arm]
                    centre = sign * {"shortcut": 2.2, "plain": 1.6}.get(subset, 0.8)
                    pc1, pc2, pc3 = rng.normal([centre, 0.3, 0], [0.9, 0.8, 0.5])
                    points.append(
                        {
                            **head, "text": f"{subset}-{i // 2:03d}-{arm}", "pc1": pc1, "pc2": pc2,
                            "pc3": pc3, "arm": arm, "scenario": f"scenario-{i % 26:02d}",
                            "category": "medical_triage", "subset": subset, "split": "train",
                        }
                    )  # fmt: skip
    return pd.DataFrame(variance), pd.DataFrame(points)


def steering_table(rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for model in MODELS:
        gains = [("diff_means", 0, 0.31), *(("random", i, rng.normal(0, 0.03)) for i in range(20))]
        for direction, index, gain in gains:
            for alpha in (-4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0):
                effect = gain * np.tanh(alpha / 2) * 2 - 0.02 * abs(gain) * alpha**2
                rows.append(
                    {
                        "run": model, "model": model, "site": "resid_post", "layer": 5,
                        "pool": "mean_response", "analysis": "steer",
                        "method": direction if direction != "random" else "isotropic",
                        "metric": "logprob_difference_shift", "direction": direction,
                        "direction_index": index, "prompt_set": "all", "prompt": None,
                        "alpha_raw": alpha * 3.2, "alpha_separation": alpha,
                        "alpha_norm": alpha * 0.31, "alpha_angle": abs(alpha) * 8.5,
                        "estimate": effect, "ci_low": effect - 0.05 * abs(alpha),
                        "ci_high": effect + 0.05 * abs(alpha),
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def run_records() -> list[dict[str, Any]]:
    return [
        {
            "encoding-type": "actlake-run", "run": model, "plan_id": DIGEST, "corpus": "demo",
            "model": {
                "name": model, "revision": None, "content_digest": DIGEST,
                "architecture": "Phi3ForCausalLM", "n_layers": n_layers, "hidden_size": 96,
                "n_parameters": 1_204_992, "dtype": "float32", "attn_implementation": "eager",
            },
            "tokenizer": {"digest": DIGEST, "chat_template_digest": DIGEST, "vocab_size": 512},
            "capture": {"sites": ["resid_post"], "pools": list(POOLS), "include_special": False},
            "n_texts": 560, "n_tokens": 41_233, "n_layers": n_layers, "hidden_size": 96, "seed": 0,
            "created_at": "2025-01-01T00:00:00Z", "data_digest": DIGEST, "tree_digest": DIGEST,
            "n_bytes": 6_451_200, "n_objects": 37,
            "environment": {
                "actlake": "0.1.0", "python": "3.11.9", "platform": "Linux-x86_64",
                "packages": {"torch": "2.6.0", "transformers": "4.57.0"}, "hardware": "2 CPU cores",
            },
        }
        for model, n_layers in MODELS.items()
    ]  # fmt: skip


def realistic_input(**changes: Any) -> ReportInput:
    rng = np.random.default_rng(7)
    variance, points = pca_tables(rng)
    values: dict[str, Any] = {
        "title": "Empathy against task focus in three model organisms",
        "study": study(),
        "rows": probe_rows(rng),
        "null": null_table(rng),
        "pca": variance,
        "pca_points": points,
        "steering": steering_table(rng),
        "runs": run_records(),
        "arm_names": ArmNames(positive="empathic", negative="task_focused"),
        "selected_layers": {
            m: {(p, k): n // 2 + 1 for p in POOLS for k in METHODS} for m, n in MODELS.items()
        },
        "environment": {"actlake": "0.1.0", "python": "3.11.9", "packages": {"zarr": "3.1.6"}},
    }
    return ReportInput(**(values | changes))


def small_input(**changes: Any) -> ReportInput:
    """One model and one pool of the realistic study: quick to draw."""
    whole = realistic_input()
    values: dict[str, Any] = {}
    for field in fields(whole):
        value = getattr(whole, field.name)
        if isinstance(value, pd.DataFrame):
            value = value[value["run"] == "llama-organism"]
            if field.name in {"rows", "null"}:
                value = value[value["pool"].isna() | (value["pool"] == "mean_response")]
        values[field.name] = value
    return ReportInput(**(values | {"runs": run_records()[1:2]} | changes))


@cache
def realistic_page() -> str:
    """The whole realistic report as text; it is drawn once for all tests."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_report(realistic_input(), Path(folder) / "report.html")
        return path.read_text(encoding="utf-8")
