"""How each hypothesis of the plan is judged from the tables of a study.

What is read at one layer is read at the one that the probe's inner folds selected, so that no
verdict rests on the best of many layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import pandas as pd

__all__ = ["JUDGES", "Answer", "StudyTables"]

Answer: TypeAlias = Literal["supported", "not supported", "cannot tell"]
Row: TypeAlias = dict[str, Any]
_NOT_RUN = "the analysis was not run in this study"
_LEVEL = 0.05
_NEEDED: dict[str, Answer] = {"needed": "supported", "not needed": "not supported"}
_CONFLICT: dict[str, Answer] = {
    "fails without conflict": "supported",
    "steers without conflict too": "not supported",
    "weaker without conflict": "not supported",
}


@dataclass(frozen=True)
class StudyTables:
    """The tables that hypotheses are judged from; an empty one means "not run".

    Each has a column ``run``. ``probes`` are ResultRow rows, ``null`` the random directions' band,
    ``ablation`` AblationRow, ``geometry`` GeometryRow, ``patching`` PatchRow, ``matched``
    MatchedRow and ``mediation`` MediationRow rows; ``doses``, ``task_free`` and ``negative`` are
    the verdicts of those analyses. ``layers`` has by run the layer that the probe is read at; of a
    run that is not in it, that of the nested row, if it has one.
    """

    probes: pd.DataFrame = field(default_factory=pd.DataFrame)
    null: pd.DataFrame = field(default_factory=pd.DataFrame)
    ablation: pd.DataFrame = field(default_factory=pd.DataFrame)
    geometry: pd.DataFrame = field(default_factory=pd.DataFrame)
    patching: pd.DataFrame = field(default_factory=pd.DataFrame)
    matched: pd.DataFrame = field(default_factory=pd.DataFrame)
    mediation: pd.DataFrame = field(default_factory=pd.DataFrame)
    doses: pd.DataFrame = field(default_factory=pd.DataFrame)
    task_free: pd.DataFrame = field(default_factory=pd.DataFrame)
    negative: pd.DataFrame = field(default_factory=pd.DataFrame)
    layers: Mapping[str, int] = field(default_factory=dict)


_Verdicts: TypeAlias = Iterator[tuple[str | None, Answer, str]]


def _per_run(
    table: Callable[[StudyTables], pd.DataFrame],
    judge: Callable[[pd.DataFrame, StudyTables], tuple[Answer, str]],
) -> Callable[[StudyTables, Sequence[str]], _Verdicts]:
    """Return a judge of every run that looks at its rows of one table, if there are any."""

    def each(tables: StudyTables, runs: Sequence[str]) -> _Verdicts:
        for run in runs:
            rows = _of(table(tables), run)
            yield (run, *(judge(rows, tables) if len(rows) else ("cannot tell", _NOT_RUN)))

    return each


def _of(table: pd.DataFrame, run: str | None) -> pd.DataFrame:
    return table[table["run"] == run] if len(table) else table


def _perfect(tables: StudyTables, runs: Sequence[str]) -> _Verdicts:
    """H1: every nested AUROC is 1, or some interval ends below 1."""
    below: list[str] = []
    perfect: list[str] = []
    unsure: list[str] = []
    for run in runs:
        row = _nested(tables.probes, run)
        if row is None:
            unsure.append(f"{run}: no nested AUROC")
            continue
        shown = f"{run} {_number(row['estimate'])} ({_interval(row)})"
        if float(row["estimate"]) >= 1:
            perfect.append(shown)
        elif pd.notna(row["ci_high"]) and float(row["ci_high"]) < 1:
            below.append(shown)
        else:
            unsure.append(f"{shown}, whose interval reaches 1")
    words = _words_alone(tables, runs)
    if below:
        yield None, "not supported", f"below 1: {'; '.join(below)}{words}"
    elif unsure:
        yield None, "cannot tell", f"{'; '.join(unsure)}{words}"
    else:
        yield None, "supported", f"{'; '.join(perfect)}{words}"


def _nested(probes: pd.DataFrame, run: str) -> Row | None:
    """Return the nested AUROC of a run over all texts: of difference of means, if it was run."""
    rows = _of(probes, run)
    if not len(rows):
        return None
    rows = rows[(rows["metric"] == "auroc_nested") & (rows["subset"] == "all")]
    rows = rows[rows["estimate"].notna() & rows["pool"].notna()]
    for column, preferred in (("method", "diff_means"), ("pool", "mean_response")):
        rows = rows[rows[column] == preferred] if preferred in set(rows[column]) else rows
    return _first(rows) if len(rows) else None


def _words_alone(tables: StudyTables, runs: Sequence[str]) -> str:
    """Return the bag of words beside it, without which an AUROC is not to be read."""
    found = [row for run in runs if (row := _nested(tables.probes, run)) is not None]
    known = [float(row["bow_estimate"]) for row in found if pd.notna(row["bow_estimate"])]
    return f"; a bag of words alone reaches {_number(max(known))}" if known else ""


def _patching(rows: pd.DataFrame, tables: StudyTables) -> tuple[Answer, str]:
    """H2: at matched size steering has an effect beyond random directions, and patching none."""
    here = _at_probe(rows, tables)
    arms: dict[str, Row] = {str(row["what"]): row for row in _rows(here) if row["what"] != "random"}
    if not {"patch", "steer", "steer - patch"} <= set(arms):
        return "cannot tell", "patching and steering were not compared at matched size"
    patch, steer = arms["patch"], arms["steer"]
    shown = (
        f"at matched size and layer {int(patch['layer'])}, patching moves the outcome by "
        f"{_number(patch['estimate'])} ({_interval(patch)}) nats, steering by "
        f"{_number(steer['estimate'])} ({_interval(steer)})"
    )
    if _above_zero(patch):
        return "not supported", f"{shown}: patching works"
    p = steer.get("p_value")
    beyond = p is not None and pd.notna(p) and float(p) <= _LEVEL
    if _above_zero(steer) and beyond and _above_zero(arms["steer - patch"]):
        return "supported", f"{shown}, beyond random directions (p = {_number(p)})"
    return "cannot tell", f"{shown}: neither is shown to work beyond its control"


def _lexical(rows: pd.DataFrame, tables: StudyTables) -> tuple[Answer, str]:
    """H3: what the removal of all keywords costs beyond that of as many random words."""
    known = rows[rows["contrast"].notna() & (rows["subset"] == "all")]
    known = known[(known["arm"] == "keywords_removed") & (known["metric"] == "auroc")]
    # Re-extracted texts, where there are any: later tokens attended to words that are re-pooled.
    again = known[(known["way"] == "reextracted") & (known["readout"] == "refit")]
    keywords = _at_probe(again if len(again) else known[known["readout"] == "refit"], tables)
    keywords = (
        keywords[keywords["lexicon"].isna()] if keywords["lexicon"].isna().any() else keywords
    )
    if keywords.empty:
        return "cannot tell", "no arm that removes keywords has a comparison with random words"
    worst = _first(keywords)
    low, high = (float(worst[f"contrast_ci_{end}"]) for end in ("low", "high"))
    shown = (
        f"removing keywords changes the AUROC by {_number(worst['delta'])}, that is "
        f"{_number(worst['contrast'])} ({_number(low)} to {_number(high)}) beyond as many random "
        f"words (layer {int(worst['layer'])}, {worst['way']}); bag of words afterwards "
        f"{_number(worst['bow_estimate'])}"
    )
    if high < 0:
        return "supported", shown
    if low >= 0 or (high < _LEVEL and low > -_LEVEL):
        return "not supported", shown
    return "cannot tell", f"{shown}: the interval allows both"


def _mediating(rows: pd.DataFrame, tables: StudyTables) -> tuple[Answer, str]:
    """H4: the probe's layer has the largest indirect effect, and one beyond random directions."""
    effects = rows[
        (rows["metric"] == "NIE") & (rows["way"] == "forward") & (rows["mediator"] == "coordinate")
        & rows["estimate"].notna()
    ]  # fmt: skip
    if effects.empty:
        return "cannot tell", "no indirect effect along the direction was estimated"
    top = _best(effects)
    run = str(rows["run"].iloc[0])
    probed = _probed_layer(tables, run)
    shown = (
        f"the indirect effect is largest at layer {int(top['layer'])}: "
        f"{_number(top['estimate'])} ({_interval(top)}) nats"
    )
    p = top.get("p_value_max")
    if p is None or pd.isna(p) or float(p) > _LEVEL or not _above_zero(top):
        return "cannot tell", f"{shown}, not beyond random directions over all layers"
    shown += f", beyond random directions (p over layers {_number(p)})"
    if probed is None:
        return "cannot tell", f"{shown}; no layer was selected for the probe"
    if int(top["layer"]) == probed:
        return "supported", shown
    there = effects[effects["layer"] == probed]
    if len(there) and float(_first(there)["ci_high"]) >= float(top["ci_low"]):
        return "cannot tell", f"{shown}; the interval at the probe's layer {probed} overlaps it"
    return "not supported", f"{shown}; the probe's layer is {probed}"


