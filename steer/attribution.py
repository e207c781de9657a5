"""Attribution patching: the first-order guess of every patch from two passes and one gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from ..extract import LoadedModel, find_blocks, replace_hidden, unwrap_hidden
from ..schemas import InvalidInputError, Place
from .aligned import AlignedCase
from .patched_runs import CleanRuns, capture_runs
from .writes import layered_vectors

__all__ = ["attribute_patches"]


def attribute_patches(
    loaded: LoadedModel,
    cases: Sequence[AlignedCase],
    *,
    positions: Sequence[Place],
    direction: np.ndarray | None = None,
    outcome: str = "mean",
) -> pd.DataFrame:
    """Return the guessed effect of denoising every layer and position, largest first.

    To first order a patch does gradient · (source - base), the gradient being that of the outcome
    by the state of the base run: one pass forth and back per contrast for all layers and
    positions (Nanda, attribution patching; Syed et al. 2310.10348). A guess that is good for small
    changes: verify what it singles out with :func:`~actlake.steer.sweep_patches`. Columns layer,
    position, arm (``full``, and ``coordinate`` with a direction), attribution [nats], n_pairs.

    Parameters
    ----------
    direction
        Unit vectors, (hidden,) or (layer, hidden) over all layers.
    outcome
        ``mean`` per token of a completion, or ``total``.

    Raises
    ------
    InvalidInputError
        If there is no contrast or no position, or the direction does not fit.
    """
    if not cases or not positions:
        msg = f"got {len(cases)} contrasts and {len(positions)} positions, expected some of each"
        raise InvalidInputError(msg)
    vectors = layered_vectors(direction, loaded=loaded, name="the direction")
    n_layers = loaded.info.n_layers
    arms = ["full"] if vectors is None else ["full", "coordinate"]
    total = np.zeros((len(arms), n_layers, len(positions)))
    for case in cases:
        clean, _ = capture_runs(loaded, case, place="all")
        for c, sign in ((0, 1.0), (1, -1.0)):
            per = len(case.completions[c]) if outcome == "mean" else 1
            for layer, gradient in enumerate(_gradients(loaded, case, c)):
                moved = _moved(clean, case, c, layer)
                parts = [(gradient * moved).sum(dim=-1)]
                if vectors is not None:
                    parts.append((gradient @ vectors[layer]) * (moved @ vectors[layer]))
                for p, place in enumerate(positions):
                    where = case.columns(place, c)[: len(gradient)]
                    for a, part in enumerate(parts):
                        total[a, layer, p] += sign / per * float(part.cpu().numpy()[where].sum())
    total /= len(cases)
    table = pd.DataFrame.from_records(
        [
            {
                "layer": layer,
                "position": str(place),
                "arm": arm,
                "attribution": total[a, layer, p],
                "n_pairs": len(cases),
            }
            for a, arm in enumerate(arms)
            for layer in range(n_layers)
            for p, place in enumerate(positions)
        ]
    )
    return table.sort_values("attribution", key=abs, ascending=False, ignore_index=True)


def _moved(clean: CleanRuns, case: AlignedCase, completion: int, layer: int) -> torch.Tensor:
    n_tokens = case.n_prompt + len(case.completions[completion])
    source = clean.states("source", completion, layer)
    return (source - clean.states("base", completion, layer))[:n_tokens]


def _gradients(loaded: LoadedModel, case: AlignedCase, completion: int) -> list[torch.Tensor]:
    """Return d(summed log-probability) / d(state) of the base run, (token, hidden) per layer."""
    answer = case.completions[completion]
    ids = torch.from_numpy(np.concatenate([case.prompts["base"], answer])).long()[None]
    ids = ids.to(loaded.device)
    states: list[torch.Tensor] = []

    def follow(_module: object, _args: object, output: object) -> object:
        # The weights are frozen, so a state only has a gradient if it is asked for one.
        hidden = unwrap_hidden(output)
        hidden = hidden if hidden.requires_grad else hidden.detach().requires_grad_()
        hidden.retain_grad()
        states.append(hidden)
        return replace_hidden(output, hidden)

    handles = [block.register_forward_hook(follow) for block in find_blocks(loaded.backbone)]
    try:
        with torch.enable_grad():
            logits = loaded.network(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                position_ids=torch.arange(ids.shape[1], device=ids.device)[None],
                use_cache=False,
            ).logits[0]
            log_probs = torch.log_softmax(logits[case.n_prompt - 1 : -1].float(), dim=-1)
            log_probs.gather(-1, ids[0, case.n_prompt :, None]).sum().backward()  # type: ignore[no-untyped-call]
    finally:
        for handle in handles:
            handle.remove()
    found = [state.grad for state in states]
    return [grad[0].float() for grad in found if grad is not None]
