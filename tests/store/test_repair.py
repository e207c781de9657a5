"""A damaged run is mended with as little work as its damage allows, and nothing good is lost."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from actlake.cli import cli
from actlake.store import apply_repair, create_store, open_run, plan_repair, verify_run
from actlake.store.codec import encode_chunk
from tests.store.forging import flip, forge, read
from tests.store.memory import memory_store
from tests.store.samples import block_values, make_plan, make_values, write_run
from tests.store.small import fill_store, small_store

FOLDER = "runs/tiny"
DATA = f"{FOLDER}/data.zarr"
CHUNK = f"{DATA}/resid_post_mean_response/c/1/2/0"


def extract_again(store, plan):
    """Do what the printed command does; return the blocks that it ran."""
    from tests.store.samples import ENVIRONMENT, make_tokens
    from tests.store.small import corpus_info, make_texts, small_coords

    texts = make_texts(plan.n_texts)
    store.write_corpus(corpus_info(texts), texts)
    writer = store.create_run(
        plan, coords=small_coords(plan), environment=ENVIRONMENT, token_data=make_tokens(plan)
    )
    pending = writer.pending_blocks()
    for block in pending:
        writer.write_block(block, block_values(plan, block))
    writer.seal()
    return pending


def test_a_good_run_needs_nothing(store):
    fill_store(store)
    repair = plan_repair(store, "tiny")
    assert not repair.is_needed
    before = {key: read(store, key) for key, _ in store.backend.walk("")}
    assert apply_repair(store, repair) is None
    assert {key: read(store, key) for key, _ in store.backend.walk("")} == before


def test_a_damaged_block_is_extracted_again_and_no_other(any_store):
    plan = fill_store(any_store)
    seal = any_store.read_seal("tiny")
    flip(any_store, CHUNK)
    repair = plan_repair(any_store, "tiny")
    assert (repair.blocks, repair.rows, repair.extract_again) == ((1,), ((4, 8),), True)
    assert repair.text_ids == tuple(f"text-é{i:04d}" for i in range(4, 8))
    good = {k: read(any_store, k) for k, _ in any_store.backend.walk(DATA) if k != CHUNK}
    apply_repair(any_store, repair)
    assert {k: read(any_store, k) for k in good} == good
    assert any_store.committed_blocks("tiny") == [0, 2]
    assert any_store.read_seal("tiny") is None
    assert extract_again(any_store, plan) == [1]
    assert verify_run(any_store, "tiny", full=True).ok
    assert any_store.read_seal("tiny").data_digest == seal.data_digest
    values = open_run(any_store, "tiny")["resid_post_mean_response"].values
    np.testing.assert_array_equal(values, make_values(plan)["resid_post_mean_response"])


def test_a_missing_object_of_an_unsealed_run_is_extracted_again():
    store = memory_store()
    plan = fill_store(store, seal=False)
    store.backend.delete(CHUNK)
    repair = plan_repair(store, "tiny")
    assert repair.blocks == (1,)
    apply_repair(store, repair)
    assert extract_again(store, plan) == [1]
    assert verify_run(store, "tiny", full=True).ok


REBUILT = [
    "run.json", "seal.json", "commits/0.json", "commits/2.json", "decisions/1.json",
    "data.zarr/zarr.json", "data.zarr/resid_post_norm/zarr.json", "data.zarr/arm/zarr.json",
]  # fmt: skip


@pytest.mark.parametrize("how", ["flip", "delete"])
@pytest.mark.parametrize("name", REBUILT)
def test_what_follows_from_the_rest_is_made_again_without_the_model(name, how):
    store = small_store()
    seal = store.read_seal("tiny")
    key = f"{FOLDER}/{name}"
    if how == "flip":
        flip(store, key)
    elif name in {"seal.json", "decisions/1.json"}:
        return  # without them the run is unsealed, or like any copy: neither is damage
    else:
        store.backend.delete(key)
    repair = plan_repair(store, "tiny")
    assert key in repair.rebuild
    assert (repair.blocks, repair.extract_again, repair.remove) == ((), False, ())
    apply_repair(store, repair)
    assert verify_run(store, "tiny", full=True).faults == ()
    again = store.read_seal("tiny")
    assert (again.tree_digest, again.data_digest) == (seal.tree_digest, seal.data_digest)
    assert open_run(store, "tiny").sizes["text"] == 10


def test_a_commit_record_without_its_decision_is_made_from_the_seal():
    store = small_store()
    flip(store, f"{FOLDER}/commits/1.json")
    store.backend.delete(f"{FOLDER}/decisions/1.json")
    repair = plan_repair(store, "tiny")
    assert repair.rebuild == (f"{FOLDER}/commits/1.json", f"{FOLDER}/seal.json")
    apply_repair(store, repair)
    assert verify_run(store, "tiny", full=True).ok
    assert store.read_commit("tiny", 1).writer == "repair"


def test_coordinates_are_written_again_by_the_extraction_without_a_forward_pass():
    store = memory_store()
    plan = fill_store(store)
    seal = store.read_seal("tiny")
    for name in ("label/c/0", "text/c/0", "token_id/c/0"):
        flip(store, f"{DATA}/{name}")
    repair = plan_repair(store, "tiny")
    assert (repair.blocks, repair.extract_again) == ((), True)
    apply_repair(store, repair)
    assert extract_again(store, plan) == []
    assert verify_run(store, "tiny", full=True).ok
    assert store.read_seal("tiny").tree_digest == seal.tree_digest


def test_a_damaged_plan_is_written_again_by_the_same_extraction():
    store = memory_store()
    plan = fill_store(store)
    flip(store, f"{FOLDER}/plan.json")
    repair = plan_repair(store, "tiny")
    assert repair.remove == (f"{FOLDER}/plan.json",)
    apply_repair(store, repair)
    assert extract_again(store, plan) == []
    assert verify_run(store, "tiny", full=True).ok


@pytest.mark.parametrize("name", ["corpus.json", "texts.parquet"])
def test_a_damaged_corpus_is_written_again_by_the_same_extraction(name):
    store = memory_store()
    plan = fill_store(store)
    flip(store, f"corpora/demo/{name}")
    repair = plan_repair(store, "tiny")
    assert "remove corpora/demo" in repair.by_hand[0]
    assert repair.remove == ()
    for key, _ in list(store.backend.walk("corpora/demo")):
        store.backend.delete(key)
    assert extract_again(store, plan) == []
    assert verify_run(store, "tiny", full=True).ok


def test_strangers_and_wrong_values_are_left_to_a_person():
    store = small_store()
    store.backend.put(f"{DATA}/notes.txt", b"mine")
    repair = plan_repair(store, "tiny")
    assert (repair.remove, repair.rebuild) == ((), ())
    assert repair.by_hand[0].startswith("notes.txt is no part of the run")
    forge(store, "label/c/0", encode_chunk(np.ones(10, dtype=np.int8)))
    repair = plan_repair(store, "tiny", full=True)
    assert any("wrong coordinates" in line for line in repair.by_hand)


@pytest.mark.parametrize("seed", range(10))
def test_any_damage_ends_in_a_valid_run(seed):
    store = memory_store()
    plan = fill_store(store)
    rng = np.random.default_rng(seed)
    keys = [k for k in sorted(store.backend.objects) if not k.startswith(("corpora", "store"))]
    for key in rng.choice(keys, size=6, replace=False).tolist():
        if rng.random() < 0.5:
            flip(store, key, at=int(rng.integers(store.backend.size(key))))
        elif not key.endswith("plan.json"):
            store.backend.delete(key)
    for _ in range(3):  # what hides behind a damaged plan is found in the next round
        repair = plan_repair(store, "tiny")
        apply_repair(store, repair)
        extract_again(store, plan)
    assert verify_run(store, "tiny", full=True).faults == ()
    values = open_run(store, "tiny")["resid_post_last_prompt"].values
    np.testing.assert_array_equal(values, make_values(plan)["resid_post_last_prompt"])


def test_the_command_prints_what_to_run_and_changes_nothing_unasked(tmp_path):
    url = str(tmp_path / "store")
    store = create_store(url)
    fill_store(store)
    flip(store, CHUNK)
    before = {key: read(store, key) for key, _ in store.backend.walk("")}
    shown = CliRunner().invoke(cli, ["store", "repair", url, "tiny", "--json"])
    assert shown.exit_code == 0
    value = json.loads(shown.stdout)
    assert value["texts"] == [f"text-é{i:04d}" for i in range(4, 8)]
    assert value["command"].startswith("actlake extract FOLDER/organism --corpus bundled:demo")
    assert "--chunk-size 4" in value["command"]
    assert {key: read(store, key) for key, _ in store.backend.walk("")} == before
    applied = CliRunner().invoke(cli, ["store", "repair", url, "tiny", "--apply"])
    assert applied.exit_code == 0
    assert "data digest may be another" in applied.stdout
    assert store.committed_blocks("tiny") == [0, 2]


@pytest.mark.parametrize(
    ("corpus", "named"), [("empathy", "bundled:empathy"), ("mine", "mine.jsonl")]
)
def test_the_command_names_a_bundled_corpus_as_extract_reads_it(store, corpus, named):
    write_run(store, make_plan().model_copy(update={"corpus": corpus}))
    flip(store, CHUNK)
    shown = CliRunner().invoke(cli, ["store", "repair", store.url, "tiny", "--json"])
    assert f" --corpus {named} --store " in json.loads(shown.stdout)["command"]


def test_another_run_is_untouched(store):
    fill_store(store)
    fill_store(store, run="other")
    flip(store, CHUNK)
    apply_repair(store, plan_repair(store, "tiny"))
    assert verify_run(store, "other").ok
