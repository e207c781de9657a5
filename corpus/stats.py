"""The figures of a corpus: contents, coverage, diversity at one budget, leakage; and a figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..schemas import (
    CorpusInfo,
    CorpusStats,
    DiversityRow,
    InvalidInputError,
    MissingDependencyError,
    Scenario,
    StatsSpec,
    Text,
)
from .diversity import (
    compression_ratio,
    distinct_ngrams,
    mean_jaccard,
    nearest_cosines,
    normalised_entropy,
    opener,
    opener_repetition,
    vendi_score,
    within_budget,
)
from .texts import check_texts
from .words import words

__all__ = ["corpus_stats", "plot_stats"]

_CELL = ("category", "subset", "split", "arm", "task_conflict")
_CONFLICT = {True: "conflict", False: "no conflict", None: "not said"}


def corpus_stats(
    info: CorpusInfo,
    texts: Sequence[Text],
    *,
    spec: StatsSpec | None = None,
    scenarios: Sequence[Scenario] | None = None,
) -> CorpusStats:
    """Return the contents, coverage, diversity and leakage of a corpus (SCIENCE §9).

    Variants are left out: they are near-copies by intent.

    Raises
    ------
    InvalidInputError
        If the texts do not form a corpus.
    """
    spec = spec or StatsSpec()
    check_texts(texts)
    originals = [t for t in texts if t.variant == "original"]
    paired = [t for t in originals if t.pair is not None]
    per_scenario = Counter({t.pair: t.scenario for t in paired}.values())
    per_category = Counter({t.pair: t.category for t in paired}.values())
    known = None if scenarios is None else {s.id for s in scenarios if s.category != "neutral"}
    cells = Counter(
        (t.category, t.subset, t.split, t.arm, _CONFLICT[t.task_conflict]) for t in originals
    )
    cosines, pair = _leakage(paired)
    return CorpusStats(
        corpus=info.id,
        texts_digest=info.texts_digest,
        spec=spec,
        cells=tuple(
            {**dict(zip(_CELL, cell, strict=True)), "n_texts": n}
            for cell, n in sorted(cells.items())
        ),
        n_pairs=len({t.pair for t in paired}),
        n_scenarios=len(per_scenario),
        n_scenarios_known=None if known is None else len(known),
        scenario_coverage=len(known & set(per_scenario)) / len(known) if known else None,
        scenario_entropy=round(normalised_entropy(list(per_scenario.values())), 4),
        category_entropy=round(normalised_entropy(list(per_category.values())), 4),
        diversity=tuple(
            _diversity(name, [t.response for t in group], spec)
            for name, group in _groups(originals).items()
        ),
        leakage=max(cosines) if cosines else None,
        leakage_pair=pair,
        nearest_cosines=tuple(cosines),
    )


def _groups(texts: Sequence[Text]) -> dict[str, list[Text]]:
    """Return the texts of all, of each arm, and of each arm in each subset where there are two."""
    groups = {"all": list(texts)}
    subsets = sorted({t.subset for t in texts if t.arm != "neutral"})
    for arm in ("positive", "negative", "neutral"):
        groups[arm] = [t for t in texts if t.arm == arm]
    if len(subsets) > 1:
        for subset in subsets:
            for arm in ("positive", "negative"):
                found = [t for t in texts if t.arm == arm and t.subset == subset]
                groups[f"{arm}, {subset}"] = found
    return {name: group for name, group in groups.items() if group}


def _diversity(name: str, responses: Sequence[str], spec: StatsSpec) -> DiversityRow:
    n_words = sum(len(words(text)) for text in responses)
    figures: dict[str, float | None] = {}
    if n_words >= spec.budget:
        draws = [
            within_budget(responses, n_words=spec.budget, seed=spec.seed + i)
            for i in range(spec.n_draws)
        ]
        for n in (1, 2, 3):
            figures[f"distinct_{n}"] = _mean([distinct_ngrams(draw, n) for draw in draws])
        figures["compression"] = _mean([compression_ratio(draw) for draw in draws])
    if len(responses) > 1:
        chosen = np.random.default_rng(spec.seed).permutation(len(responses))[: spec.max_texts]
        some = [responses[i] for i in chosen]
        figures["jaccard_2"] = round(mean_jaccard(some, n=2), 5)
        figures["vendi"] = round(vendi_score(some), 2)
    return DiversityRow(
        group=name,
        n_texts=len(responses),
        n_words=n_words,
        words_per_text=round(n_words / len(responses), 1),
        opener_repetition=round(opener_repetition(responses), 4),
        distinct_openers=round(len({opener(text) for text in responses}) / len(responses), 4),
        **figures,
    )


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4)


def _leakage(paired: Sequence[Text]) -> tuple[list[float], tuple[str, str] | None]:
    """Return the cosine of every test response with its nearest of train, and the worst pair."""
    train = [t for t in paired if t.split == "train"]
    test = [t for t in paired if t.split == "test"]
    if not train or not test:
        return [], None
    values, nearest = nearest_cosines([t.response for t in test], [t.response for t in train])
    worst = int(np.argmax(values))
    return [round(float(v), 4) for v in values], (test[worst].id, train[int(nearest[worst])].id)


def plot_stats(stats: CorpusStats, path: str | Path) -> Path:
    """Write the figure of a corpus: texts per category, distinct n-grams, leakage.

    Parameters
    ----------
    stats
        The figures.
    path
        A file that ends in .html (self-contained), .svg, .png or .pdf.

    Raises
    ------
    MissingDependencyError
        If altair is not installed.
    InvalidInputError
        If the file has another ending.
    """
    path = Path(path)
    if path.suffix not in {".html", ".svg", ".png", ".pdf"}:
        msg = f"{path}: a figure is written as .html, .svg, .png or .pdf, got {path.suffix!r}"
        raise InvalidInputError(msg)
    try:
        import altair as alt
        import vl_convert  # noqa: F401
    except ImportError as err:
        msg = "a figure needs altair: pip install 'actlake[report]'"
        raise MissingDependencyError(msg) from err
    chart = _figure(alt, stats)
    if path.suffix == ".html":
        chart.save(str(path), inline=True)
    elif path.suffix == ".png":
        chart.save(str(path), scale_factor=2)
    else:
        chart.save(str(path))
    return path


def _figure(alt: Any, stats: CorpusStats) -> Any:  # altair is imported where it is  # noqa: ANN401
    cells = alt.Chart(alt.Data(values=list(stats.cells)), title="Texts by category and subset")
    contents = (
        cells.mark_bar()
        .encode(
            x=alt.X("sum(n_texts):Q", title="texts"),
            y=alt.Y("category:N", title=None, sort="-x"),
            color=alt.Color("subset:N", title="subset"),
            opacity=alt.Opacity(
                "split:N", title="split", scale=alt.Scale(domain=["train", "test"], range=[1, 0.5])
            ),
        )
        .properties(width=260, height=180)
    )
    long = [
        {"group": row.group, "n": n, "distinct": value}
        for row in stats.diversity
        for n in (1, 2, 3)
        if (value := getattr(row, f"distinct_{n}")) is not None
    ]
    title = f"Distinct n-grams in {stats.spec.budget:,} words"
    distinct = (
        alt.Chart(alt.Data(values=long), title=title)
        .mark_line(point=True)
        .encode(
            x=alt.X("n:O", title="n", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("distinct:Q", title="distinct / all", scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("group:N", title="group"),
        )
        .properties(width=220, height=180)
    )
    near = [{"cosine": value} for value in stats.nearest_cosines]
    leakage = (
        alt.Chart(alt.Data(values=near), title="Nearest train text of each test text")
        .mark_bar()
        .encode(
            x=alt.X("cosine:Q", bin=alt.Bin(step=0.05), title="TF-IDF cosine",
                    scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("count():Q", title="test texts"),
        )
        .properties(width=220, height=180)
    )  # fmt: skip
    return (contents | distinct | leakage).resolve_scale(color="independent")
