"""The report's transfer of steering: whether a direction of one model steers another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from .report_charts import Records
from .report_intervention_panels import SERIES, dots_panel, short
from .report_numbers import (
    decimal,
    interval,
    number,
    percent,
    require_columns,
    rows_of,
    string,
)
from .report_page import Column, Page, details, esc, figure, grid, key, reason_list, table
from .report_statements import Statement, bracket, cards, reason_of, split_runs, tally

__all__ = ["add_steer_transfer", "transfer_statement"]

_NEEDED = ("run", "metric", "role", "direction", "estimate", "source_run")
_CONTROLS = {
    "random_source": "random directions",
    "permuted_anchors": "maps of unlike texts",
    "random_orthogonal": "random rotations",
}
_MARKS = {
    "transfers": "✓",
    "opposite": "↔",
    "no transfer": "✗",
    "unspecific": "≈",
    "untestable": "?",
}


def add_steer_transfer(
    page: Page, tables: Mapping[str, pd.DataFrame], labels: Mapping[str, str]
) -> None:
    """Add the matrix of source and target models; nothing where no transfer was run."""
    found = tables.get("steer-transfer")
    if found is None or found.empty:
        return
    found = require_columns(found, "steer-transfer", _NEEDED)
    verdicts = tables.get("steer-transfer-verdicts", pd.DataFrame())
    statements, panels, reasons, listed = [], [], [], []
    for run, label, rows in split_runs(found, labels):
        mine = verdicts[verdicts["run"].astype(str) == run] if len(verdicts) else verdicts
        statements.append(transfer_statement(label, rows, mine, labels))
        panels.append(_panel(page, label, rows, labels))
        ratios = rows[rows["metric"] == "ratio"]
        reasons += [
            f"{_source(r, labels)} to {label}, share of the own effect: "
            f"{string(r.get('reason')) or 'no reason was recorded'}"
            for r in rows_of(ratios[ratios["estimate"].isna()])
        ]
        listed += [
            {**r, "label": label, "source": _source(r, labels), **_effect_of(rows, r)}
            for r in rows_of(ratios)
        ]
    caption = (
        "How to read: half the change of the outcome between steering forwards and backwards, "
        "by direction. The target's own direction is what a transfer can reach; the controls are "
        "the grey ticks, in the same place: random directions of the source through the same map, "
        "maps fitted to texts that do not correspond, and random rotations. Only a mapped "
        "direction beyond all of them transfers."
    )
    items = [
        (SERIES[0][1], SERIES[0][0], "the model's own direction"),
        (SERIES[1][1], SERIES[1][0], "mapped from another model"),
        ("line", "#777", "controls, one tick each"),
    ]
    page.use(style="report_interventions.css")
    matrix = _matrix(found, verdicts, labels)
    body = cards(statements) + matrix
    body += figure(caption, key(items), grid(panels, width="22rem")) + reason_list(reasons)
    body += details("The transfers as a table", table(_COLUMNS, listed, label="Transfers"))
    answers = [str(row["answer"]) for row in rows_of(verdicts)]
    lead = f"Directions of another model: {tally(answers, 'transfer')}." if answers else ""
    page.add("steer-transfer", "Steering transfer", body, lead=lead)


def transfer_statement(
    label: str, rows: pd.DataFrame, verdicts: pd.DataFrame, labels: Mapping[str, str]
) -> Statement:
    """Return whether the other models' directions steer this one, beside its own direction."""
    own = rows[(rows["role"] == "own") & (rows["metric"] == "effect")]
    sentences = []
    known = own[own["estimate"].notna()]
    if len(verdicts):
        for row in rows_of(verdicts):
            words = string(row.get("words")) or "no reason was recorded"
            sentences.append(f"From {_source(row, labels)}: {string(row['answer'])}: {words}.")
    else:
        ratios = rows[rows["metric"] == "ratio"]
        for row in rows_of(ratios):
            share = number(row["estimate"])
            text = f"From {_source(row, labels)}: "
            if share is None:
                text += f"no share of the own effect: {string(row.get('reason')) or 'no reason'}"
            else:
                low, high = number(row.get("ci_low")), number(row.get("ci_high"))
                ends = interval(low, high, 2)
                text += f"{decimal(share, 2)} of the own direction's effect"
                text += f" ({ends})" if ends else ""
                text += f"; {_p_values(row)}"
            sentences.append(f"{text}.")
    if len(known):
        first = rows_of(known)[0]
        sentences.append(
            f"Its own direction moves the outcome by {decimal(number(first['estimate']), 4)} nats"
            f"{bracket(first, digits=4)}."
        )
    elif len(own):
        sentences.append(f"Its own direction has no estimate: {reason_of(own)}.")
    return Statement(
        label,
        tuple(sentences) or ("No direction was mapped to this model.",),
        "strengths are in class separations of this model along its own direction",
    )


