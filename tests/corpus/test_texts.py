import json

import pytest

from actlake.corpus import check_texts, pair_texts, read_jsonl, texts_digest, write_jsonl
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
