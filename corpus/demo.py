"""The demo corpus: contrastive pairs with two planted truths, and neutral texts.

Subsets: ``plain`` (the arms differ in acts and words, as real pairs do), ``shortcut`` (one neutral
act; the label shows only in the keywords put in), ``balanced`` (both arms are the same multiset of
words; the label shows only in who is attended and what is left), ``neutral``.
``python -m actlake.corpus.demo`` rewrites ``corpus/data/demo.jsonl``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

from ..schemas.base import canonical_json
from ..schemas.text import Split, Text
from .grammar import (
    EMPATHY_KEYWORDS,
    POLARITIES,
    TASK_KEYWORDS,
    Polarity,
    Scenario,
    held_out_neutral_places,
    neutral_prompt,
    neutral_response,
    pick_distinct,
    response,
    scenarios,
    shortcut_response,
    user_prompt,
)
from .lexicon import NEUTRAL_TOPICS, PLACES

__all__ = ["DEMO_PATH", "EMPATHY_KEYWORDS", "TASK_KEYWORDS", "build_demo", "demo_lines"]

DEMO_PATH = Path(__file__).resolve().parent / "data" / "demo.jsonl"

PAIRS_PER_SCENARIO = {"plain": 5, "shortcut": 4, "balanced": 4}
LENGTH_TOLERANCE = 0.1  # of the longer arm, in words
_N_TEST = {"conflict": 4, "ambiguous": 2, "task_free": 2}
_N_TRAIN = {"conflict": 8, "ambiguous": 4, "task_free": 4}
_N_NEUTRAL = 40


def build_demo(seed: int = 0) -> list[Text]:
    """Return the texts of the demo corpus, the same for a seed on every Python.

    Test scenarios are held out of the organisms' training text; no text occurs twice.
    """
    rng = Random(seed)  # not for secrets
    seen: set[str] = set()
    texts: list[Text] = []
    chosen = _choose_scenarios(rng)
    for subset, n_pairs in PAIRS_PER_SCENARIO.items():
        number = 0
        for scenario in chosen:
            for _ in range(n_pairs):
                number += 1
                texts += _build_pair(rng, scenario, f"{subset}-{number:03d}", seen=seen)
    return texts + _build_neutral(rng, seen=seen)


def demo_lines(texts: Iterable[Text]) -> str:
    """Return the texts as JSON lines, without keys that are None."""
    rows = (text.model_dump(mode="json", exclude_none=True) for text in texts)
    return "".join(canonical_json(row) + "\n" for row in rows)


def _choose_scenarios(rng: Random) -> list[Scenario]:
    """Return the scenarios of the corpus, those of training first."""
    chosen: list[Scenario] = []
    for category, n in _N_TRAIN.items():
        known = [s for s in scenarios() if s.category == category and not s.held_out]
        chosen += pick_distinct(rng, known, n)
    for category, n in _N_TEST.items():
        chosen += [s for s in scenarios() if s.category == category and s.held_out][:n]
    return chosen


def _draw_arms(rng: Random, scenario: Scenario, subset: str) -> dict[Polarity, str]:
    """Return one draw of both arms of a subset."""
    if subset == "shortcut":
        return shortcut_response(rng, scenario)
    if subset == "plain":
        return {p: response(rng, scenario, p, style="plain") for p in POLARITIES}
    # The same draws for both arms, so that only person and objects change places.
    state = rng.getstate()
    arms: dict[Polarity, str] = {}
    for polarity in POLARITIES:
        rng.setstate(state)
        arms[polarity] = response(rng, scenario, polarity, style="balanced")
    return arms


def _is_matched(arms: dict[Polarity, str]) -> bool:
    """Return whether the arms' lengths differ by no more than the tolerance."""
    lengths = [len(text.split()) for text in arms.values()]
    return max(lengths) - min(lengths) <= LENGTH_TOLERANCE * max(lengths)


def _draw_new(
    draw: Callable[[], dict[Polarity, str]], seen: set[str], accept: Callable[..., bool]
) -> dict[Polarity, str]:
    """Return the first draw that is accepted and new, and remember it."""
    while True:
        arms = draw()
        if accept(arms) and not seen.intersection(arms.values()):
            seen.update(arms.values())
            return arms


def _build_pair(rng: Random, scenario: Scenario, name: str, *, seen: set[str]) -> list[Text]:
    """Return both texts of one pair; ``seen`` grows by their responses."""
    subset = name.split("-")[0]
    prompt = user_prompt(rng, scenario, log=subset == "shortcut")
    arms = _draw_new(lambda: _draw_arms(rng, scenario, subset), seen, _is_matched)
    split: Split = "test" if scenario.held_out else "train"
    return [
        Text(
            id=f"{name}-{polarity[:3]}",
            prompt=prompt,
            response=arms[polarity],
            arm=polarity,
            pair=name,
            scenario=scenario.name,
            category=scenario.category,
            generator="grammar",
            split=split,
            subset=subset,
        )
        for polarity in POLARITIES
    ]


def _build_neutral(rng: Random, *, seen: set[str]) -> list[Text]:
    """Return descriptions of places, two or three per place."""
    texts: list[Text] = []
    topics = tuple(NEUTRAL_TOPICS)
    while len(texts) < _N_NEUTRAL:
        number = len(texts)
        place, topic = PLACES[number % len(PLACES)], topics[(5 * number // 4) % len(topics)]
        answer = neutral_response(rng, topic, place)
        if answer in seen:
            continue
        seen.add(answer)
        texts.append(
            Text(
                id=f"neutral-{number + 1:03d}",
                prompt=neutral_prompt(topic, place),
                response=answer,
                scenario=f"neutral_{place.name}",
                generator="grammar",
                split="test" if place.name in held_out_neutral_places() else "train",
                subset="neutral",
            )
        )
    return texts


if __name__ == "__main__":
    DEMO_PATH.parent.mkdir(exist_ok=True)
    DEMO_PATH.write_text(demo_lines(build_demo()), encoding="utf-8", newline="\n")
