import threading

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from actlake.analyze.arrays import run_pools
from actlake.corpus import corpus_info, mark_spans
from actlake.extract import extract_run, load_model, plan_extraction, render_texts
from actlake.schemas import (
    AlreadyExistsError,
    CaptureSpec,
    ExtractSpec,
    IncompleteError,
    InvalidInputError,
    NotFoundError,
    NumericalError,
    StorageError,
    Text,
)
from actlake.store import create_store, open_run, verify_run
from tests.extract.tiny import tiny_folder

pytestmark = pytest.mark.torch

TEXTS = [
    Text(
        id=f"t{i:02d}",
        prompt="the boy has fallen " * (1 + i % 3),
        response="I stop to help " * (1 + i % 5),
        arm="positive" if i % 2 else "negative",
        pair=f"p{i // 2}",
        scenario=f"s{i // 8}",
    )
    for i in range(24)
]
INFO = corpus_info("c", TEXTS)
EXTRACT = ExtractSpec(chunk_size=7, batch_tokens=200, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder("llama", tmp_path_factory.mktemp("model") / "tiny-llama")


def extract(store, folder, *, run="r", texts=TEXTS, capture=None, spec=EXTRACT):
    return extract_run(
        store, texts, INFO, model=str(folder), run=run, capture=capture, extract=spec
    )


def test_a_run_holds_what_one_forward_pass_per_text_gives(tmp_path, folder):
    store = create_store(str(tmp_path / "store"))
    done = extract(store, folder)
    assert (done.n_blocks_run, done.n_blocks_kept) == (4, 0)
    dataset = open_run(store, "r").compute()
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()
    tokenizer = load_model(str(folder), weights=False).tokenizer
    by_id = {t.id: t for t in TEXTS}
    for name in dataset["text"].values:
        (row,) = render_texts([by_id[name]], tokenizer, spec=CaptureSpec())
        with torch.inference_mode():
            states = model(
                torch.from_numpy(row.ids).long()[None], output_hidden_states=True
            ).hidden_states
        stored = dataset.sel(text=name)
        assert int(stored["n_tokens"]) == row.n_tokens
        for layer in range(3):
            after = states[layer + 1][0].numpy()
            here = stored.sel(layer=layer)
            for pool, expected in {
                "mean_response": after[row.response].mean(axis=0),
                "last_prompt": after[row.n_prompt - 1],
                "last_response": after[row.response.nonzero()[0][-1]],
            }.items():
                np.testing.assert_allclose(
                    here[f"resid_post_{pool}"], expected, rtol=1e-4, atol=1e-4
                )
    assert verify_run(store, "r").ok


def test_rows_are_in_the_order_of_length_with_their_labels(tmp_path, folder):
    store = create_store(str(tmp_path / "store"))
    extract(store, folder)
    dataset = open_run(store, "r")
    by_id = {t.id: t for t in TEXTS}
    assert (np.diff(dataset["n_chars"]) >= 0).all()
    for name, label, pair in zip(
        dataset["text"].values, dataset["label"].values, dataset["pair"].values, strict=True
    ):
        assert label == (by_id[name].arm == "positive")
        assert pair == by_id[name].pair


def test_running_again_does_nothing_and_two_runs_have_the_same_bytes(tmp_path, folder):
    store = create_store(str(tmp_path / "store"))
    first = extract(store, folder)
    again = extract(store, folder)
    assert (again.n_blocks_run, again.n_blocks_kept) == (0, 4)
    other = extract(create_store(str(tmp_path / "other")), folder)
    assert first.seal.data_digest == again.seal.data_digest == other.seal.data_digest


def test_another_plan_under_the_same_run_is_refused_and_changes_nothing(tmp_path, folder):
    store = create_store(str(tmp_path / "store"))
    digest = extract(store, folder).seal.tree_digest
    with pytest.raises(AlreadyExistsError, match=r"capture\.pools|capture"):
        extract(store, folder, capture=CaptureSpec(pools=("last_prompt",)))
    with pytest.raises(AlreadyExistsError, match="batch_tokens"):
        extract(store, folder, spec=ExtractSpec(chunk_size=7, batch_tokens=100, device="cpu"))
    seal = store.read_seal("r")
    assert seal is not None
    assert seal.tree_digest == digest
    assert verify_run(store, "r").ok


def test_a_store_that_fails_half_way_keeps_what_was_committed_and_resumes(tmp_path, folder):
    store = create_store(str(tmp_path / "store"))
    whole = extract(create_store(str(tmp_path / "whole")), folder).seal.data_digest
    commits = tmp_path / "store/runs/r/commits"
    broke = threading.Event()

    def break_after_two():
        """Put a file where the third commit would go, as a broken disk might."""
        while not broke.is_set():
            if commits.is_dir() and len(list(commits.glob("*.json"))) >= 2:
                commits.rename(commits.with_name("aside"))
                commits.write_text("")
                broke.set()

    thread = threading.Thread(target=break_after_two)
    thread.start()
    # One text per block gives the breaker time between commits.
    spec = EXTRACT.model_copy(update={"chunk_size": 1})
    with pytest.raises(StorageError):
        extract(store, folder, spec=spec)
    broke.set()
    thread.join()
    commits.unlink()
    commits.with_name("aside").rename(commits)
    with pytest.raises(IncompleteError):
        open_run(store, "r")
    done = extract(store, folder, spec=spec)
    assert done.n_blocks_kept >= 2
    assert done.n_blocks_kept + done.n_blocks_run == len(TEXTS)
    assert done.seal.data_digest != whole  # other blocks are other objects
    assert verify_run(store, "r").ok


def test_values_that_are_not_finite_stop_the_run_with_text_and_layer(tmp_path, folder):
    broken = tmp_path / "broken"
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.model.layers[2].mlp.down_proj.weight.data[3] = float("inf")
    model.save_pretrained(broken)
    load_model(str(folder), weights=False).tokenizer.save_pretrained(broken)
    store = create_store(str(tmp_path / "store"))
    with pytest.raises(NumericalError, match=r"of text 't\d\d' is not finite at layer 2, .*dtype"):
        extract(store, broken)
    assert store.read_commits("r") == []


def test_chosen_layers_and_sites_are_all_that_is_stored(tmp_path, folder):
    store = create_store(str(tmp_path / "store"))
    capture = CaptureSpec(sites=("resid_pre",), layers=(2, 1), pools=("last_response",))
    extract(store, folder, capture=capture)
    dataset = open_run(store, "r")
    assert set(dataset.data_vars) >= {"resid_pre_last_response", "resid_pre_norm"}
    assert list(dataset["layer"].values) == [1, 2]
    full = create_store(str(tmp_path / "full"))
    extract(full, folder)
    below = open_run(full, "r")["resid_post_last_response"].sel(layer=[0, 1]).values
    assert np.array_equal(dataset["resid_pre_last_response"].values, below)


def test_the_dry_run_promises_what_the_run_then_stores(tmp_path, folder):
    prepared = plan_extraction(TEXTS, model=str(folder), run="r", corpus="c", extract=EXTRACT)
    summary = prepared.summary()
    store = create_store(str(tmp_path / "store"))
    done = extract(store, folder)
    dataset = open_run(store, "r")
    assert summary["plan_id"] == done.seal.plan_id
    assert summary["tokens"] == int(dataset["n_tokens"].sum())
    for name, n_bytes in summary["bytes_per_array"].items():
        assert dataset[name].nbytes == n_bytes
    assert summary["objects"] == sum(len(c.objects) for c in store.read_commits("r"))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: str(p / "none"), NotFoundError, "no such folder"),
        (lambda p: str(p), NotFoundError, "no config.json"),
        (lambda p: "bundled:lama-organism", NotFoundError, "did you mean 'llama-organism'"),
    ],
)
def test_a_missing_model_is_one_clear_line(tmp_path, make, error, message):
    with pytest.raises(error, match=message) as caught:
        load_model(make(tmp_path))
    assert "\n" not in str(caught.value)


