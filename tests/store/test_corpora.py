import hashlib
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actlake.schemas import (
    AlreadyExistsError,
    CorpusInfo,
    CorruptError,
    InvalidInputError,
    NotFoundError,
    Text,
    texts_digest,
)
from actlake.store import text_coords
from actlake.store.contents import _corpus_faults
from actlake.store.corpora import parse_texts, texts_table
from tests.store.forging import edit

TEXTS = [
    Text(id="a", prompt="Hi\n", response="é 漢字 👋", arm="positive", pair="p", scenario="s"),
    Text(id="b", system="", response="no", arm="negative", pair="p", scenario="s"),
    Text(id="c", response="neutral"),
]


def info(texts=TEXTS, name="demo"):
    digest = texts_digest(texts)
    return CorpusInfo(id=name, n_texts=len(texts), n_pairs=1, n_scenarios=1, texts_digest=digest)


def test_a_corpus_survives_the_store(any_store):
    any_store.write_corpus(info(), TEXTS)
    any_store.write_corpus(info(), TEXTS)
    assert any_store.read_corpus("demo") == (info(), TEXTS)
    assert any_store.corpus_ids() == ["demo"]


RICH = [
    Text.parse({"id": "chat", "response": "é", "messages": [{"role": "user", "content": "漢 👋"}]}),
    Text(id="ids", token_ids=tuple(range(150_000))),
    Text(id="both", token_ids=(5, 6, 7), response_start=2, prompt="Hi", response="no"),
    Text(id="plain", response="x"),
    Text(id="spans", response="xyz", spans={"w": ((0, 1), (2, 3))}),
]


def test_turns_and_token_ids_survive_the_store(any_store):
    any_store.write_corpus(info(RICH), RICH)
    assert any_store.read_corpus("demo") == (info(RICH), RICH)


def test_columns_are_there_only_where_texts_have_them():
    def names(texts):
        return pq.ParquetFile(io.BytesIO(texts_table(texts))).schema.names

    base = names(TEXTS)
    assert base[-1] == "parent"
    assert names([*TEXTS, Text(id="d", token_ids=(1,))]) == [*base, "token_ids"]
    assert names(RICH) == [*base, "messages", "token_ids", "response_start", "spans"]


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("token_ids", "[1,2"),
        ("token_ids", "[[1]]"),
        ("token_ids", '["1"]'),
        ("token_ids", "[1e3]"),
        ("token_ids", "[" + "1," * 2**20 + "1]"),
        ("messages", "{}"),
        ("messages", '[{"role": "user", "role": "user", "content": ""}]'),
        ("response_start", "[0]"),
    ],
)
def test_cells_that_are_not_what_the_column_says_are_refused(column, cell):
    table = pq.read_table(io.BytesIO(texts_table(RICH[2:3])))
    cells = {name: table[name] for name in table.column_names if name != column}
    out = io.BytesIO()
    order = [*table.column_names[:13], "messages", "token_ids", "response_start"]
    cells[column] = pa.array([cell])
    pq.write_table(pa.table({name: cells[name] for name in order if name in cells}), out)
    with pytest.raises(CorruptError, match="is not a table of texts"):
        parse_texts(out.getvalue(), where="x", n_texts=1)


def test_other_texts_under_the_same_id_are_refused(store):
    store.write_corpus(info(), TEXTS)
    with pytest.raises(AlreadyExistsError, match="other texts"):
        store.write_corpus(info(TEXTS[:2]), TEXTS[:2])
    assert store.read_corpus("demo") == (info(), TEXTS)


def test_a_corpus_that_is_not_there_or_damaged_is_named(store):
    store.write_corpus(info(), TEXTS)
    with pytest.raises(NotFoundError, match="did you mean 'demo'"):
        store.read_corpus("deno")
    with pytest.raises(InvalidInputError, match="cannot be a corpus id"):
        store.read_corpus("..")
    with pytest.raises(InvalidInputError, match="3 texts, got 2"):
        store.write_corpus(info(), TEXTS[:2])
    store.backend.put("corpora/demo/texts.parquet", b"PAR1 but not really")
    with pytest.raises(CorruptError, match=r"texts\.parquet"):
        store.read_corpus("demo")


def test_texts_that_are_not_those_of_the_digest_are_never_returned(store):
    store.write_corpus(info(), TEXTS)
    changed = [TEXTS[0].model_copy(update={"response": "other"}), *TEXTS[1:]]
    store.backend.put("corpora/demo/texts.parquet", texts_table(changed))
    with pytest.raises(CorruptError, match=r"is not the file that its corpus\.json"):
        store.read_corpus("demo")
    hashed = {"file_digest": "sha256:" + hashlib.sha256(texts_table(changed)).hexdigest()}
    edit(store, "corpora/demo/corpus.json", lambda document: document.update(hashed))
    with pytest.raises(CorruptError, match=r"other texts than its corpus\.json says"):
        store.read_corpus("demo")


def test_task_conflict_survives_and_other_corpora_keep_their_table(store):
    said = [TEXTS[0].model_copy(update={"task_conflict": True})]
    said += [TEXTS[1].model_copy(update={"task_conflict": False}), TEXTS[2]]
    store.write_corpus(info(said), said)
    assert store.read_corpus("demo")[1] == said
    for texts, n_columns in ((TEXTS, 13), (said, 14)):
        assert len(pq.read_schema(io.BytesIO(texts_table(texts))).names) == n_columns
    assert text_coords(said)["task_conflict"].tolist() == [1, 0, -1]
    assert "task_conflict" not in text_coords(TEXTS)


def test_a_task_conflict_that_the_corpus_contradicts_is_a_fault():
    said = [TEXTS[0].model_copy(update={"task_conflict": True}), *TEXTS[1:]]
    values = text_coords(said)
    known = {text.id: text for text in said}
    assert list(_corpus_faults(values, known)) == []
    values["task_conflict"][1] = 0
    (fault,) = _corpus_faults(values, known)
    assert fault.rows == (1, 2)