def _p_values(row: Mapping[str, Any]) -> str:
    names = (("p_value", "random ones"), ("p_broken", "broken maps"), ("p_orthogonal", "rotations"))
    parts = [(number(row.get(name)), words) for name, words in names]
    known = [f"p {p:.3f} among {words}" for p, words in parts if p is not None]
    return ", ".join(known) if known else "without controls"


def _source(row: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    run = string(row.get("source_run")) or "an unnamed model"
    return labels.get(run, run)


def _effect_of(rows: pd.DataFrame, ratio: Mapping[str, Any]) -> dict[str, object]:
    """Return the effect of a mapped direction beside its ratio."""
    found = rows[
        (rows["metric"] == "effect") & (rows["direction"] == ratio["direction"])
        & (rows["source_run"] == ratio["source_run"])
    ]  # fmt: skip
    if found.empty:
        return {}
    row = rows_of(found)[0]
    return {"effect": row["estimate"], "effect_low": row.get("ci_low"),
            "effect_high": row.get("ci_high")}  # fmt: skip


def _matrix(found: pd.DataFrame, verdicts: pd.DataFrame, labels: Mapping[str, str]) -> str:
    """Return the table of sources (rows) and targets (columns), each cell with its verdict."""
    here = [str(r) for r in dict.fromkeys([*found["source_run"].dropna(), *found["run"]])]
    runs = [r for r in labels if r in here] + [r for r in here if r not in labels]
    head = "".join(f'<th scope="col">to {esc(labels.get(r, r))}</th>' for r in runs)
    body = ""
    for source in runs:
        cells = "".join(_cell(found, verdicts, source, target) for target in runs)
        body += f'<tr><th scope="row">from {esc(labels.get(source, source))}</th>{cells}</tr>'
    return (
        '<div class="scroll" role="region" tabindex="0" aria-label="Steering transfer">'
        f'<table class="matrix"><thead><tr><th scope="col"></th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(found: pd.DataFrame, verdicts: pd.DataFrame, source: str, target: str) -> str:
    """Return one cell: the own effect on the diagonal, else the share of it and the verdict."""
    to = found[found["run"].astype(str) == target]
    if source == target:
        own = to[(to["role"] == "own") & (to["metric"] == "effect") & to["estimate"].notna()]
        if own.empty:
            return "<td>own direction: no estimate</td>"
        row = rows_of(own)[0]
        ends = interval(number(row.get("ci_low")), number(row.get("ci_high")))
        shown = f"own: {decimal(number(row['estimate']))} nats" + (f" ({ends})" if ends else "")
        return f"<td>{esc(shown)}</td>"
    rows = rows_of(to[(to["metric"] == "ratio") & (to["source_run"].astype(str) == source)])
    if not rows:
        return '<td class="absent-cell">not run</td>'
    lines = []
    for row in rows:
        share = number(row["estimate"])
        ends = interval(number(row.get("ci_low")), number(row.get("ci_high")), 2)
        text = "no share" if share is None else f"{decimal(share, 2)} of the own effect"
        text += f" ({ends})" if ends else ""
        answer = _answer(verdicts, row, target)
        badge = ""
        if answer:
            kind = answer.replace(" ", "-")
            mark = _MARKS.get(answer, "?")
            badge = (
                f'<span class="badge {kind}"><span aria-hidden="true">{mark}</span> '
                f"{esc(answer)}</span> "
            )
        lines.append(f"<p>{badge}{esc(text)}<br>{esc(_p_values(row))}</p>")
    return f"<td>{''.join(lines)}</td>"


def _answer(verdicts: pd.DataFrame, row: Mapping[str, Any], target: str) -> str:
    if verdicts.empty:
        return ""
    mine = verdicts[
        (verdicts["run"].astype(str) == target)
        & (verdicts["source_run"].astype(str) == str(row["source_run"]))
        & (verdicts["map"].astype(str) == str(row.get("map")))
    ]
    return "" if mine.empty else (string(rows_of(mine)[0]["answer"]) or "")


def _panel(page: Page, label: str, rows: pd.DataFrame, labels: Mapping[str, str]) -> str:
    """Return the effects of all directions on one target."""
    effects = rows[(rows["metric"] == "effect")]
    known = effects[effects["estimate"].notna()]
    names: list[str] = []
    dots: Records = []
    for row in rows_of(known):
        role = str(row["role"])
        if role == "own":
            name, kind = "own", "own"
        elif role == "mapped":
            # A map has a name of its own only where several were fitted.
            name, kind = f"from {_source(row, labels)}", "mapped"
            if known[known["role"] == "mapped"]["map"].nunique() > 1:
                name += f", {row.get('map')}"
        elif role in _CONTROLS:
            name, kind = _CONTROLS[role], "control"
        else:
            continue
        names.append(name)
        dots.append(
            {"row": name, "kind": kind, "name": _full_name(row, labels),
             "x": short(row["estimate"]), "low": short(row.get("ci_low")),
             "high": short(row.get("ci_high"))}
        )  # fmt: skip
    # The own direction is steered again beside every source; one dot says it.
    own = [d for d in dots if d["kind"] == "own"]
    dots = [*own[:1], *(d for d in dots if d["kind"] != "own")]
    order = ["own", *(n for n in dict.fromkeys(names) if n.startswith("from "))]
    order += [n for n in _CONTROLS.values() if n in names]
    order = [n for n in order if n in names]
    spec = dots_panel(dots, rows=order, x_title="effect [nats/token]") if dots else None
    return page.panel(f"Onto {label}", spec, absent=f"Not estimated: {reason_of(effects)}.")


def _full_name(row: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    source = f" of {_source(row, labels)}" if string(row.get("source_run")) else ""
    return f"{string(row['direction'])}{source}"


_COLUMNS = [
    Column("from", lambda r: str(r["source"])),
    Column("to", lambda r: str(r["label"])),
    Column("map", lambda r: string(r.get("map")) or "–"),
    Column("share of own effect", lambda r: decimal(number(r["estimate"]), 2), "number"),
    Column(
        "95 % interval", lambda r: interval(number(r.get("ci_low")), number(r.get("ci_high")), 2),
        "number",
    ),
    Column("effect [nats/token]", lambda r: decimal(number(r.get("effect")), 4), "number"),
    Column(
        "its interval",
        lambda r: interval(number(r.get("effect_low")), number(r.get("effect_high")), 4), "number",
    ),
    Column("p, random", lambda r: decimal(number(r.get("p_value"))), "number"),
    Column("p, unlike texts", lambda r: decimal(number(r.get("p_broken"))), "number"),
    Column("p, rotations", lambda r: decimal(number(r.get("p_orthogonal"))), "number"),
    Column("cosine with own", lambda r: decimal(number(r.get("cosine")), 2), "number"),
    Column("held-out R² of the map", lambda r: decimal(number(r.get("map_r2")), 2), "number"),
    Column("length kept", lambda r: percent(number(r.get("share_kept"))), "number"),
]  # fmt: skip
