"""Token arrays: every token of chosen layers, which pool to what was pooled on the device."""

import json
import shlex

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from actlake.cli import cli
from actlake.corpus import corpus_info, write_jsonl
from actlake.extract import (
    TransformersEngine,
    Worker,
    add_token_characters,
    extract_run,
    extraction_environment,
    load_model,
    pack_batches,
    plan_extraction,
    render_texts,
)
from actlake.extract.costs import memory_needed
from actlake.extract.pipeline import stream_blocks
from actlake.schemas import (
    CaptureSpec,
    ExtractSpec,
    InvalidInputError,
    NotFoundError,
    NumericalError,
)
from actlake.store import create_store, finite_texts, open_run, verify_run
from actlake.store.block_writer import BlockWriter
from actlake.store.command import extraction_command
from actlake.store.token_stream import TokenStream
from tests.extract.test_capture import Predictable, loaded
from tests.extract.test_run import TEXTS
from tests.extract.tiny import tiny_folder

pytestmark = pytest.mark.torch

INFO = corpus_info("c", TEXTS)
SITES = ("resid_pre", "resid_post")
CAPTURE = CaptureSpec.parse({"sites": SITES, "tokens": {"sites": ["resid_post"], "layers": [1, 3]}})
SPEC = ExtractSpec(chunk_size=7, batch_tokens=200, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder("llama", tmp_path_factory.mktemp("model") / "tiny-llama")


@pytest.fixture(scope="module")
def stored(tmp_path_factory, folder):
    """The run of a type, made once and verified: its store and its data."""
    done = {}

    def get(dtype):
        if dtype not in done:
            store = create_store(tmp_path_factory.mktemp(dtype) / "store")
            extract(store, folder, capture=CAPTURE.model_copy(update={"dtype": dtype}))
            assert verify_run(store, "r", full=True).ok
            done[dtype] = store, open_run(store, "r").compute()
        return done[dtype]

    return get


def extract(store, folder, *, run="r", capture=CAPTURE, spec=SPEC, **options):
    return extract_run(
        store, TEXTS, INFO, model=str(folder), run=run, capture=capture, extract=spec, **options
    )


def token_rows(dataset):
    """Yield (text, slice of its tokens)."""
    edges = dataset["token_offset"].values
    for i, name in enumerate(dataset["text"].values):
        yield name, slice(edges[i], edges[i + 1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tokens_pool_to_what_was_pooled_on_the_device(stored, dtype):
    _, dataset = stored(dtype)
    tokens = dataset["resid_post_tokens"]
    assert tokens.dims == ("token", "token_layer", "hidden")
    assert tokens["token_layer"].values.tolist() == [1, 3]
    response = dataset["token_response"].values
    special = dataset["token_special"].values
    for name, span in token_rows(dataset):
        pooled = dataset.sel(text=name, layer=[1, 3])
        here = tokens.values[span]
        mean = here[response[span]].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(pooled["resid_post_mean_response"], mean, rtol=1e-5, atol=1e-5)
        first = int(pooled["n_prompt_tokens"])
        assert np.array_equal(pooled["resid_post_last_prompt"], here[first - 1])
        last = np.flatnonzero(response[span])[-1]
        assert np.array_equal(pooled["resid_post_last_response"], here[last])
        norms = np.linalg.norm(here[~special[span]].astype(np.float64), axis=-1).mean(axis=0)
        np.testing.assert_allclose(pooled["resid_post_norm"], norms, rtol=1e-5)
    if dtype == "bfloat16":  # exactly the model's values
        assert not (tokens.values.view(np.uint32) & 0xFFFF).any()


def test_coordinates_say_which_token_is_which(stored, folder):
    _, dataset = stored("float32")
    tokenizer = load_model(str(folder), weights=False).tokenizer
    by_id = {text.id: text for text in TEXTS}
    for i, (name, span) in enumerate(token_rows(dataset)):
        (row,) = render_texts([by_id[name]], tokenizer, spec=CAPTURE)
        assert dataset["token_id"].values[span].tolist() == row.ids.tolist()
        assert dataset["token_response"].values[span].tolist() == row.response.tolist()
        assert dataset["token_special"].values[span].tolist() == row.special.tolist()
        assert (dataset["token_text"].values[span] == i).all()
        assert dataset["token_position"].values[span].tolist() == list(range(row.n_tokens))


def test_characters_are_found_again_for_a_run_that_lacks_them(tmp_path, folder):
    store = create_store(tmp_path / "store")
    extract(store, folder)
    dataset = open_run(store, "r").compute()
    bare = dataset.drop_vars(["token_start", "token_stop"])
    options = {"model": str(folder), "capture": store.read_plan("r").capture}
    again = add_token_characters(bare, TEXTS, **options)
    for name in ("token_start", "token_stop"):
        assert again[name].values.tolist() == dataset[name].values.tolist()
    other = bare.assign_coords(token_id=("token", dataset["token_id"].values[::-1]))
    with pytest.raises(InvalidInputError, match="makes other tokens of it than the run has"):
        add_token_characters(other, TEXTS, **options)
    with pytest.raises(NotFoundError, match="are not in the corpus"):
        add_token_characters(bare, TEXTS[1:], **options)


@pytest.mark.parametrize("render", ["chat", "plain"])
def test_the_characters_of_the_tokens_spell_the_response(tmp_path, folder, render):
    store = create_store(tmp_path / "store")
    extract(store, folder, capture=CAPTURE.model_copy(update={"render": render}))
    assert verify_run(store, "r", full=True).ok
    dataset = open_run(store, "r").compute()
    by_id = {text.id: text for text in TEXTS}
    for name, span in token_rows(dataset):
        response = by_id[name].response
        start, stop = (dataset[n].values[span] for n in ("token_start", "token_stop"))
        inside = dataset["token_response"].values[span]
        assert ((start >= 0) == inside).all()
        assert ((stop >= 0) == inside).all()
        held = np.zeros(len(response), dtype=bool)
        for a, b in zip(start[inside], stop[inside], strict=True):
            held[a:b] = True
        # Tokenizers leave out the space before a word, or do not.
        assert all(held[i] for i, character in enumerate(response) if character.isalpha())


@pytest.mark.parametrize(("n_texts", "chunk_size"), [(5, 1), (24, 5), (24, 24), (24, "2kB")])
def test_every_token_is_where_it_belongs_on_a_model_whose_answer_is_known(
    tmp_path, folder, n_texts, chunk_size
):
    spec = SPEC.model_copy(update={"chunk_size": chunk_size})
    prepared = plan_extraction(
        TEXTS[:n_texts], model=str(folder), run="r", corpus="c", capture=CAPTURE, extract=spec
    )
    engine = TransformersEngine(
        loaded(Predictable()), sites=SITES, layers=prepared.plan.layers,
        pools=prepared.plan.capture.pools, tokens=prepared.token_layers,
    )  # fmt: skip
    store = create_store(tmp_path / "store")
    writer = store.create_run(
        prepared.plan, coords=prepared.coords, token_data=prepared.token_data,
        environment=extraction_environment(),
    )  # fmt: skip
    with engine.ready():
        stream_blocks(prepared, engine, writer, blocks=writer.pending_blocks())
    writer.seal()
    dataset = open_run(store, "r").compute()
    base = np.cumsum([1000.0 * (i + 1) for i in range(4)])[[1, 3]]
    expected = dataset["token_position"].values[:, None, None] + base[None, :, None]
    found = dataset["resid_post_tokens"].values
    np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))
    assert verify_run(store, "r", full=True).ok


def test_bit_patterns_hold_the_same_values(stored, tmp_path, folder):
    capture = CAPTURE.model_copy(update={"dtype": "bfloat16"})
    store = create_store(tmp_path / "store")
    extract(
        store, folder, run="bits", capture=capture, spec=SPEC.model_copy(update={"bits16": True})
    )
    bits = open_run(store, "bits")["resid_post_tokens"].values
    np.testing.assert_array_equal(stored("bfloat16")[1]["resid_post_tokens"].values, bits)
    (spec,) = [a for a in store.read_plan("bits").arrays if a.is_tokens]
    assert spec.dtype == "bfloat16-bits"


def test_workers_share_a_run_with_tokens_and_it_resumes(stored, tmp_path, folder):
    store = create_store(tmp_path / "store")
    first = extract(store, folder, worker=Worker(1, 2))
    assert first.missing == (1, 3)
    last = extract(store, folder)
    assert (last.n_blocks_run, last.n_blocks_kept) == (2, 2)
    assert last.seal.data_digest == stored("float32")[0].read_seal("r").data_digest


def test_a_batch_that_ran_in_halves_has_its_tokens_in_order(folder):
    model = load_model(str(folder), device="cpu")
    prepared = plan_extraction(
        TEXTS, model=str(folder), run="r", corpus="c", capture=CAPTURE, extract=SPEC
    )
    engine = TransformersEngine(
        model, sites=SITES, layers=range(4), pools=("mean_response",), tokens=prepared.token_layers
    )
    rows = [prepared.rows[i] for i in (20, 3, 11)]
    with engine.ready():
        whole = engine.forward(rows)["resid_post_tokens"]
        assert len(whole) == sum(row.n_tokens for row in rows)

        def refuse(_module, args):
            if len(args[0]) > 1:
                raise torch.OutOfMemoryError("out of memory. Tried to allocate 2.00 GiB.")

        model.backbone.layers[0].register_forward_pre_hook(refuse)
        halved = engine.forward(rows)["resid_post_tokens"]
    assert engine.n_halved == 2
    torch.testing.assert_close(whole, halved, rtol=5e-5, atol=5e-4)


def test_the_plan_says_what_tokens_take(folder):
    def plan(**capture):
        return plan_extraction(
            TEXTS, model=str(folder), run="r", corpus="c",
            capture=CaptureSpec.parse({"sites": SITES, **capture}), extract=SPEC,
        )  # fmt: skip

    cpu = torch.device("cpu")
    pooled, tokens = plan(), plan(tokens={"layers": [1, 3]})
    more = plan(tokens={"sites": SITES})
    summary = tokens.summary()
    n_rows = tokens.plan.token_axis.n_rows
    assert n_rows >= tokens.plan.n_tokens
    assert summary["bytes_per_array"]["resid_post_tokens"] == 4 * n_rows * 2 * 32
    assert summary["token_layers"] == 2
    assert "token_layers" not in pooled.summary()
    assert pooled.plan.capture.to_dict().keys() == CaptureSpec().to_dict().keys()
    needed = [memory_needed(p, cpu)["host"].needed for p in (pooled, tokens, more)]
    assert needed == sorted(needed)
    assert needed[0] < needed[1] < needed[2]


def test_wide_tokens_make_blocks_no_smaller(folder):
    spec = ExtractSpec(batch_tokens=200, chunk_size="4kB", device="cpu")
    pooled, tokens = (
        plan_extraction(
            TEXTS, model=str(folder), run="r", corpus="c", capture=capture, extract=spec
        ).plan
        for capture in (CaptureSpec(), CAPTURE)
    )
    assert tokens.rows_per_block == pooled.rows_per_block == 24
    chunk = 4 * tokens.token_axis.rows_per_chunk * tokens.model.hidden_size
    assert 2048 <= chunk <= 4096
    assert tokens.token_axis.chunk_edges[-1] > 10


def test_a_block_has_no_more_objects_than_a_commit_record_should_name(folder, monkeypatch):
    monkeypatch.setattr("actlake.extract.planning._BLOCK_OBJECTS", 8)
    spec = ExtractSpec(batch_tokens=200, chunk_size="4kB", device="cpu")
    plan = plan_extraction(
        TEXTS, model=str(folder), run="r", corpus="c", capture=CAPTURE, extract=spec
    ).plan
    token_bytes = 4 * 2 * 32
    edges = np.diff(plan.token_axis.token_edges)
    assert 1 < plan.n_blocks < 24
    assert edges.max() * token_bytes <= 8 * 4000


def test_of_a_large_block_memory_holds_a_few_chunks_of_tokens(tmp_path, folder, monkeypatch):
    """Chunks leave as they fill: those of a whole block are never there at once."""
    begun, stored = [], []
    add, store_object = TokenStream.add, BlockWriter._store_object

    def watched(self, start, arrays):
        add(self, start, arrays)
        begun.append(len(self._begun))

    def counted(self, progress, key, values):
        stored.append((key, len(begun)))
        return store_object(self, progress, key, values)

    monkeypatch.setattr(TokenStream, "add", watched)
    monkeypatch.setattr(BlockWriter, "_store_object", counted)
    spec = ExtractSpec(batch_tokens=100, chunk_size="4kB", device="cpu")
    store = create_store(tmp_path / "store")
    extract(store, folder, spec=spec)
    plan = store.read_plan("r")
    n_chunks = plan.token_axis.chunk_edges[-1]
    assert plan.n_blocks == 1
    assert n_chunks > 10
    assert max(begun) == 1  # tokens come in the order of their rows
    first = next(calls for key, calls in stored if key.startswith("resid_post_tokens"))
    assert first < len(begun) / 2  # stored while tokens were still to come
    assert verify_run(store, "r", full=True).ok


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40), most=st.integers(1, 200))
def test_batches_that_keep_the_order_take_every_row_once(lengths, most):
    batches = pack_batches(lengths, batch_tokens=most, keeps_order=True)
    assert [row for batch in batches for row in batch] == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) * max(lengths[row] for row in batch) <= most or len(batch) == 1


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ({"sites": ["mlp_out"]}, "tokens.sites names 'mlp_out', which sites does not"),
        ({"layers": [1, 1]}, "tokens.layers names something twice"),
        ({"layers": []}, "tokens.layers is empty"),
        ({"layers": [2]}, r"tokens.layers names \[2\], which layers does not"),
    ],
)
def test_tokens_that_are_not_captured_are_refused(tokens, message):
    with pytest.raises(InvalidInputError, match=message):
        CaptureSpec.parse({"layers": [1, 3], "tokens": tokens})


