"""Rows of an ablation: every arm on every layer and subset, the draws, the verdicts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..schemas import AblationRow, AblationWay
from .ablation_measures import Ablated, ablation_estimates, finding_of, verdict_of
from .auroc import Floats, auroc_columns, auroc_interval
from .design import Design
from .evaluate import Estimate, HeldOut, held_out_sets
from .probes import d_prime
from .repooling import Readings

__all__ = ["Arm", "draw_rows", "layer_rows", "missing_row", "verdict_table"]

Ints: TypeAlias = NDArray[np.int64]

METHOD = "diff_means"
RANDOM = "random_words_removed"
# Arms that take words away, so that what is left can be called a shortcut or not.
JUDGED = ("keywords_removed", "keywords_replaced", "data_driven")
VERDICT_COLUMNS = (
    "run", "model", "way", "site", "pool", "layer", "subset", "finding", "arm", "lexicon", "k",
    "before_estimate", "estimate", "ci_low", "ci_high", "random_mean", "contrast",
    "contrast_ci_low", "contrast_ci_high", "n_draws", "percentile", "p_value", "bow_before",
    "bow_estimate", "n_pairs", "n_scenarios", "verdict",
)  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One arm among the conditions of a way: its place, its draws' places, its bag of words.

    ``fields`` are those of an AblationRow; ``pairs`` the pairs that it and its draws have.
    """

    fields: dict[str, Any]
    at: int
    draws: Ints
    pairs: Ints
    words: tuple[Floats, Floats] | None = None
    words_random: tuple[Floats, ...] = ()
    random_fields: dict[str, Any] = field(default_factory=dict)


def layer_rows(
    design: Design,
    arms: Sequence[Arm],
    readings: Readings,
    *,
    way: AblationWay,
    place: dict[str, Any],
    readouts: Sequence[str],
    n_bootstrap: int,
    token_mask: str | None,
) -> list[AblationRow]:
    """Return the rows of all arms on one layer."""
    rows: list[AblationRow] = []
    for arm in arms:
        shared = design.provenance() | place | arm.fields
        shared |= {"analysis": "ablation", "method": METHOD, "way": way}
        if token_mask is not None:
            shared["token_mask"] = token_mask
        for held in _held_out(design, arm, n_bootstrap=n_bootstrap):
            for readout in readouts:
                scores = readings.refit if readout == "refit" else readings.fixed
                of = Ablated(
                    readings.refit[0], scores[arm.at], scores[arm.draws], arm.words,
                    arm.words_random,
                )  # fmt: skip
                fields = shared | held.counts | {"subset": held.subset, "readout": readout}
                found = ablation_estimates(of, held)
                rows += _judged(found, of, held, fields, way=way)
                drawn = fields | {"arm": RANDOM} | arm.random_fields
                rows += list(_random_rows(found, drawn, n=arm.draws.size))
    return rows


def _held_out(design: Design, arm: Arm, *, n_bootstrap: int) -> tuple[HeldOut, ...]:
    nothing = np.zeros((2, design.table.n_pairs))
    return held_out_sets(
        design.table,
        np.intersect1d(design.folds.held_out, arm.pairs),
        cv=design.folds.scheme,
        fold=design.folds.fold_of_pair,
        words=nothing if arm.words is None else arm.words[0],
        surface=None,
        n_bootstrap=n_bootstrap,
        seed=design.seed,
    )


def _judged(
    found: Sequence[Estimate], of: Ablated, held: HeldOut, fields: dict[str, Any], *, way: str
) -> Iterator[AblationRow]:
    """Yield the rows of an arm; that of AUROC says what they show."""
    area, spread, *rest = found
    said: dict[str, Any] = {}
    if fields["arm"] in JUDGED:
        repooled = way == "repooled"
        before = auroc_interval(of.before[:, held.pairs].ravel(), held.labels)
        finding = finding_of(area, spread, before, repooled=repooled)
        words = "the learned words" if fields["arm"] == "data_driven" else "the keywords"
        sentence = verdict_of(finding, area, spread, repooled=repooled, words=words)
        said = {"finding": finding, "verdict": sentence}
    yield AblationRow(**fields, **area, **said)
    for estimate in (spread, *rest):
        yield AblationRow(**fields, **estimate)


def _random_rows(
    found: Sequence[Estimate], fields: dict[str, Any], *, n: int
) -> Iterator[AblationRow]:
    """Yield the mean of the draws that an arm was matched by, as an arm of its own."""
    for estimate in found:
        mean = estimate.get("random_mean")
        if mean is None:
            continue
        was = estimate["before_estimate"]
        yield AblationRow(
            **fields,
            metric=estimate["metric"],
            estimate=mean,
            ci_low=estimate["random_low"],
            ci_high=estimate["random_high"],
            ci_method=f"2.5 % and 97.5 % of {n} draws",
            before_estimate=was,
            delta=mean - was,
            n_draws=n,
            random_mean=mean,
            random_low=estimate["random_low"],
            random_high=estimate["random_high"],
            bow_before=estimate.get("bow_before"),
            bow_estimate=estimate.get("bow_random"),
        )


