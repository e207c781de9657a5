"""Contrasts for the tiny random models, and for the organisms."""

from __future__ import annotations

from random import Random

from actlake.corpus.grammar import response, scenarios, system_prompts, user_prompt
from actlake.schemas import Contrast

CONTRASTS = [
    Contrast(
        id=f"c{i}",
        scenario=f"s{i % 2}",
        prompt="the boy has fallen " * (1 + i % 2),
        source="the boy help the boy",
        base="the boy stop the boy",
        same_class="the boy and the boy",
        positive="I stop to help",
        negative="and the boy has fallen",
    )
    for i in range(3)
]


def organism_contrasts(n):
    """Return held-out contrasts whose system prompts are the same words in another order."""
    rng = Random(0)
    empathic, task = (system_prompts(d, held_out=True) for d in ("empathic", "task"))
    pairs = [(a, b) for a, b in zip(empathic, task, strict=True) if a.startswith("Put")]
    settings = [s for s in scenarios() if s.held_out and s.category == "conflict"]
    out = []
    for i in range(n):
        scenario = settings[i % len(settings)]
        source, base = pairs[i % len(pairs)]
        out.append(
            Contrast(
                id=f"o{i}",
                scenario=scenario.name,
                prompt=user_prompt(rng, scenario),
                source=source,
                base=base,
                positive=response(rng, scenario, "positive", style="plain"),
                negative=response(rng, scenario, "negative", style="plain"),
            )
        )
    return out