def _needed(rows: pd.DataFrame, tables: StudyTables) -> tuple[Answer, str]:
    """H5: the verdict of the dose-response on the positive side."""
    del tables
    rows = rows[rows["side"] == "positive"]
    if rows.empty:
        return "cannot tell", "no positive strength was analysed"
    row = _first(rows)
    answer = _NEEDED.get(str(row["verdict"]), "cannot tell")
    units = ", ".join(
        f"{_number(row[f'sufficient_{unit}'])} {name}"
        for unit, name in (
            ("raw", "raw"), ("separation", "class separations"), ("norm", "residual norms"),
            ("angle", "degrees"),
        )
        if f"sufficient_{unit}" in row and pd.notna(row[f"sufficient_{unit}"])
    )  # fmt: skip
    return answer, f"{row['reason']}" + (f"; enough: {units}" if units else "")


def _conflict(rows: pd.DataFrame, tables: StudyTables) -> tuple[Answer, str]:
    """H6: the verdict of the contrast between scenarios with and without a task."""
    del tables
    rows = rows[rows["direction"] == "positive"]
    if rows.empty:
        return "cannot tell", "no positive strength was analysed"
    row = _first(rows)
    answer = _CONFLICT.get(str(row["verdict"]), "cannot tell")
    return answer, f"{row['verdict']}: {row['reason']}"


