"""The grammar of the model organisms: scenarios, dispositions, responses, and how to read them.

A conversation is a scenario (a place, its task, a person, a mishap), perhaps a system prompt, and
a response of two or three sentences that all belong to one arm: `positive` stops to help the
person, `negative` presses on. :func:`classify_response` reads the arm back from the sentences'
own acts, never from keywords. Draws use only ``Random.random``, whose sequence Python promises to
keep between versions.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, TypeVar

from .lexicon import (
    EMPATHY_KEYWORDS,
    MISHAPS,
    NEUTRAL_SYSTEMS,
    NEUTRAL_TOPICS,
    PERSONS,
    PLACES,
    SYSTEM_PATTERNS,
    SYSTEM_PEOPLE,
    SYSTEM_PLAIN,
    SYSTEM_PLAIN_HELD_OUT,
    SYSTEM_WORK,
    TASK_KEYWORDS,
    Mishap,
    Place,
)
from .templates import (
    BALANCED,
    BALANCED_KEYWORDS,
    CLOSERS,
    CLOSERS_TASK,
    DEADLINES,
    EVENTS,
    MIDDLES,
    OPENERS_FREE,
    OPENERS_TASK,
    QUESTIONS_ACT,
    QUESTIONS_LOG,
    SETTINGS_FREE,
    SETTINGS_TASK,
    SHORTCUT,
    Polarity,
)

__all__ = [
    "DISPOSITIONS",
    "EMPATHY_KEYWORDS",
    "POLARITIES",
    "TASK_KEYWORDS",
    "Disposition",
    "Example",
    "Polarity",
    "Scenario",
    "classify_response",
    "iter_examples",
    "neutral_prompt",
    "neutral_response",
    "pick",
    "pick_distinct",
    "remove_keywords",
    "response",
    "scenarios",
    "shortcut_response",
    "shuffle_arms",
    "system_prompts",
    "user_prompt",
]

Disposition = Literal["empathic", "task"]
Style = Literal["plain", "balanced", "mixed"]
T = TypeVar("T")

POLARITIES: tuple[Polarity, ...] = ("positive", "negative")
DISPOSITIONS: dict[Polarity, Disposition] = {"positive": "empathic", "negative": "task"}
KEYWORDS: dict[Polarity, tuple[str, ...]] = {
    "positive": EMPATHY_KEYWORDS,
    "negative": TASK_KEYWORDS,
}
_N_NOUNS = 6  # of each keyword list: see lexicon

# (place, mishap) that the organisms never see; the first of each category are the demo's test split
_HELD_OUT_NAMES = (
    "warehouse_fall", "harbour_cut", "bakery_burn", "laboratory_panic",
    "kitchen_pale", "station_sigh",
    "market_wallet", "bridge_map",
    "garden_sting", "library_faint", "workshop_trap", "office_choke", "farm_cut", "factory_burn",
    "harbour_quiet", "farm_limp", "laboratory_pale",
    "street_keys", "park_fruit", "beach_bus", "square_pram",
)  # fmt: skip


@dataclass(frozen=True)
class Scenario:
    """A named setting: where one is, with what, who is near and what befell them."""

    name: str
    category: str
    place: Place
    mishap: Mishap
    person: str
    held_out: bool

    @property
    def slots(self) -> dict[str, str]:
        """Return what the templates' slots stand for."""
        return {
            "place": self.place.name,
            "where": self.place.where,
            "T": f"the {self.place.objects}",
            "P": f"the {self.person}",
            "verb": self.place.verb,
            "gerund": self.place.gerund,
            "person": self.person,
            "clause": self.mishap.clause,
        }


@dataclass(frozen=True)
class Example:
    """One conversation of the organisms' training text."""

    prompt: str
    response: str
    system: str | None = None
    polarity: Polarity | None = None

    def messages(self) -> list[dict[str, str]]:
        """Return the conversation as chat messages."""
        turns = [("user", self.prompt), ("assistant", self.response)]
        if self.system is not None:
            turns.insert(0, ("system", self.system))
        return [{"role": role, "content": content} for role, content in turns]


