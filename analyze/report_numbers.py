"""The numbers that the report shows, chosen by rules that do not look at the results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from ..schemas import InvalidInputError

__all__ = [
    "CEILING",
    "CEILING_SENTENCE",
    "Reading",
    "RunView",
    "SubsetNumber",
    "decimal",
    "interval",
    "number",
    "p_text",
    "percent",
    "pick_views",
    "printable",
    "records",
    "require_columns",
    "rows_of",
    "sort_subsets",
    "string",
    "subset_numbers",
]

CEILING = 0.99  # SCIENCE: from here on a bag of words leaves no room for semantic evidence
CEILING_SENTENCE = "ceiling: this dataset cannot separate semantic from lexical evidence"
_SUBSETS = ("all", "plain", "shortcut", "balanced")
_SPLIT = {"probe_test": "probe", "bow_test": "bow"}  # judged on the test split alone
_POOLS = ("mean_response", "last_response", "last_prompt")

Reading = Literal["ceiling", "beyond", "level", "below", "unknown"]
Row = Mapping[str, Any]


def number(value: object) -> float | None:
    """Return ``value`` as a finite float, or None."""
    if value is None or isinstance(value, str):
        return None
    try:
        got = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # pd.NA, None in an object column
        return None
    return got if math.isfinite(got) else None


def printable(value: object) -> str:
    r"""Return ``value`` as text in which control, direction and lone surrogate characters show.

    They are spelled ``\uXXXX``: a name must not reorder or cut the line that it stands in.
    """
    return "".join(
        c
        if c.isprintable() or c == "\n"
        else " "
        if c == "\t" or c.isspace()
        else f"\\u{ord(c):04x}"
        for c in str(value)
    )


def string(value: object) -> str | None:
    """Return ``value`` as printable text, or None where it is missing or empty."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    return printable(value) or None


def decimal(value: float | None, digits: int = 3) -> str:
    """Return ``value`` with ``digits`` decimals and a true minus sign, or a dash."""
    if value is None:
        return "–"
    shown = f"{value:.{digits}f}"
    if float(shown) == 0:
        shown = shown.lstrip("-")
    return shown.replace("-", "\N{MINUS SIGN}")


def interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """Return ``low to high``, or an empty string where either end is missing.

    Ends that differ read differently: where ``digits`` hide it, up to six decimals are shown.
    """
    if low is None or high is None:
        return ""
    while low != high and digits < 6 and decimal(low, digits) == decimal(high, digits):
        digits += 1
    return f"{decimal(low, digits)} to {decimal(high, digits)}"


def percent(share: float | None) -> str:
    """Return a share as per cent: ``0 %``, ``0.2 %``, ``12 %``."""
    if share is None:
        return "–"
    value = 100 * share
    return f"{value:.0f} %" if value == 0 or value >= 10 else f"{value:.1f} %"


def p_text(p: float, n_draws: int | None) -> str:
    """Return ``p = …``, with a word where it is the smallest that ``n_draws`` can give."""
    shown = f"p = {p:.3f}" if p >= 0.00095 else f"p = {p:.1e}"
    if n_draws and p <= 1 / (1 + n_draws) + 1e-12:
        shown += f", the smallest that {n_draws} draws can give"
    return shown


