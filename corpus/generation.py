"""Generation: slots are filled by a model until all are, or a stated budget ends."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from ..schemas import (
    AlreadyExistsError,
    Arm,
    Attempt,
    CellCount,
    GenerateSpec,
    GenerationPlan,
    GenerationReport,
    InvalidInputError,
    Lexicon,
    Pair,
    PersonaSet,
    Scenario,
    StorageError,
    Text,
    TextProvenance,
    ValidateSpec,
    digest_json,
)
from .clients import ChatRequest, Client, Completion
from .duplicates import DuplicateIndex
from .lexica import bundled_lexica
from .lines import write_lines
from .pair_checks import PairCheck
from .slots import Slot, make_slots
from .text_checks import check_text
from .texts import write_jsonl

__all__ = ["Spent", "generate_corpus"]


@dataclass
class Spent:
    """What was spent so far, counted from the log of attempts."""

    spec: GenerateSpec
    n_requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count one request."""
        self.n_requests += 1
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens

    @property
    def n_tokens(self) -> int:
        """Tokens of prompts and answers."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def dollars(self) -> float:
        """What they cost at the spec's prices."""
        spec = self.spec
        return (self.prompt_tokens * spec.price_in + self.completion_tokens * spec.price_out) / 1e6

    def affordable(self, requests: Sequence[ChatRequest]) -> int:
        """Return how many of the requests fit into the budget even if each takes its most."""
        spec, trial = self.spec, Spent(self.spec, self.n_requests, *self._tokens())
        for number, request in enumerate(requests):
            trial.add(request.most_prompt_tokens, request.max_new_tokens)
            over = (
                (spec.max_requests is not None and trial.n_requests > spec.max_requests)
                or (spec.max_tokens is not None and trial.n_tokens > spec.max_tokens)
                or (spec.max_dollars is not None and trial.dollars > spec.max_dollars)
            )
            if over:
                return number
        return len(requests)

    def _tokens(self) -> tuple[int, int]:
        return self.prompt_tokens, self.completion_tokens


@dataclass
class _Judgement:
    """The acceptance of answers: the same for a fresh one and for one of the log."""

    validation: ValidateSpec
    lexica: Sequence[Lexicon]
    generator: str
    rejected: Counter[str] = field(default_factory=Counter)
    index: DuplicateIndex = field(init=False)
    checker: PairCheck = field(init=False)

    def __post_init__(self) -> None:
        spec = self.validation
        self.index = DuplicateIndex(threshold=spec.duplicate_jaccard, shingle=spec.shingle)
        self.checker = PairCheck(spec, lexica=self.lexica)

    def take(self, slot: Slot, arm: Arm, response: str, *, finish: str) -> bool:
        """Put an answer into its slot, or count why not; return whether it stands there.

        An arm that has its text keeps it: a log of a stricter validation goes on behind that.
        """
        slot.tries[arm] = slot.tries.get(arm, 0) + 1
        if arm in slot.found:
            return False
        reason = self._fault(slot, arm, response, finish=finish)
        if reason is not None:
            self.rejected[reason] += 1
            return False
        slot.found[arm] = response
        if not slot.filled:
            return True
        texts = {a: slot.text(a, slot.found[a], generator=self.generator) for a in slot.arms}
        if arm != "neutral":
            pair = Pair(id=slot.name, positive=texts["positive"], negative=texts["negative"])
            reasons, _ = self.checker.check(pair)
            if reasons:
                self.rejected[reasons[0].check] += 1
                # The arm with fewer tries is asked again; at a tie this one, which is newer.
                other: Arm = "negative" if arm == "positive" else "positive"
                newer = slot.tries[arm] <= slot.tries.get(other, 0)
                del slot.found[arm if newer else other]
                return not newer
        for text in texts.values():
            self.index.add(text.response)
        return True

    def _fault(self, slot: Slot, arm: Arm, response: str, *, finish: str) -> str | None:
        if finish == "length":
            return "cut off"
        if not response.strip():
            return "empty"
        try:
            text = slot.text(arm, response, generator=self.generator)
        except InvalidInputError:
            return "not a text"
        reasons = check_text(text, self.validation)
        if reasons:
            refused = any(reason.check == "refusal" for reason in reasons)
            return "refusal" if refused else reasons[0].check
        return "near_duplicate" if self.index.holds(response) else None