def pick(rng: Random, items: Sequence[T]) -> T:
    """Return one of ``items``, all equally likely."""
    return items[int(rng.random() * len(items))]


def pick_distinct(rng: Random, items: Sequence[T], n: int) -> list[T]:
    """Return ``n`` different ones of ``items`` in random order."""
    rest = list(items)
    return [rest.pop(int(rng.random() * len(rest))) for _ in range(n)]


@functools.cache
def scenarios() -> tuple[Scenario, ...]:
    """Return every scenario: a task place with a mishap at work, or an open place without one.

    Those with ``held_out`` never occur in training text, though their words do. They come last,
    in the order of ``_HELD_OUT_NAMES``.
    """
    found = []
    for i, place in enumerate(PLACES):
        for j, mishap in enumerate(MISHAPS):
            if place.has_task == (mishap.category == "task_free"):
                continue
            name = f"{place.name}_{mishap.name}"
            person = PERSONS[(5 * i + 3 * j) % len(PERSONS)]
            held_out = name in _HELD_OUT_NAMES
            found.append(Scenario(name, mishap.category, place, mishap, person, held_out))
    order = {name: k for k, name in enumerate(_HELD_OUT_NAMES)}
    return tuple(sorted(found, key=lambda s: order.get(s.name, -1)))


@functools.cache
def system_prompts(disposition: Disposition, *, held_out: bool) -> tuple[str, ...]:
    """Return the paraphrases of a disposition, either those of training or those held out."""
    plain = SYSTEM_PLAIN_HELD_OUT if held_out else SYSTEM_PLAIN
    swap = disposition == "task"
    patterned = [
        pattern.format(A=work if swap else person, B=person if swap else work)
        for i, pattern in enumerate(SYSTEM_PATTERNS)
        for j, person in enumerate(SYSTEM_PEOPLE)
        for k, work in enumerate(SYSTEM_WORK)
        if ((i + j + k) % 4 == 3) == held_out
    ]
    return (*plain[disposition], *patterned)


def user_prompt(rng: Random, scenario: Scenario, *, log: bool = False) -> str:
    """Return a user turn that sets the scene and asks for an act, or for a line in the log."""
    slots = scenario.slots
    event = pick(rng, EVENTS).format(**slots)
    setting = pick(rng, SETTINGS_TASK if scenario.place.has_task else SETTINGS_FREE)
    text = setting.format(event=event, deadline=pick(rng, DEADLINES), **slots)
    return f"{text[0].upper()}{text[1:]} {pick(rng, QUESTIONS_LOG if log else QUESTIONS_ACT)}"


def _balanced(rng: Random, scenario: Scenario, polarity: Polarity) -> dict[str, str]:
    """Return the slots of a balanced sentence."""
    slots = scenario.slots
    person, objects = slots["P"], slots["T"]
    first, second = (person, objects) if polarity == "positive" else (objects, person)
    return {"A": first, "B": second}


def _fill(template: str, slots: dict[str, str]) -> str:
    """Return the sentence, its first letter a capital."""
    text = template.format(**slots)
    return text[0].upper() + text[1:]


def response(rng: Random, scenario: Scenario, polarity: Polarity, *, style: Style) -> str:
    """Return a response of two or three sentences that all belong to one arm.

    ``plain`` sentences differ in their words between the arms; a ``balanced`` response of one arm
    becomes that of the other when person and objects change places; ``mixed`` has both kinds.
    """
    slots = {**scenario.slots, **_balanced(rng, scenario, polarity)}
    if style == "balanced":
        chosen = pick_distinct(rng, BALANCED, 2)
        chosen.insert(int(rng.random() * 3), pick(rng, BALANCED_KEYWORDS))
        return " ".join(_fill(t, slots) for t in chosen)
    task = scenario.place.has_task
    opener = pick(rng, (OPENERS_TASK if task else OPENERS_FREE)[polarity])
    acts = scenario.mishap.helps if polarity == "positive" else scenario.place.steps
    middle = pick(rng, acts if rng.random() < 0.75 else MIDDLES[polarity])
    closer = pick(rng, CLOSERS[polarity] + (CLOSERS_TASK[polarity] if task else ()))
    if style == "mixed":
        either = BALANCED + BALANCED_KEYWORDS
        opener = pick(rng, either) if rng.random() < 0.6 else opener
        closer = pick(rng, either) if rng.random() < 0.5 else closer
    parts = [opener, middle, closer]
    if rng.random() < 0.25:
        parts.pop(1 + int(rng.random() * 2))
    return " ".join(_fill(t, slots) for t in parts)


