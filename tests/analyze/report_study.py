"""The tables of a study's further analyses, small and shaped as the analyses write them."""

from __future__ import annotations

from itertools import combinations, permutations
from typing import Any

import numpy as np
import pandas as pd

from tests.analyze.report_data import BOW, MODELS, SUBSETS

POOL = "mean_response"
NULLS = ("label_flip_refit", "isotropic", "covariance_matched")
ABLATED = ("llama-organism", "gemma2-organism")
FINDINGS = {"all": "partly_lexical", "shortcut": "shortcut", "balanced": "not_lexical"}


def _head(model: str, layer: int | None, **more) -> dict[str, Any]:
    depth = None if layer is None else (layer + 1) / MODELS[model]
    place = {"run": model, "model": model, "site": "resid_post", "pool": POOL}
    return {**place, "layer": layer, "depth": depth, **more}


def _around(estimate: float, half: float) -> dict[str, Any]:
    return {"estimate": estimate, "ci_low": estimate - half, "ci_high": min(estimate + half, 1.0)}


def null_tables(rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows, bands = [], []
    for model, n_layers in MODELS.items():
        for subset in SUBSETS:
            for kind in NULLS:
                for layer in range(n_layers):
                    area = 0.55 + 0.38 * (layer + 1) / n_layers + rng.normal(0, 0.01)
                    p = {"label_flip_refit": 1 / 1001, "isotropic": 0.03}.get(kind, 0.2)
                    rows.append(
                        _head(model, layer) | _around(area, 0.04)
                        | {
                            "analysis": "null", "metric": "auroc", "method": "diff_means",
                            "subset": subset, "null": kind, "n_draws": 1000, "p_value": p,
                            "p_value_max": min(3 * p, 1), "reason": None,
                        }
                    )  # fmt: skip
                for layer in [*range(n_layers), None]:
                    wide = 0.03 if layer is None else 0.0
                    name = kind if layer is not None else f"max_over_layers ({kind})"
                    method = "diff_means" if kind == NULLS[0] else None
                    bands.append(
                        _head(model, layer)
                        | {
                            "subset": subset, "null": name, "method": method, "n_draws": 1000,
                            "q025": 0.38 + wide, "q975": 0.62 + wide, "max": 0.68 + wide,
                        }
                    )  # fmt: skip
        rows.append(
            _head(model, None)
            | {
                "pool": None, "analysis": "null", "metric": "auroc", "method": "logistic",
                "subset": "all", "null": NULLS[0], "estimate": np.nan, "p_value": np.nan,
                "reason": "logistic has no closed form to refit for every draw",
            }
        )  # fmt: skip
    return pd.DataFrame(rows), pd.DataFrame(bands)


def confound_table(rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for model, n_layers in MODELS.items():
        for subset in SUBSETS:
            for method in ("surface_logistic", "length", "markdown", "first_person"):
                area = 0.5 if method == "markdown" else 0.54
                rows.append(
                    _head(model, None)
                    | {"pool": None, "analysis": "surface", "metric": "auroc", "method": method}
                    | {"subset": subset, "concept": None, "reason": None, **_around(area, 0.05)}
                )
            for layer in range(n_layers):
                for metric, area in (("auroc_raw", 0.9), ("auroc_residualised", 0.86)):
                    rows.append(
                        _head(model, layer)
                        | {"analysis": "residual", "metric": metric, "method": "diff_means"}
                        | {"subset": subset, "concept": None, "reason": None}
                        | _around(area + rng.normal(0, 0.01), 0.03)
                    )
        for layer in range(n_layers):
            for concept, area in (("arm", 0.9), ("random_label", 0.63), ("length", 0.58)):
                shared = {"subset": "all", "concept": concept, "method": "diff_means"}
                selective = {"selectivity": 0.27 if concept == "arm" else None, "reason": None}
                rows.append(
                    _head(model, layer, analysis="control", metric="auroc")
                    | shared | selective | _around(area, 0.04)
                )  # fmt: skip
            missing = {"estimate": np.nan, "reason": "all texts have one generator"}
            rows.append(
                _head(model, layer, analysis="control", metric="auroc", subset="all")
                | {"concept": "generator", "method": "diff_means", **missing}
            )
    return pd.DataFrame(rows)


def ablation_tables() -> dict[str, pd.DataFrame]:
    rows, verdicts, words = [], [], []
    loss = {"all": -0.2, "shortcut": -0.46, "balanced": -0.01}
    for model in ABLATED:
        for way in ("repooled", "reextracted"):
            for subset, delta in loss.items():
                arms: list[tuple[str, str | None, int | None, float]] = [
                    ("keywords_removed", "empathy+task", None, 0.6 * delta),
                    ("data_driven", None, 8, delta / 2),
                    ("data_driven", None, 16, delta),
                ]
                for arm, lexicon, k, change in arms:
                    before = 0.97
                    area = _around(before + change, 0.05)
                    rows.append(
                        _head(model, 3, analysis="ablation", metric="auroc", method="diff_means")
                        | area
                        | {
                            "way": way, "arm": arm, "lexicon": lexicon, "k": k, "subset": subset,
                            "readout": "refit", "reason": None, "before_estimate": before,
                            "delta": change, "delta_ci_low": change - 0.04,
                            "delta_ci_high": change + 0.04, "random_mean": before - 0.01,
                            "random_low": before - 0.03, "random_high": before + 0.01,
                            "n_draws": 100, "p_value": 1 / 101, "bow_before": BOW[subset],
                            "bow_estimate": BOW[subset] - 0.3, "words_removed": 2.1,
                        }
                    )  # fmt: skip
        rows.append(
            _head(model, None, analysis="ablation", metric="auroc", method="diff_means")
            | {"way": "repooled", "arm": "keywords_inserted", "subset": "all", "readout": None}
            | {"estimate": np.nan, "reason": "words that are put in have no activations"}
        )
        for way in ("all", "reextracted", "repooled"):
            for subset, finding in FINDINGS.items():
                said = finding.replace("_", " ")
                if way == "repooled" and finding == "not_lexical":
                    finding = "undecided"
                verdicts.append(
                    _head(model, 3)
                    | {"way": way, "subset": subset, "finding": finding, "n_pairs": 80}
                    | {"verdict": f"{said}: AUROC .97 before", "before_estimate": 0.97}
                    | {"estimate": 0.97 + loss[subset], "random_mean": 0.96, "contrast": -0.1}
                )
        words += [
            {"run": model, "fold": fold, "rank": rank, "word": word}
            for fold in range(3)
            for rank, word in enumerate(("brisk", "kind", "prompt"))
        ]
    draws = pd.DataFrame(
        [{"run": m, "way": "repooled", "draw": d, "auroc": 0.96} for m in ABLATED for d in range(5)]
    )
    return {
        "ablation": pd.DataFrame(rows),
        "ablation_draws": draws,
        "ablation_verdicts": pd.DataFrame(verdicts),
        "ablation_words": pd.DataFrame(words),
    }


def geometry_tables(rng: np.random.Generator) -> dict[str, pd.DataFrame]:
    rows, points = [], []
    names = ("positive-neutral", "negative-neutral", "task-plain")
    for model, n_layers in MODELS.items():
        for layer in range(n_layers):
            head = _head(model, layer, analysis="geometry", contrast=None, other=None, space=None)
            rank = {"metric": "effective_rank", "estimate": 4 + 0.3 * layer}
            rows.append(head | rank)
            for name in names:
                reliable = {"metric": "reliability", "contrast": name, "estimate": 0.9}
                rows.append(head | reliable)
            for a, b in combinations(names, 2):
                for space in ("raw", "standardised", "whitened", "outliers_removed"):
                    cosine = -0.4 + 0.05 * layer + rng.normal(0, 0.02)
                    rows.append(
                        head | _around(cosine, 0.1)
                        | {
                            "metric": "cosine", "contrast": a, "other": b, "space": space,
                            "null": "permuted labels", "n_draws": 200, "p_value": 2 / 201,
                            "null_mean": 0.0, "null_sd": 0.2, "construction": 0.0,
                            "reliability": 0.9, "reliability_other": 0.88,
                            "disattenuated": cosine / 0.89,
                        }
                    )  # fmt: skip
        for seed in range(3):
            for i in range(300):
                arm = ("positive", "negative", "neutral")[i % 3]
                x, y = rng.normal(0, 8, 2)
                points.append(
                    _head(model, n_layers // 2)
                    | {
                        "text": f"text-{i:03d}", "arm": arm, "scenario": f"s{i % 7}",
                        "subset": "plain", "seed": seed, "x": x, "y": y,
                        "caption": "t-SNE: distances and cluster sizes are not interpretable.",
                    }
                )  # fmt: skip
    return {"geometry": pd.DataFrame(rows), "tsne": pd.DataFrame(points)}


def similarity_table() -> pd.DataFrame:
    return pd.DataFrame(
        [
            _head(a, layer)
            | {
                "analysis": "similarity", "metric": metric, "subset": "all", "reason": None,
                "other_run": b, "other_model": b, "other_layer": other,
            }
            | _around(0.9 - 0.1 * abs(layer - other), 0.03)
            for a, b in combinations(MODELS, 2)
            for metric in ("debiased_cka", "rsa")
            for layer in range(MODELS[a])
            for other in range(MODELS[b])
        ]
    )  # fmt: skip


def transfer_table() -> pd.DataFrame:
    kinds: list[tuple[str, str | None, float]] = [
        ("none", "target_trained", 0.95), ("none", "bag_of_words", 0.84),
        ("mean", "mean_only", 0.5), ("orthogonal", "random_orthogonal", 0.51),
        ("ridge", None, 0.88), ("ridge", "random_source", 0.55),
        ("ridge", "permuted_anchors", 0.49),
    ]  # fmt: skip
    rows = []
    for source, target in permutations(MODELS, 2):
        for layer in range(MODELS[target]):
            at = round((layer + 1) / MODELS[target] * MODELS[source]) - 1
            for map_, control, area in kinds:
                rows.append(
                    _head(target, layer, analysis="transfer", metric="auroc")
                    | _around(area, 0.04)
                    | {
                        "source_run": source, "source_layer": max(at, 0), "map": map_,
                        "control": control, "map_r2": 0.6, "reason": None, "subset": "all",
                        "p_value": 1 / 11 if control is None else None, "n_draws": 10,
                        "ceiling_delta": area - 0.95, "bow_delta": area - 0.84,
                        "ceiling_delta_ci_low": area - 0.99, "ceiling_delta_ci_high": area - 0.91,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def analysis_tables() -> dict[str, pd.DataFrame]:
    """Return all tables by the names that a report knows them by."""
    rng = np.random.default_rng(11)
    nulls, bands = null_tables(rng)
    return {
        "nulls": nulls,
        "bands": bands,
        "confounds": confound_table(rng),
        **ablation_tables(),
        **geometry_tables(rng),
        "similarity": similarity_table(),
        "transfer": transfer_table(),
    }
