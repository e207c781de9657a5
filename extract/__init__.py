"""Extraction: models and engines, capture, pooling, the streaming pipeline."""

from .batching import order_texts, pack_batches
from .blocks import find_blocks, replace_hidden, unwrap_hidden
from .capture import PooledCapture, PoolMasks
from .engine import Engine, TransformersEngine
from .environment import extraction_environment
from .loading import LoadedModel, ModelSource, load_model, resolve_source
from .pipeline import Progress, stream_blocks
from .planning import PreparedRun, prepare_run
from .rendering import TokenRow, chat_messages, render_prompt, render_texts
from .run import ExtractResult, extract_run, plan_extraction

__all__ = [
    "Engine",
    "ExtractResult",
    "LoadedModel",
    "ModelSource",
    "PoolMasks",
    "PooledCapture",
    "PreparedRun",
    "Progress",
    "TokenRow",
    "TransformersEngine",
    "chat_messages",
    "extract_run",
    "extraction_environment",
    "find_blocks",
    "load_model",
    "order_texts",
    "pack_batches",
    "plan_extraction",
    "prepare_run",
    "render_prompt",
    "render_texts",
    "replace_hidden",
    "resolve_source",
    "stream_blocks",
    "unwrap_hidden",
]
