import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from actlake.extract import render_texts
from actlake.models import organism_names, organism_path
from actlake.schemas import CaptureSpec, InvalidInputError, Text

pytestmark = pytest.mark.torch

TOKENIZER = AutoTokenizer.from_pretrained(organism_path(organism_names()[0]))
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1).filter(
    lambda s: s.strip() and "<|" not in s
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