def test_an_unreadable_model_is_one_clear_line(tmp_path, folder):
    broken = tiny_folder("llama", tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InvalidInputError, match="broken: the model cannot be") as caught:
        load_model(str(broken))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value).split(":")[0]
    (broken / "config.json").write_text("{")
    with pytest.raises(InvalidInputError, match="broken: "):
        load_model(str(broken))


def test_a_model_on_the_hub_that_cannot_be_had_says_what_to_check(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NotFoundError, match="check the spelling, the network"):
        load_model("nobody/no-such-model")


def test_gemma2_is_run_with_eager_attention_and_the_manifest_says_so(tmp_path):
    folder = tiny_folder("gemma2", tmp_path / "tiny-gemma2")
    assert load_model(str(folder), weights=False).info.attn_implementation == "eager"
    assert load_model(str(folder)).info.attn_implementation == "eager"


def test_the_same_folder_has_the_same_identity_wherever_it_lies(tmp_path, folder):
    tiny_folder("llama", tmp_path / "tiny-llama")
    here, there = load_model(str(folder), weights=False), load_model(str(tmp_path / "tiny-llama"))
    assert here.info == there.info
    assert here.tokenizer_info == there.tokenizer_info
    other = tiny_folder("llama", tmp_path / "x" / "tiny-llama", seed=1)
    assert load_model(str(other), weights=False).info.content_digest != here.info.content_digest


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_bits16_and_no_codec_store_the_same_values(tmp_path, folder, dtype):
    store = create_store(str(tmp_path / "store"))
    capture = CaptureSpec(dtype=dtype)
    extract(store, folder, run="plain", capture=capture)
    small = ExtractSpec(chunk_size="1kB", batch_tokens=200, device="cpu", codec="none", bits16=True)
    extract(store, folder, run="small", capture=capture, spec=small)
    plain, bits = (open_run(store, run).compute() for run in ("plain", "small"))
    for pool in capture.pools:
        name = f"resid_post_{pool}"
        np.testing.assert_allclose(bits[name], plain[name], rtol=2e-2, atol=2e-2)
    raw = store.read_plan("small").arrays
    assert {a.name: a.dtype for a in raw} == {
        "resid_post_mean_response": "float32",
        "resid_post_last_prompt": f"{dtype}-bits",
        "resid_post_last_response": f"{dtype}-bits",
        "resid_post_norm": "float32",
        "resid_post_norm_with_bos": "float32",
    }
    assert store.read_plan("small").rows_per_block < 24
    assert verify_run(store, "small").ok


