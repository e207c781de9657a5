"""The commands that analyse tables of steered samples: doses, negative, task-free, samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .cli_score import map_option, parse_map
from .console import emit, json_option, print_facts, print_table, say

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["doses", "negative", "samples", "task_free"]

_file = click.Path(dir_okay=False, path_type=Path)
_out = click.option("--out", type=_file, help="Write all rows here (.csv, .parquet, .jsonl).")
_spec = click.option("--spec", "spec_file", type=_file, help="Columns and margins (TOML).")
_cluster = click.option("--cluster", help="Column that is resampled whole.  [default: prompt]")
_draws = click.option("--draws", "n_bootstrap", type=int, help="Bootstrap draws.  [default: 1000]")
_seed = click.option("--seed", type=int, help="Of the bootstrap.  [default: 0]")


def _load(table: Path, mapping: str) -> pd.DataFrame:
    from .steer import map_columns, read_table

    return map_columns(read_table(table), parse_map(mapping))


def _values(spec_file: Path | None, options: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a spec file, those of options that were given in their place."""
    from .corpus import read_toml

    values = read_toml(spec_file, noun="setting") if spec_file else {}
    return values | {name: value for name, value in options.items() if value is not None}


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as JSON values, null for what is missing."""
    found: list[dict[str, Any]] = json.loads(table.to_json(orient="records"))
    return found


def _emit(
    rows: pd.DataFrame, verdicts: pd.DataFrame, *, out: Path | None, as_json: bool, shown: list[str]
) -> None:
    from .steer import write_table

    if out is not None:
        write_table(rows, out)
        say(f"rows: {out}")
    value = {"rows": _records(rows), "verdicts": _records(verdicts)}

    def show() -> None:
        print_table([{n: _short(row[n]) for n in shown if n in row} for row in value["rows"]])
        for verdict in value["verdicts"]:
            click.echo()
            print_facts({k: _short(v) for k, v in verdict.items() if v is not None})

    emit(value, as_json=as_json, show=show)


def _short(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value


@click.command()
@click.argument("table", type=_file)
@map_option
@click.option("--outcome", help="Column of the outcome.  [default: shift]")
@click.option("--threshold", type=float, help="Success is an outcome at or above this.")
@click.option("--by", help="Columns whose combinations are analysed apart, comma-separated.")
@click.option("--coherence", help="Column of coherence, 1 or 0.")
@click.option("--claimed", type=float, help="Raw strength said to be needed.  [default: 20]")
@click.option("--separation", type=float, help="Distance of the class means, for the units.")
@click.option("--mean-norm", type=float, help="Mean residual norm, for the units.")
@_cluster
@_spec
@_draws
@_seed
@_out
@json_option
def doses(
    table: Path,
    *,
    mapping: str,
    spec_file: Path | None,
    separation: float | None,
    mean_norm: float | None,
    by: str | None,
    out: Path | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Analyse the dose-response of TABLE: one row per sample with alpha_raw, prompt and outcome.

    Success by the strict rule, slopes, the logistic curve, the minimum effective strength, the
    breakdown of coherence, and a verdict on whether the claimed strength is needed.

    \b
    Example: actlake doses samples.parquet --map prompt=pair --by direction --separation 2.5
    """
    from .schemas import DoseSpec
    from .steer import analyse_doses

    given = options | {"by": by.split(",") if by else None}
    if given["threshold"] is not None:
        given["success"] = "threshold"
    spec = DoseSpec.parse(_values(spec_file, given), where="options")
    found = analyse_doses(
        _load(table, mapping), spec=spec, separation=separation, mean_norm=mean_norm
    )
    shown = ["group", "side", "metric", "subset", "alpha_raw", "estimate", "ci_low", "ci_high",
             "n_samples", "reason"]  # fmt: skip
    _emit(found.rows, found.verdicts, out=out, as_json=as_json, shown=shown)


@click.command()
@click.argument("table", type=_file)
@map_option
@click.option("--task", help="Column that falls as the task is focused on.  [default: judge_score]")
@_cluster
@_spec
@_draws
@_seed
@_out
@json_option
def negative(
    table: Path,
    *,
    mapping: str,
    spec_file: Path | None,
    out: Path | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Ask of a scored TABLE whether steering away raises task focus, and with cruelty or without.

    \b
    Example: actlake negative scored.parquet --map alpha_raw=coeff --cluster scenario
    """
    from .schemas import NegativeSpec
    from .steer import contrast_negative

    spec = NegativeSpec.parse(_values(spec_file, options), where="options")
    found = contrast_negative(_load(table, mapping), spec=spec)
    shown = ["metric", "subset", "alpha_raw", "baseline_estimate", "estimate", "ci_low", "ci_high",
             "reason"]  # fmt: skip
    _emit(found.rows, found.verdicts, out=out, as_json=as_json, shown=shown)


@click.command("task-free")
@click.argument("table", type=_file)
@map_option
@click.option("--outcome", help="Column of the outcome.  [default: judge_score]")
@click.option("--kind", help="Column of the scenario's type.  [default: category]")
@_cluster
@_spec
@_draws
@_seed
@_out
@json_option
def task_free(
    table: Path,
    *,
    mapping: str,
    spec_file: Path | None,
    out: Path | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Ask of a scored TABLE whether steering works in scenarios without a task conflict.

    \b
    Example: actlake task-free scored.parquet --kind category --cluster scenario
    """
    from .schemas import ScenarioSpec
    from .steer import contrast_scenarios

    spec = ScenarioSpec.parse(_values(spec_file, options), where="options")
    found = contrast_scenarios(_load(table, mapping), spec=spec)
    shown = ["kind", "metric", "alpha_raw", "baseline_estimate", "estimate", "ci_low", "ci_high",
             "untestable"]  # fmt: skip
    _emit(found.rows, found.verdicts, out=out, as_json=as_json, shown=shown)


@click.command()
@click.option("--margin", type=float, default=0.1, show_default=True, help="± of a success share.")
@click.option("--share", type=float, default=0.5, show_default=True, help="The share expected.")
@click.option("--baseline", type=float, help="A baseline's share to be told from --share.")
@click.option("--power", type=float, default=0.8, show_default=True, help="To tell them apart.")
@click.option("--strengths", type=int, default=1, show_default=True, help="Compared with 0.")
@click.option("--per-prompt", type=float, default=1.0, show_default=True, help="Samples of each.")
@click.option("--correlation", type=float, default=0.0, help="Of samples of one prompt.")
@json_option
def samples(
    *,
    margin: float,
    share: float,
    baseline: float | None,
    power: float,
    strengths: int,
    per_prompt: float,
    correlation: float,
    as_json: bool,
) -> None:
    """Say how many samples per strength an answer needs.

    \b
    Example: actlake samples --margin 0.1 --baseline 0.3 --share 0.5 --strengths 10
    """
    from .steer import samples_for_difference, samples_for_margin
    from .steer.power import design_effect

    inflation = design_effect(per_prompt, correlation)
    value: dict[str, Any] = {
        "margin": margin,
        "design_effect": inflation,
        "samples_for_margin": samples_for_margin(margin, share=share, inflation=inflation),
    }
    if baseline is not None:
        value["samples_for_difference"] = samples_for_difference(
            baseline, share, power=power, inflation=inflation, n_comparisons=strengths
        )
    emit(value, as_json=as_json, show=lambda: print_facts(value))
