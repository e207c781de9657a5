"""What the rows of a transfer of steering say, in words."""

from __future__ import annotations

from collections.abc import Sequence

from ..schemas import SteerTransferRow, SteerTransferVerdict

__all__ = ["decide_transfer"]

_LEVEL = 0.05
_CONTROLS = (
    ("p_value", "random directions through the same map"),
    ("p_broken", "maps of texts that do not correspond"),
    ("p_orthogonal", "random rotations"),
)


def decide_transfer(
    rows: Sequence[SteerTransferRow], *, at: float
) -> tuple[SteerTransferVerdict, ...]:
    """Return a verdict per map, from the rows of metric ``ratio``.

    A direction transfers if its effect beats every control (p below .05) and the interval of its
    share of the own direction's effect lies above 0. A broken map that does as much says that
    whatever lands among the target's leading components steers, wherever it comes from.
    """
    return tuple(_decide(row, at=at) for row in rows if row.metric == "ratio")


def _decide(row: SteerTransferRow, *, at: float) -> SteerTransferVerdict:
    answer, words = _answer(row, at=at)
    return SteerTransferVerdict.model_validate(
        {
            "map": row.map or "none",
            "answer": answer,
            "words": words,
            "ratio": row.estimate,
            "ratio_low": row.ci_low,
            "ratio_high": row.ci_high,
            "p_value": row.p_value,
            "p_broken": row.p_broken,
            "p_orthogonal": row.p_orthogonal,
        }
    )


def _answer(row: SteerTransferRow, *, at: float) -> tuple[str, str]:
    size = f"at {at:g} class separations of {row.model}"
    if row.estimate is None or row.ci_low is None or row.ci_high is None:
        return "untestable", f"the target's own direction does nothing {size}: {row.reason}"
    drawn = [(getattr(row, name), what) for name, what in _CONTROLS]
    few = [what for p, what in drawn if p is None]
    counts = (row.n_draws or 0, row.n_broken or 0, row.n_orthogonal or 0)
    if few or min(counts) < 1 / _LEVEL:
        words = (
            f"{min(counts)} draws of a control cannot give a p below {_LEVEL:g}; draw "
            f"{round(1 / _LEVEL)} or more of each"
        )
        return "untestable", words
    share = (
        f"{100 * row.estimate:.0f} % of the own direction's effect "
        f"({100 * row.ci_low:.0f} to {100 * row.ci_high:.0f} %) {size}"
    )
    figures = ", ".join(f"p {p:.3f} among {what}" for p, what in drawn)
    who = f"the direction of {row.source_model}"
    if row.p_value is not None and row.p_value >= _LEVEL:
        return "no transfer", f"{who} does {share}, no more than random ones ({figures})"
    if row.ci_low <= 0 <= row.ci_high:
        return "no transfer", f"{who} does {share}, which may be nothing ({figures})"
    as_much = [what for p, what in drawn[1:] if p >= _LEVEL]
    if as_much:
        words = f"{who} does {share}, but {' and '.join(as_much)} do as much ({figures})"
        return "unspecific", words
    if row.estimate < 0:
        return "opposite", f"{who} steers the other way: {share} ({figures})"
    whole = " and so as much as the own one" if row.ci_low <= 1 <= row.ci_high else ""
    return "transfers", f"{who} does {share}{whole} ({figures})"
