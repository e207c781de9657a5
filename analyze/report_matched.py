"""The report's patching beside steering of the same size, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from .hypotheses import HypothesisVerdict
from .report_charts import RANDOM_COLOUR, Records
from .report_intervention_panels import SERIES, Series, curves_panel, points_of
from .report_numbers import decimal, number, require_columns, rows_of
from .report_page import Page, figure, grid, key
from .report_statements import (
    Statement,
    bracket,
    cards,
    p_words,
    reason_of,
    split_runs,
    tally,
)

__all__ = ["add_matched", "matched_statement"]


def add_matched(
    page: Page,
    tables: Mapping[str, pd.DataFrame],
    labels: Mapping[str, str],
    *,
    verdicts: Sequence[HypothesisVerdict] = (),
) -> None:
    """Add patching beside steering of the same size; nothing where they were not compared."""
    matched = tables.get("matched")
    if matched is None or matched.empty:
        return
    matched = require_columns(matched, "matched", ("run", "what", "layer", "estimate"))
    statements, panels = [], []
    for run, label, rows in split_runs(matched, labels):
        known = rows[rows["estimate"].notna()]
        mine = [v for v in verdicts if v.hypothesis.id == "H2" and v.run == run]
        statements.append(matched_statement(label, rows, verdict=mine[0] if mine else None))
        spec = _matched_panel(known) if len(known) else None
        panels.append(page.panel(label, spec, absent=f"Not estimated: {reason_of(rows)}."))
    caption = (
        "How to read: at each layer the effect of patching the state (nats of log-probability "
        "difference) beside that of steering which moves the state as far along the direction, "
        "with 95 % intervals over pairs. The control is the grey band: steering as far along "
        "random directions. Compare at one layer; unlike sizes are never compared."
    )
    items = [
        (SERIES[0][1], SERIES[0][0], "patch"),
        (SERIES[1][1], SERIES[1][0], "steering as far"),
        ("band", RANDOM_COLOUR, "range of steering as far along random directions"),
    ]
    body = cards(statements) + figure(caption, key(items), grid(panels, width="19rem"))
    answers = [v.answer for v in verdicts if v.hypothesis.id == "H2"]
    lead = f"That patching fails where steering works: {tally(answers)}." if answers else ""
    page.add("matched", "Patching beside steering", body, lead=lead)


def matched_statement(
    label: str, rows: pd.DataFrame, *, verdict: HypothesisVerdict | None
) -> Statement:
    """Return what patching and steering do at matched size at the probe's layer."""
    known = rows[rows["estimate"].notna()]
    if known.empty:
        return Statement(label, (f"Not estimated: {reason_of(rows)}.",))
    sentences = []
    if verdict is not None:
        because = verdict.because[:1].upper() + verdict.because[1:]
        sentences.append(f"{because}.")
    steer = known[known["what"] == "steer"]
    if len(steer):
        top = rows_of(steer.loc[[steer["estimate"].astype(float).idxmax()]])[0]
        p = p_words(number(top.get("p_value")), number(top.get("n_draws")))
        sentences.append(
            f"Over all layers steering does most at layer {int(top['layer'])}: "
            f"{decimal(number(top['estimate']))} nats{bracket(top)}; against random directions "
            f"there {p}, uncorrected for the number of layers."
        )
    return Statement(
        label,
        tuple(sentences) or ("Only random directions were run.",),
        "the size is matched per token, not the kind of change: a patch may use many directions "
        "at once, steering one",
    )


def _matched_panel(known: pd.DataFrame) -> dict[str, Any]:
    series = [
        Series(name, points_of(known[known["what"] == what], "layer"), place)
        for place, (what, name) in enumerate((("patch", "patch"), ("steer", "steering as far")))
        if (known["what"] == what).any()
    ]
    band: Records = []
    for _, part in known[known["what"] == "random"].groupby("layer"):
        values = part["estimate"].astype(float)
        band.append(
            {
                "x": int(part["layer"].iloc[0]),
                "low": float(values.min()),
                "high": float(values.max()),
            }
        )
    return curves_panel(series, x_title="layer", y_title="effect [nats]", whole=True, band=band)
