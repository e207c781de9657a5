import json

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from actlake.cli import cli
from actlake.extract import load_model, render_texts
from actlake.schemas import (
    CaptureSpec,
    CorruptError,
    Direction,
    InvalidInputError,
    SteeredTextsSpec,
    Text,
)
from actlake.steer import (
    Asked,
    ChoiceItem,
    Condition,
    Intervention,
    Positions,
    force_choices,
    generate_table,
    intervene,
    model_choices,
    prompt_ids,
    read_generated_directions,
    score_generated,
    score_rows,
    weigh_scores,
)
from tests.steer.contrasts import organism_contrasts

pytestmark = pytest.mark.torch
MODEL = "bundled:llama-organism"
LAYER = 2


@pytest.fixture(scope="module")
def loaded():
    return load_model(MODEL, head=True, device="cpu")


@pytest.fixture(scope="module")
def texts():
    return [
        Text(
            id=f"{c.id}-{arm}", system=c.base, prompt=c.prompt, response=getattr(c, arm), arm=arm,
            pair=c.id, scenario=c.scenario, category="conflict",
        )
        for c in organism_contrasts(3)
        for arm in ("positive", "negative")
    ]  # fmt: skip


def unit(seed, width=128):
    vector = np.random.default_rng(seed).standard_normal(width).astype(np.float32)
    return vector / np.linalg.norm(vector)


DIRECTIONS = {"own": unit(0), "random-0": unit(1)}
SPEC = SteeredTextsSpec(layer=LAYER, alphas=(0.0, 4.0), max_new_tokens=16)


def items_of(texts):
    by_pair = {}
    for text in texts:
        by_pair.setdefault(text.pair, []).append(text)
    return [
        ChoiceItem(p.prompt, p.response, n.response, system=p.system) for p, n in by_pair.values()
    ]


@pytest.fixture(scope="module")
def made(loaded, texts, tmp_path_factory):
    """Generated texts with what they answer; the last prompt has no answers to choose from."""
    folder = tmp_path_factory.mktemp("made")
    prompts = prompt_ids(loaded, texts[::2])
    table = generate_table(loaded, prompts, DIRECTIONS, spec=SPEC, folder=folder)
    items = [*items_of(texts)[:2], None]
    asked = {
        name: Asked(ids, item) for (name, ids), item in zip(prompts.items(), items, strict=True)
    }
    return folder, table, asked


@pytest.mark.parametrize("positions", ["all", "prompt-last"])
def test_steered_choices_are_those_of_asking_one_by_one(loaded, texts, positions):
    items = items_of(texts)
    conditions = [Condition(i, d, a) for i in range(3) for d in (0, 1) for a in (0.0, 15.0)]
    vectors = np.stack(list(DIRECTIONS.values()))
    together = model_choices(
        loaded, items, conditions, directions=vectors, layer=LAYER, positions=positions
    )
    tokenizer = loaded.tokenizer
    letters = {
        letter: [i for i in range(len(tokenizer)) if tokenizer.decode([i]).strip() == letter]
        for letter in "AB"
    }
    assert all(len(ids) == 2 for ids in letters.values())  # with a space before it, and without

    def asker(condition):
        def ask(question):
            text = Text(id="q", system=items[condition.row].system, prompt=question, response="A")
            (row,) = render_texts([text], tokenizer, spec=CaptureSpec())
            ids = torch.from_numpy(row.ids[: row.n_prompt]).long()[None]
            mask = torch.zeros_like(ids, dtype=torch.bool)
            mask[:, 1 if positions == "all" else -1 :] = True  # never the BOS
            write = Intervention(
                "add", (LAYER,), torch.tensor([condition.alpha]), Positions(mask),
                vectors=torch.from_numpy(vectors[condition.direction]),
            )  # fmt: skip
            with torch.inference_mode(), intervene(loaded.network, [write]):
                scores = torch.log_softmax(loaded.network(ids).logits[0, -1].double(), dim=-1)
            return {name: float(scores[ids].logsumexp(0)) for name, ids in letters.items()}

        return ask

    for condition, found in zip(conditions, together, strict=True):
        (expected,) = force_choices([items[condition.row]], asker(condition))
        assert found.log_odds == pytest.approx(expected.log_odds, abs=2e-4)
        assert found.order_bias == pytest.approx(expected.order_bias, abs=2e-4)
    idle = {c.row: f for c, f in zip(conditions, together, strict=True) if c.alpha == 0}
    moved = [f for c, f in zip(conditions, together, strict=True) if c.alpha != 0]
    assert any(abs(f.log_odds - idle[c.row].log_odds) > 0.003
               for f, c in zip(moved, [c for c in conditions if c.alpha], strict=True))  # fmt: skip


