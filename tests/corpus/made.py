"""Pairs made by rule, in which only what a test plants tells the arms apart."""

from __future__ import annotations

from random import Random

from actlake.schemas import Scenario, ScenarioPrompt, Text

_PLAIN = """
lamp window river table carpet basket pencil garden bridge engine ladder bottle mirror corner
button pocket saddle tunnel feather marble copper timber velvet silver walnut paper cotton barrel
candle hammer kettle lantern meadow needle orchard pebble quarry ribbon shovel thread turnip
valley wagon willow acorn bamboo canvas drawer ember falcon
"""
_VERBS = "carry paint follow measure gather polish borrow arrange unpack repeat sketch lift"
PLAIN, VERBS = tuple(_PLAIN.split()), tuple(_VERBS.split())
RUBRIC = {"0": "carries on", "1": "does both", "2": "stops and helps"}


def sentence(rng: Random) -> str:
    a, b, c = rng.sample(PLAIN, 3)
    return f"{rng.choice(VERBS)} the {a} past the {b} and I {rng.choice(VERBS)} the {c}"


def response(rng: Random, *extra: str, n: int = 3) -> str:
    """Return ``n`` sentences in the first person; each of ``extra`` ends one of them."""
    starts = [" ".join(rng.sample(PLAIN, 3)).capitalize() for _ in range(n)]
    parts = [f"{start} first, then I {sentence(rng)}" for start in starts]
    parts = [
        f"{part} {extra[i]}" if i < len(extra) else f"{part} {rng.choice(PLAIN)}"
        for i, part in enumerate(parts)
    ]
    return ". ".join(parts) + "."


def pair(name: str, positive: str, negative: str, **fields) -> list[Text]:
    common = {"pair": name, "scenario": "s0", "category": "task_free", "prompt": "What now?"}
    common |= fields
    return [
        Text(id=f"{name}-pos", arm="positive", response=positive, **common),
        Text(id=f"{name}-neg", arm="negative", response=negative, **common),
    ]


def corpus(
    n_scenarios: int = 6,
    per_scenario: int = 4,
    *,
    seed: int = 0,
    positive=(),
    negative=(),
    **fields,
) -> list[Text]:
    """Return pairs whose arms differ only in the words ``positive`` and ``negative``."""
    rng = Random(seed)
    texts = []
    for s in range(n_scenarios):
        for k in range(per_scenario):
            arms = [response(rng, *words) for words in (positive, negative)]
            while abs(len(arms[0]) - len(arms[1])) > 0.08 * max(map(len, arms)):
                arms = [response(rng, *words) for words in (positive, negative)]
            split = "test" if s % 3 == 2 else "train"
            more = {"scenario": f"s{s}", "split": split} | fields
            texts += pair(f"p{s}-{k}", *arms, **more)
    return texts


def scenarios(n: int = 6) -> list[Scenario]:
    prompts = (ScenarioPrompt(text="What now?"),)
    return [
        Scenario(id=f"s{i}", category="task_free", prompts=prompts, rubric=RUBRIC) for i in range(n)
    ]
