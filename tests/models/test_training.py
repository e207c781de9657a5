"""The training script: a short training learns, and what it saves can be loaded."""

from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest

pytestmark = pytest.mark.torch
pytest.importorskip("torch")

from click.testing import CliRunner  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from actlake.corpus.grammar import iter_examples  # noqa: E402
from actlake.models import organism_path  # noqa: E402
from actlake.models.architectures import build_model  # noqa: E402
from actlake.models.behaviour import generate_greedy  # noqa: E402
from actlake.models.train import main, train_organism, train_tokenizer  # noqa: E402
from actlake.schemas import NotFoundError  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer()


def test_a_short_training_lowers_the_loss_clearly(tokenizer):
    _, training = train_organism("llama-organism", tokenizer, steps=40, batch_size=8)
    assert len(training.losses) == 40
    assert training.n_texts == 320
    assert training.losses[0] == pytest.approx(np.log(len(tokenizer)), rel=0.1)
    assert np.mean(training.losses[-5:]) < 0.65 * training.losses[0]


def test_the_same_seed_trains_the_same_and_another_seed_differs(tokenizer):
    first, again, other = (
        train_organism("phi3-organism", tokenizer, steps=3, batch_size=2, seed=s)[1].losses
        for s in (0, 0, 1)
    )
    assert first == pytest.approx(again, rel=1e-3)
    assert first != pytest.approx(other, rel=1e-3)


def test_the_script_saves_a_folder_that_loads_and_generates(tmp_path):
    args = ["--out", str(tmp_path), "--model", "gemma2-organism", "--steps", "2"]
    result = CliRunner().invoke(main, [*args, "--batch-size", "2", "--paraphrases", "1"])
    assert result.exit_code == 0, result.output
    folder = tmp_path / "gemma2-organism"
    assert (folder / "README.md").is_file()
    report = json.loads((folder / "behaviour.json").read_text(encoding="utf-8"))
    assert report["encoding-type"] == "actlake-behaviour"
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    saved = AutoTokenizer.from_pretrained(folder)
    messages = next(islice(iter_examples(0), 1)).messages()[:-1]
    assert len(generate_greedy(model, saved, [messages], max_new_tokens=3)) == 1


def test_the_committed_tokenizer_is_the_one_the_script_trains(tokenizer):
    committed = AutoTokenizer.from_pretrained(organism_path("llama-organism"))
    assert committed.get_vocab() == tokenizer.get_vocab()
    assert committed.chat_template == tokenizer.chat_template


def test_every_word_of_the_grammar_is_one_token(tokenizer):
    for example in islice(iter_examples(9), 300):
        for text in (example.prompt, example.response):
            assert len(tokenizer.tokenize(text)) == len(
                text.replace(".", " .").replace(",", " ,").replace("?", " ?").split()
            )


def test_an_unknown_architecture_names_the_nearest(tokenizer):
    with pytest.raises(NotFoundError, match=r"did you mean 'phi3-organism'"):
        build_model("phi-organism", tokenizer)
