"""What a pair can be rejected for: its arms must differ in the concept and in little else."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..schemas import Lexicon, Pair, Reason, RubricScore, Scenario, Text, ValidateSpec
from .text_checks import check_text, point_of_view
from .words import content_words, sentences, words

__all__ = ["PairCheck", "check_pair", "sentiment"]

_RUBRIC = {"positive": 2, "negative": 0}


@functools.cache
def _analyzer() -> Any:  # vaderSentiment has no types  # noqa: ANN401
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def sentiment(text: str) -> float:
    """Return VADER's compound score, the mean over the sentences, from -1 to 1."""
    parts = sentences(text)
    scores = [_analyzer().polarity_scores(part)["compound"] for part in parts]
    return float(sum(scores) / len(scores)) if scores else 0.0


class PairCheck:
    """The checks of one pair, with what they need to know beside it.

    Parameters
    ----------
    spec
        The thresholds.
    lexica
        The keywords of the arms.
    scenarios
        The known scenarios by id; None where no scenario file was given.
    scores
        What the texts were given by the rubric, by text id.
    """

    def __init__(
        self,
        spec: ValidateSpec,
        *,
        lexica: Sequence[Lexicon],
        scenarios: Mapping[str, Scenario] | None = None,
        scores: Mapping[str, RubricScore] | None = None,
    ) -> None:
        self.spec = spec
        self._lexica = [(lexicon.name, lexicon.keywords) for lexicon in lexica]
        self._keywords = frozenset[str]().union(*(k for _, k in self._lexica))
        self._scenarios = scenarios
        self._scores = scores or {}

    def check(self, pair: Pair) -> tuple[list[Reason], dict[str, float]]:
        """Return the reasons to reject ``pair``, and what was measured."""
        reasons = [
            r for text in (pair.positive, pair.negative) for r in check_text(text, self.spec)
        ]
        reasons = list({(r.check, r.message): r for r in reasons}.values())
        measures: dict[str, float] = {}
        checks: tuple[Callable[[Pair, dict[str, float]], list[Reason]], ...] = (
            self._matched, self._length, self._overlap, self._keyword_shares, self._sentiment,
            self._rubric,
        )  # fmt: skip
        for check in checks:
            reasons += check(pair, measures)
        return reasons, measures

    def _matched(self, pair: Pair, measures: dict[str, float]) -> list[Reason]:
        """Format and person must be those of the other arm."""
        del measures
        a, b = pair.positive, pair.negative
        reasons = []
        views = point_of_view(a.response), point_of_view(b.response)
        if views[0] != views[1]:
            message = f"positive is told in the {views[0]}, negative in the {views[1]}"
            reasons.append(Reason(check="point_of_view", message=message))
        lines = [text.response.strip().count("\n") + 1 for text in (a, b)]
        if lines[0] != lines[1]:
            message = f"positive has {lines[0]} lines, negative {lines[1]}"
            reasons.append(Reason(check="format", message=message))
        reasons += [
            Reason(check="prompt", message=f"the arms answer unlike {field}s")
            for field in ("prompt", "category", "subset", "task_conflict")
            if getattr(a, field) != getattr(b, field)
        ]
        return reasons

    def _length(self, pair: Pair, measures: dict[str, float]) -> list[Reason]:
        reasons = []
        for unit, measure in (("words", lambda t: len(words(t))), ("characters", len)):
            n = [measure(text.response) for text in (pair.positive, pair.negative)]
            gap = abs(n[0] - n[1]) / max(*n, 1)
            measures[f"length_gap_{unit}"] = gap
            if gap > self.spec.length_band:
                message = (
                    f"lengths differ by {gap:.1%} in {unit} ({n[0]} and {n[1]}), expected at most "
                    f"{self.spec.length_band:.0%}"
                )
                reasons.append(Reason(check="length", message=message))
        return reasons

    def _overlap(self, pair: Pair, measures: dict[str, float]) -> list[Reason]:
        a, b = (set(content_words(t.response)) for t in (pair.positive, pair.negative))
        overlap = len(a & b) / max(len(a | b), 1)
        measures["content_overlap"] = overlap
        low, high = self.spec.content_overlap
        # A balanced pair may be one set of words in two orders; only its order tells the arms.
        high = 1.0 if pair.positive.subset in self.spec.balanced else high
        if low <= overlap <= high and pair.positive.response != pair.negative.response:
            return []
        message = (
            f"the arms share {overlap:.0%} of their content words, expected {low:.0%} to {high:.0%}"
        )
        return [Reason(check="overlap", message=message)]

    def _keyword_shares(self, pair: Pair, measures: dict[str, float]) -> list[Reason]:
        reasons = []
        found = {arm: words(text.response) for arm, text in _arms(pair)}
        for arm, tokens in found.items():
            share = sum(w in self._keywords for w in tokens) / max(len(tokens), 1)
            measures[f"keyword_share_{arm}"] = share
            if share > self.spec.keyword_share:
                message = (
                    f"{share:.0%} of the words of the {arm} text are keywords, expected at most "
                    f"{self.spec.keyword_share:.0%}"
                )
                reasons.append(Reason(check="keywords", message=message))
        for name, keywords in self._lexica:
            shares = [sum(w in keywords for w in t) / max(len(t), 1) for t in found.values()]
            gap = shares[0] - shares[1]
            measures[f"keyword_gap_{name}"] = gap
            if pair.positive.subset in self.spec.balanced and abs(gap) > self.spec.keyword_gap:
                message = (
                    f"the {name} keywords make {shares[0]:.1%} of the positive and {shares[1]:.1%} "
                    f"of the negative text of a balanced pair, expected a difference of at most "
                    f"{self.spec.keyword_gap:.1%}"
                )
                reasons.append(Reason(check="keywords", message=message))
        return reasons

    def _sentiment(self, pair: Pair, measures: dict[str, float]) -> list[Reason]:
        scores = {arm: sentiment(text.response) for arm, text in _arms(pair)}
        measures |= {f"sentiment_{arm}": score for arm, score in scores.items()}
        gap = scores["positive"] - scores["negative"]
        if gap >= -self.spec.sentiment_margin:
            return []
        message = (
            f"sentiment contradicts the arms: positive {scores['positive']:+.2f}, negative "
            f"{scores['negative']:+.2f}; swapped?"
        )
        return [Reason(check="sentiment", message=message)]

    def _rubric(self, pair: Pair, measures: dict[str, float]) -> list[Reason]:
        reasons = []
        if self._scenarios is not None:
            scenario = self._scenarios.get(pair.positive.scenario)
            if scenario is None or scenario.rubric is None:
                name = pair.positive.scenario
                message = f"scenario {name!r} has no rubric in the scenario file"
                reasons.append(Reason(check="rubric", message=message))
        for arm, text in _arms(pair):
            given = self._scores.get(text.id)
            if given is None or given.score is None:
                if self.spec.require_scores:
                    how = "nobody scored" if given is None else f"{given.judge} could not score"
                    reasons.append(Reason(check="rubric", message=f"{how} {text.id}"))
                continue
            measures[f"rubric_{arm}"] = float(given.score)
            if given.score != _RUBRIC[arm]:
                message = (
                    f"{given.judge} scored {text.id} {given.score} by the rubric, expected "
                    f"{_RUBRIC[arm]} for the {arm} arm"
                )
                reasons.append(Reason(check="rubric", message=message))
        return reasons


def _arms(pair: Pair) -> tuple[tuple[str, Text], tuple[str, Text]]:
    return ("positive", pair.positive), ("negative", pair.negative)


def check_pair(
    pair: Pair,
    spec: ValidateSpec,
    *,
    lexica: Sequence[Lexicon],
    scenarios: Mapping[str, Scenario] | None = None,
    scores: Mapping[str, RubricScore] | None = None,
) -> list[Reason]:
    """Return the reasons to reject one pair, near-duplicates aside; empty: it is accepted."""
    return PairCheck(spec, lexica=lexica, scenarios=scenarios, scores=scores).check(pair)[0]
