"""Review by people: a stratified sample, answers read back, agreement, and what stays."""

from __future__ import annotations

import csv
import io
import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np

from ..schemas import (
    Agreement,
    Arm,
    CorpusInfo,
    InvalidInputError,
    Pair,
    ReviewAnswer,
    ReviewItem,
    ReviewKey,
    ReviewReport,
    ReviewVerdict,
    RubricScore,
    Text,
)
from .agreement import alpha_agreement, share_agreement
from .lines import read_bytes
from .texts import pair_texts

__all__ = ["ANSWER_COLUMNS", "draw_review", "fold_review", "read_answers", "review_scores"]

ANSWER_COLUMNS = ("item", "score_a", "score_b", "verdict", "comment")
_SHOWN = 5


def draw_review(
    info: CorpusInfo, texts: Sequence[Text], *, n: int = 20, seed: int = 0
) -> ReviewKey:
    """Return a stratified sample of pairs in random order, each with a random arm as A.

    Categories get their share of the ``n`` items (at least one each where there are enough),
    within a category subsets take turns, and a scenario comes a second time only when all have
    had their first.

    Raises
    ------
    InvalidInputError
        If there are fewer than ``n`` pairs.
    """
    pairs = pair_texts(texts)
    if not 1 <= n <= len(pairs):
        msg = f"a sample of {n} cannot be drawn from {len(pairs)} pairs; ask for 1 to {len(pairs)}"
        raise InvalidInputError(msg)
    rng = Random(f"{seed} review")
    strata: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        strata[pair.positive.category].append(pair)
    chosen: list[Pair] = []
    for category, share in _shares({c: len(p) for c, p in strata.items()}, n).items():
        chosen += _spread(strata[category], share, rng)
    rng.shuffle(chosen)
    codes = rng.sample(range(0x1000, 0x10000), n)
    items = tuple(
        ReviewItem(item=f"item-{code:04x}", pair=pair.id, a=rng.choice(("positive", "negative")))
        for code, pair in zip(codes, chosen, strict=True)
    )
    return ReviewKey(corpus=info.id, texts_digest=info.texts_digest, seed=seed, items=items)


def _shares(sizes: dict[str, int], n: int) -> dict[str, int]:
    """Return how many of ``n`` each stratum gets: by largest remainder, one each if that can be."""
    total = sum(sizes.values())
    least = 1 if n >= len(sizes) else 0
    exact = {name: n * size / total for name, size in sizes.items()}
    given = {name: min(max(int(exact[name]), least), sizes[name]) for name in sizes}
    while sum(given.values()) != n:
        step = 1 if sum(given.values()) < n else -1
        open_ = [
            name for name in sorted(sizes)
            if (given[name] < sizes[name] if step > 0 else given[name] > least)
        ]  # fmt: skip
        name = max(open_, key=lambda c: step * (exact[c] - given[c]))
        given[name] += step
    return given


def _spread(pairs: Sequence[Pair], n: int, rng: Random) -> list[Pair]:
    """Return ``n`` of the pairs of a category: subsets take turns, scenarios seldom twice."""
    left = list(pairs)
    rng.shuffle(left)
    chosen: list[Pair] = []
    subsets = sorted({pair.positive.subset for pair in pairs})
    rng.shuffle(subsets)
    for subset in itertools.cycle(subsets):
        if len(chosen) == n:
            return chosen
        here = [pair for pair in left if pair.positive.subset == subset]
        if here:
            used = [pair.positive.scenario for pair in chosen]
            pick = min(here, key=lambda pair: used.count(pair.positive.scenario))
            chosen.append(pick)
            left.remove(pick)
    return chosen


def read_answers(path: str | Path, key: ReviewKey) -> list[ReviewAnswer]:
    """Return the answers of one rater, named by the file, in the order of the key.

    Parameters
    ----------
    path
        The CSV sheet filled in, or the file that the HTML form hands out.
    key
        What was drawn.

    Raises
    ------
    NotFoundError
        If there is no such file.
    InvalidInputError
        If it is not UTF-8, lacks a column, an answer is no answer, an item is missing, stands
        twice, or is of another sample.
    """
    path = Path(path)
    try:
        text = read_bytes(path, noun="answer").decode("utf-8-sig")
    except UnicodeDecodeError as err:
        msg = f"{path}: not UTF-8 (byte {err.start + 1}: {err.reason}); save the sheet as UTF-8"
        raise InvalidInputError(msg) from err
    header = text.partition("\n")[0]
    delimiter = ";" if header.count(";") > header.count(",") else ","  # as some spreadsheets save
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    missing = [name for name in ANSWER_COLUMNS[:4] if name not in (reader.fieldnames or ())]
    if missing:
        msg = f"{path}: no column {', '.join(missing)}; fill in the sheet that was drawn"
        raise InvalidInputError(msg)
    found: dict[str, ReviewAnswer] = {}
    known = {item.item for item in key.items}
    foreign = []
    for row in reader:
        where = f"{path}:{reader.line_num}"
        name = (row["item"] or "").strip()
        if name not in known:
            foreign.append(name)
            continue
        if name in found:
            msg = f"{where}: item {name!r} stands twice"
            raise InvalidInputError(msg)
        found[name] = _parse_answer(row, name, rater=path.stem, where=where)
    if foreign:
        msg = f"{path}: {len(foreign)} items are not in this sample: {_some(foreign)}"
        raise InvalidInputError(msg)
    absent = [item.item for item in key.items if item.item not in found]
    if absent:
        msg = (
            f"{path}: {len(absent)} items have no row: {_some(absent)}; every item needs an answer"
        )
        raise InvalidInputError(msg)
    return [found[item.item] for item in key.items]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(name[:40]) for name in names[:_SHOWN]) + more