def test_generated_texts_get_every_score_and_four_units(loaded, made):
    _, table, asked = made
    found = score_generated(loaded, table, asked, DIRECTIONS, mean_norm=8.0, separation=2.0)
    assert len(found) == len(table) == 3 * 2 * 2
    assert (found["text"] == table["text"]).all()
    zero, far = found[found["alpha"] == 0], found[found["alpha"] == 4]
    assert (zero["first_token_kl"] == 0).all()
    assert (far["first_token_kl"] > 0).all()
    assert (far["alpha_separation"] == 2).all()
    assert (far["alpha_norm"] == 0.5).all()
    assert (zero["alpha_angle"] < 0.1).all()
    assert (far["alpha_angle"] > 1).all()
    without = found[found["prompt"] == list(asked)[-1]]
    assert without["choice_log_odds"].isna().all()
    with_answers = found[found["prompt"] != list(asked)[-1]]
    assert with_answers[["choice_log_odds", "choice_order_bias"]].notna().all(axis=None)
    conditions = [
        Condition(2 * p + arm, d, alpha)
        for p in range(2) for d in range(2) for alpha in (0.0, 4.0) for arm in (0, 1)
    ]  # fmt: skip
    answers = [
        Text(id=f"{i}{arm}", system=one.choice.system, prompt=one.choice.prompt,
             response=getattr(one.choice, arm))
        for i, one in enumerate(asked.values()) if one.choice is not None
        for arm in ("positive", "negative")
    ]  # fmt: skip
    expected = score_rows(
        loaded, render_texts(answers, loaded.tokenizer, spec=CaptureSpec()), conditions,
        directions=np.stack(list(DIRECTIONS.values())), layer=LAYER, positions="all",
        batch_tokens=4096,
    ).reshape(-1, 2)  # fmt: skip
    got = with_answers.set_index(["prompt", "direction", "alpha"])["logprob_difference"]
    names = [(p, d, a) for p in list(asked)[:2] for d in DIRECTIONS for a in (0.0, 4.0)]
    assert [got[name] for name in names] == pytest.approx(
        (expected[:, 0] - expected[:, 1]).tolist(), abs=2e-5
    )
    assert without["logprob_difference"].isna().all()
    # Greedy texts are what the unsteered model finds likely; perplexity is under it.
    assert zero["perplexity"].max() < far["perplexity"].max()
    for row in found.itertuples():
        ids = torch.from_numpy(np.concatenate([asked[row.prompt].ids, row.ids])).long()[None]
        with torch.inference_mode():
            scores = torch.log_softmax(loaded.network(ids).logits[0].double(), dim=-1)
        n = len(asked[row.prompt].ids)
        picked = [float(scores[i - 1, ids[0, i]]) for i in range(n, ids.shape[1])]
        assert row.perplexity == pytest.approx(np.exp(-np.mean(picked)), rel=1e-3)


def test_scores_are_kept_and_gone_on_with(loaded, made, tmp_path):
    _, table, asked = made
    whole = score_generated(loaded, table, asked, DIRECTIONS)
    half = table[table["alpha"] == 0]
    score_generated(loaded, half, asked, DIRECTIONS, folder=tmp_path)
    passes = []
    hook = loaded.network.register_forward_hook(lambda *_: passes.append(1))
    seen = []
    done = score_generated(
        loaded, table, asked, DIRECTIONS, folder=tmp_path, progress=lambda *n: seen.append(n)
    )
    assert seen == [(12, 12)]
    assert passes
    passes.clear()
    score_generated(loaded, table, asked, DIRECTIONS, folder=tmp_path)
    hook.remove()
    assert not passes
    pd.testing.assert_frame_equal(done, whole, rtol=1e-4, atol=1e-5)
    with pytest.raises(InvalidInputError, match="made with another scores"):
        score_generated(loaded, table, asked, DIRECTIONS, scores=("perplexity",), folder=tmp_path)


def test_an_empty_text_has_no_perplexity_and_strange_tables_are_refused(loaded, made):
    _, table, asked = made
    empty = table.iloc[:1].assign(ids=[[]], n_new=0)
    found = score_generated(loaded, empty, asked, DIRECTIONS, scores=("perplexity",))
    assert found["perplexity"].isna().all()
    assert "first_token_kl" not in found
    cost = weigh_scores(loaded, table, asked)
    # Of the eight conditions with two answers: both orders of a choice, and both answers.
    assert cost.n_rows == 12 + 2 * 12 + 4 * 8
    with pytest.raises(InvalidInputError, match="directions that are not given"):
        score_generated(loaded, table, asked, {"own": DIRECTIONS["own"]})
    with pytest.raises(InvalidInputError, match="prompts that are not given"):
        score_generated(loaded, table, {}, DIRECTIONS)
    two = table.assign(layer=[1, *[2] * 11])
    with pytest.raises(InvalidInputError, match="one layer and positions"):
        score_generated(loaded, two, asked, DIRECTIONS)


