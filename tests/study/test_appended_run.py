"""Stages of a study on a run that texts were appended to."""

from __future__ import annotations

import json

from actlake.schemas import PcaSpec
from actlake.stages import Results, pca_stage, run_provenance
from actlake.store import content_digest, create_store
from tests.store.appends import append
from tests.store.small import fill_store


def test_a_stage_is_done_again_once_texts_were_appended(tmp_path):
    store, results = create_store(tmp_path / "store"), Results(tmp_path / "results")
    fill_store(store)
    spec = PcaSpec(n_components=2)
    assert pca_stage(store, "tiny", results, spec=spec)
    assert not pca_stage(store, "tiny", results, spec=spec)
    before = results.key("tiny", "pca")
    assert before is not None
    assert before["content_digest"] == store.read_seal("tiny").data_digest
    append(store, seal=False)
    assert not pca_stage(store, "tiny", results, spec=spec)  # nothing that readers see
    append(store)
    assert pca_stage(store, "tiny", results, spec=spec)
    after = results.key("tiny", "pca")
    assert after is not None
    assert after["content_digest"] == content_digest(store, "tiny") != before["content_digest"]


def test_run_provenance_names_what_was_appended(tmp_path):
    store = create_store(tmp_path / "store")
    fill_store(store)
    assert "appended" not in run_provenance(store, "tiny")
    append(store)
    found = json.loads(json.dumps(run_provenance(store, "tiny")))
    (part,) = found["appended"]
    assert (part["run"], part["corpus"], part["n_texts"]) == ("tiny~1", "demo+10", 6)
