"""Steering with vLLM: interventions per request, under continuous batching."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..extract import LoadedModel, TokenRow
from ..extract.vllm_calls import pack_arrays, unpack_arrays
from ..extract.vllm_host import TRIAL_IDS, VllmHost
from ..schemas import InvalidInputError, SteeredTextsSpec
from .flat_reads import FlatRead
from .flat_writes import FlatWrites
from .generation import (
    Generated,
    GenerateRow,
    check_rows,
    end_ids,
    noise_key,
    plan_rows,
    steer_rows,
)
from .intervention import Intervention, check_intervention
from .positions import Positions
from .scoring import Condition, additions, angles_of, pad_rows
from .vllm_worker import NOISE

__all__ = ["VllmSteering"]

_EXTENSION = "actlake.steer.vllm_worker.SteerExtension"
_PROCESSOR = "actlake.steer.vllm_noise:RowNoiseProcessor"
_TRIAL_SIZE = 100.0  # what is written on trial: to be seen in any stream, also in bfloat16
_SCORED_AT_ONCE = 1024  # texts
_WATCHED = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")


class VllmSteering:
    """Generates with vLLM, whose workers write what is asked for into each request.

    Parameters
    ----------
    loaded
        The model's config and tokenizer; vLLM reads the weights.
    longest
        Tokens of the longest row, those that are generated included.
    batch_tokens
        Most tokens of one forward pass (``max_num_batched_tokens``).
    tensor_parallel
        Devices that share each layer; every one of them writes the same.
    prefix_caching
        Keep keys and values for rows with the same beginning, among rows that nothing is written
        into, and among those with the same prompt and interventions.
    options
        Further arguments of vLLM's engine, by their names there.

    Raises
    ------
    InvalidInputError
        If rows may be longer than the model's context.
    MissingDependencyError
        If vLLM is not installed.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        longest: int,
        batch_tokens: int = 8192,
        tensor_parallel: int = 1,
        prefix_caching: bool = False,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        limit = loaded.max_positions
        if limit is not None and longest > limit:
            msg = (
                f"rows of {longest} tokens are more than the context of {limit} of "
                f"{loaded.info.name}; shorten the prompts or generate less"
            )
            raise InvalidInputError(msg)
        self.n_steps = 0  # forward passes
        self.n_recomputed = 0  # rows that vLLM preempted and began again
        self.n_writes = 0  # tokens x layers that were changed
        self.n_cached = 0  # prompt tokens whose keys and values were there
        self.sites: tuple[str, ...] = ()  # that can be written, once it is ready
        self._loaded = loaded
        self._longest = longest
        self._host = VllmHost(
            loaded,
            _EXTENSION,
            max_tokens=longest,
            batch_tokens=batch_tokens,
            tensor_parallel=tensor_parallel,
            seed=seed,
            options={
                "enable_prefix_caching": prefix_caching,
                "logits_processors": [_PROCESSOR],
                "max_logprobs": -1,  # the first token's, of the whole vocabulary
                **(options or {}),
            },
        )

    @contextmanager
    def ready(self) -> Iterator[VllmSteering]:
        """Load the model, prove which sites can be written, and keep it loaded.

        Raises
        ------
        InvalidInputError
            If vLLM cannot run the model, or what its blocks return is not the stream.
        """
        with self._host.running():
            self._prove()
            yield self

    def generate(
        self,
        ids: torch.Tensor,
        attended: torch.Tensor,
        interventions: Sequence[Intervention] = (),
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        noise_keys: Sequence[Sequence[int]] | None = None,
    ) -> list[Generated]:
        """Return the continuation of every prompt of a padded batch, in its order.

        vLLM runs the rows in batches of its own; each is what it is alone.

        Parameters
        ----------
        ids, attended
            Prompts (row, column), padded on either side: what the interventions were planned for.
        interventions
            As for :func:`intervene`.
        temperature
            0 is greedy; else ``noise_keys`` seed the noise of each row.

        Raises
        ------
        InvalidInputError
            If an intervention does not fit the model, the sites or the batch, a prompt is empty
            or too long, or vLLM ran other tokens than these.
        """
        if temperature and noise_keys is None:
            msg = "a temperature above 0 needs noise_keys, one per row"
            raise InvalidInputError(msg)
        extra = (
            [{NOISE: [temperature, *map(str, key)]} for key in noise_keys or ()]
            if temperature
            else None
        )
        ends = sorted(end_ids(self._loaded))
        found = self._run(
            ids,
            attended,
            interventions,
            max_tokens=max_new_tokens,
            ignore_eos=True,  # we say what ends a text, as for every engine
            stop_token_ids=ends,
            extra_args=extra,
        )
        out = []
        for row in found:
            new = np.asarray(row.outputs[0].token_ids, dtype=np.int64)
            ended = bool(len(new)) and int(new[-1]) in ends
            out.append(Generated(new[: len(new) - ended], ended))
        return out

    def first_logprobs(
        self,
        ids: torch.Tensor,
        attended: torch.Tensor,
        interventions: Sequence[Intervention] = (),
    ) -> torch.Tensor:
        """Return the log-probabilities of the token behind each prompt, (row, token id) float32.

        For parameters and errors see :meth:`generate`.
        """
        found = self._run(ids, attended, interventions, max_tokens=1, logprobs=-1)
        out = []
        for row in found:
            (first,) = row.outputs[0].logprobs
            values = np.full(max(first) + 1, -np.inf, dtype=np.float32)
            values[list(first)] = [entry.logprob for entry in first.values()]
            out.append(torch.from_numpy(values))
        return torch.stack(out)

    def generate_rows(
        self,
        rows: Sequence[GenerateRow],
        *,
        spec: SteeredTextsSpec,
        report: Callable[[list[int], list[Generated]], None] | None = None,
    ) -> list[Generated]:
        """Return the continuation of every row: :func:`generate_rows` with vLLM.

        Rows of ``spec.batch_rows`` are handed to vLLM and reported together. Texts at a
        temperature are drawn with the same noise as by the transformers engine.

        Raises
        ------
        InvalidInputError
            If a prompt is empty or leaves no room in the context, or a vector or layer does not
            fit.
        """
        check_rows(self._loaded, rows, spec)
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i].ids), i))
        out: dict[int, Generated] = {}
        for start in range(0, len(order), spec.batch_rows):
            chosen = order[start : start + spec.batch_rows]
            batch = [rows[i] for i in chosen]
            ids, attended, positions = plan_rows(self._loaded, batch, phase=spec.positions)
            hidden_size = self._loaded.info.hidden_size
            made = self.generate(
                ids,
                attended,
                steer_rows(batch, positions, layer=spec.layer, hidden_size=hidden_size),
                max_new_tokens=spec.max_new_tokens,
                temperature=spec.temperature,
                noise_keys=[noise_key(row) for row in batch],
            )
            out |= dict(zip(chosen, made, strict=True))
            if report is not None:
                report(chosen, made)
        return [out[i] for i in range(len(rows))]

    def score_rows(
        self,
        rows: Sequence[TokenRow],
        conditions: Sequence[Condition],
        *,
        directions: np.ndarray,
        layer: int | Sequence[int],
        positions: str,
    ) -> np.ndarray:
        """Return the mean log-probability per response token of each condition, (condition,).

        :func:`score_rows` with vLLM; a row needs room for one token more.
        """
        out = np.empty(len(conditions))
        for start in range(0, len(conditions), _SCORED_AT_ONCE):
            chosen = conditions[start : start + _SCORED_AT_ONCE]
            bos = self._loaded.tokenizer.bos_token_id
            texts = [rows[condition.row] for condition in chosen]
            batch = pad_rows(texts, pad_id=0, positions=positions, bos=bos)
            writes = additions(chosen, directions=directions, layer=layer, steered=batch.steered)
            found = self._run(batch.ids, batch.attended, writes, max_tokens=1, prompt_logprobs=0)
            for i, (row, text) in enumerate(zip(found, texts, strict=True), start=start):
                (where,) = text.response.nonzero()
                picked = [row.prompt_logprobs[t][int(text.ids[t])].logprob for t in where]
                out[i] = np.mean(picked)
        return out

    def angle_degrees(
        self,
        rows: Sequence[TokenRow],
        *,
        directions: np.ndarray,
        alphas: Sequence[float] | np.ndarray,
        layer: int,
        positions: str,
    ) -> np.ndarray:
        """Return the mean angle between the residual before and after steering, in degrees.

        :func:`angle_degrees` with vLLM, whose workers give the norms and projections of unsteered
        states; a row needs room for one token more, and none may come from a cache.
        """
        bos = self._loaded.tokenizer.bos_token_id
        batch = pad_rows(rows, pad_id=0, positions=positions, bos=bos)
        touched = batch.steered[batch.attended.bool()].numpy()
        read = FlatRead(layer, np.ascontiguousarray(directions, dtype=np.float32), touched)
        self._run(batch.ids, batch.attended, [], read=read, max_tokens=1)
        answer = self._host.call("actlake_steer_read")[0]
        values = torch.from_numpy(unpack_arrays(answer)["values"])
        return angles_of(values[:, 0], values[:, 1:], np.asarray(alphas)).mean(dim=0).numpy()

    def _run(
        self,
        ids: torch.Tensor,
        attended: torch.Tensor,
        interventions: Sequence[Intervention],
        *,
        read: FlatRead | None = None,
        **params: Any,  # noqa: ANN401
    ) -> list[Any]:
        """Return vLLM's outputs for the rows of a batch."""
        self._check(ids, attended, interventions, n_new=params["max_tokens"])
        plan = replace(FlatWrites.flatten(ids, attended, interventions), read=read)
        self._begin(plan)
        found = self._host.generate(plan.rows(), salts=plan.salts(), **params)
        # The last token that is generated is not run.
        n_new = np.array([len(row.outputs[0].token_ids) for row in found])
        counts = self._end(np.diff(plan.bounds) + n_new - 1)
        for name in ("n_steps", "n_recomputed", "n_writes"):
            setattr(self, name, getattr(self, name) + counts[name])
        self.n_cached += sum(row.num_cached_tokens or 0 for row in found)
        return found

    def _begin(self, plan: FlatWrites, *, watch: bool = False) -> None:
        self._host.call("actlake_steer_begin", pack_arrays(plan.arrays()), watch)

    def _end(self, n_run: np.ndarray) -> dict[str, Any]:
        answer = self._host.call("actlake_steer_end", pack_arrays({"n_run": n_run}))[0]
        found: dict[str, Any] = json.loads(answer)
        return found

    def _check(
        self,
        ids: torch.Tensor,
        attended: torch.Tensor,
        interventions: Sequence[Intervention],
        *,
        n_new: int,
    ) -> None:
        info = self._loaded.info
        lengths = attended.sum(dim=1)
        if ids.shape != attended.shape or not len(ids) or not bool(lengths.all()):
            msg = (
                f"expected ids and attention mask (row, column) of prompts with at least one token"
                f", got {tuple(ids.shape)} and {tuple(attended.shape)}"
            )
            raise InvalidInputError(msg)
        longest = int(lengths.max()) + n_new
        if longest > self._longest:
            msg = (
                f"a prompt of {longest - n_new} tokens and {n_new} new ones are more than the "
                f"{self._longest} that this engine was opened for; name a larger longest"
            )
            raise InvalidInputError(msg)
        for wanted in interventions:
            check_intervention(wanted, n_layers=info.n_layers, hidden_size=info.hidden_size)
            planned = wanted.positions.planned.shape
            if planned != ids.shape:
                msg = (
                    f"the intervention was planned for rows x columns {tuple(planned)}, the batch "
                    f"has {tuple(ids.shape)}"
                )
                raise InvalidInputError(msg)
            if wanted.site not in self.sites:
                msg = (
                    f"{info.architecture} in vLLM has no site {wanted.site} to write; it has "
                    f"{', '.join(self.sites)}"
                )
                raise InvalidInputError(msg)

    def _prove(self) -> None:
        """Write into each site on trial, and let the workers judge what the model made of it.

        A site can be written if, with every layer of it changed, what a block returns is still
        what the next one reads, the stream still grows by what is added, and the model's output
        is another (ENGINES 8).
        """
        info = self._loaded.info
        attached = json.loads(self._host.call("actlake_steer_attach", os.getpid())[0])
        if attached["n_layers"] != info.n_layers:
            msg = f"{info.name}: vLLM has {attached['n_layers']} blocks, the config {info.n_layers}"
            raise InvalidInputError(msg)
        there = self._try([])["sites"]
        generator = torch.Generator().manual_seed(0)
        vector = torch.randn(info.hidden_size, generator=generator) * _TRIAL_SIZE
        found = []
        for site in _WATCHED:
            needed = {site, "attn_out"} if site == "resid_mid" else {site}
            if not needed <= set(there):
                continue
            seen = self._try(
                [
                    Intervention(
                        "add",
                        tuple(range(info.n_layers)),
                        torch.ones(1),
                        Positions(torch.ones(1, len(TRIAL_IDS), dtype=torch.bool)),
                        vectors=vector,
                        site=site,
                    )
                ]
            )
            if needed <= set(seen["sites"]) and seen["changed"]:
                found.append(site)
        self.sites = tuple(found)

    def _try(self, interventions: Sequence[Intervention]) -> dict[str, Any]:
        ids = torch.tensor([TRIAL_IDS])
        plan = FlatWrites.flatten(ids, torch.ones_like(ids), interventions)
        self._begin(plan, watch=True)
        self._host.generate(plan.rows(), salts=plan.salts())
        return self._end(np.array([len(TRIAL_IDS)]))