def test_vectors_lie_beside_the_texts_and_are_what_their_names_say(made, tmp_path):
    folder, table, _ = made
    kept = read_generated_directions(folder)
    for name, digest in table[["direction", "direction_digest"]].drop_duplicates().to_numpy():
        assert np.array_equal(kept[digest], DIRECTIONS[name])
    path = next(folder.glob("direction-*.json"))
    (tmp_path / path.name).write_text(path.read_text().replace("0.", "1.", 1))
    with pytest.raises(CorruptError, match="another vector than its name says"):
        read_generated_directions(tmp_path)
    (tmp_path / path.name).write_text("{")
    with pytest.raises(CorruptError, match="is no direction"):
        read_generated_directions(tmp_path)


def call(*args):
    done = CliRunner().invoke(cli, [str(a) for a in args])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_command_writes_one_tidy_table_with_a_record(texts, tmp_path):
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(t.to_json(indent=None).strip() + "\n" for t in texts))
    direction = Direction(
        method="diff_means", site="resid_post", layer=LAYER, pool="mean_response", norm=2.0,
        bias=0.0, vector=tuple(unit(0).tolist()), model="llama-organism", run="r",
    )  # fmt: skip
    (tmp_path / "d.json").write_text(direction.to_json())
    common = ["--directions", tmp_path / "d.json"]
    call("steer", "generate", MODEL, source, "--layer", LAYER, "--alphas", "0,4", "--random", 1,
         "--max-new-tokens", 12, "--out", tmp_path / "made", *common)  # fmt: skip
    args = ["steer", "score", MODEL, source, "--texts", tmp_path / "made", "--json", *common]
    cost = json.loads(call(*args, "--dry-run"))
    assert cost["rows"] == 12 + 2 * 12 + 4 * 12
    timed = json.loads(call(*args, "--dry-run", "--probe", 0.1))
    expected = timed["tokens"] / timed["tokens_per_second"]
    assert timed["estimated_seconds"] == pytest.approx(expected, abs=0.06)  # one decimal
    shown = json.loads(call(*args))
    assert json.loads(call(*args, "--dry-run"))["rows"] == 0
    assert [(r["direction"], r["alpha"]) for r in shown] == [
        ("diff_means", 0), ("diff_means", 4), ("random-0", 0), ("random-0", 4),
    ]  # fmt: skip
    table = pd.read_parquet(tmp_path / "made" / "scored.parquet")
    assert len(table) == 12
    wanted = {
        "text", "prompt", "prompt_text", "scenario", "category", "alpha_raw", "alpha_separation",
        "alpha_norm", "alpha_angle", "perplexity", "first_token_kl", "choice_log_odds",
        "choice_order_bias", "logprob_difference",
        "coherent", "sentiment", "hostility_count", "distinct_2", "empty",
    }  # fmt: skip
    assert wanted <= set(table.columns)
    assert table["choice_log_odds"].notna().all()
    record = json.loads((tmp_path / "made" / "scored.json").read_text())
    assert record["separation"] == 2.0
    assert record["model"]["name"] == "llama-organism"
    # The same table goes into the dose analysis as it is.
    rows = json.loads(
        call(
            "doses",
            tmp_path / "made" / "scored.parquet",
            "--outcome",
            "choice_log_odds",
            "--by",
            "direction",
            "--claimed",
            4,
            "--json",
        )
    )
    verdicts = rows["verdicts"]
    assert {v["group"] for v in verdicts} == {"diff_means", "random-0"}
    assert all(v["claimed_separation"] == 2.0 for v in verdicts)
    with pytest.raises(InvalidInputError, match=r"no score 'perplexty'.*did you mean 'perplexity'"):
        call(*args, "--scores", "perplexty")
    source.write_text("".join(t.to_json(indent=None).strip() + "\n" for t in texts[2:]))
    with pytest.raises(InvalidInputError, match="has no text"):
        call(*args)
    (tmp_path / "none").mkdir()
    with pytest.raises(InvalidInputError, match="holds no texts"):
        call("steer", "score", MODEL, source, "--texts", tmp_path / "none")