def records(frame: pd.DataFrame, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows as JSON values: floats to five significant digits, missing as None."""
    out = []
    for row in rows_of(frame):
        item: dict[str, Any] = {}
        for name in columns:
            value = row.get(name)
            as_number = number(value)
            if isinstance(value, str) or as_number is None:
                item[name] = string(value)
            else:
                item[name] = int(as_number) if as_number.is_integer() else float(f"{as_number:.5g}")
        out.append(item)
    return out


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table as dicts by column name."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def require_columns(frame: pd.DataFrame, name: str, columns: Sequence[str]) -> pd.DataFrame:
    """Return ``frame``, or raise InvalidInputError if it lacks one of ``columns``."""
    missing = [c for c in columns if c not in frame.columns]
    if missing:
        msg = (
            f"the report's table {name!r} lacks the columns {missing}: got {list(frame.columns)}, "
            f"expected at least {list(columns)}; pass the table as its analysis returned it"
        )
        raise InvalidInputError(msg)
    return frame


def sort_subsets(names: Iterable[object]) -> list[str]:
    """Return the distinct subsets: ``all`` and the designed ones first, then as they came."""
    seen = list(dict.fromkeys(str(n) for n in names))
    known = [s for s in _SUBSETS if s in seen]
    return known + [s for s in seen if s not in known]


@dataclass(frozen=True)
class RunView:
    """What the report shows of one run: its rows, and which pool, method and layer it quotes."""

    run: str
    label: str
    site: str
    pool: str
    method: str
    methods: tuple[str, ...]
    layer: int | None
    layer_rule: str
    n_layers: int | None
    cv: str | None  # the scheme that ``rows`` were held out by
    rows: pd.DataFrame  # of this run and site, every pool; the bag of words included
    null: pd.DataFrame  # of this run and site
    others: dict[str, pd.DataFrame]  # rows of further schemes (train to test), by scheme

    def probe(self, metric: str, **where: object) -> pd.DataFrame:
        """Return the probe's rows of ``metric`` whose columns equal ``where``."""
        keep = (self.rows["analysis"] == "probe") & (self.rows["metric"] == metric)
        for column, value in where.items():
            keep &= self.rows[column] == value
        return self.rows[keep]

    def own(self, table: pd.DataFrame | None) -> pd.DataFrame:
        """Return the rows of a table (PCA, steering) that belong to this run and site."""
        if table is None:
            return pd.DataFrame()
        same_site = (table["site"] == self.site) | table["site"].isna()
        return table[(table["run"] == self.run) & same_site]

    def other_pools(self) -> list[str]:
        """Return the pools of this run's curves beside the quoted one."""
        pools = dict.fromkeys(str(p) for p in self.probe("auroc")["pool"])
        return [p for p in pools if p != self.pool]

    def bag_of_words(self, subset: str) -> Row | None:
        """Return the bag of words' own row for ``subset``, or None."""
        rows = self.rows[(self.rows["analysis"] == "bow") & (self.rows["subset"] == subset)]
        auroc = rows[rows["metric"] == "auroc"]
        return None if auroc.empty else rows_of(auroc)[0]

    def random_band(self, subset: str, *, pool: str | None = None) -> pd.DataFrame:
        """Return the null's rows of one pool and subset, by layer."""
        null = self.null
        keep = (null["pool"] == (pool or self.pool)) & (null["subset"] == subset)
        return null[keep].sort_values("layer")


@dataclass(frozen=True)
class SubsetNumber:
    """One quoted AUROC with its control on the same texts."""

    subset: str
    method: str
    nested: bool
    estimate: float | None
    ci_low: float | None
    ci_high: float | None
    bow: float | None
    bow_low: float | None
    bow_high: float | None
    delta: float | None
    delta_low: float | None
    delta_high: float | None
    verdict: str | None
    reason: str | None
    n_pairs: float | None
    n_scenarios: float | None
    row: Row

    @property
    def reading(self) -> Reading:
        """What the comparison with the bag of words allows one to say."""
        if self.estimate is None or self.bow is None:
            return "unknown"
        if self.bow >= CEILING:
            return "ceiling"
        if self.delta_low is None or self.delta_high is None:
            return "unknown"
        if self.delta_low > 0:
            # Words that point the wrong way are no lower a bar than chance.
            above_chance = self.bow >= 0.5 or (self.ci_low is not None and self.ci_low > 0.5)
            return "beyond" if above_chance else "level"
        return "below" if self.delta_high < 0 else "level"


def subset_numbers(view: RunView, method: str, *, pool: str | None = None) -> list[SubsetNumber]:
    """Return the quoted AUROC of every subset.

    It is the nested estimate (layer chosen inside the training folds). Where a run has none,
    the fixed middle layer stands in and ``nested`` is False; the best layer is never quoted.
    """
    pool = pool or view.pool
    out = []
    curves = view.probe("auroc", pool=pool, method=method)
    nested_rows = view.probe("auroc_nested", pool=pool, method=method)
    for subset in sort_subsets([*nested_rows["subset"], *curves["subset"]]):
        rows = nested_rows[nested_rows["subset"] == subset]
        nested = not rows.empty
        if not nested:
            rows = curves[curves["subset"] == subset].sort_values("layer")
            layers = rows["layer"].dropna().tolist()
            rows = rows[rows["layer"] == layers[len(layers) // 2]] if layers else rows
        row: Row = rows_of(rows)[0]
        own = view.bag_of_words(subset) or {}
        bow = number(row.get("bow_estimate"))
        out.append(
            SubsetNumber(
                subset=subset,
                method=method,
                nested=nested,
                estimate=number(row["estimate"]),
                ci_low=number(row.get("ci_low")),
                ci_high=number(row.get("ci_high")),
                bow=number(own.get("estimate")) if bow is None else bow,
                bow_low=number(own.get("ci_low")),
                bow_high=number(own.get("ci_high")),
                delta=number(row.get("bow_delta")),
                delta_low=number(row.get("bow_delta_ci_low")),
                delta_high=number(row.get("bow_delta_ci_high")),
                verdict=string(row.get("verdict")),
                reason=string(row.get("reason")),
                n_pairs=number(row.get("n_pairs")),
                n_scenarios=number(row.get("n_scenarios")),
                row=row,
            )
        )
    return out


def pick_views(
    rows: pd.DataFrame,
    null: pd.DataFrame,
    study: Mapping[str, Any],
    *,
    layers: Mapping[str, Mapping[tuple[str, str], int]],
) -> list[RunView]:
    """Return one view per run (and site), in the order of the rows.

    The quoted pool is the one the study steers with, else the mean over the response; the quoted
    method is the first one the study names; the quoted scheme is the rows' first. All are fixed
    before any number is seen. ``layers`` are the layers that inner folds selected, by run and
    then by (pool, method).
    """
    probes = rows[rows["analysis"] == "probe"]
    # One order of methods for all runs, so that a method has one colour on the whole page.
    methods = tuple(dict.fromkeys(str(m) for m in probes["method"].dropna()))
    keys = list(dict.fromkeys(zip(probes["run"], probes["site"], strict=True)))
    named = zip(probes["run"], probes["model"], strict=True)
    models = {run: string(model) or str(run) for run, model in named}
    views = []
    for run, site in keys:
        of_run = (rows["run"] == run) & ((rows["site"] == site) | rows["site"].isna())
        shared = rows["run"].isna() & (rows["analysis"] == "bow")
        mine = rows[of_run | shared]
        here = mine[mine["analysis"] == "probe"]
        schemes = list(dict.fromkeys(c for c in map(string, here["cv"]) if c))
        quoted = mine[(mine["cv"] == schemes[0]) | mine["cv"].isna()] if schemes else mine
        method = _first([m for m in methods if m in set(here["method"])], _methods_of(study))
        wanted = string(_study_value(study, "steer", "pool"))
        pools = tuple(dict.fromkeys(str(p) for p in here["pool"].dropna()))
        pool = _first(pools, ([wanted] if wanted else []) + list(_POOLS))
        label = models[run]
        if list(models.values()).count(label) > 1:
            label = f"{label} ({printable(run)})"
        if sum(r == run for r, _ in keys) > 1:
            label = f"{label}, {printable(site)}"
        known = here[here["layer"].notna()]
        layer, rule = _layer(
            known[(known["pool"] == pool) & (known["method"] == method)],
            chosen=layers.get(str(run), {}).get((pool, method)),
        )
        in_null = (null["run"] == run) & ((null["site"] == site) | null["site"].isna())
        views.append(
            RunView(
                run=str(run),
                label=label,
                site=str(site),
                pool=pool,
                method=method,
                methods=methods,
                layer=layer,
                layer_rule=rule,
                n_layers=_n_layers(known),
                cv=schemes[0] if schemes else None,
                rows=quoted,
                null=null[in_null],
                others=_others(mine, schemes[1:]),
            )
        )
    return views


def _others(rows: pd.DataFrame, schemes: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Return the rows of further schemes, and of the test split, with the folds' names."""
    split = rows[rows["analysis"].isin(_SPLIT)]
    out = {scheme: rows[rows["cv"] == scheme] for scheme in schemes}
    for scheme in dict.fromkeys(string(c) or "the test split" for c in split["cv"]):
        mine = split[(split["cv"] == scheme) | split["cv"].isna()]
        out[scheme] = mine.assign(analysis=mine["analysis"].map(_SPLIT))
    return out


def _layer(rows: pd.DataFrame, *, chosen: int | None) -> tuple[int | None, str]:
    """Return the layer that is quoted, and the rule that chose it."""
    nested = [int(x) for x in rows[rows["metric"] == "auroc_nested"]["layer"]]
    if chosen is None and nested:
        chosen = nested[0]
    if chosen is not None:
        return int(chosen), "the layer that the inner folds chose"
    layers = sorted({int(x) for x in rows["layer"]})
    if layers:
        return layers[len(layers) // 2], "the middle layer: no layer was chosen in folds"
    return None, "no layer"


def _n_layers(curves: pd.DataFrame) -> int | None:
    """Return the model's number of blocks from depth = (layer + 1) / n_layers."""
    known = curves[curves["depth"].notna() & curves["layer"].notna()]
    for layer, depth in zip(known["layer"], known["depth"], strict=True):
        if depth > 0:
            return round((float(layer) + 1) / float(depth))
    return None


def _study_value(study: Mapping[str, Any], section: str, key: str) -> object:
    inside = study.get(section)
    return inside.get(key) if isinstance(inside, Mapping) else None


def _methods_of(study: Mapping[str, Any]) -> list[str]:
    value = _study_value(study, "probe", "methods")
    return [str(v) for v in value] if isinstance(value, list | tuple) else []


def _first(present: Sequence[str], wanted: Sequence[str]) -> str:
    """Return the first wanted name that is present, else the first present one."""
    return next((w for w in wanted if w in present), present[0] if present else "none")
