import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from actlake.cli import cli
from actlake.extract import find_blocks, load_model, render_texts, replace_hidden, unwrap_hidden
from actlake.schemas import CaptureSpec, InvalidInputError, Text
from actlake.steer import (
    Condition,
    first_token_kl,
    perplexities,
    read_table,
    steered_mask,
    table_perplexities,
)
from tests.extract.tiny import tiny_folder

pytestmark = pytest.mark.torch

PROMPT = "the boy has fallen "
TEXTS = [
    Text(id=str(i), prompt=PROMPT * (1 + i % 3), response="I stop to help" + " I" * i)
    for i in range(5)
]


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("m") / f"tiny-{request.param}"
    return load_model(str(tiny_folder(request.param, folder)), head=True)


def rows_of(model):
    return render_texts(TEXTS, model.tokenizer, spec=CaptureSpec())


def log_probs(model, ids, hook=None, layer=1):
    handle = hook and find_blocks(model.backbone)[layer].register_forward_hook(hook)
    try:
        with torch.inference_mode():
            logits = model.network(torch.from_numpy(ids).long()[None]).logits[0]
    finally:
        if handle:
            handle.remove()
    return torch.log_softmax(logits.double(), dim=-1)


@pytest.mark.parametrize("batch_tokens", [20, 4096])
def test_perplexity_is_that_of_one_text_at_a_time(model, batch_tokens):
    rows = rows_of(model)
    for row, got in zip(rows, perplexities(model, rows, batch_tokens=batch_tokens), strict=True):
        found = log_probs(model, row.ids)
        picked = [found[i - 1, row.ids[i]].item() for i in np.flatnonzero(row.response)]
        assert got == pytest.approx(np.exp(-np.mean(picked)), rel=1e-4)


@pytest.mark.parametrize("positions", ["all", "prompt-all", "prompt-last", "response"])
@pytest.mark.parametrize("batch_tokens", [20, 4096])
def test_the_kl_of_the_first_token_is_that_of_the_prompt_alone(model, positions, batch_tokens):
    rows = rows_of(model)
    vectors = np.random.default_rng(0).standard_normal((2, 32))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    conditions = [
        Condition(row, d, alpha)
        for alpha in (-3.0, 0.0, 8.0)
        for row in range(len(rows))
        for d in (0, 1)
    ]
    got = first_token_kl(
        model, rows, conditions, directions=vectors, layer=1, positions=positions,
        batch_tokens=batch_tokens,
    )  # fmt: skip
    for condition, value in zip(conditions, got, strict=True):
        row = rows[condition.row]
        mask = torch.from_numpy(steered_mask(row, positions, bos=model.tokenizer.bos_token_id))
        ids, mask = row.ids[: row.n_prompt], mask[: row.n_prompt]
        push = torch.from_numpy(vectors[condition.direction]).float() * condition.alpha

        def hook(_module, _args, output, mask=mask, push=push):
            hidden = unwrap_hidden(output).clone()
            hidden[0, mask] += push
            return replace_hidden(output, hidden)

        steered, plain = log_probs(model, ids, hook)[-1], log_probs(model, ids)[-1]
        expected = (steered.exp() * (steered - plain)).sum().item()
        assert value == pytest.approx(expected, rel=1e-3, abs=1e-6)
        if condition.alpha == 0 or positions == "response":
            assert value == 0
        else:
            assert value > 0


def test_a_row_without_response_has_no_score(model):
    row = rows_of(model)[0]
    bare = type(row)(**{**vars(row), "response": np.zeros_like(row.response)})
    with pytest.raises(InvalidInputError, match="row 0 has no prompt or no response"):
        perplexities(model, [bare])


def test_texts_of_a_table_are_scored_with_their_prompts_and_without(model):
    table = pd.DataFrame(
        {
            "text": [TEXTS[0].response, "", TEXTS[1].response, None],
            "prompt": [TEXTS[0].prompt, PROMPT, TEXTS[1].prompt, PROMPT],
        }
    )
    expected = perplexities(model, rows_of(model))
    found = table_perplexities(model, table)
    assert found[[0, 2]] == pytest.approx(expected[:2], rel=1e-5)
    assert np.isnan(found[[1, 3]]).all()
    alone = table_perplexities(model, table[["text"]])
    assert alone[0] != pytest.approx(found[0], rel=1e-3)
    (row,) = render_texts(
        [Text(id="t", response=TEXTS[0].response)], model.tokenizer,
        spec=CaptureSpec(pools=("mean_response",)),
    )  # fmt: skip
    scores = log_probs(model, row.ids)
    picked = [scores[i - 1, row.ids[i]].item() for i in np.flatnonzero(row.response) if i > 0]
    assert alone[0] == pytest.approx(np.exp(-np.mean(picked)), rel=1e-4)
    with pytest.raises(InvalidInputError, match="already has a column 'perplexity'"):
        table_perplexities(model, table.assign(perplexity=1.0))


def test_the_scoring_command_takes_a_model(tmp_path):
    said = ["I put the work down and hurry to the porter.", "Porter the hurry down work I and put."]
    pd.DataFrame({"completion": said, "question": "A porter has fallen."}).to_csv(
        tmp_path / "t.csv", index=False
    )
    done = CliRunner().invoke(
        cli,
        ["score", str(tmp_path / "t.csv"), "--map", "text=completion,prompt=question", "--model",
         "bundled:llama-organism"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    scored = read_table(tmp_path / "t-scored.parquet")
    assert scored["perplexity"][0] < scored["perplexity"][1] / 10
