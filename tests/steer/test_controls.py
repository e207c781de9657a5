import numpy as np
import pandas as pd
import pytest
import torch

from actlake.corpus.grammar import system_prompts
from actlake.extract import find_blocks, load_model, render_texts, replace_hidden, unwrap_hidden
from actlake.schemas import CaptureSpec, InvalidInputError, PersonaSet, SteerSpec, Text
from actlake.steer import (
    ChoiceItem,
    Condition,
    main_sweep,
    model_choices,
    prompt_baseline,
    sweep_direction,
    weigh_direction,
    weigh_prompts,
)
from tests.extract.tiny import tiny_folder
from tests.steer.contrasts import organism_contrasts
from tests.steer.test_sweep import CAPTURE, PAIRS, direction

pytestmark = pytest.mark.torch
SPEC = SteerSpec(alphas=(-1.0, 2.0), n_random=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("m") / "tiny-llama"
    return load_model(str(tiny_folder("llama", folder)), head=True)


def run_sweep(model, directions, *, pairs=PAIRS[:4], spec=SPEC, **options):
    n = len(directions) if isinstance(directions, list) else 1
    return sweep_direction(
        model, directions, pairs, spec=spec, capture=CAPTURE, mean_norm=[10.0] * n, **options
    )


def naive_difference(model, pair, writes):
    """Both completions alone, with a plain hook per (layer, vector)."""
    rows = render_texts([pair.positive, pair.negative], model.tokenizer, spec=CAPTURE)
    scores = []
    for row in rows:
        mask = torch.from_numpy(row.ids != model.tokenizer.bos_token_id)
        handles = []
        for layer, vector in writes:

            def hook(_module, _args, output, vector=vector, mask=mask):
                hidden = unwrap_hidden(output).clone()
                hidden[0, mask] += torch.from_numpy(vector).float()
                return replace_hidden(output, hidden)

            handles.append(find_blocks(model.backbone)[layer].register_forward_hook(hook))
        with torch.inference_mode():
            logits = model.network(torch.from_numpy(row.ids).long()[None]).logits[0]
        for handle in handles:
            handle.remove()
        log_probs = torch.log_softmax(logits.float(), dim=-1)
        picked = [log_probs[i - 1, row.ids[i]].item() for i in np.flatnonzero(row.response)]
        scores.append(np.mean(picked))
    return scores[0] - scores[1]


def test_several_layers_are_steered_at_once_each_in_its_own_units(model):
    both = [direction(model, layer=1, norm=2.0), direction(model, layer=3, seed=5, norm=0.5)]
    found = run_sweep(model, both)
    own = found.samples[found.samples["direction"] == "diff_means"]
    assert set(own["layers"]) == {"1+3"}
    at = own[np.isclose(own["alpha_separation"], 2.0)].reset_index(drop=True)
    assert len(at) == 4
    # Two separations are a raw 4 at layer 1 and 1 at layer 3; tables have their means.
    assert at["alpha_raw"].to_numpy() == pytest.approx(2.5)
    assert at["alpha_norm"].to_numpy() == pytest.approx(0.25)
    for sample, pair in zip(at.itertuples(), PAIRS[:4], strict=True):
        writes = [(d.layer, 2.0 * d.norm * np.array(d.vector)) for d in both]
        expected = naive_difference(model, pair, writes)
        assert sample.difference == pytest.approx(expected, rel=1e-4, abs=5e-5)
        shift = expected - naive_difference(model, pair, [])
        assert sample.shift == pytest.approx(shift, rel=1e-3, abs=1e-4)
    rows = found.rows
    assert rows["layer"].isna().all()
    assert (rows[rows["alpha_raw"] == 0]["estimate"] == 0).all()
    # One layer of the two alone is another intervention.
    alone = run_sweep(model, both[:1]).samples
    one = alone[(alone["direction"] == "diff_means") & (alone["alpha_separation"] == 2.0)]
    assert np.abs(one["shift"].to_numpy() - at["shift"].to_numpy()).max() > 1e-3


def test_raw_strengths_are_the_same_at_every_layer(model):
    both = [direction(model, layer=0, norm=2.0), direction(model, layer=2, norm=0.5)]
    spec = SteerSpec(alphas=(3.0,), unit="raw", n_random=0)
    at = run_sweep(model, both, spec=spec).samples.query("alpha_raw == 3")
    assert at["alpha_separation"].to_numpy() == pytest.approx((3 / 2 + 3 / 0.5) / 2)


def test_placebos_are_steered_as_far_as_the_direction_and_named_by_their_method(model):
    own = direction(model)
    placebos = [
        direction(model, seed=9, method="shuffled-3", norm=77.0),
        direction(model, seed=8, method="orthogonal"),
        direction(model, seed=7, method="shuffled-1", layer=2),  # of a layer that is not steered
    ]
    found = run_sweep(model, own, placebos=placebos)
    names = found.rows[["direction", "direction_index"]].drop_duplicates()
    assert [tuple(name) for name in names.to_numpy()] == [
        ("diff_means", 0), ("random", 0), ("random", 1), ("shuffled", 3), ("orthogonal", 0),
    ]  # fmt: skip
    assert (
        found.rows.groupby("direction")["alpha_raw"].unique().map(sorted).map(tuple).nunique() == 1
    )
    one = found.samples.query("direction == 'shuffled' and alpha_separation == 2.0").iloc[0]
    written = 2.0 * own.norm * np.array(placebos[0].vector)
    expected = naive_difference(model, PAIRS[0], [(1, written)])
    assert one["difference"] == pytest.approx(expected, rel=1e-4, abs=5e-5)
    main = main_sweep(found.rows)
    assert set(main["direction"]) == {"diff_means", "random"}
    with pytest.raises(InvalidInputError, match=r"'shuffled-3' has no direction at layers \[2\]"):
        run_sweep(model, [own, direction(model, layer=2)], placebos=placebos[:1])


class StopError(Exception):
    pass


def test_a_sweep_goes_on_where_it_was_interrupted_and_grows(model, tmp_path):
    spec = SteerSpec(alphas=(-1.0, 0.0, 2.0), n_random=40)
    whole = run_sweep(model, direction(model), spec=spec)
    asked = {"spec": spec, "capture": CAPTURE, "mean_norm": 10.0}
    cost = weigh_direction(model, direction(model), PAIRS[:4], **asked)
    assert cost.n_rows == 41 * 3 * 4 * 2 + 4

    def stop(done, total):
        assert total == 41 * 3 * 4
        if done > total / 2:
            raise StopError

    with pytest.raises(StopError):
        run_sweep(model, direction(model), spec=spec, folder=tmp_path, progress=stop)
    left = weigh_direction(model, direction(model), PAIRS[:4], folder=tmp_path, **asked)
    assert 4 < left.n_rows < cost.n_rows / 2 + 4
    (tmp_path / "left-over.parquet").write_bytes(b"cut off")
    passes = []
    hook = model.network.register_forward_hook(lambda *_: passes.append(1))
    done = run_sweep(model, direction(model), spec=spec, folder=tmp_path)
    n_first, passes[:] = len(passes), []
    again = run_sweep(model, direction(model), spec=spec, folder=tmp_path)
    assert n_first > 1
    assert not passes  # angles run the backbone alone
    pd.testing.assert_frame_equal(done.rows, again.rows)
    assert np.allclose(done.samples["shift"], whole.samples["shift"], atol=2e-5)
    # More strengths and other pairs are measured beside what is there.
    more = spec.model_copy(update={"alphas": (-1.0, 0.0, 2.0, 3.0)})
    run_sweep(model, direction(model), spec=more, folder=tmp_path, pairs=PAIRS[:5])
    hook.remove()
    asked["spec"] = more
    rest = weigh_direction(model, direction(model), PAIRS[:5], folder=tmp_path, **asked)
    assert rest.n_rows == 5
    spec = spec.model_copy(update={"positions": "response"})
    with pytest.raises(InvalidInputError, match="another positions"):
        run_sweep(model, direction(model), spec=spec, folder=tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layers": [1, 2], "layer": 1}, "give one of them"),
        ({"layers": [1], "top_layers": 2}, "give one of them"),
        ({"layers": [1, 1]}, "names something twice"),
        ({"together": True}, "together needs several layers"),
        ({"layers": [1], "together": True}, "together needs several layers"),
        ({"controls": ["shuffled", "shuffled"]}, "names something twice"),
        ({"controls": ["nonsense"]}, "controls"),
        ({"alphas": [1.0, float("nan")]}, "finite"),
        ({"alphas": [float("inf")]}, "finite"),
    ],
)
def test_specs_that_contradict_themselves_are_refused(given, message):
    with pytest.raises(InvalidInputError, match=message):
        SteerSpec.parse(given, where="options")


