"""Extraction: models and engines, capture, pooling, the streaming pipeline."""

from .appending import append_texts, settings_of
from .batching import order_texts, pack_batches
from .blocks import find_blocks, replace_hidden, unwrap_hidden
from .capture import PooledCapture, PoolMasks
from .characters import add_token_characters
from .checks import Check, check_model
from .costs import estimate_run
from .engine import Engine, TransformersEngine
from .engines import open_engine
from .environment import extraction_environment
from .loading import LoadedModel, ModelSource, load_model, resolve_source
from .pipeline import Progress, stream_blocks
from .planning import PreparedRun, prepare_run
from .rendering import TokenRow, chat_messages, render_prompt, render_texts
from .run import ExtractResult, extract_run, plan_extraction
from .torch_files import read_torch
from .vllm_engine import VllmEngine
from .worker import Worker

__all__ = [
    "Check",
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
    "VllmEngine",
    "Worker",
    "add_token_characters",
    "append_texts",
    "chat_messages",
    "check_model",
    "estimate_run",
    "extract_run",
    "extraction_environment",
    "find_blocks",
    "load_model",
    "open_engine",
    "order_texts",
    "pack_batches",
    "plan_extraction",
    "prepare_run",
    "read_torch",
    "render_prompt",
    "render_texts",
    "replace_hidden",
    "resolve_source",
    "settings_of",
    "stream_blocks",
    "unwrap_hidden",
]
