import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from actlake.corpus import mark_spans
from actlake.extract import render_texts
from actlake.models import organism_names, organism_path
from actlake.schemas import CaptureSpec, InvalidInputError, Text

pytestmark = pytest.mark.torch

TOKENIZER = AutoTokenizer.from_pretrained(organism_path(organism_names()[0]))
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1).filter(
    lambda s: s.strip() and "<|" not in s
)

ANY = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=9).filter(
    lambda s: "<|" not in s
)


def decode(ids):
    return TOKENIZER.decode(ids, clean_up_tokenization_spaces=False)


@settings(max_examples=60)
@given(prompt=WORDS, response=WORDS, system=st.none() | WORDS)
def test_the_response_tokens_of_a_chat_decode_to_the_response(prompt, response, system):
    text = Text(id="t", prompt=prompt, response=response, system=system)
    (row,) = render_texts([text], TOKENIZER, spec=CaptureSpec())
    # A byte-level token may straddle the turn marker's neighbour white space, never its text.
    assert response.strip() in decode(row.ids[row.response])
    assert len(decode(row.ids[row.response]).strip()) == len(response.strip())
    assert not (row.response & row.special).any()
    assert row.response[row.n_prompt]
    assert not row.response[: row.n_prompt].any()


def test_a_chat_has_one_bos_and_its_turns_in_order():
    text = Text(id="t", prompt="A boy fell.", response="I help the boy.", system="Be kind.")
    (row,) = render_texts([text], TOKENIZER, spec=CaptureSpec())
    assert list(row.ids).count(TOKENIZER.bos_token_id) == 1
    whole = decode(row.ids)
    assert whole.index("Be kind.") < whole.index("A boy fell.") < whole.index("I help the boy.")
    assert row.special[row.n_prompt - 1]  # the last prompt token is where the answer begins


def test_plain_text_is_joined_as_it_is():
    text = Text(id="t", prompt="I see a boy. ", response="I help him.")
    (row,) = render_texts([text], TOKENIZER, spec=CaptureSpec(render="plain"))
    assert decode(row.ids[~row.special]) == "I see a boy. I help him."
    assert "help him" in decode(row.ids[row.response])
    assert "boy" not in decode(row.ids[row.response])


def test_a_text_that_is_too_long_is_refused_or_cut_and_recorded():
    texts = [
        Text(id=f"t{i}", prompt="A boy fell.", response="I help. " * (1 + 9 * i)) for i in (0, 1, 2)
    ]
    spec = CaptureSpec(max_tokens=40)
    with pytest.raises(InvalidInputError, match=r"'t2' has \d+ tokens, the limit is 40; 2 of 3"):
        render_texts(texts, TOKENIZER, spec=spec)
    rows = render_texts(texts, TOKENIZER, spec=spec.model_copy(update={"truncate": True}))
    assert [row.truncated for row in rows] == [False, True, True]
    assert [row.n_tokens for row in rows[1:]] == [40, 40]
    assert rows[2].n_total > 40
    with pytest.raises(InvalidInputError, match="no ordinary token of its response left after"):
        render_texts(texts, TOKENIZER, spec=CaptureSpec(max_tokens=5, truncate=True))


def test_the_models_own_limit_counts_too():
    text = Text(id="t", prompt="A boy fell.", response="I help. " * 30)
    with pytest.raises(InvalidInputError, match="the limit is 32"):
        render_texts([text], TOKENIZER, spec=CaptureSpec(), max_positions=32)


def test_last_prompt_of_a_text_without_prompt_is_refused():
    text = Text(id="t", response="I help.")
    with pytest.raises(InvalidInputError, match="has no prompt, so no last_prompt"):
        render_texts([text], TOKENIZER, spec=CaptureSpec())
    (row,) = render_texts([text], TOKENIZER, spec=CaptureSpec(pools=("mean_response",)))
    assert row.response.any()


def test_rows_come_back_in_the_order_given_whatever_their_rendering():
    texts = [
        Text(id="c", response="I help."),
        Text(id="a", prompt="A boy fell.", response="I help."),
        Text(id="b", response="I go on."),
    ]
    rows = render_texts(texts, TOKENIZER, spec=CaptureSpec(pools=("mean_response",)))
    assert [row.text.id for row in rows] == ["c", "a", "b"]
    assert rows[0].ids.dtype == np.int32


TURNS = [
    {"role": "user", "content": "A boy fell."},
    {"role": "assistant", "content": "I help."},
    {"role": "user", "content": "He can walk again."},
]


def test_of_a_conversation_only_the_last_answer_is_the_response():
    text = Text.parse({"id": "t", "messages": TURNS, "response": "I help."})
    (row,) = render_texts([text], TOKENIZER, spec=CaptureSpec())
    whole = decode(row.ids)
    assert whole.count("I help.") == 2
    assert decode(row.ids[row.response]).strip() == "I help."
    assert "walk again" in decode(row.ids[: row.n_prompt])
    assert list(row.ids).count(TOKENIZER.bos_token_id) == 1


def test_one_turn_is_a_prompt():
    chat = Text.parse({"id": "t", "messages": TURNS[:1], "response": "I help."})
    plain = Text(id="t", prompt="A boy fell.", response="I help.")
    one, other = (render_texts([t], TOKENIZER, spec=CaptureSpec())[0] for t in (chat, plain))
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.response, other.response)


