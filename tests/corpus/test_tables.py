"""Tables in and out: what is exported is imported again; bad rows are named with their line."""

from __future__ import annotations

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actlake.cli import cli
from actlake.corpus import (
    corpus_info,
    export_dataset,
    export_texts,
    import_texts,
    parse_mapping,
    read_jsonl,
    split_scenarios,
    write_jsonl,
)
from actlake.schemas import AlreadyExistsError, ArmNames, InvalidInputError, NotFoundError, Text
from tests.corpus.made import corpus

ARMS = ArmNames(positive="empathic", negative="task_focused")
MAP = "positive=kind,negative=cold,scenario=topic,generator=model"
ROWS = [
    {"kind": 'I stop, "now", and\nhelp.', "cold": "I go on.", "topic": "ward", "model": "m1"},
    {"kind": "Ich höre zu.", "cold": "Ich gehe.", "topic": "desk", "model": "m2"},
]


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(r) for r in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_pairs_come_in_with_mapped_columns_from_every_format(tmp_path, kind):
    path = write(tmp_path / f"my pairs.{kind}", ROWS)
    texts = import_texts(path, parse_mapping(MAP))
    assert [t.id for t in texts] == [
        f"my-pairs-0000{i}-{a}" for i in (1, 2) for a in ("pos", "neg")
    ]
    assert [t.response for t in texts] == [r[a] for r in ROWS for a in ("kind", "cold")]
    assert [(t.scenario, t.generator, t.arm) for t in texts[2:]] == [
        ("desk", "m2", "positive"), ("desk", "m2", "negative"),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_single_labelled_texts_come_in_by_name_or_number(tmp_path, kind):
    rows = [
        {"id": "a", "text": "I help.", "label": "empathic", "pair": "p"},
        {"id": "b", "text": "I work.", "label": "task_focused", "pair": "p"},
        {"id": "c", "text": "It rains.", "label": "-1", "pair": ""},
    ]
    path = write(tmp_path / f"t.{kind}", rows)
    texts = import_texts(path, {"response": "text", "arm": "label"}, arms=ARMS, generator="g")
    assert [(t.id, t.arm, t.pair, t.generator) for t in texts] == [
        ("a", "positive", "p", "g"), ("b", "negative", "p", "g"), ("c", "neutral", None, "g"),
    ]  # fmt: skip


def test_numbers_and_booleans_of_parquet_are_labels(tmp_path):
    rows = [{"response": "x", "arm": 1, "pair": 7}, {"response": "y", "arm": 0, "pair": 7}]
    texts = import_texts(write(tmp_path / "t.parquet", rows))
    assert [(t.arm, t.pair) for t in texts] == [("positive", "7"), ("negative", "7")]
    rows = [
        {"response": "x", "arm": True, "pair": "p"},
        {"response": "y", "arm": False, "pair": "p"},
    ]
    assert [t.arm for t in import_texts(write(tmp_path / "b.parquet", rows))] == [
        "positive", "negative",
    ]  # fmt: skip


WORDS = st.text("abé漢 ,;'\"\t|<>&{}=", max_size=20).map(lambda s: f"x{s}y")
LINES = st.lists(WORDS, min_size=1, max_size=3).map("\n".join)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(LINES, LINES), min_size=1, max_size=4), st.booleans(), LINES)
@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_what_is_exported_is_imported_again(tmp_path, kind, pairs, conflict, prompt):
    texts = [
        Text(
            id=f"{i}-{a}", response=response, arm=a, pair=f"p{i}", prompt=prompt,
            task_conflict=conflict, scenario="s, \"1\"",
        )
        for i, arms in enumerate(pairs)
        for a, response in zip(("positive", "negative"), arms, strict=True)
    ]  # fmt: skip
    texts.append(Text(id="n", response="Rain."))
    info = corpus_info("made", texts, arms=ARMS)
    path = export_texts(info, texts, tmp_path / f"t.{kind}")
    assert import_texts(path, arms=ARMS) == texts


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ("positive", "'positive' is not FIELD=COLUMN"),
        ("positive=", "is not FIELD=COLUMN"),
        ("postive=kind", r"no field 'postive' \(did you mean 'positive'"),
        ("positive=a,positive=b", "names field 'positive' twice"),
    ],
)
def test_a_map_that_cannot_be_read_is_named(mapping, message):
    with pytest.raises(InvalidInputError, match=message):
        parse_mapping(mapping)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (
            {"positive": "knd", "negative": "cold"},
            r"no column 'knd' for positive \(did you mean 'kind'",
        ),
        ({"positive": "kind"}, r"negative is not mapped; add negative=COLUMN"),
        ({"response": "kind"}, "nothing says which column is arm"),
        ({}, "nothing says which column is response and arm"),
        (
            {"positive": "kind", "negative": "cold", "arm": "topic"},
            "rows are pairs, which have no 'arm'",
        ),
        (
            {"response": "kind", "arm": "topic"},
            r"t.csv:3: arm 'ward' is not known; expected 'positive'",
        ),
    ],
)
def test_columns_that_do_not_fit_are_named(tmp_path, mapping, message):
    with pytest.raises(InvalidInputError, match=message):
        import_texts(write(tmp_path / "t.csv", ROWS), mapping)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"positive,negative\na,b\nc\xff,d\n", r"t.csv:3: not UTF-8 \(byte 24"),
        (b"positive,negative\na,b\nc\n", r"t.csv:3: the row has more or fewer cells"),
        (b"positive,negative\na,b,c\n", r"t.csv:2: the row has more or fewer cells"),
        (b'positive,negative\n"a,b\n', r"t.csv:.: not valid CSV"),
        (b"positive,negative\n", "holds no rows"),
        (b"positive,negative\na,b\n ,d\n,e\n", r"t.csv:3, positive: .*1 other row is also bad"),
    ],
)
def test_broken_tables_are_named_with_their_line(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InvalidInputError, match=message):
        import_texts(tmp_path / "t.csv")


