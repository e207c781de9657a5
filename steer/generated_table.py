"""Tables of generated texts that grow part by part and go on where they were interrupted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..extract import LoadedModel, chat_messages, render_prompt
from ..schemas import InvalidInputError, SteeredTextsSpec, Text
from .costs import PatchCost, Trial
from .generated_directions import digest_array, keep_directions
from .generation import Generated, GenerateRow, RowEngine, generate_rows
from .kept import KeptRows, read_kept

__all__ = ["condition_cost", "generate_table", "prompt_ids", "read_generated"]

_KEY = ["prompt_digest", "direction_digest", "alpha", "seed"]


def prompt_ids(loaded: LoadedModel, texts: Sequence[Text]) -> dict[str, np.ndarray]:
    """Return the token ids of each text's prompt, up to where the answer begins, by text id.

    Raises
    ------
    InvalidInputError
        If a text has no prompt, or the chat template refuses its turns.
    """
    out = {}
    for text in texts:
        messages = chat_messages(text)
        if not messages:
            msg = f"text {text.id!r} has no prompt to answer"
            raise InvalidInputError(msg)
        if loaded.tokenizer.chat_template:
            # A rendered template holds its special tokens already.
            ids = loaded.tokenizer(
                render_prompt(loaded.tokenizer, messages), add_special_tokens=False
            )["input_ids"]
        else:
            ids = loaded.tokenizer((text.system or "") + (text.prompt or ""))["input_ids"]
        out[text.id] = np.asarray(ids, dtype=np.int32)
    return out


def _conditions(
    prompts: Mapping[str, np.ndarray], directions: Mapping[str, np.ndarray], spec: SteeredTextsSpec
) -> pd.DataFrame:
    records = [
        {
            "prompt": prompt,
            "direction": name,
            "alpha": float(alpha),
            "seed": seed,
            "prompt_digest": digest_array(ids, "<i4"),
            "direction_digest": digest_array(vector, "<f4"),
        }
        for prompt, ids in prompts.items()
        for name, vector in directions.items()
        for alpha in spec.alphas
        for seed in spec.seeds
    ]
    return pd.DataFrame.from_records(records)


def _kept(
    loaded: LoadedModel, folder: Path, spec: SteeredTextsSpec, *, read_only: bool = False
) -> KeptRows:
    fixed = spec.model_dump(mode="json", exclude={"alphas", "seeds", "batch_rows"})
    made_with = {"model": loaded.info.model_dump(mode="json"), **fixed}
    return KeptRows(folder, key=_KEY, made_with=made_with, noun="texts", read_only=read_only)


def condition_cost(
    loaded: LoadedModel,
    prompts: Mapping[str, np.ndarray],
    directions: Mapping[str, np.ndarray],
    *,
    spec: SteeredTextsSpec,
    folder: Path | None = None,
    engine: RowEngine | None = None,
) -> PatchCost:
    """Return the most that :func:`generate_table` would run, less what the folder holds.

    Passes and tokens are those of texts that all grow to ``max_new_tokens``; where texts are tried
    (:meth:`PatchCost.probe`, by ``engine`` where there is one), those that end sooner count as
    much.

    Raises
    ------
    InvalidInputError
        If the folder was made with another model, layer, position, temperature or length.
    """
    todo = _conditions(prompts, directions, spec)
    if folder is not None:
        todo = _kept(loaded, folder, spec, read_only=True).missing(todo)
    todo = todo.assign(n_prompt=[len(prompts[name]) for name in todo["prompt"]])
    todo = todo.sort_values("n_prompt", kind="stable")

    def tokens_of(conditions: pd.DataFrame) -> int:
        return int(conditions["n_prompt"].sum()) + len(conditions) * (spec.max_new_tokens - 1)

    def run(rng: np.random.Generator, size: int) -> int:
        start = int(rng.integers(max(1, len(todo) - size + 1)))
        chosen = todo.iloc[start : start + size]
        _run(loaded, _rows_of(chosen, prompts, directions), spec=spec, engine=engine)
        return tokens_of(chosen)

    n_batches, n_tokens = -(-len(todo) // spec.batch_rows), tokens_of(todo)
    trial = Trial(n_tokens, run, most=spec.batch_rows)
    return PatchCost(n_batches * spec.max_new_tokens, len(todo), n_tokens, trials=(trial,))


def _rows_of(
    conditions: pd.DataFrame,
    prompts: Mapping[str, np.ndarray],
    directions: Mapping[str, np.ndarray],
) -> list[GenerateRow]:
    names = ("prompt", "direction", "alpha", "seed")
    return [
        GenerateRow(prompts[prompt], directions[direction], alpha, seed)
        for prompt, direction, alpha, seed in zip(
            *(conditions[name].tolist() for name in names), strict=True
        )
    ]


def _run(
    loaded: LoadedModel,
    rows: Sequence[GenerateRow],
    *,
    spec: SteeredTextsSpec,
    engine: RowEngine | None,
    report: Callable[[list[int], list[Generated]], None] | None = None,
) -> None:
    if engine is None:
        generate_rows(loaded, rows, spec=spec, report=report)
    else:
        engine.generate_rows(rows, spec=spec, report=report)


def generate_table(
    loaded: LoadedModel,
    prompts: Mapping[str, np.ndarray],
    directions: Mapping[str, np.ndarray],
    *,
    spec: SteeredTextsSpec,
    folder: Path | None = None,
    engine: RowEngine | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Return the text of every prompt, direction, strength and seed, one row each.

    With a folder every batch is committed (:class:`KeptRows`); conditions that are there are not
    run again, so the same call goes on after an interruption, and one with more strengths, seeds,
    prompts or directions adds to what is there. Columns prompt, direction, alpha, seed, text, ids,
    n_new, ended, n_prompt, layer, positions, temperature and the digests of prompt and direction.

    Parameters
    ----------
    prompts
        Token ids by name; see :func:`prompt_ids`.
    directions
        Unit vectors (hidden,) by name.
    engine
        What generates, such as :class:`VllmSteering`; None is the model in this process.
    progress
        Called with the conditions done and in all, after each batch.

    Raises
    ------
    InvalidInputError
        If there is no prompt or direction, a vector is not of length 1, or the folder was made
        with another model, layer, position, temperature or length.
    StorageError
        If a part cannot be written.
    """
    for name, vector in directions.items():
        if not np.isclose(np.linalg.norm(vector), 1, atol=1e-3):
            length = np.linalg.norm(vector)
            msg = f"direction {name!r} has length {length:.4g}, expected 1; divide by its norm"
            raise InvalidInputError(msg)
    if not prompts or not directions:
        msg = f"got {len(prompts)} prompts and {len(directions)} directions, expected some of each"
        raise InvalidInputError(msg)
    wanted = todo = _conditions(prompts, directions, spec)
    kept = None
    if folder is not None:
        kept = _kept(loaded, folder, spec)
        keep_directions(folder, directions)
        todo = kept.missing(wanted).reset_index(drop=True)
    rows = _rows_of(todo, prompts, directions)
    parts: list[pd.DataFrame] = []
    n_done = len(wanted) - len(todo)

    def keep(chosen: list[int], made: list[Generated]) -> None:
        nonlocal n_done
        part = _describe(todo.iloc[chosen], made, loaded=loaded, spec=spec, prompts=prompts)
        if kept is None:
            parts.append(part)
        else:
            kept.commit(part)
        n_done += len(chosen)
        if progress is not None:
            progress(n_done, len(wanted))

    _run(loaded, rows, spec=spec, engine=engine, report=keep)
    found = pd.concat(parts, ignore_index=True) if kept is None else kept.read()
    return wanted[_KEY].merge(found, on=_KEY, how="left", validate="many_to_one")


def _describe(
    conditions: pd.DataFrame,
    made: Sequence[Generated],
    *,
    loaded: LoadedModel,
    spec: SteeredTextsSpec,
    prompts: Mapping[str, np.ndarray],
) -> pd.DataFrame:
    return conditions.assign(
        text=[loaded.tokenizer.decode(m.ids, skip_special_tokens=True).strip() for m in made],
        ids=[m.ids.tolist() for m in made],
        n_new=[len(m.ids) for m in made],
        ended=[m.ended for m in made],
        n_prompt=[len(prompts[name]) for name in conditions["prompt"]],
        layer=spec.layer,
        positions=spec.positions,
        temperature=spec.temperature,
        model=loaded.info.name,
    )


def read_generated(folder: Path) -> pd.DataFrame:
    """Return the texts that a folder holds, each condition once, in the order of their keys.

    An empty table with the key columns where there is none yet.
    """
    return read_kept(folder, _KEY)
