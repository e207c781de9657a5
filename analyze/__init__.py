"""Analyses of opened runs on the CPU: probes, random baselines, words, geometry."""

from .auroc import (
    Difference,
    Interval,
    auroc,
    auroc_columns,
    auroc_difference,
    auroc_interval,
    binormal_bound,
    clopper_pearson,
    delong_covariance,
    paired_bound,
)
from .battery import PARTS, PartResult, analyze_run, load_part, save_part
from .compare import compare_probes, compare_scores
from .components import pca_run
from .confounds import ConfoundResult, confound_run
from .directions import (
    combine_directions,
    direction_set,
    load_directions,
    save_directions,
    score_direction,
)
from .nullrun import NullResult, null_run
from .readouts import RandomResult, random_run
from .results import (
    PcaResult,
    ProbeResult,
    directions_record,
    load_pca_result,
    load_probe_result,
    save_pca_result,
    save_probe_result,
)
from .suite import probe_run

__all__ = [
    "PARTS",
    "ConfoundResult",
    "Difference",
    "Interval",
    "NullResult",
    "PartResult",
    "PcaResult",
    "ProbeResult",
    "RandomResult",
    "analyze_run",
    "auroc",
    "auroc_columns",
    "auroc_difference",
    "auroc_interval",
    "binormal_bound",
    "clopper_pearson",
    "combine_directions",
    "compare_probes",
    "compare_scores",
    "confound_run",
    "delong_covariance",
    "direction_set",
    "directions_record",
    "load_directions",
    "load_part",
    "load_pca_result",
    "load_probe_result",
    "null_run",
    "paired_bound",
    "pca_run",
    "probe_run",
    "random_run",
    "save_directions",
    "save_part",
    "save_pca_result",
    "save_probe_result",
    "score_direction",
]
