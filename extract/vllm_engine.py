"""The vLLM engine: continuous batching, with pooling inside vLLM's own workers.

vLLM is given token ids and never a text; every row comes back under the number that went in.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ..schemas import InvalidInputError, array_name
from .engine import pad_rows
from .flat_pooling import FlatRows
from .loading import LoadedModel
from .rendering import TokenRow
from .vllm_calls import pack_arrays
from .vllm_host import TRIAL_IDS, VllmHost

__all__ = ["VllmEngine", "expect_rows"]

_EXTENSION = "actlake.extract.vllm_worker.CaptureExtension"
_TAKEN_BYTES = 64 << 20  # of one answer of a worker
_STEP_BYTES = 256 << 20  # of the sums of one forward pass, on the device


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
        self.n_recomputed = 0  # rows that vLLM preempted and began again
        self.n_steps = 0  # forward passes
        self._loaded = loaded
        self._sites, self._layers, self._pools = tuple(sites), tuple(layers), tuple(pools)
        self._bos_id = loaded.tokenizer.bos_token_id
        per_row = 4 * len(sites) * len(layers) * (len(pools) + 1) * loaded.info.hidden_size
        self._host = VllmHost(
            loaded,
            _EXTENSION,
            max_tokens=longest + 1,  # one is generated
            batch_tokens=batch_tokens,
            max_rows=min(256, _STEP_BYTES // per_row),
            tensor_parallel=tensor_parallel,
            seed=seed,
            options=options,
        )

    @contextmanager
    def ready(self) -> Iterator[VllmEngine]:
        """Load the model, prove that its sites are what their names say, and keep it loaded.

        Raises
        ------
        InvalidInputError
            If vLLM cannot run the model, or a site is not there.
        """
        with self._host.running():
            self._prove()
            yield self

    def forward(self, rows: Sequence[TokenRow]) -> dict[str, torch.Tensor]:
        """Return the arrays of any number of rows, on the CPU.

        Raises
        ------
        InvalidInputError
            If a token was not captured, or was captured under another's name.
        """
        expected, outputs = expect_rows(rows, pools=self._pools, bos_id=self._bos_id)
        self._host.call("actlake_begin", pack_arrays(expected.arrays()))
        self._host.generate([row.ids.tolist() for row in rows])
        counts = json.loads(self._host.call("actlake_end")[0])
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
            data, *others = self._host.call("actlake_take", kind, index, site, start, stop)
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

    def _prove(self) -> None:
        """Run a few tokens and let the workers judge their sites (ENGINES 8)."""
        info = self._loaded.info
        attached = json.loads(self._host.call("actlake_attach", os.getpid())[0])
        if attached["n_layers"] != info.n_layers:
            msg = f"{info.name}: vLLM has {attached['n_layers']} blocks, the config {info.n_layers}"
            raise InvalidInputError(msg)
        self._host.generate([TRIAL_IDS])
        wanted = json.dumps({"sites": self._sites, "layers": self._layers}).encode()
        there = json.loads(self._host.call("actlake_prove", wanted)[0])["sites"]
        missing = [site for site in self._sites if site not in there]
        if missing:
            msg = (
                f"{info.architecture} in vLLM has no site {', '.join(missing)}; it has "
                f"{', '.join(there)}"
            )
            raise InvalidInputError(msg)


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
