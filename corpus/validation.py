"""The validation of a corpus: a reason per rejected pair, and what holds of the whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from ..schemas import (
    CorpusCheck,
    CorpusInfo,
    InvalidInputError,
    Lexicon,
    Pair,
    Reason,
    RubricScore,
    Scenario,
    Text,
    ValidateSpec,
    ValidationReport,
    Verdict,
)
from .diversity import nearest_cosines, opener_repetition
from .duplicates import find_near_duplicates, highest_jaccard
from .lexica import bundled_lexica, check_lexica
from .pair_checks import PairCheck
from .separability import bag_of_words_auroc, length_auroc, surface_auroc
from .text_checks import check_text
from .texts import check_texts, pair_texts

__all__ = ["accepted_texts", "validate_corpus"]


def validate_corpus(
    info: CorpusInfo,
    texts: Sequence[Text],
    *,
    spec: ValidateSpec | None = None,
    scenarios: Sequence[Scenario] | None = None,
    scores: Mapping[str, RubricScore] | None = None,
    lexica: Sequence[Lexicon] | None = None,
) -> ValidationReport:
    """Return what speaks against each pair, and the checks of the corpus that is left.

    Variants are ignored: they are made from texts that were validated.

    Parameters
    ----------
    info
        The description of the corpus.
    texts
        Its texts.
    spec
        The thresholds.
    scenarios
        Where given, every scenario of a pair must be among them, with a rubric.
    scores
        Rubric scores by text id: a positive text must have 2, a negative one 0.
    lexica
        Keywords of the arms; the bundled empathy and task lexica if None.

    Raises
    ------
    InvalidInputError
        If the texts do not form a corpus, or scores name texts that are not in it.
    """
    spec = spec or ValidateSpec()
    lexica = bundled_lexica() if lexica is None else lexica
    check_lexica(lexica)
    check_texts(texts)
    originals = [text for text in texts if text.variant == "original"]
    unknown = sorted(set(scores or {}) - {text.id for text in texts})
    if unknown:
        msg = (
            f"{len(unknown)} scores are of texts that are not in the corpus, the first is "
            f"{unknown[0]!r}; give the scores of this corpus"
        )
        raise InvalidInputError(msg)
    pairs = pair_texts(originals)
    neutral = [text for text in originals if text.arm == "neutral"]
    known = None if scenarios is None else {s.id: s for s in scenarios}
    checker = PairCheck(spec, lexica=lexica, scenarios=known, scores=scores)
    copies = _near_duplicates(originals, spec)
    verdicts = []
    for pair in pairs:
        reasons, measures = checker.check(pair)
        reasons += copies.get(pair.id, [])
        verdicts.append(Verdict(id=pair.id, reasons=tuple(reasons), measures=measures))
    for text in neutral:
        reasons = check_text(text, spec) + copies.get(text.id, [])
        verdicts.append(Verdict(id=text.id, kind="text", reasons=tuple(reasons)))
    accepted = {v.id for v in verdicts if v.accepted}
    kept = [pair for pair in pairs if pair.id in accepted]
    kept_neutral = [text for text in neutral if text.id in accepted]
    return ValidationReport(
        corpus=info.id,
        texts_digest=info.texts_digest,
        spec=spec,
        n_pairs=len(pairs),
        n_accepted=len(kept),
        n_neutral=len(neutral),
        n_neutral_accepted=len(kept_neutral),
        categories=dict(Counter(pair.positive.category for pair in kept)),
        subsets=dict(Counter(pair.positive.subset for pair in kept)),
        checks=tuple(_corpus_checks(pairs, kept, spec=spec)),
        verdicts=tuple(verdicts),
    )


def accepted_texts(texts: Sequence[Text], report: ValidationReport) -> list[Text]:
    """Return the texts that validation left, variants of accepted originals included."""
    accepted = {v.id for v in report.verdicts if v.accepted}
    return [t for t in texts if (t.pair or t.parent or t.id) in accepted]


def _near_duplicates(texts: Sequence[Text], spec: ValidateSpec) -> dict[str, list[Reason]]:
    """Return the reason by pair (or neutral text) that nearly repeats an earlier one."""
    found = find_near_duplicates(
        [text.response for text in texts],
        threshold=spec.duplicate_jaccard,
        shingle=spec.shingle,
        n_permutations=spec.n_permutations,
        seed=spec.seed + 1,
    )
    reasons: dict[str, list[Reason]] = {}
    for copy in found:
        first, second = texts[copy.first], texts[copy.second]
        if second.pair is not None and first.pair == second.pair:
            continue  # how far the arms of one pair overlap is another check
        message = (
            f"{second.id} nearly repeats {first.id}: {copy.jaccard:.0%} of their "
            f"{spec.shingle}-word runs are the same"
        )
        reasons.setdefault(second.pair or second.id, []).append(
            Reason(check="near_duplicate", message=message)
        )
    return reasons


def _check(
    name: str, value: float | None, bound: float | None, *, note: str = "", least: bool = False
) -> CorpusCheck:
    passed = bound is None or (value is not None and (value >= bound if least else value <= bound))
    return CorpusCheck(
        name=name,
        value=None if value is None else round(value, 4),
        bound=bound,
        sense="at least" if least else "at most",
        passed=passed,
        note=note,
    )


def _corpus_checks(
    pairs: Sequence[Pair], kept: Sequence[Pair], *, spec: ValidateSpec
) -> list[CorpusCheck]:
    """Return the checks of the pairs that are left."""
    n_scenarios = len({pair.positive.scenario for pair in kept})
    rejected = 1 - len(kept) / len(pairs) if pairs else None
    checks = [
        _check("rejected_share", rejected, spec.rejected_share),
        _check("n_pairs", len(kept), spec.min_pairs, least=True),
        _check("n_scenarios", n_scenarios, spec.min_scenarios, least=True),
    ]
    checks += _separability(kept, spec)
    for arm in ("positive", "negative"):
        responses = [getattr(pair, arm).response for pair in kept]
        repetition = opener_repetition(responses) if kept else None
        checks.append(_check(f"opener_repetition_{arm}", repetition, spec.opener_repetition))
        worst, note = highest_jaccard(responses), ""
        if worst is not None:
            note = f"{kept[worst.first].id} and {kept[worst.second].id}"
        highest = worst.jaccard if worst else 0.0
        checks.append(_check(f"max_jaccard_{arm}", highest, spec.max_jaccard, note=note))
    return checks + _leakage(kept, spec)


def _separability(kept: Sequence[Pair], spec: ValidateSpec) -> list[CorpusCheck]:
    subsets = sorted({pair.positive.subset for pair in kept})
    parts: list[tuple[str, Sequence[Pair]]] = [("all", kept)]
    if len(subsets) > 1:
        parts += [(s, [p for p in kept if p.positive.subset == s]) for s in subsets]
    checks = []
    for name, part in parts:
        balanced = name in spec.balanced or (name == "all" and set(subsets) <= {*spec.balanced})
        bow = spec.bow_balanced if balanced and subsets else spec.bow_all if name == "all" else None
        surface = spec.surface_auroc if name == "all" else None
        length = spec.length_auroc if name == "all" else None
        for check, bound, measure in (
            ("bow_auroc", bow, bag_of_words_auroc),
            ("surface_auroc", surface, surface_auroc),
        ):
            value, note = _held_out(measure, part, spec)
            checks.append(_check(f"{check}_{name}", value, bound, note=note))
        value = length_auroc(part) if part else None
        checks.append(_check(f"length_auroc_{name}", value, length))
    return checks


def _held_out(
    measure: Callable[..., float], pairs: Sequence[Pair], spec: ValidateSpec
) -> tuple[float | None, str]:
    if len({pair.positive.scenario for pair in pairs}) < 2:
        return None, "needs two scenarios"
    return measure(pairs, max_folds=spec.max_folds, seed=spec.seed), "scenarios held out"


def _leakage(kept: Sequence[Pair], spec: ValidateSpec) -> list[CorpusCheck]:
    by_split: dict[str, list[Text]] = {"train": [], "test": []}
    for pair in kept:
        by_split[pair.positive.split] += [pair.positive, pair.negative]
    train, test = by_split["train"], by_split["test"]
    shared = {t.scenario for t in train} & {t.scenario for t in test}
    both = _check("scenarios_in_both_splits", len(shared), 0, note=", ".join(sorted(shared)[:3]))
    if not train or not test:
        return [both, _check("leakage_cosine", 0.0, spec.leakage_cosine, note="one split only")]
    values, nearest = nearest_cosines([t.response for t in test], [t.response for t in train])
    worst = int(values.argmax())
    note = f"{train[int(nearest[worst])].id} and {test[worst].id}"
    return [both, _check("leakage_cosine", float(values[worst]), spec.leakage_cosine, note=note)]
