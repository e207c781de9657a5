import hashlib
import io

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
from actlake.store.corpora import texts_table
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
