"""What a report is made of on the laptop, where torch may be missing."""

from __future__ import annotations

import sys

import pandas as pd
import pytest

from actlake.cli import main
from actlake.reporting import read_steering, read_tables
from actlake.schemas import InvalidInputError, PcaSpec, StudyFile, digest_json, texts_digest
from actlake.stages import Results, pca_stage
from actlake.store import create_store
from tests.store.samples import make_plan, write_run
from tests.store.small import corpus_info, fill_store, make_texts, small_coords


def keep(results, subject, stage, **tables):
    def make(folder):
        for name, table in tables.items():
            table.to_parquet(folder / f"{name}.parquet")

    results.build(subject, stage, key={"made": digest_json([subject, stage])}, make=make)


def test_the_rows_of_a_sweep_that_a_summary_shows_are_read_without_torch(tmp_path):
    results = Results(tmp_path)
    rows = pd.DataFrame(
        {
            "direction": ["diff_means", "random", "shuffled", "diff_means"],
            "layer": [3, 3, 3, 5],
            "estimate": [1.0, 0.1, 0.2, 2.0],
        }
    )
    keep(results, "one", "steer", steering=rows)
    assert read_steering(results, "one")["estimate"].tolist() == [1.0, 0.1]


def test_tables_of_all_subjects_come_together_with_their_names(tmp_path):
    results = Results(tmp_path)
    keep(results, "one", "patch", patching=pd.DataFrame({"layer": [1], "run": ["one"]}))
    keep(results, "two", "patch", patching=pd.DataFrame({"layer": [2], "run": ["two"]}))
    keep(results, "study", "similarity", similarity=pd.DataFrame({"estimate": [0.5]}))
    keep(results, ".", "models", models=pd.DataFrame({"estimate": [0.5]}))
    keep(results, "one", "analyze-nulls", nulls=pd.DataFrame({"run": ["one"]}))
    found = read_tables(results)
    assert sorted(found) == ["nulls", "patching", "similarity"]
    assert found["patching"]["run"].tolist() == ["one", "two"]
    assert found["similarity"]["run"].tolist() == ["study"]
    of_two = read_tables(results, wanted=lambda subject, _: subject == "two")
    assert of_two["patching"]["layer"].tolist() == [2]


def test_a_run_with_other_labels_is_analysed_again(tmp_path):
    results, spec = Results(tmp_path / "results"), PcaSpec(n_components=2)
    plan = fill_store(create_store(tmp_path / "one"))
    assert pca_stage(create_store(tmp_path / "one"), "tiny", results, spec=spec)
    # The same activations; in the corpus the arms of the texts have changed places.
    other = {"positive": "negative", "negative": "positive"}
    texts = [t.model_copy(update={"arm": other[t.arm]}) for t in make_texts(plan.n_texts)]
    store = create_store(tmp_path / "two")
    store.write_corpus(corpus_info(texts), texts)
    plan = make_plan().model_copy(update={"corpus_digest": texts_digest(texts)})
    coords = small_coords(plan) | {"arm": [text.arm for text in texts]}
    write_run(store, plan, coords=coords)
    assert store.read_seal("tiny").data_digest == (
        create_store(tmp_path / "one").read_seal("tiny").data_digest
    )
    assert pca_stage(store, "tiny", results, spec=spec)
    assert not pca_stage(store, "tiny", results, spec=spec)


def test_models_that_would_share_a_run_are_refused():
    text = {"name": "x", "models": [{"model": "a/phi"}, {"model": "b/phi"}]}
    with pytest.raises(InvalidInputError, match=r"models have the runs \['phi'\] twice"):
        StudyFile.parse(text)


def test_a_command_that_needs_torch_says_how_to_get_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("actlake.extract")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("sys.argv", ["actlake", "extract", "check", "bundled:llama-organism"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "this needs torch, which is not installed: pip install 'actlake[extract]'" in said
