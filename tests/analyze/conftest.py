"""Synthetic runs with the names and coordinates of an opened run."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from actlake.schemas import Text

POOLS = ("mean_response", "last_prompt", "last_response")


def make_run(
    *,
    n_scenarios=6,
    pairs_per_scenario=8,
    n_layers=2,
    hidden=12,
    pools=POOLS[:1],
    strength=1.0,
    offset=0.0,
    n_neutral=0,
    subsets=("plain", "balanced"),
    n_test_scenarios=0,
    responses=None,
    activations=None,
    chunked=True,
    dtype=np.float32,
    seed=0,
):
    """Return a namespace with ``ds`` (opened run) and ``texts`` (its corpus).

    ``strength`` moves the positive arm along one coordinate; ``offset`` is the size of a random
    offset of each scenario. ``responses`` makes the response of (arm, pair number) and
    ``activations`` changes the (text, layer, hidden) array, given it and the texts.
    """
    rng = np.random.default_rng(seed)
    texts = []
    for s in range(n_scenarios):
        for k in range(pairs_per_scenario):
            number = s * pairs_per_scenario + k
            for arm in ("positive", "negative"):
                fill = " ".join(rng.choice(["the", "robot", "door", "walks", "opens", "red"], 8))
                texts.append(
                    Text(
                        id=f"{arm[:3]}-{number:04d}",
                        response=responses(arm, number) if responses else fill,
                        prompt="what now?",
                        arm=arm,
                        pair=f"pair-{number:04d}",
                        scenario=f"scenario-{s:02d}",
                        category=f"category-{s % 2}",
                        generator=f"generator-{number % 2}",
                        split="test" if s >= n_scenarios - n_test_scenarios else "train",
                        subset=subsets[k % len(subsets)],
                    )
                )
    for k in range(n_neutral):
        texts.append(Text(id=f"neu-{k:04d}", response="a neutral text", scenario="none"))
    texts.sort(key=lambda t: (t.n_chars, t.id))
    label = np.array([{"positive": 1, "negative": 0, "neutral": -1}[t.arm] for t in texts])
    n = len(texts)
    coords = {
        "text": np.array([t.id for t in texts]),
        "layer": np.arange(n_layers, dtype=np.int32),
        "label": ("text", label.astype(np.int8)),
        "pair": ("text", np.array([t.pair or "" for t in texts])),
        **{
            name: ("text", np.array([getattr(t, name) for t in texts]))
            for name in ("arm", "scenario", "category", "generator", "split", "subset", "variant")
        },
    }
    arrays = {}
    for pool in pools:
        x = rng.standard_normal((n, n_layers, hidden))
        x[label == 1, :, 0] += strength
        shifts = {t.scenario: offset * rng.standard_normal(hidden) for t in texts}
        x += np.stack([shifts[t.scenario] for t in texts])[:, None]
        if activations is not None:
            x = activations(x, texts)
        arrays[f"resid_post_{pool}"] = (("text", "layer", "hidden"), x.astype(dtype))
    ds = xr.Dataset(
        arrays,
        coords=coords,
        attrs={
            "run": "synthetic",
            "model": "made/up",
            "n_layers": n_layers,
            "hidden_size": hidden,
            "dtype": "float32",
            "token_mask": "no special tokens",
            "template_digest": "sha256:0",
            "store_url": "memory://store",
            "content_digest": "unsealed",
        },
    )
    if chunked:
        ds = ds.chunk({"text": n, "layer": 1, "hidden": hidden})
    return SimpleNamespace(ds=ds, texts=texts)


@pytest.fixture(scope="session")
def synthetic_run() -> Callable[..., SimpleNamespace]:
    """The builder of synthetic runs."""
    return make_run
