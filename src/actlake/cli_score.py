"""The command that scores texts made elsewhere: score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import emit, json_option, print_facts, print_table, say
from .schemas.errors import InvalidInputError

if TYPE_CHECKING:
    import pandas as pd

    from .schemas import ScoreSummary

__all__ = ["map_option", "parse_map", "score"]

_file = click.Path(dir_okay=False, path_type=Path)
map_option = click.option(
    "--map",
    "mapping",
    default="",
    help="Our names of columns and theirs, text=completion,prompt=question,alpha_raw=coeff.",
)


def parse_map(text: str) -> dict[str, str]:
    """Return the names that ``ours=theirs,ours=theirs`` gives."""
    names: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        ours, equals, theirs = (p.strip() for p in part.partition("="))
        if not equals or not ours or not theirs or ours in names:
            msg = f"--map {text!r} cannot be read at {part!r}; expected text=completion,prompt=q"
            raise InvalidInputError(msg)
        names[ours] = theirs
    return names


@click.command()
@click.argument("table", type=_file)
@map_option
@click.option("--out", type=_file, help="The scored table.  [default: TABLE-scored.parquet]")
@click.option("--scores", "score_names", help="Scores by name, comma-separated.  [default: all]")
@click.option("--rules", "rule_files", type=_file, multiple=True, help="Keyword rules (TOML).")
@click.option("--judge-url", help="OpenAI-compatible endpoint, such as http://localhost:8000/v1.")
@click.option("--judge-model", help="The judge's name at the endpoint.")
@click.option("--model", help="Perplexity under this model: hub id, folder, bundled:NAME.")
@click.option("--device", default="auto", show_default=True, help="Of --model.")
@click.option("--scenarios", "scenario_file", type=_file, help="Scenario file with the rubrics.")
@click.option(
    "--timeout", "timeout_seconds", type=float, help="Seconds per request.  [default: 60]"
)
@click.option("--retries", "n_retries", type=int, help="Times a request is repeated.  [default: 4]")
@click.option("--parallel", "n_parallel", type=int, help="Requests at a time.  [default: 8]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the judging order.")
@json_option
def score(
    table: Path,
    *,
    mapping: str,
    out: Path | None,
    score_names: str | None,
    rule_files: tuple[Path, ...],
    judge_url: str | None,
    judge_model: str | None,
    model: str | None,
    device: str,
    scenario_file: Path | None,
    as_json: bool,
    **judging: Any,  # noqa: ANN401
) -> None:
    """Score the texts of TABLE (.csv, .parquet, .jsonl) by rules, by a judge, by a model.

    Columns: text; prompt and scenario for a judge; human_score, where there is one, calibrates
    it; prompt and system, where there are any, for the perplexity. Judgements are kept beside
    the scored table, so that the same command goes on where a server went down.

    \b
    Example: actlake score outputs.csv --map text=completion --out scored.parquet
    """
    from .corpus import read_scenarios, read_toml
    from .schemas import JudgeSpec, KeywordRules, ScoreSpec
    from .steer import map_columns, read_table, score_table, write_table

    out = out or table.with_name(f"{table.stem}-scored.parquet")
    rules = [KeywordRules.parse(read_toml(p, noun="word"), where=str(p)) for p in rule_files]
    chosen = {"scores": [n.strip() for n in score_names.split(",")]} if score_names else {}
    spec = ScoreSpec.parse({**chosen, "rules": rules}, where="options")
    judge = None
    if judge_url or judge_model or scenario_file:
        if not (judge_url and judge_model and scenario_file):
            msg = "a judge needs --judge-url, --judge-model and --scenarios together"
            raise InvalidInputError(msg)
        given = {k: v for k, v in judging.items() if v is not None}
        judge = JudgeSpec.parse(
            {"endpoint": judge_url, "model": judge_model, **given}, where="options"
        )
    named = map_columns(read_table(table), parse_map(mapping))
    if model is not None:
        named = _with_perplexity(named, model, device=device)
    found = score_table(
        named,
        spec=spec,
        judge=judge,
        scenarios={s.id: s for s in read_scenarios(scenario_file)} if scenario_file else None,
        kept=out.with_name(f"{out.stem}-judgements.jsonl"),
        progress=_progress if judge else None,
    )
    write_table(found.table, out)
    summary = out.with_name(f"{out.stem}-summary.json")
    summary.write_text(found.summary.to_json(), encoding="utf-8")
    say(f"scored: {out}; summary: {summary}")
    value = json.loads(found.summary.to_json())
    emit(value, as_json=as_json, show=lambda: _show(found.summary))


def _with_perplexity(table: pd.DataFrame, model: str, *, device: str) -> pd.DataFrame:
    """Return the table with the perplexity of its texts under a model, missing for empty ones."""
    from .extract import load_model
    from .steer import table_perplexities

    loaded = load_model(model, device=device, head=True)
    return table.assign(perplexity=table_perplexities(loaded, table))


def _progress(done: int, total: int) -> None:
    if done == total or done % max(1, total // 10) == 0:
        say(f"judged {done} of {total}")


def _show(summary: ScoreSummary) -> None:
    print_table(
        [
            {
                "score": name,
                "mean": None if mean is None else f"{mean:.4g}",
                "missing": summary.n_missing[name],
            }
            for name, mean in summary.means.items()
        ]
    )
    facts: dict[str, Any] = {"texts": summary.n_texts}
    if summary.judge is not None:
        facts |= {
            "judge": summary.judge,
            "judged": summary.n_judged,
            "unreadable": summary.n_unreadable,
            "rejected": summary.n_rejected,
            "without rubric": summary.n_without_rubric,
        }
    if summary.prevalence is not None and summary.prevalence.estimate is not None:
        p = summary.prevalence
        facts["share of score 2"] = (
            f"{p.estimate:.3f} ({p.ci_low:.3f} to {p.ci_high:.3f}); uncorrected {p.observed:.3f}"
        )
    if summary.agreement is not None and summary.agreement.estimate is not None:
        a = summary.agreement
        interval = "" if a.ci_low is None else f" ({a.ci_low:.3f} to {a.ci_high:.3f})"
        facts["Krippendorff's alpha"] = f"{a.estimate:.3f}{interval}"
    click.echo()
    print_facts(facts)
