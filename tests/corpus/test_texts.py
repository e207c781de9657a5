import json

import pytest

from actlake.corpus import (
    check_texts,
    mark_spans,
    pair_texts,
    read_jsonl,
    texts_digest,
    write_jsonl,
)
from actlake.schemas import ArmNames, InvalidInputError, NotFoundError, Text

ARMS = ArmNames(positive="empathic", negative="task_focused")


def row(name, arm, **more):
    return {"id": name, "response": f"text {name}", "arm": arm, "pair": name[:2], **more}


def write(path, rows):
    path.write_text(
        "\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows), encoding="utf-8"
    )
    return path


def test_reads_texts_with_the_names_of_the_study(tmp_path):
    path = write(tmp_path / "t.jsonl", [row("p1a", "empathic"), "", row("p1b", "task_focused")])
    texts = read_jsonl(path, arms=ARMS)
    assert [t.arm for t in texts] == ["positive", "negative"]
    assert [p.positive.id for p in pair_texts(texts)] == ["p1a"]


def test_round_trip_keeps_texts_and_digest(tmp_path):
    texts = [
        Text(id="b", response="ein schöner Tag\nund mehr", arm="positive", pair="x", prompt="?"),
        Text(id="a", response="x", arm="negative", pair="x", system="s"),
    ]
    write_jsonl(texts, tmp_path / "t.jsonl")
    back = read_jsonl(tmp_path / "t.jsonl")
    assert back == texts
    assert texts_digest(back) == texts_digest(texts[::-1])


def test_a_conversation_ends_with_its_response(tmp_path):
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "A boy fell."},
        {"role": "assistant", "content": "Is he hurt?"},
        {"role": "user", "content": "Yes."},
    ]
    whole = {"id": "a", "messages": [*turns, {"role": "assistant", "content": "I help."}]}
    split = {"id": "a", "messages": turns, "response": "I help."}
    path = write(tmp_path / "t.jsonl", [whole])
    (text,) = read_jsonl(path)
    assert text == Text.parse(split)
    assert text.response == "I help."
    assert text.n_chars == len("Be kind.A boy fell.Is he hurt?Yes.I help.")
    write_jsonl([text], tmp_path / "back.jsonl")
    assert json.loads((tmp_path / "back.jsonl").read_text())["messages"] == turns
    assert read_jsonl(tmp_path / "back.jsonl") == [text]


def test_texts_may_be_nothing_but_token_ids(tmp_path):
    (text,) = read_jsonl(write(tmp_path / "t.jsonl", [{"id": "a", "token_ids": [1, 7, 9]}]))
    assert (text.token_ids, text.response, text.n_chars) == ((1, 7, 9), "", 3)
    write_jsonl([text], tmp_path / "back.jsonl")
    assert read_jsonl(tmp_path / "back.jsonl") == [text]


def test_spans_are_the_matches_of_a_pattern(tmp_path):
    texts = [Text(id="a", response="I help, he helps", prompt="?"), Text(id="b", response="no")]
    marked = mark_spans(texts, name="cue", pattern=r"\bhelps?\b")
    assert marked[0].spans == {"cue": ((2, 6), (11, 16))}
    assert marked[1] == texts[1]
    twice = mark_spans(marked, name="first", pattern="^.")
    assert set(twice[0].spans) == {"cue", "first"}
    write_jsonl(twice, tmp_path / "t.jsonl")
    assert read_jsonl(tmp_path / "t.jsonl") == twice
    with pytest.raises(InvalidInputError, match="no regular expression"):
        mark_spans(texts, name="cue", pattern="(")


