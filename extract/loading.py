"""Loading models and tokenizers, and recording which ones they are."""

from __future__ import annotations

import atexit
import hashlib
import importlib.util
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForTextEncoding,
    AutoTokenizer,
)

from ..models import organism_path
from ..schemas import (
    InvalidInputError,
    MissingDependencyError,
    ModelInfo,
    NotFoundError,
    TokenizerInfo,
    digest_json,
)
from .blocks import backbone_of, find_blocks
from .sites import find_heads

__all__ = ["LoadedModel", "ModelSource", "load_model", "pick_device", "resolve_source"]

# What decides a model's outputs, so what a local folder's content digest covers.
_DIGEST_SUFFIXES = {".safetensors", ".json", ".jinja", ".model", ".txt"}
_NOT_CONTENT = {"behaviour.json"}  # a report about the weights, not a part of them


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from: a local folder or a hub id with a revision."""

    name: str
    path: Path | None = None
    revision: str | None = None

    @property
    def location(self) -> str:
        """What transformers is asked to load."""
        return str(self.path) if self.path else self.name


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer, on one device, with gradients off.

    ``model`` is None where only the plan was asked for (no weights read).
    """

    source: ModelSource
    info: ModelInfo
    tokenizer: Any
    tokenizer_info: TokenizerInfo
    max_positions: int | None
    device: torch.device
    model: nn.Module | None = None
    heads: tuple[int, int] | None = None  # how many, values of each; where they can be told
    is_encoder: bool = False  # every token sees every other one

    @property
    def first_id(self) -> int | None:
        """The id that texts begin with: the BOS, of an encoder [CLS]."""
        names = ("cls_token_id", "bos_token_id") if self.is_encoder else ("bos_token_id",)
        found = (getattr(self.tokenizer, name, None) for name in names)
        return next((int(token) for token in found if token is not None), None)

    @property
    def backbone(self) -> nn.Module:
        """The model without its language-model head."""
        return backbone_of(self.network)

    @property
    def network(self) -> nn.Module:
        """The model; raises InvalidInputError where its weights were not loaded."""
        if self.model is None:
            msg = f"{self.info.name}: only its config was loaded; load it with weights=True"
            raise InvalidInputError(msg)
        return self.model


def resolve_source(model: str, *, revision: str | None = None) -> ModelSource:
    """Return where ``model`` comes from.

    ``bundled:NAME`` is a model organism of this package; an existing folder is itself; anything
    else of the form ``name`` or ``owner/name`` is a hub id.

    Raises
    ------
    NotFoundError
        If it looks like a path but no folder with a ``config.json`` is there.
    """
    if model.startswith("bundled:"):
        name = model.removeprefix("bundled:")
        return ModelSource(name=name, path=organism_path(name))
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            msg = f"{model}: no config.json in this folder; expected a transformers model"
            raise NotFoundError(msg)
        return ModelSource(name=path.resolve().name, path=path)
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        msg = f"{model}: no such folder; expected a transformers model or a hub id like owner/name"
        raise NotFoundError(msg)
    return ModelSource(name=model, revision=revision)