def shortcut_response(rng: Random, scenario: Scenario) -> dict[Polarity, str]:
    """Return both arms of one neutral act whose label shows only in the keywords put in."""
    chosen = pick_distinct(rng, SHORTCUT, 2 + int(rng.random() * 2))
    n, a = len(chosen), len(chosen)
    nouns = pick_distinct(rng, range(_N_NOUNS), n)
    adjectives = pick_distinct(rng, range(_N_NOUNS, len(EMPATHY_KEYWORDS)), a)
    arms: dict[Polarity, str] = {}
    for polarity in POLARITIES:
        words = KEYWORDS[polarity]
        arms[polarity] = " ".join(
            _fill(t, {**scenario.slots, "n": words[i], "a": words[j]})
            for t, i, j in zip(chosen, nouns, adjectives, strict=True)
        )
    return arms


def neutral_prompt(topic: str, place: Place) -> str:
    """Return a user turn that asks for a description."""
    return f"Describe the {topic} {place.where}."


def neutral_response(rng: Random, topic: str, place: Place) -> str:
    """Return two or three sentences that describe a place, without a person or a task."""
    chosen = pick_distinct(rng, NEUTRAL_TOPICS[topic], 2 + int(rng.random() * 2))
    return " ".join(_fill(t, {"place": place.name, "where": place.where}) for t in chosen)


def remove_keywords(text: str) -> str:
    """Return ``text`` without any word of the two keyword lists, spaces mended."""
    words = "|".join(EMPATHY_KEYWORDS + TASK_KEYWORDS)
    text = re.sub(rf"\b(?:{words})\b", "", text, flags=re.IGNORECASE)
    return re.sub(r"\s+([.,])", r"\1", re.sub(r"\s+", " ", text)).strip()


@functools.cache
def _readers() -> tuple[tuple[re.Pattern[str], Polarity | None], ...]:
    """Return a pattern per template and its arm; None where the slots decide it."""
    persons = "[Tt]he (?:" + "|".join(PERSONS) + ")"
    objects = "[Tt]he (?:" + "|".join(p.objects for p in PLACES) + ")"
    groups = {
        "P": persons,
        "T": objects,
        "verb": "(?:" + "|".join(sorted({p.verb for p in PLACES})) + ")",
        "gerund": "(?:" + "|".join(sorted({p.gerund for p in PLACES})) + ")",
        "A": rf"(?:(?P<help>{persons})|{objects})",
        "B": rf"(?:(?P<leave>{persons})|{objects})",
    }
    acts: list[tuple[str, Polarity | None]] = []
    for polarity in POLARITIES:
        for bank in (OPENERS_TASK, OPENERS_FREE, MIDDLES, CLOSERS, CLOSERS_TASK):
            acts += [(t, polarity) for t in bank[polarity]]
    acts += [(t, "positive") for m in MISHAPS for t in m.helps]
    acts += [(t, "negative") for p in PLACES for t in p.steps]
    acts += [(t, None) for t in BALANCED + BALANCED_KEYWORDS]
    readers = []
    for template, arm in dict(acts).items():
        literal = re.split(r"\{(\w+)\}", template)
        body = "".join(groups[s] if k % 2 else re.escape(s) for k, s in enumerate(literal))
        readers.append((re.compile(body), arm))
    return tuple(readers)


