"""The command that scores generated texts with the model that wrote them: steer score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from .cli_patch import needs_weights, read_directions, show_cost
from .console import emit, estimate_options, json_option, print_table, say
from .schemas.errors import InvalidInputError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from .extract import LoadedModel
    from .schemas import Text
    from .steer import Asked

__all__ = ["score"]

_file = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("model")
@click.argument("source")
@click.option(
    "--texts",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("generated"),
    show_default=True,
    help="Folder that `actlake steer generate` wrote.",
)
@click.option("--out", type=_file, help="The scored table.  [default: scored.parquet in it]")
@click.option(
    "--scores",
    help="Of perplexity,first_token_kl,forced_choice,logprob_difference.  [default: all]",
)
@click.option("--directions", "direction_file", type=click.Path(path_type=Path),
              help="JSON or folder: its norm is the class separation.")  # fmt: skip
@click.option(
    "--method", default="diff_means", show_default=True, help="Which of a set of directions."
)
@click.option("--mean-norm", type=float, help="Mean residual norm.  [default: of the prompts]")
@click.option("--revision", help="Revision of a hub model.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps.")
@click.option("--dry-run", is_flag=True, help="Say what would be run, and stop.")
@estimate_options
@json_option
def score(
    model: str,
    source: str,
    *,
    folder: Path,
    out: Path | None,
    scores: str | None,
    direction_file: Path | None,
    method: str,
    mean_norm: float | None,
    revision: str | None,
    device: str,
    dry_run: bool,
    probe: float | None,
    price: float | None,
    as_json: bool,
) -> None:
    """Score the texts that MODEL wrote under steering for the prompts of SOURCE, in one table.

    Rules (`actlake score`), perplexity without steering, the KL of the first token, and of the two
    answers that SOURCE has for a prompt a forced choice, in both orders, and the log-prob
    difference; strengths in four units. Scores are kept as they are made: the same command goes on.

    \b
    Example: actlake steer score phi bundled:demo --texts generated --directions phi.json
    """
    from .extract import load_model
    from .schemas import ModelScore, ScoreSpec
    from .schemas.base import near_names
    from .steer import read_generated, score_generated, score_table, weigh_scores, write_table

    known: tuple[ModelScore, ...] = get_args(ModelScore)
    wanted = [name.strip() for name in scores.split(",")] if scores else list(known)
    odd = [name for name in wanted if name not in known]
    if odd:
        msg = f"no score {odd[0]!r}{near_names(odd[0], list(known))}; expected some of {known}"
        raise InvalidInputError(msg)
    chosen = tuple(name for name in known if name in wanted)
    table = read_generated(folder)
    if table.empty:
        msg = f"{folder} holds no texts; run `actlake steer generate` first"
        raise InvalidInputError(msg)
    estimate = {"dry_run": dry_run, "probe": probe, "price": price}
    loaded = load_model(
        model, revision=revision, device=device, head=True, weights=needs_weights(estimate)
    )
    texts = _texts_of(source, table)
    asked = _asked(loaded, table, source, texts)
    kept = folder / "scores" / "-".join(chosen)
    if dry_run:
        cost = weigh_scores(loaded, table, asked, scores=chosen, folder=kept)
        show_cost(cost, estimate, as_json=as_json)
        return
    separation = _separation(direction_file, method=method, layer=int(table["layer"].iloc[0]))
    found = score_generated(
        loaded,
        table,
        asked,
        _vectors(folder, table),
        scores=chosen,
        mean_norm=mean_norm,
        separation=separation,
        folder=kept,
        progress=lambda done, total: say(f"scored {done} of {total}"),
    )
    found = found.assign(
        sample=found["prompt"],
        scenario=[texts[name].scenario for name in found["prompt"]],
        category=[texts[name].category for name in found["prompt"]],
    )
    ruled = score_table(found.drop(columns="prompt").assign(
        prompt=[_asked_words(texts[name]) for name in found["sample"]]
    ), spec=ScoreSpec())  # fmt: skip
    whole = ruled.table.rename(columns={"sample": "prompt", "prompt": "prompt_text"})
    target = out or folder / "scored.parquet"
    write_table(whole, target)
    record = target.with_suffix(".json")
    made = {"model": loaded.info.model_dump(mode="json"), "source": source, "scores": chosen,
            "mean_norm": mean_norm, "separation": separation,
            "summary": ruled.summary.to_dict()}  # fmt: skip
    record.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    say(f"scored: {target}; record: {record}")
    shown = ("perplexity", "first_", "choice_", "logprob_", "coherent", "sentiment")
    names = [name for name in whole.columns if name.startswith(shown)]
    means = whole.groupby(["direction", "alpha"], as_index=False)[names].mean(numeric_only=True)
    records: list[dict[str, Any]] = json.loads(means.round(4).to_json(orient="records"))
    emit(records, as_json=as_json, show=lambda: print_table(records))


def _texts_of(source: str, table: pd.DataFrame) -> dict[str, Text]:
    """Return the texts that the table's prompts are of, by their id."""
    from .schemas import StudyCorpus
    from .stages import load_corpus

    _, texts = load_corpus(StudyCorpus(source=source))
    found = {text.id: text for text in texts}
    lacking = sorted(set(table["prompt"]) - set(found))
    if lacking:
        msg = f"{source} has no text {lacking[0]!r}, which the table has; name its own source"
        raise InvalidInputError(msg)
    return found


def _asked_words(text: Text) -> str:
    if text.messages is not None:
        return "\n".join(turn.content for turn in text.messages)
    return text.prompt or ""


def _asked(
    loaded: LoadedModel, table: pd.DataFrame, source: str, texts: dict[str, Text]
) -> dict[str, Asked]:
    """Return the prompts of the table with the two answers that the source has for them."""
    from .corpus import pair_texts
    from .steer import Asked, ChoiceItem, prompt_ids
    from .steer.generated_directions import digest_array

    chosen = [texts[name] for name in dict.fromkeys(table["prompt"])]
    ids = prompt_ids(loaded, chosen)
    digests = dict(zip(table["prompt"], table["prompt_digest"], strict=True))
    unlike = [name for name, row in ids.items() if digest_array(row, "<i4") != digests[name]]
    if unlike:
        msg = f"text {unlike[0]!r} of {source} is not the prompt that the table answers"
        raise InvalidInputError(msg)
    answers: dict[tuple[str | None, str], tuple[str, str]] = {}
    paired = [text for text in texts.values() if text.pair is not None]
    for pair in pair_texts(paired) if paired else []:
        key = (pair.positive.system, _asked_words(pair.positive))
        answers.setdefault(key, (pair.positive.response, pair.negative.response))
    out = {}
    for text in chosen:
        both = answers.get((text.system, _asked_words(text)))
        item = None if both is None else ChoiceItem(_asked_words(text), *both, system=text.system)
        out[text.id] = Asked(ids[text.id], item)
    return out


def _vectors(folder: Path, table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the vectors of the table's directions, by their name in it."""
    from .steer import read_generated_directions

    kept = read_generated_directions(folder)
    names = dict(zip(table["direction"], table["direction_digest"], strict=True))
    lacking = [name for name, digest in names.items() if digest not in kept]
    if lacking:
        msg = (
            f"{folder} lacks the vector of direction {lacking[0]!r}: it was written by an older "
            "version; run the same `actlake steer generate` again, which adds it"
        )
        raise InvalidInputError(msg)
    return {name: kept[digest] for name, digest in names.items()}


def _separation(path: Path | None, *, method: str, layer: int) -> float | None:
    return None if path is None else read_directions(path).get(method, layer=layer).norm