def test_turns_that_no_template_can_write_are_refused(monkeypatch):
    text = Text.parse({"id": "t", "messages": TURNS, "response": "I help."})
    with pytest.raises(InvalidInputError, match=r"'t' has turns, .* render is 'plain'"):
        render_texts([text], TOKENIZER, spec=CaptureSpec(render="plain"))
    monkeypatch.setattr(TOKENIZER, "chat_template", None)
    with pytest.raises(InvalidInputError, match="the tokenizer has no chat template"):
        render_texts([text], TOKENIZER, spec=CaptureSpec())


@settings(max_examples=40)
@given(prompt=WORDS, response=WORDS)
def test_token_ids_are_run_as_they_are(prompt, response):
    text = Text(id="t", prompt=prompt, response=response)
    (row,) = render_texts([text], TOKENIZER, spec=CaptureSpec())
    given_ids = Text(id="t", token_ids=tuple(int(i) for i in row.ids), response_start=row.n_prompt)
    (back,) = render_texts([given_ids], TOKENIZER, spec=CaptureSpec())
    np.testing.assert_array_equal(back.ids, row.ids)
    np.testing.assert_array_equal(back.special, row.special)
    assert back.n_prompt == row.n_prompt
    # What a template writes behind the answer is the response's too, where nothing says otherwise.
    assert back.response[row.response].all()
    assert not (back.response & back.special).any()


def test_token_ids_have_no_prompt_unless_they_say_where_it_ends():
    bos = TOKENIZER.bos_token_id
    ids = tuple(TOKENIZER("I help the boy.", add_special_tokens=False)["input_ids"])
    text = Text(id="t", token_ids=(bos, *ids))
    spec = CaptureSpec(pools=("mean_response", "last_response"))
    (row,) = render_texts([text], TOKENIZER, spec=spec)
    assert row.response.tolist() == [False, *[True] * len(ids)]
    with pytest.raises(InvalidInputError, match="has no prompt, so no last_prompt"):
        render_texts([text], TOKENIZER, spec=CaptureSpec())
    with pytest.raises(InvalidInputError, match="two BOS"):
        render_texts([Text(id="t", token_ids=(bos, bos, *ids))], TOKENIZER, spec=spec)


def test_ids_of_another_vocabulary_are_refused():
    n = len(TOKENIZER)
    text = Text(id="t", token_ids=(5, n - 1, n))
    with pytest.raises(
        InvalidInputError, match=f"'t': token id {n} at position 2 is not in the vocabulary of {n}"
    ):
        render_texts([text], TOKENIZER, spec=CaptureSpec(pools=("mean_response",)))


def test_token_ids_too_are_held_to_the_limit():
    text = Text(id="t", token_ids=tuple([9] * 50))
    spec = CaptureSpec(pools=("mean_response",), max_tokens=40)
    with pytest.raises(InvalidInputError, match="'t' has 50 tokens, the limit is 40"):
        render_texts([text], TOKENIZER, spec=spec)
    (row,) = render_texts([text], TOKENIZER, spec=spec.model_copy(update={"truncate": True}))
    assert (row.n_tokens, row.n_total) == (40, 50)


@settings(max_examples=80)
@given(before=ANY, word=WORDS, after=ANY)
def test_the_tokens_of_a_span_are_those_that_hold_a_byte_of_it(before, word, after):
    text = Text(
        id="t", prompt="Hi", response=before + word + after,
        spans={"w": ((len(before), len(before) + len(word)),)},
    )  # fmt: skip
    spec = CaptureSpec(render="plain", pools=("mean_span:w",))
    (row,) = render_texts([text], TOKENIZER, spec=spec)
    # Byte-level tokens are written with one character per byte: counting them needs no offsets.
    tokens = TOKENIZER.convert_ids_to_tokens(row.ids[~row.special].tolist())
    edges = np.concatenate([[0], np.cumsum([len(token) for token in tokens])])
    assert edges[-1] == len(("Hi" + text.response).encode())
    low = len(("Hi" + before).encode())
    expected = (edges[1:] > low) & (edges[:-1] < low + len(word.encode()))
    np.testing.assert_array_equal(
        row.spans["w"][~row.special], expected & row.response[~row.special]
    )


@settings(max_examples=40)
@given(lead=st.text(" \n\u3000", max_size=4), word=WORDS)
def test_spans_of_a_chat_begin_where_the_stripped_response_does(lead, word):
    word = word.strip()
    start = len(lead) + 2
    text = Text(
        id="t",
        prompt="Hi",
        response=f"{lead}¶ {word} ¶",
        spans={"w": ((start, start + len(word)),)},
    )
    (row,) = render_texts([text], TOKENIZER, spec=CaptureSpec(pools=("mean_span:w",)))
    found = decode(row.ids[row.spans["w"]])
    assert word in found
    assert "¶" not in found.replace(word, "")


def test_a_text_without_the_span_is_refused_by_name():
    texts = mark_spans(
        [Text(id="a", response="I help him."), Text(id="b", response="I go on.")],
        name="cue", pattern="help",
    )  # fmt: skip
    assert texts[0].spans == {"cue": ((2, 6),)}
    assert texts[1].spans is None
    spec = CaptureSpec(pools=("mean_span:cue",))
    with pytest.raises(InvalidInputError, match=r"'b' has no token of a span 'cue' \(its spans: n"):
        render_texts(texts, TOKENIZER, spec=spec)
    late = mark_spans([Text(id="a", response="I go on. " * 9 + "help")], name="cue", pattern="help")
    cut = spec.model_copy(update={"max_tokens": 12, "truncate": True})
    with pytest.raises(InvalidInputError, match="'cue' left after truncation"):
        render_texts(late, TOKENIZER, spec=cut)
    (row,) = render_texts(texts[:1], TOKENIZER, spec=spec)
    assert "help" in decode(row.ids[row.spans["cue"]])
