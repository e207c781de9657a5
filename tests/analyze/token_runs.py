"""Made-up runs with token arrays, whose signal sits in keywords or in every token."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import xarray as xr

from actlake.corpus.words import WORD
from actlake.schemas import Lexicon, Text
from actlake.store import text_coords

CONTENT = (
    "lamp", "door", "river", "stone", "window", "garden", "paper", "bottle", "ladder", "basket",
    "engine", "blanket", "mirror", "pencil", "corner", "market",
)  # fmt: skip
FUNCTION = ("the", "and", "of", "with")
KEYWORDS = {"positive": ("tender", "care", "comfort"), "negative": ("quota", "deadline", "target")}
LEXICA = [
    Lexicon.parse(
        {"name": name, "arm": arm, "entry": [{"forms": [word]} for word in KEYWORDS[arm]]}
    )
    for name, arm in (("warm", "positive"), ("work", "negative"))
]


def make_token_run(
    *,
    plant: Literal["keyword", "spread", "none"],
    n_scenarios: int = 6,
    pairs: int = 6,
    n_words: int = 24,
    n_keywords: int = 2,
    n_layers: int = 1,
    hidden: int = 8,
    strength: float = 3.0,
    subset: str = "none",
    seed: int = 0,
) -> SimpleNamespace:
    """Return ``ds`` (an opened run with tokens), ``texts`` and ``words`` (of each token).

    ``keyword`` moves the tokens of the two sets of keywords apart along one coordinate, whoever
    says them, ``spread`` all tokens of the two arms. Long words are two tokens; a text begins
    with two tokens of a prompt and ends with a special one, all three of them far out.
    """
    rng = np.random.default_rng(seed)
    texts = []
    for number in range(n_scenarios * pairs):
        for arm, keywords in KEYWORDS.items():
            words = [str(w) for w in rng.choice([*CONTENT, *FUNCTION], n_words)]
            for at in rng.choice(n_words, n_keywords, replace=False):
                words[at] = str(rng.choice(keywords))
            texts.append(
                Text(
                    id=f"{subset}-{number:03d}-{arm[:3]}", response=" ".join(words) + ".",
                    prompt="what now?", arm=arm, pair=f"{subset}-{number:03d}",
                    scenario=f"scenario-{number % n_scenarios}", generator="made", subset=subset,
                )
            )  # fmt: skip
    return token_run(
        texts, plant=plant, n_layers=n_layers, hidden=hidden, strength=strength, rng=rng
    )


def token_run(
    texts: list[Text],
    *,
    plant: str,
    n_layers: int,
    hidden: int,
    strength: float,
    rng: np.random.Generator,
) -> SimpleNamespace:
    """Return the run of given texts; a variant's keywords are those that it still has."""
    texts = sorted(texts, key=lambda t: (t.n_chars, t.id))
    columns: dict[str, list[Any]] = {
        name: [] for name in ("text", "position", "response", "special", "start", "stop", "word")
    }

    def add(row: int, position: int, **of: Any) -> None:
        columns["text"].append(row)
        columns["position"].append(position)
        for name, nothing in (
            ("response", False), ("special", False), ("start", -1), ("stop", -1), ("word", ""),
        ):  # fmt: skip
            columns[name].append(of.get(name, nothing))

    for row, text in enumerate(texts):
        position = 2
        add(row, 0)
        add(row, 1)
        for match in WORD.finditer(text.response):
            start, stop = match.span()
            middle = start + 4 if stop - start > 5 else stop
            for a, b in [(start, middle), (middle, stop)][: 1 + (middle < stop)]:
                add(row, position, response=True, start=a, stop=b, word=match[0].lower())
                position += 1
        add(row, position, special=True)
    token_text = np.array(columns["text"], dtype=np.int32)
    response, words = np.array(columns["response"]), np.array(columns["word"])
    n_tokens = token_text.size
    x = rng.standard_normal((n_tokens, n_layers, hidden))
    x[~response] += 50.0
    sign = np.array([1.0 if t.arm == "positive" else -1.0 for t in texts])[token_text]
    if plant == "keyword":
        for arm, side in (("positive", 1.0), ("negative", -1.0)):
            x[np.isin(words, KEYWORDS[arm]), :, 0] += side * strength
    elif plant == "spread":
        x[response, :, 0] += strength * sign[response][:, None]
    x = x.astype(np.float32)
    counts = np.bincount(token_text, minlength=len(texts))
    pooled = np.stack([x[(token_text == i) & response].mean(axis=0) for i in range(len(texts))])
    ds = xr.Dataset(
        {
            "resid_post_mean_response": (("text", "layer", "hidden"), pooled),
            "resid_post_tokens": (("token", "token_layer", "hidden"), x),
        },
        coords={
            **{name: ("text", values) for name, values in text_coords(texts).items()},
            "layer": np.arange(n_layers, dtype=np.int32),
            "token_layer": np.arange(n_layers, dtype=np.int32),
            "token_offset": ("text_edge", np.concatenate([[0], np.cumsum(counts)])),
            "token_text": ("token", token_text),
            "token_position": ("token", np.array(columns["position"], dtype=np.int32)),
            "token_response": ("token", response),
            "token_special": ("token", np.array(columns["special"])),
            "token_start": ("token", np.array(columns["start"], dtype=np.int32)),
            "token_stop": ("token", np.array(columns["stop"], dtype=np.int32)),
        },
        attrs={
            "run": "tokens", "model": "made/up", "n_layers": n_layers, "hidden_size": hidden,
            "dtype": "float32", "token_mask": "response tokens", "template_digest": "sha256:0",
            "store_url": "memory://store", "content_digest": "unsealed",
        },
    )  # fmt: skip
    ds = ds.assign_coords(text=("text", np.array([t.id for t in texts])))
    chunked = ds.chunk({"token": 150, "token_layer": 1, "layer": 1})
    return SimpleNamespace(ds=chunked, texts=texts, words=words)
