"""Several runs at once have the same texts in the same rows."""

import numpy as np
import pytest

import actlake
from actlake.schemas import CorpusInfo, InvalidInputError, NotFoundError, Text, texts_digest
from actlake.store import open_run, open_runs
from tests.store.samples import make_coords, make_plan, make_values, write_run
from tests.store.small import fill_store

ARRAY = "resid_post_mean_response"


def write(store, run, ids, *, corpus="demo", digest="a" * 64, **shape):
    plan = make_plan(run, n_texts=len(ids), **shape)
    plan = plan.model_copy(update={"corpus": corpus, "corpus_digest": f"sha256:{digest}"})
    write_run(store, plan, coords={**make_coords(plan), "text": np.array(ids)})
    return plan, dict(zip(ids, make_values(plan)[ARRAY], strict=True))


def test_runs_of_one_corpus_are_aligned_as_they_are_stored(any_store):
    ids = [f"t{i}" for i in range(10)]
    _, small = write(any_store, "small", ids)
    _, large = write(any_store, "large", ids, n_layers=5, hidden=16, rows=3)
    opened = open_runs(any_store)
    assert list(opened) == ["large", "small"]
    for name, values in (("small", small), ("large", large)):
        ds = opened[name]
        assert ds["text"].values.tolist() == ids
        np.testing.assert_array_equal(ds[ARRAY].values, np.stack(list(values.values())))
    assert opened["large"][ARRAY].chunks == ((3, 3, 3, 1), (1,) * 5, (16,))
    assert "token_id" in opened["small"].coords


def test_runs_of_unlike_corpora_are_joined_by_text_id(store):
    _, first = write(store, "first", ["a", "c", "b", "d", "e"], rows=2)
    _, second = write(store, "second", ["e", "x", "b", "c"], corpus="other", digest="b" * 64)
    opened = open_runs(store, ["first", "second"])
    for name, values in (("first", first), ("second", second)):
        assert opened[name]["text"].values.tolist() == ["c", "b", "e"]
        expected = np.stack([values[i] for i in ("c", "b", "e")])
        np.testing.assert_array_equal(opened[name][ARRAY].values, expected)
        assert all(c == 1 for c in opened[name][ARRAY].chunks[1])  # layers are never mixed
        assert opened[name]["token_offset"].values[-1] == opened[name].sizes["token"]
    assert open_runs(store, ["second", "first"])["first"]["text"].values.tolist() == ["e", "b", "c"]


@pytest.mark.parametrize("chunks", [{}, "job", None])
@pytest.mark.parametrize("ids", [[9, 2, 5, 3], [0, 1, 2, 3, 8]], ids=["any order", "neighbours"])
def test_tokens_follow_their_texts(store, chunks, ids):
    """Texts in another order, some of them missing: every token stands beside its own text."""
    fill_store(store, tokens=True)
    plan = make_plan("second", n_texts=len(ids))
    plan = plan.model_copy(update={"corpus": "other", "corpus_digest": f"sha256:{'b' * 64}"})
    coords = make_coords(plan)
    coords["text"] = open_run(store, "tiny")["text"].values[ids]
    write_run(store, plan, coords=coords)
    whole = open_run(store, "tiny")
    cut = open_runs(store, ["second", "tiny"], chunks=chunks)["tiny"]
    assert cut["text"].values.tolist() == whole["text"].values[ids].tolist()
    edges, of_whole = cut["token_offset"].values, whole["token_offset"].values
    assert edges[-1] == cut.sizes["token"] > 0
    for row, old in enumerate(ids):
        mine, theirs = slice(edges[row], edges[row + 1]), slice(*of_whole[old : old + 2])
        for name in ("resid_post_tokens", "token_id", "token_position"):
            np.testing.assert_array_equal(
                cut[name].values[mine], whole[name].values[theirs], err_msg=name
            )
        assert set(cut["token_text"].values[mine]) == {row}
    if chunks is not None:
        assert all(c == 1 for c in cut["resid_post_tokens"].chunks[1])


def test_other_coordinates_follow_the_rows(store):
    write(store, "first", ["a", "b", "c", "d"])
    write(store, "second", ["d", "b"], corpus="other", digest="b" * 64)
    first = open_run(store, "first")
    cut = open_runs(store)["first"]
    assert cut["label"].values.tolist() == first["label"].sel(text=["b", "d"]).values.tolist()


def test_runs_without_a_common_text_are_refused(store):
    write(store, "first", ["a", "b"])
    write(store, "second", ["x", "y"], corpus="other", digest="b" * 64)
    with pytest.raises(InvalidInputError, match=r"no text in common.*'first': 'demo'"):
        open_runs(store)


def test_unlike_texts_under_one_id_are_refused(store):
    plan = fill_store(store)
    texts = [Text(id="text-é0003", response="something else"), Text(id="text-é0004", response="y")]
    info = CorpusInfo(
        id="other", n_texts=2, n_pairs=0, n_scenarios=0, texts_digest=texts_digest(texts)
    )
    store.write_corpus(info, texts)
    ids = [text.id for text in texts]
    digest = info.texts_digest.removeprefix("sha256:")
    write(store, "second", ids, corpus="other", digest=digest)
    with pytest.raises(InvalidInputError, match="text 'text-é0003' of corpus 'other' is another"):
        open_runs(store, [plan.run, "second"])


def test_no_run_and_an_unknown_run_are_said(store):
    with pytest.raises(NotFoundError, match="no runs to open"):
        open_runs(store)
    write(store, "first", ["a", "b"])
    with pytest.raises(NotFoundError, match="did you mean 'first'"):
        open_runs(store, ["frist"])


def test_it_is_a_name_of_the_package():
    assert actlake.open_runs is open_runs