def test_a_spreadsheet_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfpositive,negative\r\na,b\r\n")
    assert [t.response for t in import_texts(tmp_path / "t.csv")] == ["a", "b"]


def test_files_of_other_kinds_and_missing_ones_are_told_apart(tmp_path):
    with pytest.raises(InvalidInputError, match=r"cannot tell its format; expected .*\.parquet"):
        import_texts(tmp_path / "t.xlsx")
    with pytest.raises(NotFoundError, match="no such file"):
        import_texts(tmp_path / "t.csv")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(InvalidInputError, match="not a Parquet file"):
        import_texts(tmp_path / "t.parquet")


def test_a_drawn_split_keeps_scenarios_whole_and_is_stratified():
    texts = [
        t.model_copy(update={"category": "ambiguous" if t.scenario < "s5" else "task_free"})
        for t in corpus(10, 2)
    ]
    split = split_scenarios(texts, test_share=0.4, seed=3)
    assert {(t.scenario, t.split) for t in split} == {
        (s, v) for s, v in {t.scenario: t.split for t in split}.items()
    }
    for category in ("ambiguous", "task_free"):
        tests = {t.scenario for t in split if t.split == "test" and t.category == category}
        assert len(tests) == 2
    assert split != split_scenarios(texts, test_share=0.4, seed=4)
    with pytest.raises(InvalidInputError, match="between 0 and 1, got 1"):
        split_scenarios(texts, test_share=1.0)


def test_a_scenario_of_two_categories_lies_in_one_split():
    texts = [t.model_copy(update={"category": f"of {t.arm}"}) for t in corpus(10, 2)]
    for seed in range(5):
        split = split_scenarios(texts, test_share=0.4, seed=seed)
        found = {(t.scenario, t.split) for t in split}
        assert len(found) == 10
        assert sum(name == "test" for _, name in found) == 4


def test_a_dataset_folder_has_parquet_per_split_and_a_card_that_yaml_reads(tmp_path):
    texts = corpus()
    info = corpus_info(
        "made", texts, arms=ARMS, title='Pairs: "made" | by rule\n---', licence="CC-BY-4.0",
        provenance="a <b>rule</b>",
    )  # fmt: skip
    folder = export_dataset(info, texts, tmp_path / "out")
    card = (folder / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    values = yaml.safe_load(front)
    assert values["license"] == "cc-by-4.0"
    assert values["pretty_name"] == 'Pairs: "made" | by rule\n---'
    assert "<b>" not in body.replace("\\<b", "")
    for entry in values["configs"][0]["data_files"]:
        rows = pq.read_table(folder / entry["path"]).to_pylist()
        wanted = [t.id for t in texts if t.split == entry["split"]]
        assert [row["id"] for row in rows] == wanted
        assert {row["arm"] for row in rows} == {"empathic", "task_focused"}
    with pytest.raises(AlreadyExistsError, match="something here already"):
        export_dataset(info, texts, folder)


def test_the_commands_bring_in_and_take_out(tmp_path):
    write(tmp_path / "t.csv", ROWS)
    run = CliRunner().invoke
    done = run(
        cli,
        ["corpus", "import", str(tmp_path / "t.csv"), "--map", MAP,
         "--out", str(tmp_path / "c.jsonl"), "--test-share", "0.5", "--json"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["n_pairs"] == 2
    texts = read_jsonl(tmp_path / "c.jsonl")
    done = run(cli, ["corpus", "export", str(tmp_path / "c.jsonl"), str(tmp_path / "c.parquet")])
    assert done.exit_code == 0, done.output
    assert import_texts(tmp_path / "c.parquet") == texts
    done = run(
        cli,
        ["corpus", "export", str(tmp_path / "c.jsonl"), str(tmp_path / "hub"), "--licence", "MIT"],
    )
    assert 'license: "mit"' in (tmp_path / "hub/README.md").read_text()
    write_jsonl(texts, tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "c.jsonl").read_bytes()