def test_layers_and_norms_that_do_not_fit_are_refused(model):
    with pytest.raises(InvalidInputError, match="one direction per layer, got those of layers"):
        run_sweep(model, [direction(model), direction(model, seed=1)])
    with pytest.raises(InvalidInputError, match="layers 0 to 3"):
        run_sweep(model, [direction(model), direction(model, layer=9)])
    with pytest.raises(InvalidInputError, match="expected 1 mean norms above 0"):
        sweep_direction(
            model, direction(model), PAIRS[:1], spec=SPEC, capture=CAPTURE, mean_norm=float("nan")
        )


def test_what_is_longer_than_the_context_is_refused_and_named():
    loaded = load_model("bundled:llama-organism", head=True, device="cpu")
    (pair,) = organism_pairs(1)
    far = {"prompt": "I see you fall. " * 200}
    long = pair.model_copy(
        update={arm: getattr(pair, arm).model_copy(update=far) for arm in ("positive", "negative")}
    )
    own = direction(loaded, layer=1, model="llama-organism", vector=[1.0] + [0.0] * 127)
    for act in (
        lambda: sweep_direction(loaded, own, [long], spec=SPEC, capture=CAPTURE, mean_norm=1.0),
        lambda: weigh_direction(loaded, own, [long], spec=SPEC, capture=CAPTURE, mean_norm=1.0),
        lambda: prompt_baseline(loaded, [long], PERSONAS, spec=SPEC, capture=CAPTURE),
    ):
        with pytest.raises(InvalidInputError, match="tokens, the limit is 256; 2 of 2"):
            act()
    item = ChoiceItem(far["prompt"], "I stop.", "I go on.")
    with pytest.raises(InvalidInputError, match="the limit is 256"):
        model_choices(
            loaded, [item], [Condition(0, 0, 0.0)], directions=np.zeros((1, 128)), layer=1,
            positions="all",
        )  # fmt: skip