def generate_corpus(
    scenarios: Sequence[Scenario],
    personas: PersonaSet,
    client: Client,
    *,
    folder: str | Path,
    spec: GenerateSpec | None = None,
    validation: ValidateSpec | None = None,
    lexica: Sequence[Lexicon] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> GenerationReport:
    """Fill the cells of a design with pairs and neutral texts that a model writes.

    ``folder`` gets ``texts.jsonl``, ``provenance.jsonl``, ``report.json``, the plan, and
    ``attempts.jsonl``, the log of every answer. Called again it goes on from the log: what was
    paid for is not asked again, and the seeds of the rest are those they would have had.

    Parameters
    ----------
    scenarios
        What texts are written for.
    personas
        The instructions of the arms.
    client
        The model.
    folder
        Where everything is kept.
    spec
        Targets, sampling, budget.
    validation
        What a pair must pass.
    lexica
        Keywords for those checks; the bundled ones if None.
    say
        Called with lines of progress.

    Raises
    ------
    IncompleteError
        If the server stops answering; what it answered is kept.
    AlreadyExistsError
        If the folder holds another generation.
    InvalidInputError
        If the server refuses the requests, or the design is at odds with itself.
    """
    spec = spec or GenerateSpec()
    slots = make_slots(scenarios, personas, spec)
    log = _Log(Path(folder))
    log.begin(_plan(scenarios, personas, client, spec))
    judgement = _Judgement(
        validation or ValidateSpec(),
        bundled_lexica() if lexica is None else lexica,
        client.engine.model,
    )
    spent = Spent(spec)
    by_name = {slot.name: slot for slot in slots}
    origin: dict[str, TextProvenance] = {}
    for entry in log.read():
        slot = by_name.get(entry.slot)
        spent.add(entry.prompt_tokens, entry.completion_tokens)
        if slot and judgement.take(slot, entry.arm, entry.response, finish=entry.finish):
            origin[entry.provenance.text] = entry.provenance
    if spent.n_requests:
        say(f"{log.path}: goes on after {spent.n_requests} answers")
    stopped = _fill(
        slots, client, spec, judgement=judgement, spent=spent, log=log, origin=origin, say=say
    )
    report = _report(slots, judgement, spent, stopped=stopped)
    log.finish(slots, report, origin=origin, generator=client.engine.model)
    return report


def _fill(
    slots: Sequence[Slot],
    client: Client,
    spec: GenerateSpec,
    *,
    judgement: _Judgement,
    spent: Spent,
    log: _Log,
    origin: dict[str, TextProvenance],
    say: Callable[[str], None],
) -> str:
    """Ask until every slot is filled or given up; return what stopped it."""
    while True:
        wanted = list(islice(_wanted(slots, spec), spec.batch))
        if not wanted:
            return "complete" if all(slot.filled for slot in slots) else "attempts"
        requests = [slot.request(arm, spec) for slot, arm in wanted]
        n = spent.affordable(requests)
        if n == 0:
            return "budget"
        for number, answer in client.complete(requests[:n]):
            slot, arm = wanted[number]
            entry = _attempt(slot, arm, requests[number], answer=answer, client=client)
            log.append(entry)
            spent.add(answer.prompt_tokens, answer.completion_tokens)
            if judgement.take(slot, arm, answer.text, finish=answer.finish):
                origin[entry.provenance.text] = entry.provenance
        filled = sum(slot.filled for slot in slots)
        say(
            f"{filled} of {len(slots)} filled, {spent.n_requests} requests, {spent.n_tokens} tokens"
        )


def _wanted(slots: Sequence[Slot], spec: GenerateSpec) -> Iterator[tuple[Slot, Arm]]:
    for slot in slots:
        for arm in slot.missing(spec.max_attempts):
            yield slot, arm


def _attempt(
    slot: Slot, arm: Arm, request: ChatRequest, *, answer: Completion, client: Client
) -> Attempt:
    engine, attempt = client.engine, slot.tries.get(arm, 0)
    return Attempt(
        slot=slot.name,
        arm=arm,
        attempt=attempt,
        response=answer.text,
        finish=answer.finish,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        provenance=TextProvenance(
            text=slot.text_name(arm),
            model=engine.model,
            revision=engine.revision,
            quantisation=engine.quantisation,
            engine=engine.engine,
            engine_version=engine.engine_version,
            sampling={
                "temperature": request.temperature,
                "top_p": request.top_p,
                "max_new_tokens": request.max_new_tokens,
            },
            seed=request.seed,
            template_digest=slot.template_digest(arm),
            persona=slot.persona,
            attempt=attempt,
        ),
    )


def _plan(
    scenarios: Sequence[Scenario], personas: PersonaSet, client: Client, spec: GenerateSpec
) -> GenerationPlan:
    sampling = spec.model_dump(include={"temperature", "top_p", "max_new_tokens"})
    return GenerationPlan(
        scenarios_digest=digest_json([s.to_dict() for s in scenarios]),
        personas_digest=personas.fingerprint(),
        sampling_digest=digest_json(sampling),
        model=client.engine.model,
        seed=spec.seed,
    )


def _report(
    slots: Sequence[Slot], judgement: _Judgement, spent: Spent, *, stopped: str
) -> GenerationReport:
    wanted = Counter((slot.scenario.id, slot.prompt) for slot in slots)
    filled = Counter((slot.scenario.id, slot.prompt) for slot in slots if slot.filled)
    known = {slot.scenario.id: slot.scenario for slot in slots}
    n_pairs = sum(slot.filled and len(slot.arms) == 2 for slot in slots)
    return GenerationReport.parse(
        {
            "stopped": stopped,
            "n_texts": sum(len(slot.arms) for slot in slots if slot.filled),
            "n_pairs": n_pairs,
            "n_requests": spent.n_requests,
            "n_tokens": spent.n_tokens,
            "dollars": round(spent.dollars, 6),
            "rejected": dict(sorted(judgement.rejected.items())),
            "cells": [
                CellCount(
                    scenario=name,
                    category=known[name].category,
                    prompt=prompt,
                    task_conflict=known[name].prompts[prompt].task_conflict,
                    wanted=n,
                    filled=filled[name, prompt],
                )
                for (name, prompt), n in wanted.items()
            ],
        }
    )


class _Log:
    """The folder of a generation."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "attempts.jsonl"

    def begin(self, plan: GenerationPlan) -> None:
        """Create the folder, or make sure that it holds the same generation."""
        path = self.folder / "plan.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_text(plan.to_json(), encoding="utf-8")
            stored = GenerationPlan.parse_json(path.read_bytes(), where=str(path))
        except OSError as err:
            msg = f"{self.folder}: cannot be written: {err.strerror or err}"
            raise StorageError(msg) from err
        if stored != plan:
            unlike = [
                n for n in GenerationPlan.model_fields if getattr(stored, n) != getattr(plan, n)
            ]
            msg = (
                f"{self.folder} holds another generation: {', '.join(unlike)} differ; name another "
                "folder, or go on with what was planned (budgets may change)"
            )
            raise AlreadyExistsError(msg)

    def read(self) -> list[Attempt]:
        """Return the attempts so far; a last line that was cut off is dropped from the file."""
        if not self.path.exists():
            return []
        raw = self.path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            self.path.write_bytes(whole)
        return [
            Attempt.parse_json(line, where=f"{self.path}:{number}")
            for number, line in enumerate(whole.splitlines(), start=1)
        ]

    def append(self, entry: Attempt) -> None:
        """Write an attempt before anything is made of it."""
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(entry.to_dict(), ensure_ascii=False) + "\n")

    def finish(
        self,
        slots: Sequence[Slot],
        report: GenerationReport,
        *,
        origin: dict[str, TextProvenance],
        generator: str,
    ) -> None:
        """Write the texts of the filled slots, their provenance, and the report."""
        texts: list[Text] = [
            slot.text(arm, slot.found[arm], generator=generator)
            for slot in slots
            if slot.filled
            for arm in slot.arms
        ]
        write_jsonl(texts, self.folder / "texts.jsonl")
        write_lines((origin[t.id].to_dict() for t in texts), self.folder / "provenance.jsonl")
        (self.folder / "report.json").write_text(report.to_json(), encoding="utf-8")
