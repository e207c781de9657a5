"""A small store with everything in it: a corpus, and a run over its texts."""

from __future__ import annotations

import functools

import numpy as np

from actlake.schemas import CorpusInfo, Text, texts_digest
from tests.store.memory import MemoryStore, memory_store
from tests.store.samples import make_coords, make_plan, with_tokens, write_run

FIELDS = ("arm", "pair", "scenario", "category", "generator", "split", "subset", "variant")


def make_texts(n_texts: int = 10) -> list[Text]:
    arms = ("negative", "positive")
    return [
        Text(
            id=f"text-é{i:04d}",
            response="x" * (i + 1),
            arm=arms[i % 2],
            pair=f"p{i // 2}",
            scenario=f"s{i // 4}",
        )
        for i in range(n_texts)
    ]


def corpus_info(texts: list[Text]) -> CorpusInfo:
    return CorpusInfo(
        id="demo",
        title="A small one",
        n_texts=len(texts),
        n_pairs=len(texts) // 2,
        n_scenarios=3,
        texts_digest=texts_digest(texts),
    )


def small_coords(plan, fields=FIELDS):
    texts = make_texts(plan.n_texts)
    coords = make_coords(plan)
    coords |= {name: np.array([getattr(text, name) for text in texts]) for name in fields}
    coords["n_chars"] = np.array([text.n_chars for text in texts], dtype=np.int32)
    return coords


def fill_store(
    store,
    *,
    blocks=None,
    seal: bool = True,
    fields=FIELDS,
    tokens: bool = False,
    token_layers=(2, 4),
    **options,
):
    """Write the corpus and a run of it; return the plan."""
    plan = make_plan(**options)
    plan = with_tokens(plan, layers=token_layers) if tokens else plan
    texts = make_texts(plan.n_texts)
    plan = plan.model_copy(update={"corpus_digest": texts_digest(texts)})
    store.write_corpus(corpus_info(texts), texts)
    write_run(store, plan, blocks=blocks, seal=seal, coords=small_coords(plan, fields))
    return plan


@functools.cache
def _objects(seal: bool) -> dict[str, bytes]:
    store = memory_store()
    fill_store(store, seal=seal)
    return store.backend.objects


def small_store(*, seal: bool = True) -> MemoryStore:
    """Return a small store in memory, as a copy: writing one takes most of a test's time."""
    store = memory_store()
    store.backend.objects = dict(_objects(seal))
    return store