def _cruelty(rows: pd.DataFrame, tables: StudyTables) -> tuple[Answer, str]:
    """H7: over the strengths whose texts stay coherent."""
    del tables
    rows = rows[rows["subset"] == "all"]
    without = rows[rows["verdict"] == "raises task focus without cruelty"]
    cruel = rows[rows["verdict"] == "raises task focus with cruelty"]
    if len(cruel):
        row = _best(cruel, "alpha_raw")
        return "not supported", f"at α = {_number(row['alpha_raw'])}: {row['reason']}"
    if len(without):
        row = _best(without, "alpha_raw")
        return "supported", f"at α = {_number(row['alpha_raw'])}: {row['reason']}"
    return "cannot tell", "; ".join(dict.fromkeys(rows["reason"].astype(str))) or _NOT_RUN


def _random(rows: pd.DataFrame, tables: StudyTables) -> tuple[Answer, str]:
    """H8: the largest folded AUROC of the random directions, over layers and pools."""
    del tables
    rows = rows[(rows["subset"] == "all") & rows["max_folded"].notna()]
    if rows.empty:
        return "cannot tell", _NOT_RUN
    top = _best(rows, "max_folded")
    n = int(top["n_draws"])
    share = top.get("share_above_95_folded")
    where = f"layer {int(top['layer'])}, {top['pool']}"
    shown = f"the largest of {n} is {_number(top['max_folded'])} ({where})"
    if share is not None and pd.notna(share):
        shown += f"; {100 * float(share):.1f} % exceed .95 there, either way round"
    return ("supported" if float(top["max_folded"]) > 0.95 else "not supported"), shown


