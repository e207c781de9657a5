"""The report's patches: at which layer and position a state carries the effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from .report_charts import Records
from .report_intervention_panels import (
    HEAT_COLOURS,
    heat_panel,
    heat_scale,
    short,
)
from .report_numbers import (
    decimal,
    interval,
    number,
    percent,
    require_columns,
    rows_of,
    string,
)
from .report_page import Column, Page, details, esc, figure, grid, reason_list, table
from .report_statements import Statement, cards, p_words, reason_of, split_runs

__all__ = ["add_patching", "patch_statement"]

_NEEDED = (
    "run", "mode", "arm", "layer", "position", "index", "estimate", "effect", "total",
    "small_total",
)  # fmt: skip
# The arms in the order of the panels; what follows "complement" is a placebo.
_ARMS = {
    "full": "all of the state",
    "coordinate": "the coordinate along the direction",
    "complement": "all but the coordinate",
    "random": "random directions",
    "shuffled": "the direction of shuffled labels",
    "wrong_layer": "the state of another layer",
    "same_class": "the state of the same disposition",
}
_TITLES = {
    "random": "placebo: random directions",
    "shuffled": "placebo: shuffled labels",
    "wrong_layer": "placebo: other layer",
    "same_class": "placebo: same disposition",
}
_MODES = {"denoise": "denoising, share recovered", "noise": "noising, share left"}
_MAIN = ("coordinate", "full")


def add_patching(page: Page, tables: Mapping[str, pd.DataFrame], labels: Mapping[str, str]) -> None:
    """Add maps of layer and position per mode and arm; nothing where no patch was run."""
    patches = tables.get("patching")
    if patches is None or patches.empty:
        return
    patches = require_columns(patches, "patching", _NEEDED)
    statements, parts, reasons, listed = [], [], [], []
    for _, label, rows in split_runs(patches, labels):
        statements.append(patch_statement(label, rows))
        in_nats = _in_nats(rows)
        parts.append(
            f'<h3>{esc(label)} <span class="note">{esc(_setting(rows, in_nats))}</span></h3>'
        )
        parts += _maps(page, label, rows, in_nats=in_nats)
        missing = rows[rows["estimate"].isna()]
        reasons += [f"{label}, {r['arm']} at {r['position']}: {reason_of(missing)}"
                    for r in rows_of(missing.drop_duplicates(["arm", "position"]))]  # fmt: skip
        shown = rows[rows["arm"] != "random"]
        listed += [{**row, "label": label} for row in rows_of(shown)]
    caption = (
        "How to read: each cell is a patch at one layer and position. Denoising writes the state "
        "of the run under the source's system prompt into the base run: 1 means that this state "
        "alone brings the whole difference back. Noising does the reverse: 1 means that nothing "
        "is lost without it, 0 that all is. Colour is how much the place matters: the share "
        "recovered, or the share lost. Read a map against the placebos beside it: as large a "
        "change that means nothing should stay white. Of random directions the mean is shown."
    )
    body = figure(caption, _heat_key(), "".join(parts)) + reason_list(reasons)
    body += details("The patches as a table", table(_PATCH_COLUMNS, listed, label="Patches"))
    page.add(
        "patching",
        "Patches by layer and position",
        cards(statements) + body,
        lead=_patch_lead(patches, labels),
    )


def _patch_lead(patches: pd.DataFrame, labels: Mapping[str, str]) -> str:
    """Return what the best patch along the direction recovers in each model."""
    parts = []
    for _, label, rows in split_runs(patches, labels):
        in_nats = _in_nats(rows)
        column = "effect" if in_nats else "estimate"
        mine = rows[(rows["mode"] == "denoise") & (rows["arm"] == "coordinate")][column].dropna()
        if len(mine):
            parts.append(f"{_size(float(mine.max()), in_nats)} in {label}")
    return f"The best patch along the direction recovers {', '.join(parts)}." if parts else ""


def patch_statement(label: str, rows: pd.DataFrame) -> Statement:
    """Return which layer and position recover most, with all of the state and along the direction.

    The share is of the difference between the two system prompts; where that is too small for a
    share the effects are in nats.
    """
    in_nats = _in_nats(rows)
    sentences = []
    denoise = rows[rows["mode"] == "denoise"]
    for arm in _MAIN:
        mine = denoise[denoise["arm"] == arm]
        known = mine[mine["effect" if in_nats else "estimate"].notna()]
        if known.empty:
            why = reason_of(mine) if len(mine) else "this arm was not run"
            sentences.append(f"No share recovered by {_ARMS[arm]}: {why}.")
            continue
        sentences.append(_best_place(known, denoise, arm=arm, in_nats=in_nats))
    left = _left(rows, in_nats=in_nats)
    if left:
        sentences.append(left)
    caveat = (
        "the best of many places is an optimistic pick; the p-value over all layers and positions "
        "allows for it, the interval does not"
    )
    if in_nats:
        caveat += "; the two system prompts differ too little for shares, so effects stand in nats"
    return Statement(label, tuple(sentences), caveat)


def _best_place(known: pd.DataFrame, denoise: pd.DataFrame, *, arm: str, in_nats: bool) -> str:
    column = "effect" if in_nats else "estimate"
    top = rows_of(known.loc[[known[column].astype(float).idxmax()]])[0]
    low, high = _ends(top, in_nats)
    others = known[(known["layer"] != top["layer"]) | (known["position"] != top["position"])]
    reach = [e for r in rows_of(others) for e in (_ends(r, in_nats)[1],) if e is not None]
    as_far = sum(e >= low for e in reach) if low is not None else 0
    ends = f" (95 % interval {_size(low, in_nats)} to {_size(high, in_nats)})"
    text = (
        f"Writing {_ARMS[arm]} at layer {int(top['layer'])}, {string(top['position'])}, recovers "
        f"most: {_size(number(top[column]), in_nats)}"
        f"{ends if low is not None and high is not None else ' (no interval)'}"
    )
    if arm == "full":
        if as_far:
            text += f"; the intervals of {as_far} of {len(others)} other places reach as far"
        return f"{text}."
    random = denoise[
        (denoise["arm"] == "random")
        & (denoise["layer"] == top["layer"])
        & (denoise["position"] == top["position"])
    ][column].dropna()
    if random.empty:
        return f"{text}; no random directions were run, so nothing says that the direction matters."
    p = number(top.get("p_value_max"))
    least, most = _size(float(random.min()), in_nats), _size(float(random.max()), in_nats)
    beaten = float(top[column]) > float(random.max())
    text += (
        f", {'more than' if beaten else 'no more than'} {len(random)} random directions of the "
        f"same size there ({least} to {most}"
    )
    if p is not None:
        text += f"; over all layers and positions {p_words(p, number(top.get('n_draws')))}"
    return f"{text})."


def _left(rows: pd.DataFrame, *, in_nats: bool) -> str:
    """Return what noising the coordinate costs at most."""
    noise = rows[(rows["mode"] == "noise") & (rows["arm"] == "coordinate")]
    column = "effect" if in_nats else "estimate"
    noise = noise[noise[column].notna()]
    if noise.empty:
        return ""
    least = rows_of(noise.loc[[noise[column].astype(float).idxmin()]])[0]
    low, high = _ends(least, in_nats)
    what = "changes the outcome by" if in_nats else "leaves"
    ends = f" ({_size(low, in_nats)} to {_size(high, in_nats)})" if low is not None else ""
    return (
        f"Taking the coordinate away instead costs most at layer {int(least['layer'])}, "
        f"{string(least['position'])}: it {what} {_size(number(least[column]), in_nats)}{ends}."
    )


def _ends(row: Mapping[str, Any], in_nats: bool) -> tuple[float | None, float | None]:  # noqa: FBT001
    prefix = "effect_ci" if in_nats else "ci"
    return number(row.get(f"{prefix}_low")), number(row.get(f"{prefix}_high"))


def _size(value: float | None, in_nats: bool) -> str:  # noqa: FBT001
    if value is None:
        return "–"
    if in_nats:
        return f"{decimal(value)} nats"
    return f"{decimal(100 * value, 1)} %"


def _in_nats(rows: pd.DataFrame) -> bool:
    """Return whether the two runs differ too little for a share of their difference."""
    return any(number(flag) for flag in rows["small_total"])


def _setting(rows: pd.DataFrame, in_nats: bool) -> str:  # noqa: FBT001
    first = rows_of(rows)[0]
    pairs = number(first.get("n_pairs"))
    total = decimal(number(first["total"]))
    ends = interval(number(first.get("total_ci_low")), number(first.get("total_ci_high")))
    text = f"{decimal(pairs, 0)} pairs; the system prompts differ by {total} nats"
    text += f" ({ends})" if ends else ""
    return f"{text}; effects in nats, since that is too little for a share" if in_nats else text


def _maps(page: Page, label: str, rows: pd.DataFrame, *, in_nats: bool) -> list[str]:
    """Return a grid of maps per mode: the arms, then the placebos, on one scale of colour.

    What is left of the state without the coordinate lies in a closed box.
    """
    column = "effect" if in_nats else "estimate"
    reach = heat_scale(
        [number(x) for x in rows[rows["arm"] != "random"][column]], least=0.01 if in_nats else 1.0
    )
    out = []
    positions = list(dict.fromkeys(str(p) for p in rows["position"]))
    rest: list[str] = []
    for mode, title in _MODES.items():
        panels: list[str] = []
        for arm, words in _ARMS.items():
            mine = rows[(rows["mode"] == mode) & (rows["arm"] == arm)]
            if mine.empty:
                continue
            cells = _cells(mine, column=column, in_nats=in_nats)
            known = any(c["value"] is not None for c in cells)
            digits = 3 if in_nats else 2
            spec = heat_panel(cells, rows=positions, reach=reach, digits=digits) if known else None
            beside = arm == "complement"
            heading = _TITLES.get(arm, words)
            drawn = page.panel(
                f"{heading}, {title.split(',')[0]}" if beside else heading,
                spec, absent=f"Not estimated: {reason_of(mine)}.", aside=beside,
            )  # fmt: skip
            (rest if beside else panels).append(drawn)
        if panels:
            what = title.split(",")[0] + ", effect in nats" if in_nats else title
            head = f"<h4>{esc(what[:1].upper() + what[1:])}</h4>"
            out.append(head + grid(panels, width="15rem"))
    if rest:
        out.append(details(f"{label}: {_ARMS['complement']}", grid(rest, width="15rem")))
    return out


def _cells(rows: pd.DataFrame, *, column: str, in_nats: bool) -> Records:
    """Return a cell per layer and position; of random directions the mean and the range."""
    out = []
    # Noising is coloured by what is lost, so that a place that matters is dark in both modes.
    noise = str(rows["mode"].iloc[0]) == "noise"
    for _, part in rows.groupby(["layer", "position"], sort=False):
        first = rows_of(part.head(1))[0]
        values = [v for v in map(number, part[column]) if v is not None]
        if len(part) > 1:
            low, high = (min(values), max(values)) if values else (None, None)
        else:
            low, high = _ends(first, in_nats)
        mean = sum(values) / len(values) if values else None
        out.append(
            {"layer": int(first["layer"]), "row": str(first["position"]), "value": short(mean),
             "low": short(low), "high": short(high),
             "shade": short(_lost(mean, in_nats=in_nats) if noise else mean)}
        )  # fmt: skip
    return out


def _lost(value: float | None, *, in_nats: bool) -> float | None:
    """Return how much is lost where a share of 1 means nothing, and a fall in nats something."""
    if value is None:
        return None
    return -value if in_nats else 1 - value


def _heat_key() -> str:
    """Return the colours of the maps with the ends that they stand for."""
    cells = "".join(
        f'<rect x="{16 * i}" width="16" height="12" fill="{colour}" stroke="#d5d9de"/>'
        for i, colour in enumerate(HEAT_COLOURS)
    )
    width = 16 * len(HEAT_COLOURS)
    drawing = f'<svg width="{width}" height="12" viewBox="0 0 {width} 12" aria-hidden="true">'
    return (
        f'<ul class="key"><li>below 0 {drawing}{cells}</svg> above 0; the ends are −1 and 1, or '
        "the largest size of the maps of a model; white is 0</li></ul>"
    )


_PATCH_COLUMNS = [
    Column("model", lambda r: r["label"]),
    Column("mode", lambda r: str(r["mode"])),
    Column("arm", lambda r: str(r["arm"])),
    Column("layer", lambda r: decimal(number(r["layer"]), 0), "number"),
    Column("position", lambda r: str(r["position"])),
    Column("share", lambda r: decimal(number(r["estimate"])), "number"),
    Column(
        "95 % interval", lambda r: interval(number(r.get("ci_low")), number(r.get("ci_high"))),
        "number",
    ),
    Column("effect [nats]", lambda r: decimal(number(r["effect"])), "number"),
    Column("p", lambda r: decimal(number(r.get("p_value"))), "number"),
    Column("p over places", lambda r: decimal(number(r.get("p_value_max"))), "number"),
    Column("choose as the donor", lambda r: percent(number(r.get("interchange"))), "number"),
    Column("change per token", lambda r: decimal(number(r.get("change_norm")), 2), "number"),
]  # fmt: skip