def test_bits16_of_a_float32_model_is_refused(tmp_path, folder):
    store = create_store(str(tmp_path / "store"))
    spec = EXTRACT.model_copy(update={"bits16": True})
    with pytest.raises(InvalidInputError, match="runs in float32"):
        extract(store, folder, spec=spec)
    assert store.run_ids() == []


def test_the_ids_of_a_text_give_the_activations_of_the_text(tmp_path, folder):
    store = create_store(str(tmp_path / "store"))
    extract(store, folder, run="written")
    tokenizer = load_model(str(folder), weights=False).tokenizer
    pools = CaptureSpec()
    ids = [
        Text(
            id=t.id, response=t.response, prompt=t.prompt, token_ids=tuple(row.ids.tolist()),
            response_start=row.n_prompt,
        )
        for t in TEXTS
        for row in render_texts([t], tokenizer, spec=pools)
    ]  # fmt: skip
    info = corpus_info("ids", ids)
    extract_run(store, ids, info, model=str(folder), run="ids", extract=EXTRACT)
    written, given = open_run(store, "written").compute(), open_run(store, "ids").compute()
    for name in ("resid_post_last_prompt", "resid_post_mean_response", "resid_post_norm"):
        np.testing.assert_array_equal(given[name].values, written[name].values)
    assert verify_run(store, "ids", full=True).ok
    assert store.read_corpus("ids") == (info, ids)


def test_pools_over_spans_are_stored_and_found_by_analyses(tmp_path, folder):
    store = create_store(str(tmp_path / "store"))
    texts = mark_spans(TEXTS, name="cue", pattern="help|stop")
    info = corpus_info("marked", texts)
    capture = CaptureSpec(pools=("mean_span:cue", "mean_response"))
    extract_run(store, texts, info, model=str(folder), run="r", capture=capture, extract=EXTRACT)
    dataset = open_run(store, "r")
    assert dataset["resid_post_mean_span_cue"].attrs["pool"] == "mean_span:cue"
    assert "overlap the spans 'cue'" in dataset["resid_post_mean_span_cue"].attrs["token_mask"]
    assert run_pools(dataset) == ("resid_post", ["mean_response", "mean_span:cue"])
    assert verify_run(store, "r", full=True).ok
    with pytest.raises(InvalidInputError, match="has no token of a span 'cue'"):
        extract(store, folder, run="other", capture=capture)
