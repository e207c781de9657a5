"""The lexical ablation of a run as one analysis (SCIENCE §3): re-pooled and re-extracted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, cast

import pandas as pd
import xarray as xr

from ..schemas import (
    LEXICAL_ARMS,
    AblationRow,
    AblationSpec,
    AblationWay,
    Lexicon,
    NotFoundError,
    ProbeSpec,
    Text,
    array_name,
)
from .ablation_conditions import Conditions, choose_lexica, joined_name, make_conditions
from .ablation_rows import draw_rows, layer_rows, missing_row, verdict_table
from .ablation_tokens import POOL, repooled_arms, token_words
from .ablation_variants import VariantSet, variant_arms, variant_scores, variant_sets
from .design import Design, make_design
from .repooling import repooled_scores
from .schedule import Progress
from .table import plain_strings, relative_depth, write_table
from .tidy import record_frame

__all__ = ["AblationResult", "NothingToAblateError", "ablation_run", "save_ablation"]

TOKEN_MASK = "response tokens without special tokens and without those of the arm's words"
PUTS_IN = (
    "words that are put in have no activations; `actlake corpus variants` makes texts to extract"
)


class NothingToAblateError(NotFoundError):
    """A run has neither tokens nor variants, and nobody asked for one of them."""


@dataclass(frozen=True)
class AblationResult:
    """What is left of a contrast without some words.

    ``rows`` have the fields of AblationRow; ``draws`` one row per draw of random words;
    ``verdicts`` one per subset, way and pool, and over all ways (``way`` "all"); ``words`` the
    data-driven lexicon of every fold.
    """

    rows: pd.DataFrame
    draws: pd.DataFrame
    verdicts: pd.DataFrame
    words: pd.DataFrame


def ablation_run(
    ds: xr.Dataset,
    texts: Sequence[Text],
    *,
    spec: AblationSpec | None = None,
    lexica: Sequence[Lexicon] | None = None,
    variants: xr.Dataset | None = None,
    site: str | None = None,
    scheduler: str | None = None,
    progress: Progress | None = None,
    cancel: Event | None = None,
) -> AblationResult:
    """Return what every lexical arm leaves of the contrast, beside matched random words.

    Each arm changes both classes; the probe is the difference of means, on held-out scenarios,
    refitted to the ablated texts and as it was; the bag of words is refitted under the same arm.

    Parameters
    ----------
    ds
        An opened run. To re-pool, with token arrays; to compare re-extracted variants, with
        variants among its texts.
    texts
        The corpus of the run, variants included.
    spec
        Arms, draws, layers, seed.
    lexica
        The keywords; the bundled empathy and task lexica if None.
    variants
        The run that has the variants, where it is another one of the same model.
    site
        None takes ``resid_post``, or the run's first site.
    scheduler, cancel
        As for :func:`probe_run`.
    progress
        Called with (layers done, layers in all) of the re-pooling.

    Raises
    ------
    NotFoundError
        If there are neither tokens nor variants (NothingToAblateError), or not those that were
        asked for; if a site, a layer or a text of the corpus is missing.
    InvalidInputError
        If the tokens do not say which characters they hold, a lexicon hits no word, there are
        fewer than two scenarios, one class, no complete pair, or a row has NaN.
    """
    spec = spec or AblationSpec()
    probe = ProbeSpec(
        methods=("diff_means",), pools=spec.pools, max_folds=spec.max_folds,
        n_bootstrap=spec.n_bootstrap, seed=spec.seed,
    )  # fmt: skip
    design = make_design(ds, texts, spec=probe, site=site)
    source = ds if variants is None else variants
    sets = [of for of in variant_sets(source, texts, design) if _asked(of, spec)]
    ways = _ways(ds, design, sets, spec)
    rows: list[AblationRow] = []
    draws: list[dict[str, Any]] = []
    words, chosen = pd.DataFrame(columns=["fold", "rank", "word"]), None
    keywords: str | None = None
    if "repooled" in ways:
        chosen_lexica = choose_lexica(lexica)
        conditions = make_conditions(design, texts, lexica=chosen_lexica, spec=spec)
        keywords = joined_name(chosen_lexica)
        chosen, words = conditions.chosen, _word_frame(design, conditions)
        of_tokens = _repool(
            ds, design, conditions, spec=spec, scheduler=scheduler, progress=progress,
            cancel=cancel,
        )  # fmt: skip
        rows += of_tokens[0]
        draws += of_tokens[1]
    if "reextracted" in ways:
        compared = _reextract(ds, source, design, sets, spec=spec, scheduler=scheduler)
        rows += compared[0]
        draws += compared[1]
    frame = record_frame(rows, AblationRow)
    return AblationResult(
        frame,
        plain_strings(pd.DataFrame(draws, columns=_DRAW_COLUMNS).astype({"k": "Int64"})),
        verdict_table(frame, keywords=keywords, chosen_k=chosen),
        words,
    )


_DRAW_COLUMNS = [
    "run", "way", "site", "pool", "layer", "depth", "subset", "readout", "matched_to", "lexicon",
    "k", "draw", "auroc", "d_prime",
]  # fmt: skip


def save_ablation(result: AblationResult, folder: str | Path) -> Path:
    """Write the tables (Parquet and CSV) into ``folder``; return it."""
    target = Path(folder)
    for name in ("rows", "draws", "verdicts", "words"):
        table = "ablation" if name == "rows" else f"ablation_{name}"
        write_table(getattr(result, name), target, name=table, formats=("parquet", "csv"))
    return target


def _asked(of: VariantSet, spec: AblationSpec) -> bool:
    """Return whether a variant is of an arm that is asked for, or of none that we know."""
    return of.arm in spec.arms or of.arm not in LEXICAL_ARMS


def _ways(
    ds: xr.Dataset, design: Design, sets: Sequence[VariantSet], spec: AblationSpec
) -> tuple[AblationWay, ...]:
    """Return the ways that are asked for, or those that the run allows."""
    array = array_name(design.site, "tokens")
    run = ds.attrs.get("run", "?")
    no_tokens = (
        f"run {run!r} has no token arrays ({array}); `actlake extract MODEL --tokens all` stores "
        "them, or name some layers"
    )
    no_variants = (
        f"run {run!r} has no lexical variants; `actlake corpus variants` writes them beside "
        "their originals, to be extracted together"
    )
    missing = {
        "repooled": None if array in ds.data_vars else no_tokens,
        "reextracted": None if sets else no_variants,
    }
    if spec.ways is None:
        there = [way for way, reason in missing.items() if reason is None]
        if not there:
            msg = f"{no_tokens}. To compare re-extracted texts: {no_variants}"
            raise NothingToAblateError(msg)
        return cast("tuple[AblationWay, ...]", tuple(there))
    for way in spec.ways:
        if missing[way] is not None:
            raise NotFoundError(missing[way])
    return spec.ways


def _layers(spec: AblationSpec, there: Sequence[int], *, what: str) -> list[int]:
    missing = sorted(set(spec.layers or ()) - set(there))
    if missing:
        msg = f"the {what} have no layers {missing}; they have {list(there)}"
        raise NotFoundError(msg)
    return list(there) if spec.layers is None else [n for n in there if n in spec.layers]


def _repool(
    ds: xr.Dataset,
    design: Design,
    conditions: Conditions,
    *,
    spec: AblationSpec,
    scheduler: str | None,
    progress: Progress | None,
    cancel: Event | None,
) -> tuple[list[AblationRow], list[dict[str, Any]]]:
    """Return the rows and draws of the arms that leave tokens out of the pool."""
    array = ds[array_name(design.site, "tokens")]
    layers = _layers(spec, [int(n) for n in array["token_layer"].values], what="token arrays")
    held = token_words(ds, design, conditions.table)
    arms, masks, rows = repooled_arms(design, conditions, held)
    for arm in spec.arms:
        if arm in {"keywords_replaced", "keywords_inserted"}:
            rows.append(missing_row(design, way="repooled", arm=arm, reason=PUTS_IN, pool=POOL))
    draws: list[dict[str, Any]] = []
    for number, layer in enumerate(layers):
        readings = repooled_scores(
            array, held.tokens, masks, layer=layer, memory=spec.memory, scheduler=scheduler,
            cancel=cancel,
        )  # fmt: skip
        place = {"site": design.site, "pool": POOL, "layer": layer}
        place["depth"] = relative_depth(layer, ds)
        rows += layer_rows(
            design, arms, readings, way="repooled", place=place, readouts=spec.readouts,
            n_bootstrap=spec.n_bootstrap, token_mask=TOKEN_MASK,
        )  # fmt: skip
        draws += draw_rows(
            design, arms, readings, way="repooled", place=place, readouts=spec.readouts
        )
        if progress is not None:
            progress(number + 1, len(layers))
    return rows, draws


def _word_frame(design: Design, conditions: Conditions) -> pd.DataFrame:
    """Return the words that every fold's lexicon takes at its largest dose."""
    most = max((of.k or 0 for of in conditions.found), default=0)
    names = [fold.name for fold in design.folds.folds]
    return pd.DataFrame(
        [
            {"fold": name, "rank": rank, "word": word}
            for name, ranked in zip(names, conditions.learned, strict=False)
            for rank, word in enumerate(ranked[:most])
        ],
        columns=["fold", "rank", "word"],
    )


def _reextract(
    ds: xr.Dataset,
    source: xr.Dataset,
    design: Design,
    sets: Sequence[VariantSet],
    *,
    spec: AblationSpec,
    scheduler: str | None,
) -> tuple[list[AblationRow], list[dict[str, Any]]]:
    """Return the rows and draws of the variants that went through the model."""
    layers = _layers(spec, [int(n) for n in ds["layer"].values], what="pools")
    readings = variant_scores(ds, source, design, sets, layers=layers, scheduler=scheduler)
    arms = variant_arms(design, sets, spec)
    rows: list[AblationRow] = []
    draws: list[dict[str, Any]] = []
    for (pool, layer), found in readings.items():
        place = design.place(pool, layer)
        rows += layer_rows(
            design, arms, found, way="reextracted", place=place, readouts=spec.readouts,
            n_bootstrap=spec.n_bootstrap, token_mask=None,
        )  # fmt: skip
        draws += draw_rows(
            design, arms, found, way="reextracted", place=place, readouts=spec.readouts
        )
    return rows, draws