def missing_row(
    design: Design, *, way: AblationWay, arm: str, reason: str, **fields: object
) -> AblationRow:
    """Return the row of an arm that was not computed, with its reason."""
    given: dict[str, Any] = {
        **design.provenance(), **design.counts("all"), "site": design.site,
        "analysis": "ablation", "metric": "auroc", "method": METHOD, "way": way, "arm": arm,
        "estimate": None, "reason": reason,
    }  # fmt: skip
    return AblationRow(**given | fields)


def draw_rows(
    design: Design,
    arms: Sequence[Arm],
    readings: Readings,
    *,
    way: AblationWay,
    place: dict[str, Any],
    readouts: Sequence[str],
) -> list[dict[str, Any]]:
    """Return one row per draw of random words, with its AUROC and d′ on every subset."""
    run, rows = design.provenance()["run"], []
    for arm in arms:
        if not arm.draws.size:
            continue
        for subset, members in design.subsets.items():
            pairs = np.intersect1d(members, arm.pairs)
            if not pairs.size:
                continue
            labels = np.repeat([True, False], pairs.size)
            for readout in readouts:
                scores = readings.refit if readout == "refit" else readings.fixed
                drawn = scores[arm.draws][:, :, pairs]
                areas = auroc_columns(drawn.reshape(len(drawn), -1).T, labels)
                for number, (area, of) in enumerate(zip(areas, drawn, strict=True)):
                    rows.append(
                        {
                            "run": run, "way": way, **place, "subset": subset,
                            "readout": readout, "matched_to": arm.fields["arm"],
                            "lexicon": arm.fields.get("lexicon"), "k": arm.fields.get("k"),
                            "draw": number, "auroc": float(area),
                            "d_prime": d_prime(of[0], of[1]),
                        }
                    )  # fmt: skip
    return rows


_ORDER = ("shortcut", "partly_lexical", "not_lexical", "undecided", "no_signal")


def verdict_table(
    rows: pd.DataFrame, *, keywords: str | None, chosen_k: int | None
) -> pd.DataFrame:
    """Return one verdict per subset, way and pool, and one over all ways, from the refitted rows.

    The layer is the one where the originals of all pairs have the largest d′: no ablated text
    has a say in it. Of several arms the one that finds most counts: words that were
    not in a lexicon may be in the learned one. Keywords are those of all lexica together, whose
    name is ``keywords``: without those of one lexicon, texts that are balanced are not so any
    more, and what that does to their spread is no finding about words. Over ways (``way``
    "all") re-extraction counts before re-pooling, after which the tokens that are left have
    attended to the words.
    """
    usable = rows[(rows["readout"] == "refit") & rows["arm"].isin(JUDGED) & rows["layer"].notna()]
    of_one = usable["lexicon"].notna() & (usable["lexicon"] != keywords)
    usable = usable[~(of_one & (usable["arm"] == "keywords_removed"))]
    if "data_driven" in set(usable["arm"]):
        enough = usable["k"].isna() | (usable["k"] == _last_dose(usable, chosen_k))
        usable = usable[enough]
    strength = usable[(usable["metric"] == "d_prime") & (usable["subset"] == "all")]
    found = []
    for (way, pool), of in usable[usable["metric"] == "auroc"].groupby(["way", "pool"], sort=False):
        mine = strength[(strength["way"] == way) & (strength["pool"] == pool)]
        known = mine[mine["before_estimate"].notna()]
        at = of
        if len(known):
            strongest = known.iloc[int(known["before_estimate"].to_numpy().argmax())]
            at = of[of["layer"] == strongest["layer"]]
        for _, group in at.groupby("subset", sort=False):
            found.append(group.iloc[int(np.argmin([_ORDER.index(f) for f in group["finding"]]))])
    if not found:
        return pd.DataFrame(columns=list(VERDICT_COLUMNS))
    table = pd.DataFrame(found)
    overall = []
    for _, group in table.groupby("subset", sort=False):
        best = group[group["way"] == "reextracted"]
        best = group if best.empty else best
        # The pool that carries most of the contrast speaks for a subset.
        place = int(best["before_estimate"].astype(float).to_numpy().argmax())
        overall.append(best.iloc[place].copy())
        overall[-1]["way"] = "all"
    whole = pd.concat([pd.DataFrame(overall), table], ignore_index=True)
    return whole[list(VERDICT_COLUMNS)]


def _last_dose(rows: pd.DataFrame, chosen: int | None) -> Any:  # noqa: ANN401
    """Return the dose that the verdict is about: the one that is enough, else the largest."""
    return rows["k"].max() if chosen is None else chosen
