"""From texts to token ids, with the spans that pools are taken over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt

from ..schemas import CaptureSpec, InvalidInputError, Text, span_of

__all__ = ["TokenRow", "chat_messages", "render_prompt", "render_texts"]


@dataclass(frozen=True)
class TokenRow:
    """One text as tokens.

    ``ids`` (token,) int32; ``special`` and ``response`` (token,) bool. ``response`` covers every
    token that holds a character of the response; ``n_total`` counts before truncation. ``spans``
    are masks like ``response``, of the tokens that overlap the text's spans of a name. ``chars``
    (token, 2) int32 are [start, stop) in the characters of the text's response, −1 of a token
    that holds none of them, and of all where the text brought its ids along.
    """

    text: Text
    ids: npt.NDArray[np.int32]
    special: npt.NDArray[np.bool_]
    response: npt.NDArray[np.bool_]
    n_total: int
    spans: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    chars: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int32))

    @property
    def n_tokens(self) -> int:
        """Tokens that are run."""
        return len(self.ids)

    @property
    def truncated(self) -> bool:
        """Whether tokens were cut off."""
        return self.n_total > len(self.ids)

    @property
    def n_prompt(self) -> int:
        """Tokens before the first of the response."""
        return int(np.argmax(self.response))


def chat_messages(text: Text) -> list[dict[str, str]]:
    """Return the turns before the answer."""
    if text.messages is not None:
        return [{"role": turn.role, "content": turn.content} for turn in text.messages]
    turns = [("system", text.system), ("user", text.prompt)]
    return [{"role": role, "content": content} for role, content in turns if content is not None]


def render_prompt(tokenizer: Any, messages: list[dict[str, str]]) -> str:  # noqa: ANN401
    """Return the turns as the chat template writes them, up to where the answer begins."""
    try:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )
    except jinja2.TemplateError as err:
        roles = [m["role"] for m in messages]
        msg = f"the chat template refuses turns of {roles}: {err}; leave out the system text"
        raise InvalidInputError(msg) from err


def render_texts(
    texts: Sequence[Text],
    tokenizer: Any,  # tokenizers have no common type  # noqa: ANN401
    *,
    spec: CaptureSpec,
    max_positions: int | None = None,
) -> list[TokenRow]:
    """Return the tokens of every text, in the order given.

    Text is rendered once as a string and tokenised whole: tokens(prompt) + tokens(response) is
    not tokens(prompt + response). Spans come from the character offsets. Token ids that a text
    brings along are taken as they are.

    Raises
    ------
    InvalidInputError
        If a text is longer than the limit and may not be truncated, has no prompt though
        a pool of the prompt is asked for, has no ordinary token in its response, has turns that
        no chat template can write, or ids that are not in the vocabulary.
    """
    has_template = bool(tokenizer.chat_template)
    if spec.render == "chat" and not has_template:
        msg = "render = 'chat', but the tokenizer has no chat template; use 'plain'"
        raise InvalidInputError(msg)
    limit = min(spec.max_tokens, max_positions or spec.max_tokens)
    of_spans = [name for pool in spec.pools if (name := span_of(pool)) is not None]
    of_prompt = [pool for pool in spec.pools if "prompt" in pool]
    special_ids = np.array(sorted(tokenizer.all_special_ids), dtype=np.int32)

    whole = [
        _take_ids(text, n_vocabulary=len(tokenizer), special_ids=special_ids)
        for text in texts
        if text.token_ids is not None
    ]
    written = [text for text in texts if text.token_ids is None]
    rendered = [_render(text, tokenizer, spec.render, has_template) for text in written]
    for chat in (True, False):
        chosen = [i for i, (_, _, is_chat) in enumerate(rendered) if is_chat is chat]
        if not chosen:
            continue
        # A rendered template already holds its special tokens: adding them again doubles the BOS.
        encoded = tokenizer(
            [rendered[i][0] for i in chosen],
            add_special_tokens=not chat,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        whole += [
            _locate(written[i], ids, offsets, rendered[i][1], special_ids, is_stripped=chat)
            for i, ids, offsets in zip(
                chosen, encoded["input_ids"], encoded["offset_mapping"], strict=True
            )
        ]
    _check_no_double_bos(whole, tokenizer.bos_token_id)
    too_long = [row for row in whole if row.n_tokens > limit]
    rows = [_cut(row, limit) if row.n_tokens > limit else row for row in whole]
    if too_long and not spec.truncate:
        worst = max(too_long, key=lambda r: r.n_total)
        msg = (
            f"text {worst.text.id!r} has {worst.n_total} tokens, the limit is {limit}; "
            f"{len(too_long)} of {len(texts)} texts are too long: raise max_tokens, shorten them, "
            "or set truncate = true"
        )
        raise InvalidInputError(msg)
    for row in rows:
        _check_spans(row, of_prompt=of_prompt, of_spans=of_spans)
    order = {text.id: i for i, text in enumerate(texts)}
    return sorted(rows, key=lambda row: order[row.text.id])


def _render(
    text: Text,
    tokenizer: Any,  # noqa: ANN401
    rendering: str,
    has_template: bool,  # internal  # noqa: FBT001
) -> tuple[str, tuple[int, int], bool]:
    """Return the text as one string, the characters of its response, and whether it is a chat."""
    asked = text.prompt is not None or text.messages is not None
    chat = rendering == "chat" or (rendering == "auto" and has_template and asked)
    if not chat and text.messages is not None:
        why = "render is 'plain'" if rendering == "plain" else "the tokenizer has no chat template"
        msg = f"text {text.id!r} has turns, which only a chat template can write, but {why}"
        raise InvalidInputError(msg)
    if not chat:
        before = (text.system or "") + (text.prompt or "")
        return before + text.response, (len(before), len(before) + len(text.response)), False
    messages = chat_messages(text)
    before = render_prompt(tokenizer, messages)
    answer = {"role": "assistant", "content": text.response}
    whole = str(tokenizer.apply_chat_template([*messages, answer], tokenize=False))
    content = text.response.strip()  # templates strip what they insert
    # Some templates write an answer otherwise than after their generation prompt.
    start = whole.find(content, len(before) if whole.startswith(before) else 0)
    if start < 0:
        msg = f"text {text.id!r}: the chat template changed the response; use render = 'plain'"
        raise InvalidInputError(msg)
    if not whole.startswith(before):
        start = whole.rfind(content)
    return whole, (start, start + len(content)), True


def _take_ids(text: Text, *, n_vocabulary: int, special_ids: npt.NDArray[np.int32]) -> TokenRow:
    """Return the token row of the ids that a text brings along."""
    ids = np.asarray(text.token_ids, dtype=np.int32)
    (beyond,) = (ids >= n_vocabulary).nonzero()
    if beyond.size:
        at = int(beyond[0])
        msg = (
            f"text {text.id!r}: token id {ids[at]} at position {at} is not in the vocabulary of "
            f"{n_vocabulary} tokens; these are another tokenizer's ids"
        )
        raise InvalidInputError(msg)
    special = np.isin(ids, special_ids)
    answer = np.arange(len(ids)) >= (text.response_start or 0)
    chars = np.full((len(ids), 2), -1, dtype=np.int32)
    return TokenRow(text, ids, special, answer & ~special, len(ids), chars=chars)


def _cut(row: TokenRow, limit: int) -> TokenRow:
    return replace(
        row,
        ids=row.ids[:limit],
        special=row.special[:limit],
        response=row.response[:limit],
        spans={name: mask[:limit] for name, mask in row.spans.items()},
        chars=row.chars[:limit],
    )


def _locate(
    text: Text,
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    span: tuple[int, int],
    special_ids: npt.NDArray[np.int32],
    *,
    is_stripped: bool,
) -> TokenRow:
    """Return the token row whose response tokens are those that overlap ``span``."""
    array = np.asarray(ids, dtype=np.int32)
    spans = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    special = np.isin(array, special_ids)
    response = _overlapping(spans, *span) & ~special
    # Templates strip the response: its characters are counted from where it really begins.
    first = span[0] - (len(text.response) - len(text.response.lstrip()) if is_stripped else 0)
    named = {
        name: np.logical_or.reduce(
            [_overlapping(spans, first + start, first + stop) for start, stop in parts]
        )
        & response
        for name, parts in (text.spans or {}).items()
    }
    chars = np.clip(spans - first, 0, len(text.response)).astype(np.int32)
    chars[~response] = -1
    return TokenRow(text, array, special, response, len(array), named, chars)


def _overlapping(offsets: npt.NDArray[np.int64], start: int, stop: int) -> npt.NDArray[np.bool_]:
    """Return which tokens, by their character offsets (token, 2), overlap [start, stop)."""
    is_text = offsets[:, 1] > offsets[:, 0]
    return np.asarray(is_text & (offsets[:, 1] > start) & (offsets[:, 0] < stop))


def _check_no_double_bos(rows: Sequence[TokenRow], bos: int | None) -> None:
    for row in rows:
        if bos is not None and row.n_tokens > 1 and row.ids[0] == bos and row.ids[1] == bos:
            msg = f"text {row.text.id!r} begins with two BOS tokens; take the BOS out of the text"
            raise InvalidInputError(msg)


def _check_spans(row: TokenRow, *, of_prompt: Sequence[str], of_spans: Sequence[str]) -> None:
    text = row.text
    if not row.response.any():
        cut = " left after truncation" if row.truncated else ""
        msg = f"text {text.id!r} has no ordinary token of its response{cut}"
        raise InvalidInputError(msg)
    if of_prompt and row.special[: row.n_prompt].all():
        msg = f"text {text.id!r} has no prompt, so no {of_prompt[0]}; leave that pool out"
        raise InvalidInputError(msg)
    for name in of_spans:
        mask = row.spans.get(name)
        if mask is None or not mask.any():
            known = ", ".join(row.spans) or "none"
            lost = " left after truncation" if mask is not None and row.truncated else ""
            msg = (
                f"text {text.id!r} has no token of a span {name!r}{lost} (its spans: {known}); "
                "leave the text or the pool out"
            )
            raise InvalidInputError(msg)