def load_model(
    model: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    attn_implementation: str | None = None,
    device_map: str | Mapping[str, str | int] | None = None,
    weights: bool = True,
    head: bool = False,
) -> LoadedModel:
    """Return a model in evaluation mode with its tokenizer.

    Decoders and encoders; of a model with both (T5) the encoder.

    Parameters
    ----------
    model
        ``bundled:NAME``, a local folder, or a hub id.
    revision
        Branch, tag or commit of a hub model.
    dtype
        ``auto`` takes the checkpoint's own.
    device
        ``auto`` takes the first accelerator, else the CPU.
    attn_implementation
        None takes the library's default, but ``eager`` for models with soft-capped attention
        logits, which sdpa drops (ENGINES 18).
    device_map
        Spread a model that does not fit on one device: ``auto``, ``balanced``, ``sequential``, or
        a device (``disk`` too) for each module; ``device`` then says nothing. None does not.
    weights
        False reads the config and the tokenizer only: enough to plan a run.
    head
        Whether to load the language-model head, which extraction does not run; encoders are
        loaded without.

    Raises
    ------
    NotFoundError
        If the model is not there, or the hub cannot be reached.
    InvalidInputError
        If its files cannot be read, or it has no residual blocks that we can find.
    MissingDependencyError
        If ``device_map`` needs accelerate, or a quantised model the library of its method.
    """
    source = resolve_source(model, revision=revision)
    target = pick_device(device)
    offload = mkdtemp(prefix="actlake-offload-") if device_map is not None else None
    if offload is not None:
        atexit.register(shutil.rmtree, offload, ignore_errors=True)
    with _quiet_transformers(), _explained(source):
        kwargs: dict[str, Any] = {"revision": source.revision} if source.path is None else {}
        config = AutoConfig.from_pretrained(source.location, **kwargs)
        tokenizer = AutoTokenizer.from_pretrained(source.location, **kwargs)
        text_config = config.get_text_config()
        torch_dtype = _pick_dtype(dtype, text_config)
        attention = attn_implementation or (
            "eager" if getattr(text_config, "attn_logit_softcapping", None) else None
        )
        is_encoder = _is_encoder(config)
        auto = AutoModelForCausalLM if head and not is_encoder else AutoModel
        if _has_own_encoder(config):
            auto = AutoModelForTextEncoding  # the encoder alone
        with torch.device("meta"):
            network = auto.from_config(config, dtype=torch_dtype, attn_implementation=attention)
        # Of the shapes: packed weights of a quantised model are fewer numbers.
        n_parameters = sum(p.numel() for p in backbone_of(network).parameters())
        if weights:
            places = device_map
            if places is None and _quantization(config) is not None:
                places = {"": str(target)}  # packed weights cannot be moved afterwards
            if places is not None:
                _need_accelerate()
            network = auto.from_pretrained(
                source.location,
                dtype=torch_dtype,
                attn_implementation=attention,
                use_safetensors=True,  # never unpickle what was downloaded
                **({} if places is None else {"device_map": places, "offload_folder": offload}),
                **kwargs,
            )
            if places is None:
                network = network.to(target)
            else:
                target = _first_device(network, target)
    network.eval().requires_grad_(requires_grad=False)
    backbone: Any = backbone_of(network)
    blocks = find_blocks(backbone)
    info = ModelInfo(
        name=source.name,
        revision=getattr(config, "_commit_hash", None) if source.path is None else None,
        content_digest=_folder_digest(source.path) if source.path else None,
        architecture=(config.architectures or [type(network).__name__])[0],
        n_layers=len(blocks),
        hidden_size=text_config.hidden_size,
        n_parameters=n_parameters,
        dtype=str(torch_dtype).removeprefix("torch."),
        attn_implementation=backbone.config._attn_implementation,
        quantization=_quantization(config),
    )
    return LoadedModel(
        source=source,
        info=info,
        tokenizer=tokenizer,
        tokenizer_info=_tokenizer_info(tokenizer),
        max_positions=_max_positions(text_config, backbone),
        device=target,
        model=network if weights else None,
        heads=find_heads(backbone, blocks),
        is_encoder=is_encoder,
    )


def pick_device(device: str) -> torch.device:
    """Return the device that ``auto`` or a name means; raise InvalidInputError for others."""
    if device == "auto":
        return torch.device(torch.accelerator.current_accelerator() or "cpu")
    try:
        return torch.device(device)
    except RuntimeError as err:
        msg = f"device {device!r} is unknown; expected auto, cpu, cuda, cuda:1, mps"
        raise InvalidInputError(msg) from err


def _need_accelerate() -> None:
    if importlib.util.find_spec("accelerate") is None:
        msg = "a device map needs accelerate: pip install 'actlake[extract]'"
        raise MissingDependencyError(msg)