def test_keys_that_came_later_do_not_change_the_digests_of_texts_without_them():
    texts = [Text(id="a", response="x"), Text(id="b", response="y", prompt="?", system="s")]
    assert texts_digest(texts) == (
        "sha256:d2858e3e67af6aa7a108205ae9d50c89f6337be562f287b41c5e0ebc5c5086fc"
    )
    assert texts_digest([Text(id="a", token_ids=(1, 2))]) != texts_digest(
        [Text(id="a", token_ids=(1, 2), response_start=0)]
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["{oops", row("p1a", "empathic"), "[1]"], r"t\.jsonl:1: not valid JSON .*1 other line"),
        ([row("p1a", "happy")], r"t\.jsonl:1: arm 'happy' is not in the spec; expected 'empathic'"),
        (
            [row("p1a", "empathic", respnse="x")],
            r"t\.jsonl:1: unknown key 'respnse' \(did you mean",
        ),
        ([row("p1a", "empathic", response=" ")], r"t\.jsonl:1: the response is empty"),
        ([row("p1a", "empathic", response="")], r"t\.jsonl:1: response: .*at least 1"),
        (['{"id": "a"}'], r"t\.jsonl:1: missing key 'response'$"),
        (
            [{"id": "a", "messages": [{"role": "user", "content": "Hi"}]}],
            r"missing key 'response', and the last of messages is not an assistant's",
        ),
        ([{"id": "a", "messages": [{"rôle": "user"}], "response": "x"}], r"messages\.0"),
        (
            [
                {
                    "id": "a",
                    "messages": [{"role": "user", "content": "Hi"}],
                    "response": "x",
                    "prompt": "Hi",
                }
            ],
            "leave out prompt and system",
        ),
        ([{"id": "a", "token_ids": []}], r"token_ids: .*at least 1"),
        ([{"id": "a", "token_ids": [5, -1]}], r"token_ids\.1: .*greater than or equal to 0"),
        ([{"id": "a", "token_ids": [5, 6], "response_start": 2}], "beyond the 2 token_ids"),
        ([{"id": "a", "response": "x", "response_start": 2}], "counts token_ids, and there are"),
        ([{"id": "a", "response": "xy", "spans": {"w": [[1, 3]]}}], r"span 'w' is \[1, 3\), exp"),
        ([{"id": "a", "response": "xy", "spans": {"w": [[1, 1]]}}], r"span 'w' is \[1, 1\), exp"),
        ([{"id": "a", "response": "xy", "spans": {"W": [[0, 1]]}}], r"spans\.W"),
        ([{"id": "a", "token_ids": [5], "spans": {"w": [[0, 1]]}}], "token_ids do not have"),
        (
            [row("p1a", "empathic"), row("p1b", "task_focused"), row("p1a", "empathic")],
            r"t\.jsonl:3: duplicate id 'p1a' \(first at line 1\)",
        ),
        ([row("p1a", "empathic")], r"t\.jsonl:1: pair 'p1' has one arm: positive, but no negative"),
        ([row("p1a", "empathic"), row("p1b", "empathic")], r"has arms \['positive', 'positive'\]"),
        ([row("p1a", "empathic", pair=None)], r"arm 'positive' but no pair"),
        (
            [row("p1a", "empathic", scenario="s"), row("p1b", "task_focused", scenario="t")],
            r"unlike scenarios",
        ),
        ([], r"holds no text"),
        ([""], r"holds no text"),
    ],
)
def test_bad_input_names_place_and_reason_in_one_line(tmp_path, rows, message):
    path = write(tmp_path / "t.jsonl", rows)
    with pytest.raises(InvalidInputError, match=message) as caught:
        read_jsonl(path, arms=ARMS)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    (tmp_path / "t.jsonl").write_bytes(b'{"id": "a", "response": "\xff"}\n')
    with pytest.raises(InvalidInputError, match=r"t\.jsonl:1: not UTF-8"):
        read_jsonl(tmp_path / "t.jsonl")


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(NotFoundError, match="no such file"):
        read_jsonl(tmp_path / "none.jsonl")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_jsonl(tmp_path)


def test_variants_pair_among_themselves():
    texts = [
        Text(id=f"{v}{a}", response="x", arm=a, pair="p", variant=v)
        for v in ("original", "keywords_removed")
        for a in ("positive", "negative")
    ]
    check_texts(texts)
    assert len(pair_texts(texts, variant="keywords_removed")) == 1
