"""Encoders and embedding models: their sites, their pools, and what they refuse."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from actlake.cli import cli
from actlake.corpus import corpus_info
from actlake.extract import check_model, extract_run, find_blocks, load_model, render_texts
from actlake.extract.sites import find_post_norm, proven_sites
from actlake.schemas import CaptureSpec, ExtractSpec, InvalidInputError, Text
from actlake.store import create_store, open_run, verify_run
from tests.extract.tiny_encoders import ENCODERS, encoder_folder, tiny_encoder

pytestmark = pytest.mark.torch

SITES = ("resid_pre", "attn_heads", "attn_out", "resid_mid", "mlp_out", "resid_post")
POOLS = ("mean_all", "mean_all_with_bos", "first_token", "max_abs")
TEXTS = [
    Text(id=f"t{i:02d}", response="the boy has fallen and I stop " * (1 + i % 4)) for i in range(12)
]
SPEC = ExtractSpec(chunk_size=12, batch_tokens=300, device="cpu", attn_implementation="eager")
POST_NORM = {"bert", "roberta", "distilbert", "mpnet"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    return {name: encoder_folder(name, root / f"tiny-{name}") for name in ENCODERS}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, folders):
    """The run of each encoder with every site and pool, made once and verified."""
    done = {}

    def get(name):
        if name not in done:
            store = create_store(tmp_path_factory.mktemp(name) / "store")
            extract(store, folders[name])
            assert verify_run(store, "r", full=True).ok
            done[name] = open_run(store, "r").compute()
        return done[name]

    return get


def extract(store, folder, *, texts=TEXTS, **capture):
    spec = CaptureSpec(**{"sites": SITES, "pools": POOLS, **capture})
    return extract_run(
        store, texts, corpus_info("c", texts), model=str(folder), run="r", capture=spec,
        extract=SPEC,
    )  # fmt: skip


@pytest.mark.parametrize("name", ENCODERS)
def test_every_site_of_an_encoder_is_proven(name):
    model = tiny_encoder(name)
    blocks = find_blocks(model)
    assert len(blocks) == 4
    assert tuple(proven_sites(model, blocks)) == SITES


@pytest.mark.parametrize("name", ENCODERS)
def test_a_run_holds_what_the_library_computes_of_each_text_alone(folders, runs, name):
    dataset = runs(name)
    loaded = load_model(str(folders[name]), device="cpu", attn_implementation="eager")
    assert loaded.is_encoder
    for text in TEXTS[:4]:
        (row,) = render_texts([text], loaded.tokenizer, spec=CaptureSpec(pools=("mean_all",)))
        assert row.ids[0] == 1
        assert row.ids[-1] == 2
        with torch.inference_mode():
            states = loaded.backbone(
                torch.from_numpy(row.ids).long()[None], output_hidden_states=True
            ).hidden_states
        stored = dataset.sel(text=text.id)
        for layer in range(3):
            for site, hidden in (("pre", states[layer]), ("post", states[layer + 1])):
                tokens = hidden[0].double().numpy()
                here = stored.sel(layer=layer)
                ordinary = tokens[1:-1]
                expected = {
                    "mean_all": ordinary.mean(axis=0),
                    "mean_all_with_bos": tokens[:-1].mean(axis=0),
                    "first_token": tokens[0],
                    "max_abs": np.abs(ordinary).max(axis=0),
                    "norm": np.linalg.norm(ordinary, axis=1).mean(),
                    "norm_with_bos": np.linalg.norm(tokens[:-1], axis=1).mean(),
                }
                for pool, values in expected.items():
                    got = here[f"resid_{site}_{pool}"].values
                    scale = np.abs(tokens).max()
                    np.testing.assert_allclose(got, values, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("name", ENCODERS)
def test_the_stream_of_an_encoder_is_what_its_sublayers_make_it(folders, runs, name):
    dataset = runs(name)
    pre, attention, mid, mlp, post = (
        torch.from_numpy(dataset[f"{site}_first_token"].values)
        for site in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
    )
    blocks = find_blocks(load_model(str(folders[name]), device="cpu").backbone)
    for layer, block in enumerate(blocks):
        parts = find_post_norm(block)
        assert (parts is not None) == (name in POST_NORM)
        first, second = (
            (parts.after_attention, parts.after_mlp) if parts else (torch.nn.Identity(),) * 2
        )
        torch.testing.assert_close(
            first(pre[:, layer] + attention[:, layer]), mid[:, layer], rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(
            second(mid[:, layer] + mlp[:, layer]), post[:, layer], rtol=1e-4, atol=1e-4
        )
    np.testing.assert_array_equal(post[:, :-1], pre[:, 1:])
    assert (mid - post).abs().max() > 1e-3


def test_prompts_and_responses_of_an_encoder_are_refused(tmp_path, folders):
    store = create_store(tmp_path / "store")
    with pytest.raises(InvalidInputError, match=r"encoder: .*no mean_response; ask for mean_all,"):
        extract(store, folders["bert"], pools=CaptureSpec().pools)
    with pytest.raises(InvalidInputError, match="no chat template"):
        extract(store, folders["bert"], render="chat")
    turns = Text.parse({"id": "x", "response": "b", "messages": [{"role": "user", "content": "a"}]})
    for odd in (Text(id="x", prompt="a", response="b"), turns,
                Text(id="x", token_ids=(1, 7, 8, 2), response_start=2)):  # fmt: skip
        with pytest.raises(InvalidInputError, match=r"1 of 13 have a prompt or turns.*'x'"):
            extract(store, folders["bert"], texts=[*TEXTS, odd])
    assert store.run_ids() == []


def test_token_ids_are_run_as_they_are(tmp_path, folders):
    texts = [Text(id="ids", token_ids=(1, 70, 80, 90, 2)), Text(id="more", token_ids=(1, 70, 2))]
    store = create_store(tmp_path / "store")
    extract(store, folders["bert"], texts=texts)
    assert open_run(store, "r")["token_id"].values.tolist() == [1, 70, 2, 1, 70, 80, 90, 2]


def test_positions_of_roberta_end_before_the_table_does(folders):
    assert load_model(str(folders["roberta"]), weights=False).max_positions == 255
    assert load_model(str(folders["bert"]), weights=False).max_positions == 256
    assert load_model(str(folders["t5"]), weights=False).max_positions is None


@pytest.mark.parametrize("name", ENCODERS)
def test_sound_encoders_pass_the_check(folders, name):
    loaded = load_model(str(folders[name]), head=True, device="cpu")
    assert [c for c in check_model(loaded) if not c.ok] == []


def test_a_decoder_that_passes_for_an_encoder_is_found(folders):
    loaded = load_model(str(folders["bert"]), head=True, device="cpu")
    for block in find_blocks(loaded.backbone):
        attention = block.attention.self
        whole = attention.forward

        def alone(hidden, *args, whole=whole, **kwargs):
            # Each token sees itself and nothing else.
            parts = [whole(hidden[:, i : i + 1], None)[0] for i in range(hidden.shape[1])]
            return torch.cat(parts, dim=1), None

        attention.forward = alone
    found = {check.name: check for check in check_model(loaded)}
    assert not found["direction"].ok
    assert "does not see" in found["direction"].seen


def test_the_commands_take_encoders(tmp_path, folders):
    corpus = tmp_path / "texts.jsonl"
    corpus.write_text(
        "".join(json.dumps({"id": t.id, "response": t.response}) + "\n" for t in TEXTS)
    )
    folder, store = str(folders["distilbert"]), str(tmp_path / "store")
    command = ["extract", folder, "--corpus", str(corpus), "--store", store, "--run", "r"]
    command += ["--device", "cpu", "--json"]
    assert isinstance(CliRunner().invoke(cli, command).exception, InvalidInputError)
    done = CliRunner().invoke(cli, [*command, "--pools", "mean_all,first_token"])
    assert done.exit_code == 0, done.output
    assert "resid_post_first_token" in open_run(store, "r")
    done = CliRunner().invoke(cli, ["extract", "check", folder, "--json"])
    assert json.loads(done.stdout)["ok"]