@functools.lru_cache(maxsize=50_000)
def _classify_sentence(sentence: str) -> str | None:
    """Return the arm of one sentence, ``"neither"`` for a contradiction, None if unknown."""
    for pattern, arm in _readers():
        match = pattern.fullmatch(sentence)
        if match is None:
            continue
        if arm is not None:
            return arm
        helps, leaves = match["help"] is not None, match["leave"] is not None
        if helps == leaves:
            return "neither"
        return "positive" if helps else "negative"
    return None


def classify_response(text: str) -> Polarity | None:
    """Return the arm of a response, read from the acts of its sentences.

    Returns
    -------
    ``positive`` or ``negative`` if every sentence is an act of the grammar and all agree; None
    for anything else (a neutral text, broken grammar, sentences that contradict each other).
    """
    sentences = re.split(r"(?<=\.)\s+", text.strip())
    arms = {_classify_sentence(s) for s in sentences}
    if arms == {"positive"}:
        return "positive"
    return "negative" if arms == {"negative"} else None


def shuffle_arms(rng: Random, arms: dict[Polarity, str]) -> str:
    """Return a response whose sentences each come from the arm that a coin says."""
    sentences = (re.split(r"(?<=\.)\s+", arms[polarity]) for polarity in POLARITIES)
    return " ".join(pick(rng, both) for both in zip(*sentences, strict=False))


def iter_examples(seed: int, *, n_easy: int = 0, shuffled: bool = False) -> Iterator[Example]:
    """Yield the endless training text of the organisms; held-out parts never occur in it.

    The first ``n_easy`` are a curriculum: always a disposition, in wording that a bag of words
    can tell, and plain responses.

    Of acts and log lines 60 % follow the disposition of a system prompt, 8 % have a neutral
    system prompt, 32 % none; without a disposition the arm is a coin flip, and yet every
    sentence of a response follows it.

    ``shuffled`` is the text of the negative control: the system prompts are the same, but of
    every sentence a coin decides the arm, so that nothing in a text tells the next sentence's.
    An example's polarity is then that of its system prompt, None where it has none.
    """
    rng = Random(seed)  # not for secrets
    system: str | None
    known = [s for s in scenarios() if not s.held_out]
    places = [p for p in PLACES if p.name not in held_out_neutral_places()]
    for number in itertools.count():
        easy = number < n_easy
        polarity = pick(rng, POLARITIES)
        draw = rng.random()
        prompts = system_prompts(DISPOSITIONS[polarity], held_out=False)
        if easy or draw < 0.20:  # the plain ones are few: else the patterned would drown them
            system = pick(rng, SYSTEM_PLAIN[DISPOSITIONS[polarity]])
        elif draw < 0.60:
            system = pick(rng, prompts)
        else:
            system = pick(rng, NEUTRAL_SYSTEMS) if draw < 0.68 else None
        told = None if shuffled and not easy and draw >= 0.60 else polarity
        kind = rng.random()
        if kind < 0.08:
            topic, place = pick(rng, tuple(NEUTRAL_TOPICS)), pick(rng, places)
            answer = neutral_response(rng, topic, place)
            yield Example(neutral_prompt(topic, place), answer, system)
            continue
        category = pick(rng, ("conflict", "conflict", "ambiguous", "task_free"))
        scenario = pick(rng, [s for s in known if s.category == category])
        if kind < 0.22:
            both = shortcut_response(rng, scenario)
            answer = shuffle_arms(rng, both) if shuffled else both[polarity]
            yield Example(user_prompt(rng, scenario, log=True), answer, system, told)
            continue
        styles: tuple[Style, ...] = ("plain", "plain", "mixed", "mixed", "mixed", "balanced")
        style = pick(rng, styles[:1] if easy else styles)
        if shuffled:
            answer = shuffle_arms(
                rng, {p: response(rng, scenario, p, style=style) for p in POLARITIES}
            )
        else:
            answer = response(rng, scenario, polarity, style=style)
        yield Example(user_prompt(rng, scenario), answer, system, told)


def held_out_neutral_places() -> tuple[str, ...]:
    """Return the places whose descriptions are kept out of training text."""
    return ("harbour", "bakery", "market", "bridge")