def _first_device(network: Any, otherwise: torch.device) -> torch.device:  # noqa: ANN401
    """Return where a spread model takes its inputs: the device of its first module that has one."""
    for place in getattr(network, "hf_device_map", {}).values():
        if place not in {"disk", "cpu", "meta"}:
            return torch.device("cuda", place) if isinstance(place, int) else torch.device(place)
    return torch.device("cpu") if hasattr(network, "hf_device_map") else otherwise


def _pick_dtype(dtype: str, config: Any) -> torch.dtype:  # configs have no type  # noqa: ANN401
    if dtype != "auto":
        return getattr(torch, dtype)  # type: ignore[no-any-return]
    found = getattr(config, "dtype", None)
    if isinstance(found, str):
        found = getattr(torch, found)
    return found if isinstance(found, torch.dtype) else torch.float32


def _is_encoder(config: Any) -> bool:  # noqa: ANN401
    """Return whether every token sees every other one; ``check_model`` tests it."""
    if _has_own_encoder(config):
        return True
    if getattr(config.get_text_config(), "use_bidirectional_attention", False):
        return True
    return type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)


def _has_own_encoder(config: Any) -> bool:  # noqa: ANN401
    """Return whether the encoder is a class of its own (T5's, whatever its config says of it)."""
    kind = type(config)
    encodes = kind in MODEL_FOR_TEXT_ENCODING_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING
    return config.is_encoder_decoder or (encodes and kind not in MODEL_FOR_CAUSAL_LM_MAPPING)


def _max_positions(config: Any, backbone: nn.Module) -> int | None:  # noqa: ANN401
    """Return the most tokens that have a position, None where there is no limit."""
    most = getattr(config, "max_position_embeddings", None)
    if most is None:
        return None
    for name, module in backbone.named_modules():
        # RoBERTa and its like begin behind the padding's index.
        if (
            name.endswith("position_embeddings")
            and getattr(module, "padding_idx", None) is not None
        ):
            return int(most) - int(module.padding_idx) - 1
    return int(most)


def _quantization(config: Any) -> str | None:  # noqa: ANN401
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else found.quant_method
    return str(getattr(method, "value", method))


def _folder_digest(path: Path) -> str:
    """Return ``sha256:<hex>`` over the names and contents of a model folder's files."""
    files = {
        file.name: _file_digest(file)
        for file in sorted(path.iterdir())
        if file.is_file() and file.suffix in _DIGEST_SUFFIXES and file.name not in _NOT_CONTENT
    }
    return digest_json(files)


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tokenizer_info(tokenizer: Any) -> TokenizerInfo:  # noqa: ANN401
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        msg = (
            f"{type(tokenizer).__name__} has no character offsets; "
            "expected a fast tokenizer (tokenizer.json)"
        )
        raise InvalidInputError(msg)
    template = tokenizer.chat_template
    return TokenizerInfo(
        digest="sha256:" + hashlib.sha256(backend.to_str().encode()).hexdigest(),
        chat_template_digest=digest_json(template) if template else None,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
    )


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers' bars and notes off the terminal while a model loads."""
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


@contextmanager
def _explained(source: ModelSource) -> Iterator[None]:
    """Turn what transformers raises for a bad model into one line that says what to do."""
    try:
        yield
    except ImportError as err:
        reason = " ".join(str(err).split())
        msg = f"{source.name}: its quantisation or its code needs a library: {reason}"
        raise MissingDependencyError(msg) from err
    except OSError as err:
        reason = str(err).strip().splitlines()[0]
        if source.path is not None:
            msg = f"{source.name}: the model folder cannot be read: {reason}"
            raise InvalidInputError(msg) from err
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        msg = (
            f"{source.name}: not a folder here, and not to be had from the hub{offline}; check the "
            "spelling, the network, and for a gated model that you accepted its licence and set "
            f"HF_TOKEN: {reason}"
        )
        raise NotFoundError(msg) from err
    except (ValueError, KeyError, RuntimeError, TypeError, _safetensors_error()) as err:
        reason = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
        msg = f"{source.name}: the model cannot be loaded: {reason}"
        raise InvalidInputError(msg) from err


def _safetensors_error() -> type[Exception]:
    from safetensors import SafetensorError

    return SafetensorError
