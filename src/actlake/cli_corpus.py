"""The commands that look at texts before a model does: corpus validate and its neighbours."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import emit, json_option, print_facts, print_table, say
from .schemas.errors import InvalidInputError

if TYPE_CHECKING:
    from .schemas import CorpusInfo, CorpusStats, RubricScore, Scenario, Text, ValidationReport

__all__ = ["corpus"]

_file = click.Path(dir_okay=False, path_type=Path)
arms_option = click.option(
    "--arms", nargs=2, help="The corpus's own names of its positive and negative arm."
)
scenarios_option = click.option(
    "--scenarios", "scenario_file", type=_file, help="The scenario file (JSONL) with the rubrics."
)


@click.group()
def corpus() -> None:
    """Validate, describe, vary, review, convert and generate texts.

    \b
    Example: actlake corpus validate pairs.jsonl
    """


def load_source(source: str, arms: tuple[str, str] | None) -> tuple[CorpusInfo, list[Text]]:
    """Return the corpus that a command names: ``bundled:NAME`` or a JSONL file."""
    from .schemas import StudyCorpus
    from .stages import load_corpus

    named = {"positive": arms[0], "negative": arms[1]} if arms else {}
    return load_corpus(StudyCorpus.parse({"source": source, "arms": named}))


@corpus.command()
@click.argument("source")
@arms_option
@scenarios_option
@click.option("--scores", "score_file", type=_file, help="Rubric scores, JSONL of text and score.")
@click.option("--spec", "spec_file", type=_file, help="Thresholds (TOML) that differ from ours.")
@click.option("--lexicon", "lexicon_names", multiple=True, help="Lexica instead of the bundled.")
@click.option("--judge", "judge_server", help="Server of a model that scores by the rubrics.")
@click.option("--judge-model", help="The judge's name on that server.")
@click.option("--report", "report_file", type=_file, help="Write the whole report here (JSON).")
@click.option("--accepted", "accepted_file", type=_file, help="Write the accepted texts here.")
@json_option
def validate(
    source: str,
    *,
    arms: tuple[str, str] | None,
    scenario_file: Path | None,
    score_file: Path | None,
    spec_file: Path | None,
    lexicon_names: tuple[str, ...],
    judge_server: str | None,
    judge_model: str | None,
    report_file: Path | None,
    accepted_file: Path | None,
    as_json: bool,
) -> None:
    """Hold SOURCE against every check, a reason per rejected pair; exit 1 if it fails.

    SOURCE is a JSONL file or bundled:NAME.

    \b
    Example: actlake corpus validate pairs.jsonl --scenarios scenarios.jsonl
    """
    from .corpus import accepted_texts, load_lexicon, read_scores, validate_corpus, write_jsonl
    from .stages import load_scenarios

    info, texts = load_source(source, arms)
    scenarios = load_scenarios(source, scenario_file)
    scores = read_scores(score_file) if score_file else {}
    if judge_server:
        scores |= _judge(texts, scenarios, judge_server, judge_model)
    report = validate_corpus(
        info,
        texts,
        spec=_load_spec(spec_file),
        scenarios=scenarios,
        scores=scores,
        lexica=[load_lexicon(name) for name in lexicon_names] or None,
    )
    if report_file:
        report_file.write_text(report.to_json(), encoding="utf-8")
        say(f"report: {report_file}")
    if accepted_file:
        write_jsonl(accepted_texts(texts, report), accepted_file)
        say(f"accepted texts: {accepted_file}")
    value = {**report.to_dict(), "passed": report.passed}
    emit(value, as_json=as_json, show=lambda: _show_report(report))
    if not report.passed:
        sys.exit(1)


def _judge(
    texts: list[Text], scenarios: list[Scenario] | None, server: str, model: str | None
) -> dict[str, RubricScore]:
    """Return the scores that a model on a server gives by the rubrics."""
    from .corpus import ModelJudge, ServerClient, score_texts

    if model is None or scenarios is None:
        missing = "--judge-model" if model is None else "--scenarios, for their rubrics"
        msg = f"a judge needs {missing}"
        raise InvalidInputError(msg)
    known = {scenario.id: scenario for scenario in scenarios}
    originals = [text for text in texts if text.variant == "original"]
    scores = score_texts(originals, known, ModelJudge(ServerClient(server, model)))
    return {score.text: score for score in scores}


def _load_spec(path: Path | None) -> Any:  # a ValidateSpec, whose import is not free  # noqa: ANN401
    from .schemas import ValidateSpec

    if path is None:
        return ValidateSpec()
    from .corpus import read_toml

    return ValidateSpec.parse(read_toml(path, noun="threshold"), where=str(path))


def _show_report(report: ValidationReport) -> None:
    rejected = [v for v in report.verdicts if not v.accepted]
    rows: list[dict[str, Any]] = [
        {
            "check": check.name,
            "value": check.value,
            "expected": "" if check.bound is None else f"{check.sense} {check.bound:g}",
            "verdict": "-" if check.bound is None else "ok" if check.passed else "FAILED",
            "note": check.note,
        }
        for check in report.checks
    ]
    print_table(rows)
    click.echo()
    if rejected:
        shown = [
            {"rejected": v.id, "check": r.check, "reason": r.message}
            for v in rejected
            for r in v.reasons
        ]
        print_table(shown)
        click.echo()
    reasons = Counter(check for v in rejected for check in {r.check for r in v.reasons})
    facts: dict[str, Any] = {
        "pairs": f"{report.n_accepted} of {report.n_pairs} accepted",
        "neutral texts": f"{report.n_neutral_accepted} of {report.n_neutral} accepted",
        "categories": _counts(report.categories),
        "subsets": _counts(report.subsets),
        "reasons": _counts(reasons) or "none",
        "verdict": "passed" if report.passed else "FAILED",
    }
    print_facts(facts)


def _contents(found: CorpusStats) -> list[dict[str, Any]]:
    """Return the texts of every category by subset and split, arms together."""
    rows: dict[Any, dict[str, Any]] = {}
    for cell in found.cells:
        row = rows.setdefault(cell["category"], {"category": cell["category"]})
        name = f"{cell['subset']} {cell['split']}"
        row[name] = row.get(name, 0) + cell["n_texts"]
    return list(rows.values())


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in sorted(counts.items()))


@corpus.command()
@click.argument("source")
@arms_option
@scenarios_option
@click.option("--budget", type=click.IntRange(10), help="Words to count in.  [default: 2000]")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the draws.")
@click.option("--figure", type=_file, help="Write a figure: .html, .svg, .png or .pdf.")
@json_option
def stats(
    source: str,
    *,
    arms: tuple[str, str] | None,
    scenario_file: Path | None,
    budget: int | None,
    seed: int,
    figure: Path | None,
    as_json: bool,
) -> None:
    """Describe SOURCE: contents, coverage, diversity at one budget, leakage.

    \b
    Example: actlake corpus stats bundled:demo --figure demo.html
    """
    from .corpus import corpus_stats, plot_stats
    from .schemas import StatsSpec
    from .stages import load_scenarios

    info, texts = load_source(source, arms)
    spec = StatsSpec.parse({"seed": seed} | ({"budget": budget} if budget else {}))
    found = corpus_stats(info, texts, spec=spec, scenarios=load_scenarios(source, scenario_file))
    if figure:
        say(f"figure: {plot_stats(found, figure)}")

    def show() -> None:
        print_table([row.model_dump(exclude_none=True) for row in found.diversity])
        click.echo()
        print_table(_contents(found))
        click.echo()
        skipped = {"cells", "diversity", "spec", "nearest_cosines"}
        print_facts(found.model_dump(exclude=skipped, exclude_none=True))

    emit(found.to_dict(), as_json=as_json, show=show)


@corpus.command()
@click.argument("source")
@arms_option
@click.option("--out", type=_file, required=True, help="The originals and variants, JSONL.")
@click.option("--log", "log_file", type=_file, help="What was changed in each text, JSONL.")
@click.option("--arm", "lexical_arms", multiple=True, help="Only this lexical arm.  [default: all]")
@click.option("--draws", type=click.IntRange(1), help="Draws of random words.  [default: 5]")
@click.option("--lexicon", "lexicon_names", multiple=True, help="Lexica instead of the bundled.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of what is drawn.")
@json_option
def variants(
    source: str,
    *,
    arms: tuple[str, str] | None,
    out: Path,
    log_file: Path | None,
    lexical_arms: tuple[str, ...],
    draws: int | None,
    lexicon_names: tuple[str, ...],
    seed: int,
    as_json: bool,
) -> None:
    """Write the lexical arms of SOURCE: keywords removed, replaced, inserted, and controls.

    \b
    Example: actlake corpus variants bundled:demo --out variants.jsonl --log edits.jsonl
    """
    from .corpus import load_lexicon, make_variants, write_jsonl, write_lines
    from .schemas import VariantSpec

    _, texts = load_source(source, arms)
    given = {"arms": list(lexical_arms) or None, "n_draws": draws, "seed": seed}
    spec = VariantSpec.parse({k: v for k, v in given.items() if v is not None}, where="options")
    lexica = [load_lexicon(name) for name in lexicon_names] or None
    made = make_variants(texts, spec=spec, lexica=lexica)
    write_jsonl([*texts, *made.texts], out)
    if log_file:
        write_lines((entry.to_dict() for entry in made.log), log_file)
    value = {
        "texts": len(made.texts),
        "bow_auroc": made.bow,
        "data_driven": {
            "words": list(made.removed),
            "sweep": [point.model_dump() for point in made.sweep],
            "reached": made.reached,
        },
    }

    def show() -> None:
        edits = Counter[str]()
        for entry in made.log:
            edits[entry.variant] += len(entry.edits)
        print_table(
            [
                {"variant": name, "bow_auroc": value, "edits": edits[name]}
                for name, value in made.bow.items()
            ]
        )
        if made.sweep and not made.reached:
            say(f"data_driven: {made.sweep[-1].k} words do not bring the bag of words down enough")
        click.echo(f"{len(made.texts)} variants with their originals: {out}")

    emit(value, as_json=as_json, show=show)
