"""Analyses of opened runs on the CPU: probes, baselines, geometry, transfer, statistics."""

from .ablation import AblationResult, ablation_run, save_ablation
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
from .battery import PARTS, PartResult, analyze_parts, analyze_run, load_part, save_part
from .behaviour import correlate_scores
from .compare import compare_probes, compare_scores
from .components import pca_run
from .confounds import ConfoundResult, confound_run
from .contrasts import Contrast, check_shared, construction_cosine, make_contrast
from .cosines import vector_cosines
from .depth import compare_by_depth, depth_curves
from .directions import (
    combine_directions,
    direction_set,
    load_directions,
    save_directions,
    score_direction,
)
from .geometry_run import GeometryResult, geometry_run, save_geometry_result
from .jobs import JobCache
from .mapped_directions import map_directions
from .maps import AffineMap, AnchorMaps, carry_probe, carry_vector
from .nullrun import NullResult, null_run
from .placebos import orthogonal_direction, placebo_directions
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
from .similarity import debiased_cka, rsa
from .similarity_run import similarity_run
from .statistics import Moments, Statistics, block_statistics, merge_statistics
from .stream_memory import memory_needed
from .streamed import (
    repool,
    streamed_axes,
    streamed_diff_means,
    streamed_lda,
    streamed_ridge,
)
from .streaming import project_rows, spread_over_tokens, stream_statistics
from .suite import probe_run
from .transfer_run import transfer_run

__all__ = [
    "PARTS",
    "AblationResult",
    "AffineMap",
    "AnchorMaps",
    "ConfoundResult",
    "Contrast",
    "Difference",
    "GeometryResult",
    "Interval",
    "JobCache",
    "Moments",
    "NullResult",
    "PartResult",
    "PcaResult",
    "ProbeResult",
    "RandomResult",
    "Statistics",
    "ablation_run",
    "analyze_parts",
    "analyze_run",
    "auroc",
    "auroc_columns",
    "auroc_difference",
    "auroc_interval",
    "binormal_bound",
    "block_statistics",
    "carry_probe",
    "carry_vector",
    "check_shared",
    "clopper_pearson",
    "combine_directions",
    "compare_by_depth",
    "compare_probes",
    "compare_scores",
    "confound_run",
    "construction_cosine",
    "correlate_scores",
    "debiased_cka",
    "delong_covariance",
    "depth_curves",
    "direction_set",
    "directions_record",
    "geometry_run",
    "load_directions",
    "load_part",
    "load_pca_result",
    "load_probe_result",
    "make_contrast",
    "map_directions",
    "memory_needed",
    "merge_statistics",
    "null_run",
    "orthogonal_direction",
    "paired_bound",
    "pca_run",
    "placebo_directions",
    "probe_run",
    "project_rows",
    "random_run",
    "repool",
    "rsa",
    "save_ablation",
    "save_directions",
    "save_geometry_result",
    "save_part",
    "save_pca_result",
    "save_probe_result",
    "score_direction",
    "similarity_run",
    "spread_over_tokens",
    "stream_statistics",
    "streamed_axes",
    "streamed_diff_means",
    "streamed_lda",
    "streamed_ridge",
    "transfer_run",
    "vector_cosines",
]
