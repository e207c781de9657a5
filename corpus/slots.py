"""The slots of generation: one per pair or neutral text that is wanted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..schemas import Arm, GenerateSpec, InvalidInputError, PersonaSet, Scenario, Text, digest_json
from .clients import ChatRequest

__all__ = ["Slot", "make_slots"]


@dataclass
class Slot:
    """A pair, or a neutral text, that is wanted, and how far it has come."""

    name: str
    scenario: Scenario
    prompt: int
    persona: int
    personas: PersonaSet
    tries: dict[Arm, int] = field(default_factory=dict)
    found: dict[Arm, str] = field(default_factory=dict)

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms that the slot needs."""
        return ("neutral",) if self.scenario.category == "neutral" else ("positive", "negative")

    @property
    def filled(self) -> bool:
        """Whether every arm has its text."""
        return all(arm in self.found for arm in self.arms)

    def missing(self, most: int) -> Iterator[Arm]:
        """Yield the arms to ask for; none once one of them was tried ``most`` times in vain."""
        open_ = [arm for arm in self.arms if arm not in self.found]
        if all(self.tries.get(arm, 0) < most for arm in open_):
            yield from open_

    def text_name(self, arm: Arm) -> str:
        """Return the id of the text of an arm."""
        return self.name if arm == "neutral" else f"{self.name}-{arm[:3]}"

    def system(self, arm: Arm) -> str:
        """Return the system prompt of an arm: its persona, then what is common to all."""
        wording = getattr(self.personas, arm)
        persona = wording[self.persona % len(wording)] if wording else ""
        return "\n".join(part for part in (persona, self.personas.instruction) if part)

    def template_digest(self, arm: Arm) -> str:
        """Return the digest of the instructions of an arm."""
        return digest_json({"system": self.system(arm)})

    def seed(self, arm: Arm, attempt: int, seed: int) -> int:
        """Return the seed of an attempt: the same whatever was asked before it."""
        said = f"{seed} {self.name} {arm} {attempt}".encode()
        return int.from_bytes(hashlib.sha256(said).digest()[:4]) & 0x7FFFFFFF

    def request(self, arm: Arm, spec: GenerateSpec) -> ChatRequest:
        """Return what is asked next for an arm."""
        messages = [{"role": "user", "content": self.scenario.prompts[self.prompt].text}]
        system = self.system(arm)
        if system:
            messages.insert(0, {"role": "system", "content": system})
        return ChatRequest(
            messages=tuple(messages),
            seed=self.seed(arm, self.tries.get(arm, 0), spec.seed),
            temperature=spec.temperature,
            top_p=spec.top_p,
            max_new_tokens=spec.max_new_tokens,
        )

    def text(self, arm: Arm, response: str, *, generator: str) -> Text:
        """Return the text of an arm."""
        prompt = self.scenario.prompts[self.prompt]
        return Text.parse(
            {
                "id": self.text_name(arm),
                "prompt": prompt.text,
                "response": response,
                "arm": arm,
                "pair": None if arm == "neutral" else self.name,
                "scenario": self.scenario.id,
                "category": self.scenario.category,
                "generator": generator,
                "split": self.scenario.split or "train",
                "subset": "neutral" if arm == "neutral" else "generated",
                "task_conflict": prompt.task_conflict,
            },
            where=f"slot {self.name}",
        )


def make_slots(
    scenarios: Sequence[Scenario], personas: PersonaSet, spec: GenerateSpec
) -> list[Slot]:
    """Return the slots of all cells; paraphrases take turns, those of the splits are disjoint.

    Raises
    ------
    InvalidInputError
        If a neutral scenario is there and no neutral persona.
    """
    n_train = len(personas.positive) - personas.n_test
    slots = []
    for scenario in scenarios:
        if scenario.category == "neutral" and not personas.neutral:
            msg = f"scenario {scenario.id!r} is neutral, but the personas have no neutral one"
            raise InvalidInputError(msg)
        held_out = scenario.split == "test" and personas.n_test > 0
        first, n = (n_train, personas.n_test) if held_out else (0, n_train)
        turn = int.from_bytes(hashlib.sha256(scenario.id.encode()).digest()[:2])
        for prompt in range(len(scenario.prompts)):
            for number in range(spec.per_cell):
                name = f"{scenario.id}-{prompt}-{number:03d}"
                persona = first + (turn + prompt + number) % n
                slots.append(Slot(name, scenario, prompt, persona, personas))
    return slots
