"""Texts to append to the small run, and the run with them."""

from __future__ import annotations

import numpy as np

from actlake.schemas import texts_digest
from tests.store.samples import (
    ENVIRONMENT,
    LENGTHS,
    block_values,
    make_coords,
    make_plan,
    make_tokens,
    make_values,
    with_tokens,
)
from tests.store.small import FIELDS, corpus_info, make_texts

N_FIRST = 10  # texts of the small run


def added_texts(first: int = N_FIRST, n: int = 6):
    return make_texts(first + n)[first:]


def added_plan(
    first: int = N_FIRST, n: int = 6, *, tokens: bool = False, token_layers=(2, 4), **options
):
    """Return the plan of the texts to append, under the name of the run."""
    plan = make_plan(n_texts=n, **options)
    texts = added_texts(first, n)
    plan = with_tokens(plan, LENGTHS[3 : 3 + n], layers=token_layers) if tokens else plan
    update = {"corpus": f"demo+{first}", "corpus_digest": texts_digest(texts)}
    return plan.model_copy(update=update)


def added_coords(plan, first: int = N_FIRST):
    texts = added_texts(first, plan.n_texts)
    coords = make_coords(plan, added_lengths(plan))
    coords |= {name: np.array([getattr(text, name) for text in texts]) for name in FIELDS}
    coords["n_chars"] = np.array([text.n_chars for text in texts], dtype=np.int32)
    coords["label"] = np.array([int(t.arm == "positive") for t in texts], dtype=np.int8)
    return coords | {"text": np.array([text.id for text in texts])}


def added_lengths(plan):
    return LENGTHS[3 : 3 + plan.n_texts] if plan.token_axis else [3] * plan.n_texts


def start_append(store, plan, first: int = N_FIRST):
    """Return the writer of an append, with its corpus written."""
    writer = store.append_run(
        plan,
        coords=added_coords(plan, first),
        environment=ENVIRONMENT,
        token_data=make_tokens(plan, added_lengths(plan)),
    )
    texts = added_texts(first, plan.n_texts)
    info = corpus_info(texts).model_copy(update={"id": plan.corpus})
    store.write_corpus(info, texts)
    return writer


def append(store, plan=None, first: int = N_FIRST, *, blocks=None, seal: bool = True):
    """Append texts to the small run; return the writer."""
    plan = added_plan(first) if plan is None else plan
    writer = start_append(store, plan, first)
    for block in writer.pending_blocks() if blocks is None else blocks:
        writer.write_block(block, block_values(writer.plan, block))
    if seal:
        writer.seal()
    return writer


def joined_values(*plans) -> dict[str, np.ndarray]:
    """Return the rows of all parts, one after another."""
    parts = [make_values(plan) for plan in plans]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
