"""The rule of the house for every table: no number is missing without a reason beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

VALUES = (
    "estimate", "mean", "sd", "max", "q025", "q50", "q975", "sd_formula", "delta", "score",
    "auroc_first", "auroc_second", "x", "y", "explained_variance_ratio", "cosine_with_probe",
    "effective_rank",
)  # fmt: skip
ORIGIN = ("run", "code_version", "store_url", "content_digest", "dtype", "token_mask")
# (what must be there, where it must be, columns of which one says why it is not)
BESIDE = (
    ("ci_low", "estimate", ("ci_method", "reason")),
    ("ci_high", "estimate", ("ci_method", "reason")),
    ("ci_low", "delta", ("ci_method", "reason")),
    ("bootstrap_low", "delta", ("reason",)),
    ("cluster_ci_low", "cluster_ci_method", ("cluster_ci_method", "reason")),
    ("bow_delta_ci_low", "bow_estimate", ("verdict", "reason")),
    ("surface_delta_ci_low", "surface_estimate", ("verdict", "reason")),
    ("selectivity", "control_estimate", ("reason",)),
    ("ceiling_delta_ci_low", "ceiling_estimate", ("reason", "verdict")),
)


def assert_reasoned(frame: pd.DataFrame, where: str) -> None:
    """Fail where a number is infinite, or missing without a word on why."""
    numbers = frame.select_dtypes("number").astype("float64")
    assert not np.isinf(numbers.to_numpy()).any(), where
    if numbers.isna().any(axis=None):
        assert "reason" in frame.columns, (where, numbers.columns[numbers.isna().any()].tolist())
    reason = frame["reason"].notna() if "reason" in frame.columns else pd.Series(False, frame.index)
    points = [name for name in frame.columns if name.startswith("pc") and name[2:].isdigit()]
    for name in [name for name in (*VALUES, *points) if name in frame.columns]:
        bare = frame[frame[name].isna() & ~reason]
        assert bare.empty, (where, name, bare.iloc[0].dropna().to_dict())
    for name, of, words in BESIDE:
        if name in frame.columns and of in frame.columns:
            said = frame[[word for word in words if word in frame.columns]].notna().any(axis=1)
            bare = frame[frame[of].notna() & frame[name].isna() & ~said]
            assert bare.empty, (where, name, bare.iloc[0].dropna().to_dict())
    if "p_value" in frame.columns and "null" in frame.columns:
        tested = frame["null"].notna() & frame["estimate"].notna()
        known = frame["p_value"].notna() | frame.get("p_value_max", frame["p_value"]).notna()
        bare = frame[tested & ~known & ~reason & ~frame["null"].eq("isotropic")]
        assert bare.empty, (where, "p_value", bare.iloc[0].dropna().to_dict())
    for name in ORIGIN:
        if "estimate" in frame.columns or "sd" in frame.columns or "delta" in frame.columns:
            assert name in frame.columns, (where, name)
            assert frame[name].notna().all(), (where, name)


def assert_all_reasoned(results: Path) -> set[str]:
    """Check every table below a folder of results, both of its files; return their names."""
    names = set()
    for path in sorted(results.rglob("*.parquet")):
        frame = pd.read_parquet(path)
        assert_reasoned(frame, str(path.relative_to(results)))
        again = pd.read_csv(path.with_suffix(".csv"))
        assert list(again.columns) == list(frame.columns), path
        assert len(again) == len(frame), path
        names.add(path.stem)
    return names
