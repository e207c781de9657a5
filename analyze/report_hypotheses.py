"""The plan's hypotheses on the page: each verdict per model and over all, with its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .hypotheses import HypothesisVerdict, combine_verdicts
from .report_numbers import RunView
from .report_page import Page, esc
from .report_statements import label_runs

__all__ = ["add_hypotheses"]

_MARKS = {"supported": "✓", "not supported": "✗", "cannot tell": "?"}


def add_hypotheses(
    page: Page, views: Sequence[RunView], verdicts: Sequence[HypothesisVerdict]
) -> None:
    """Add the table of hypotheses: the answer over all models, then each model's with its figures.

    Adds nothing where no model was probed.
    """
    if not views:
        return
    page.use(style="report_interventions.css")
    labels = label_runs(views)
    by_name: dict[str, list[HypothesisVerdict]] = {}
    for verdict in verdicts:
        by_name.setdefault(verdict.hypothesis.id, []).append(verdict)
    body = "".join(_row(found, labels) for found in by_name.values())
    head = "".join(f'<th scope="col">{h}</th>' for h in ("hypothesis", "answer", "because"))
    table = (
        '<div class="scroll" role="region" tabindex="0" aria-label="Hypotheses">'
        f'<table class="hypotheses"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )
    note = (
        "Each answer compares intervals and corrected p-values that stand further down; where "
        "they allow both answers it is “cannot tell”. What is read at one layer is read at the "
        "layer that the probe's inner folds chose, so that no answer rests on the best of many. "
        "Over all models the answer is the one that every model gives, else one cannot tell."
    )
    body = f'<p class="note">{esc(note)}</p>{table}'
    page.add("hypotheses", "Hypotheses", body, lead=summary(verdicts))


def summary(verdicts: Sequence[HypothesisVerdict]) -> str:
    """Return which hypotheses hold over all models, which do not, and which stay open."""
    by_name: dict[str, list[HypothesisVerdict]] = {}
    for verdict in verdicts:
        by_name.setdefault(verdict.hypothesis.id, []).append(verdict)
    answers: dict[str, list[str]] = {}
    for name, found in by_name.items():
        answers.setdefault(combine_verdicts(found).answer, []).append(name)
    parts = [
        f"{answer}: {', '.join(answers[answer])}"
        for answer in ("supported", "not supported", "cannot tell")
        if answer in answers
    ]
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else "No hypothesis was judged."


def _row(found: Sequence[HypothesisVerdict], labels: Mapping[str, str]) -> str:
    whole, hypothesis = combine_verdicts(found), found[0].hypothesis
    claim = (
        f'<th scope="row"><span class="id">{esc(hypothesis.id)}</span> '
        f'{esc(hypothesis.statement)}<span class="caveat">{esc(hypothesis.reading)}</span></th>'
    )
    reasons = list(dict.fromkeys(v.because for v in found))
    same = len(reasons) == 1 and len({v.answer for v in found}) == 1
    if same:
        because = f"<p>{esc(_sentence(reasons[0]))}</p>"
    else:
        items = "".join(
            f"<dt>{esc(labels.get(v.run or '', v.run or 'all models'))}: {_badge(v.answer)}</dt>"
            f"<dd>{esc(_sentence(v.because))}</dd>"
            for v in found
        )
        because = f"<p>{esc(_sentence(whole.because))}</p><dl>{items}</dl>"
    return f"<tr>{claim}<td>{_badge(whole.answer)}</td><td>{because}</td></tr>\n"


def _badge(answer: str) -> str:
    kind = answer.replace(" ", "-")
    mark = f'<span aria-hidden="true">{_MARKS[answer]}</span>'
    return f'<span class="badge {kind}">{mark} {answer}</span>'


def _sentence(text: str) -> str:
    # No capital letter: it may begin with the name of a model.
    return text if text.endswith(".") else f"{text}."
