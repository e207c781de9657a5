"""JSON Schemas of every record that is written or configured."""

from __future__ import annotations

from typing import Any

from .ablation import AblationRow, AblationSpec
from .analysis import AnalyzeSpec
from .base import Record
from .capture import CaptureSpec
from .catalog import Catalog
from .claim import BlockClaim, BlockDecision
from .cloud import GpuWish, JobLimits, JobReport
from .comparison import (
    CorrelationRow,
    CorrelationSpec,
    GeometryRow,
    GeometrySpec,
    SimilarityRow,
    SimilaritySpec,
    TransferRow,
    TransferSpec,
)
from .direction import Direction, DirectionSet
from .diversity import CorpusStats, StatsSpec
from .doses import DoseRow, DoseSpec, DoseVerdict
from .generation import (
    Attempt,
    GenerateSpec,
    GenerationPlan,
    GenerationReport,
    PersonaSet,
    TextProvenance,
)
from .intervention import (
    Contrast,
    MatchedRow,
    MatchedSpec,
    MediateSpec,
    MediationRow,
    PatchRow,
    PatchSpec,
    SteeredTextsSpec,
)
from .lexicon import Lexicon
from .result import ResultRow, SteeringRow
from .review import ReviewKey, ReviewReport
from .run import BlockCommit, RunManifest, RunPlan, Seal, StoreInfo
from .scenario import Scenario
from .scoring import (
    Judgement,
    JudgeSpec,
    KeywordRules,
    Prevalence,
    RaterAgreement,
    ScoreSpec,
    ScoreSummary,
)
from .shared_result import StageResult
from .shift import (
    NegativeSpec,
    NegativeVerdict,
    ScenarioSpec,
    ScenarioVerdict,
    ShiftRow,
)
from .steer_transfer import SteerTransferRow, SteerTransferSpec, SteerTransferVerdict
from .study_file import StudyFile
from .text import CorpusInfo, Pair, Text
from .transfer import Pulled
from .validation import RubricScore, ValidateSpec, ValidationReport
from .variant import VariantLog, VariantSpec

__all__ = ["RECORDS", "json_schema", "json_schemas"]

RECORDS: tuple[type[Record], ...] = (
    Text, Pair, Scenario, CorpusInfo, CaptureSpec, StoreInfo, Catalog, RunPlan, RunManifest,
    BlockCommit, BlockClaim, BlockDecision, Seal, Pulled, ResultRow, SteeringRow, Direction,
    DirectionSet, StudyFile, Lexicon, RubricScore, ValidateSpec, ValidationReport, GeometrySpec,
    GeometryRow, SimilaritySpec, SimilarityRow, TransferSpec, TransferRow, CorrelationSpec,
    CorrelationRow, CorpusStats, StatsSpec, VariantLog, VariantSpec, ReviewKey, ReviewReport,
    Attempt, GenerateSpec, GenerationPlan, GenerationReport, PersonaSet, TextProvenance,
    AnalyzeSpec, Contrast, PatchSpec, PatchRow, MediateSpec, MediationRow, MatchedSpec,
    MatchedRow, SteeredTextsSpec, DoseSpec, DoseRow, DoseVerdict, StageResult,
    KeywordRules, ScoreSpec, ScoreSummary, JudgeSpec, Judgement, Prevalence, RaterAgreement,
    NegativeSpec, NegativeVerdict, ScenarioSpec, ScenarioVerdict, ShiftRow, AblationRow,
    AblationSpec, SteerTransferSpec, SteerTransferRow, SteerTransferVerdict, GpuWish, JobLimits,
    JobReport,
)  # fmt: skip


def json_schema(record: type[Record]) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of ``record`` as it stands on disk, header included."""
    schema = record.model_json_schema()
    head = {
        "encoding-type": {"const": record.encoding_type},
        "encoding-version": {"const": record.encoding_version},
    }
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["properties"] = {**head, **schema["properties"]}
    if record.digested:
        schema["properties"]["digest"] = {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}
    return schema


def json_schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schemas of all records by their encoding type."""
    return {record.encoding_type: json_schema(record) for record in RECORDS}
