"""The commands for review by people: corpus review draw, corpus review read."""

from __future__ import annotations

from pathlib import Path

import click

from .cli_corpus import arms_option, load_source, scenarios_option
from .console import emit, json_option, print_facts, print_table, say

__all__ = ["review"]

_file = click.Path(dir_okay=False, path_type=Path)


@click.group()
def review() -> None:
    """Let people score a sample blind, and take their verdicts back in.

    \b
    Example: actlake corpus review draw pairs.jsonl --out review
    """


@review.command()
@click.argument("source")
@arms_option
@scenarios_option
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for the sheet, the form and the key.",
)
@click.option("--n", type=click.IntRange(1), default=20, show_default=True, help="Pairs to draw.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the draw.")
@json_option
def draw(
    source: str,
    *,
    arms: tuple[str, str] | None,
    scenario_file: Path | None,
    out: Path,
    n: int,
    seed: int,
    as_json: bool,
) -> None:
    """Draw a stratified sample of SOURCE and write sheets that hide the arms.

    Raters fill in sheet.csv or form.html; key.json is not for them.

    \b
    Example: actlake corpus review draw pairs.jsonl --out review --n 20
    """
    from .corpus import draw_review, write_review
    from .stages import load_scenarios

    info, texts = load_source(source, arms)
    key = draw_review(info, texts, n=n, seed=seed)
    paths = write_review(out, key, texts, scenarios=load_scenarios(source, scenario_file))
    value = {name: str(path) for name, path in paths.items()} | {"items": str(len(key.items))}
    emit(value, as_json=as_json, show=lambda: print_facts(value))


@review.command()
@click.argument("source")
@click.argument("answers", nargs=-1, required=True, type=_file)
@arms_option
@click.option(
    "--key",
    "key_path",
    type=click.Path(path_type=Path),
    required=True,
    help="The key.json of the draw, or its folder.",
)
@click.option("--accepted", "accepted_file", type=_file, help="Write the texts that stay here.")
@click.option("--scores", "score_file", type=_file, help="Write the raters' scores here (JSONL).")
@click.option("--report", "report_file", type=_file, help="Write the whole report here (JSON).")
@json_option
def read(
    source: str,
    answers: tuple[Path, ...],
    *,
    arms: tuple[str, str] | None,
    key_path: Path,
    accepted_file: Path | None,
    score_file: Path | None,
    report_file: Path | None,
    as_json: bool,
) -> None:
    """Read the ANSWERS of one rater or more on SOURCE: agreement, and what is rejected.

    A file is one rater's, who bears its name.

    \b
    Example: actlake corpus review read pairs.jsonl ann.csv bob.csv --key review \\
                 --accepted reviewed.jsonl
    """
    from .corpus import (
        fold_review,
        read_answers,
        read_key,
        review_scores,
        write_jsonl,
        write_scores,
    )

    info, texts = load_source(source, arms)
    key = read_key(key_path)
    given = [read_answers(path, key) for path in answers]
    report, kept = fold_review(info, texts, key, answers=given)
    if accepted_file:
        write_jsonl(kept, accepted_file)
        say(f"accepted texts: {accepted_file}")
    if score_file:
        write_scores(review_scores(texts, key, given), score_file)
        say(f"scores: {score_file}")
    if report_file:
        report_file.write_text(report.to_json(), encoding="utf-8")
        say(f"report: {report_file}")

    def show() -> None:
        rows = [a.model_dump(exclude_none=True) for a in report.agreement]
        print_table(
            [{k: round(v, 3) if isinstance(v, float) else v for k, v in r.items()} for r in rows]
        )
        click.echo()
        rejected = [v for v in report.verdicts if not v.accepted]
        if rejected:
            print_table([{"rejected": v.pair, "reason": "; ".join(v.reasons)} for v in rejected])
            click.echo()
        click.echo(f"{len(report.verdicts) - len(rejected)} of {report.n_items} pairs accepted")

    emit(report.to_dict(), as_json=as_json, show=show)