def organism_pairs(n):
    from actlake.corpus import pair_texts

    texts = [
        Text(
            id=f"{c.id}-{arm}", prompt=c.prompt, response=getattr(c, arm), arm=arm, pair=c.id,
            scenario=c.scenario,
        )
        for c in organism_contrasts(n)
        for arm in ("positive", "negative")
    ]  # fmt: skip
    return pair_texts(texts)


PERSONAS = PersonaSet(
    positive=system_prompts("empathic", held_out=True)[:4],
    negative=system_prompts("task", held_out=True)[:4],
)


def test_a_system_prompt_in_place_of_steering_moves_an_organism_to_its_arm():
    loaded = load_model("bundled:llama-organism", head=True, device="cpu")
    pairs = organism_pairs(6)
    found = prompt_baseline(loaded, pairs, PERSONAS, spec=SteerSpec(), capture=CaptureSpec())
    rows = found.rows.set_index("prompt")
    assert rows.loc["negative", "ci_high"] < 0 < rows.loc["positive", "estimate"]
    assert rows.loc["positive", "estimate"] - rows.loc["negative", "estimate"] > 0.3
    assert (rows[["alpha_raw", "alpha_separation", "alpha_norm", "alpha_angle"]] == 0).all(
        axis=None
    )
    assert rows["token_mask"].str.contains("as system prompt").all()
    assert len(found.samples) == 2 * 4 * 6
    one = found.samples.iloc[0]
    texts = [
        t.model_copy(update={"system": PERSONAS.positive[0]})
        for t in (pairs[0].positive, pairs[0].negative)
    ]
    rendered = render_texts(texts, loaded.tokenizer, spec=CaptureSpec())
    expected = []
    for row in rendered:
        with torch.inference_mode():
            logits = loaded.network(torch.from_numpy(row.ids).long()[None]).logits[0]
        log_probs = torch.log_softmax(logits, dim=-1)
        picked = [log_probs[i - 1, row.ids[i]].item() for i in np.flatnonzero(row.response)]
        expected.append(np.mean(picked))
    assert one["difference"] == pytest.approx(expected[0] - expected[1], abs=5e-5)
    cost = weigh_prompts(loaded, pairs, PERSONAS, capture=CaptureSpec())
    assert cost.n_rows == 9 * 12


def test_where_a_template_takes_no_system_turn_the_instruction_begins_the_users(model):
    loaded = load_model("bundled:gemma2-organism", head=True, device="cpu")
    refusing = (
        "{%- if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}"
        "{%- endif %}" + loaded.tokenizer.chat_template
    )
    loaded.tokenizer.chat_template = refusing
    found = prompt_baseline(
        loaded, organism_pairs(2), PERSONAS, spec=SteerSpec(), capture=CaptureSpec()
    )
    assert found.rows["token_mask"].str.contains("beginning of the user's turn").all()
    assert found.rows["estimate"].notna().all()