def test_infinite_tokens_stop_the_run_or_are_noted(tmp_path, folder):
    broken = tmp_path / "broken"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = load_model(str(folder), weights=False).tokenizer
    model.model.embed_tokens.weight.data[int(tokenizer.bos_token_id), 3] = float("inf")
    model.save_pretrained(broken)
    tokenizer.save_pretrained(broken)
    capture = CaptureSpec.parse(
        {"sites": ["resid_pre"], "layers": [0], "pools": ["last_response"],
         "tokens": {"sites": ["resid_pre"]}}
    )  # fmt: skip
    store = create_store(tmp_path / "store")
    with pytest.raises(NumericalError, match=r"not finite at layer 0, first at token 0"):
        extract(store, broken, capture=capture)
    extract(store, broken, capture=capture, spec=SPEC.model_copy(update={"nonfinite": "record"}))
    assert verify_run(store, "r", full=True).ok
    assert not finite_texts(store, "r").any()
    dataset = open_run(store, "r").compute()
    blank = np.isnan(dataset["resid_pre_tokens"].values).all(axis=(1, 2))
    np.testing.assert_array_equal(blank, dataset["token_position"].values == 0)
    assert np.isfinite(dataset["resid_pre_tokens"].values[~blank]).all()


def test_the_command_stores_tokens(tmp_path, folder):
    corpus, store = tmp_path / "texts.jsonl", str(tmp_path / "store")
    write_jsonl(TEXTS, corpus)
    command = ["extract", str(folder), "--corpus", str(corpus), "--store", store, "--run", "r"]
    command += ["--device", "cpu", "--chunk-size", "7", "--json"]
    wrong = CliRunner().invoke(cli, [*command, "--token-sites", "resid_post"])
    assert isinstance(wrong.exception, InvalidInputError)
    planned = CliRunner().invoke(cli, [*command, "--tokens", "1,3", "--dry-run"])
    assert json.loads(planned.stdout)["token_layers"] == 2
    done = CliRunner().invoke(cli, [*command, "--tokens", "1,3", "--token-sites", "resid_post"])
    assert done.exit_code == 0, done.output
    assert open_run(store, "r")["resid_post_tokens"].sizes["token_layer"] == 2


@pytest.mark.parametrize("chunk_size", [5, "2kB", "4kB"])
def test_the_command_that_repairs_a_run_has_its_plan(tmp_path, folder, chunk_size):
    corpus, store = tmp_path / "c.jsonl", create_store(tmp_path / "store")
    write_jsonl(TEXTS, corpus)
    prepared = plan_extraction(
        TEXTS, model=str(folder), run="r", corpus="c", capture=CAPTURE,
        extract=SPEC.model_copy(update={"chunk_size": chunk_size}),
    )  # fmt: skip
    line = extraction_command(store, prepared.plan, model=str(folder), corpus=str(corpus))
    words = shlex.split(line)
    assert words[0] == "actlake"
    again = CliRunner().invoke(cli, [*words[1:], "--dry-run", "--json"])
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["plan_id"] == prepared.plan.fingerprint()