def _opposite(rows: pd.DataFrame, tables: StudyTables) -> tuple[Answer, str]:
    """H9: the cosine between concept and task, where the two share no texts."""
    cosines = rows[
        (rows["metric"] == "cosine") & (rows["space"] == "raw") & rows["estimate"].notna()
        & rows["contrast"].notna()
    ]  # fmt: skip
    if cosines.empty:
        return "cannot tell", "no cosine with a task direction was computed"
    clean = cosines[cosines["n_shared"].fillna(0) == 0]
    if clean.empty:
        return "cannot tell", "the two directions share texts, which alone makes them opposite"
    row = _first(_at_probe(clean, tables))
    value = row["disattenuated"] if pd.notna(row.get("disattenuated")) else row["estimate"]
    shown = (
        f"cosine of {row['contrast']} and {row['other']} at layer {int(row['layer'])} is "
        f"{_number(row['estimate'])} ({_interval(row)}), {_number(value)} corrected for "
        f"reliability; p against permuted labels {_number(row['p_value'])}"
    )
    low, high = row["ci_low"], row["ci_high"]
    if pd.isna(low) or pd.isna(high):
        return "cannot tell", f"{shown}; without an interval"
    if float(high) < 0 and float(value) <= -0.9:
        return "supported", shown
    if float(low) > -0.9 and float(value) > -0.9:
        return "not supported", shown
    return "cannot tell", f"{shown}: the interval allows both"


def _best(rows: pd.DataFrame, column: str = "estimate") -> Row:
    """Return the row with the largest value of ``column``."""
    values = rows[column].astype(float).to_numpy()
    return _first(rows.iloc[[int(values.argmax())]])


def _first(rows: pd.DataFrame) -> Row:
    return {str(name): value for name, value in rows.iloc[0].items()}


def _above_zero(row: Row) -> bool:
    return pd.notna(row["ci_low"]) and float(row["ci_low"]) > 0


def _probed_layer(tables: StudyTables, run: str) -> int | None:
    """Return the layer that the probe is read at, None where none was chosen."""
    if run in tables.layers:
        return tables.layers[run]
    row = _nested(tables.probes, run)
    return None if row is None or pd.isna(row["layer"]) else int(row["layer"])


def _at_probe(rows: pd.DataFrame, tables: StudyTables) -> pd.DataFrame:
    """Return the rows of the layer nearest to the probe's; of the middle one where it has none."""
    if rows.empty:
        return rows
    layers = sorted({int(layer) for layer in rows["layer"].dropna()})
    wanted = _probed_layer(tables, str(rows["run"].iloc[0]))
    wanted = layers[len(layers) // 2] if wanted is None else wanted
    return rows[rows["layer"] == min(layers, key=lambda layer: abs(layer - wanted))]


def _rows(rows: pd.DataFrame) -> list[Row]:
    return [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]


def _number(value: Any) -> str:  # of a table  # noqa: ANN401
    return f"{float(value):.3g}"


def _interval(row: Row) -> str:
    if pd.isna(row.get("ci_low")) or pd.isna(row.get("ci_high")):
        return "no interval"
    return f"{_number(row['ci_low'])} to {_number(row['ci_high'])}"


JUDGES: dict[str, Callable[[StudyTables, Sequence[str]], _Verdicts]] = {
    "H1": _perfect,
    "H2": _per_run(lambda t: t.matched, _patching),
    "H3": _per_run(lambda t: t.ablation, _lexical),
    "H4": _per_run(lambda t: t.mediation, _mediating),
    "H5": _per_run(lambda t: t.doses, _needed),
    "H6": _per_run(lambda t: t.task_free, _conflict),
    "H7": _per_run(lambda t: t.negative, _cruelty),
    "H8": _per_run(lambda t: t.null, _random),
    "H9": _per_run(lambda t: t.geometry, _opposite),
}