def _parse_answer(row: dict[str, str | None], name: str, *, rater: str, where: str) -> ReviewAnswer:
    scores = {}
    for column in ("score_a", "score_b"):
        given = (row[column] or "").strip()
        if given not in {"0", "1", "2"}:
            msg = f"{where}: {column} of {name!r} is {given!r}, expected 0, 1 or 2"
            raise InvalidInputError(msg)
        scores[column] = int(given)
    verdict = (row["verdict"] or "").strip().lower()
    if verdict not in {"accept", "reject"}:
        msg = f"{where}: verdict of {name!r} is {verdict!r}, expected accept or reject"
        raise InvalidInputError(msg)
    comment = (row.get("comment") or "").strip()
    return ReviewAnswer.parse(
        {"item": name, "rater": rater, "verdict": verdict, "comment": comment, **scores},
        where=where,
    )


def _by_arm(item: ReviewItem, answer: ReviewAnswer) -> tuple[int, int]:
    """Return the scores of the positive and of the negative text."""
    a, b = answer.score_a, answer.score_b
    return (a, b) if item.a == "positive" else (b, a)


def review_scores(
    texts: Sequence[Text], key: ReviewKey, answers: Sequence[Sequence[ReviewAnswer]]
) -> list[RubricScore]:
    """Return the raters' scores by text, as validation takes them."""
    arms: tuple[Arm, Arm] = ("positive", "negative")
    ids = {(t.pair, t.arm): t.id for t in texts if t.variant == "original"}
    return [
        RubricScore.parse({"text": ids[item.pair, arm], "score": score, "judge": answer.rater})
        for rater in answers
        for item, answer in zip(key.items, rater, strict=True)
        for arm, score in zip(arms, _by_arm(item, answer), strict=True)
    ]


def fold_review(
    info: CorpusInfo,
    texts: Sequence[Text],
    key: ReviewKey,
    *,
    answers: Sequence[Sequence[ReviewAnswer]],
    seed: int = 0,
) -> tuple[ReviewReport, list[Text]]:
    """Return the outcome of a review, and the texts without the pairs that it rejects.

    A pair is rejected if a rater rejects it, or scores it otherwise than 2 for the positive and
    0 for the negative text. Variants go with their originals.

    Parameters
    ----------
    info, texts
        The corpus that the sample was drawn from.
    key
        The sample.
    answers
        Of one or more raters, each as ``read_answers`` returns them.
    seed
        Of the bootstrap.

    Raises
    ------
    InvalidInputError
        If the corpus is not the one that was sampled, or there are no answers, or two raters
        have one name.
    """
    if key.texts_digest != info.texts_digest:
        msg = (
            f"the sample was drawn from other texts ({key.texts_digest[:19]}…, these are "
            f"{info.texts_digest[:19]}…); give the corpus as it was when it was drawn"
        )
        raise InvalidInputError(msg)
    raters = [rater[0].rater for rater in answers]
    if not raters or len(set(raters)) < len(raters):
        msg = f"expected the answers of one rater or more, under different names, got {raters}"
        raise InvalidInputError(msg)
    verdicts = []
    for index, item in enumerate(key.items):
        reasons = []
        for rater in answers:
            answer = rater[index]
            positive, negative = _by_arm(item, answer)
            said = f": {answer.comment}" if answer.comment else ""
            if answer.verdict == "reject":
                reasons.append(f"{answer.rater} rejects it{said}")
            if (positive, negative) != (2, 0):
                reasons.append(
                    f"{answer.rater} scores it {positive} and {negative}, expected 2 and 0{said}"
                )
        verdicts.append(ReviewVerdict(pair=item.pair, accepted=not reasons, reasons=tuple(reasons)))
    report = ReviewReport(
        corpus=info.id,
        texts_digest=info.texts_digest,
        raters=tuple(raters),
        n_items=len(key.items),
        agreement=tuple(_agreement(key, answers, seed=seed)),
        verdicts=tuple(verdicts),
    )
    rejected = {v.pair for v in verdicts if not v.accepted}
    return report, [t for t in texts if t.pair not in rejected]


def _agreement(
    key: ReviewKey, answers: Sequence[Sequence[ReviewAnswer]], *, seed: int
) -> list[Agreement]:
    """Return each rater's agreement with the arms, and the raters' with each other."""
    n = len(key.items)
    scores = [
        [_by_arm(item, answer) for item, answer in zip(key.items, rater, strict=True)]
        for rater in answers
    ]
    clusters = np.repeat(np.arange(n), 2)
    intended = np.tile([2.0, 0.0], n)
    found = []
    for rater, given in zip(answers, scores, strict=True):
        name = rater[0].rater
        right, ordered = given.count((2, 0)), sum(p > q for p, q in given)
        found.append(share_agreement(f"{name}: scores 2 and 0", right, n))
        found.append(share_agreement(f"{name}: positive scored higher", ordered, n))
        ratings = np.stack([np.array(given, dtype=np.float64).ravel(), intended])
        found.append(alpha_agreement(f"{name} and the arms", ratings, clusters, seed=seed))
    if len(answers) > 1:
        same = sum(len({given[i] for given in scores}) == 1 for i in range(n))
        found.append(share_agreement("raters: both scores the same", same, n))
        ratings = np.stack([np.array(given, dtype=np.float64).ravel() for given in scores])
        found.append(alpha_agreement("raters", ratings, clusters, seed=seed))
        verdicts = zip(*([a.verdict for a in rater] for rater in answers), strict=True)
        alike = sum(len(set(said)) == 1 for said in verdicts)
        found.append(share_agreement("raters: same verdict", alike, n))
    return found
