"""A dry run's pieces on trial run what they say that they run, and the whole follows from them."""

import time

import numpy as np
import pytest

from actlake.corpus import read_personas
from actlake.extract import load_model
from actlake.schemas import (
    CaptureSpec,
    Direction,
    MatchedSpec,
    MediateSpec,
    Pair,
    PatchSpec,
    SteeredTextsSpec,
    SteerSpec,
    Text,
)
from actlake.steer import (
    PatchCost,
    align_contrasts,
    condition_cost,
    weigh_comparison,
    weigh_direction,
    weigh_layers,
    weigh_mediation,
    weigh_prompts,
    weigh_sweep,
)
from actlake.steer.costs import describe_cost
from tests.extract.tiny import tiny_folder
from tests.steer.contrasts import CONTRASTS

pytestmark = pytest.mark.torch

CAPTURE = CaptureSpec()


def text(arm, i):
    words = "the boy has fallen " * (i % 3 + 1)
    return Text(
        id=f"{i}-{arm}", pair=f"p{i}", prompt=words, scenario=f"s{i}", arm=arm,
        response="I stop and help" if arm == "positive" else "I go on",
    )  # fmt: skip


PAIRS = [
    Pair(id=f"p{i}", positive=text("positive", i), negative=text("negative", i)) for i in range(6)
]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(str(tiny_folder("llama", tmp_path_factory.mktemp("m") / "tiny")), head=True)


def unit(seed=0):
    v = np.random.default_rng(seed).standard_normal(32)
    return v / np.linalg.norm(v)


def costs(loaded):
    cases = align_contrasts(loaded, CONTRASTS)
    direction = Direction(
        method="diff_means", site="resid_post", layer=1, pool="mean_response", norm=2.0, bias=0.0,
        vector=tuple(unit().tolist()), model=loaded.info.name, run="r",
    )  # fmt: skip
    small = {"layers": (0, 2), "n_random": 2, "n_bootstrap": 20}
    spec = SteerSpec(alphas=(-1.0, 0.0, 1.0), n_random=30)
    return {
        "patch": weigh_sweep(
            loaded, cases, spec=PatchSpec(positions=("suffix", "response"), **small),
            direction=unit(),
        ),
        "mediate": weigh_mediation(
            loaded, cases, spec=MediateSpec(position="suffix", **small), direction=unit()
        ),
        "match": weigh_comparison(loaded, cases, unit(), spec=MatchedSpec(**small)),
        "sweep": weigh_direction(
            loaded, direction, PAIRS, spec=spec, capture=CAPTURE, mean_norm=3.0
        ),
        "layers": weigh_layers(loaded, 3, PAIRS, capture=CAPTURE),
        "prompts": weigh_prompts(loaded, PAIRS, read_personas(), capture=CAPTURE),
        "texts": condition_cost(
            loaded, {"p": np.arange(3, 12, dtype=np.int32)},
            {str(d): unit(d).astype(np.float32) for d in range(20)},
            spec=SteeredTextsSpec(layer=1, alphas=(0.0, 2.0), max_new_tokens=2),
        ),
    }  # fmt: skip


NAMES = ["patch", "mediate", "match", "sweep", "layers", "prompts", "texts"]


def counted(loaded, work):
    """Return what ``work`` returns, and the tokens that the model ran meanwhile."""
    n_tokens = []
    hook = loaded.backbone.register_forward_pre_hook(
        lambda _module, _args, kwargs: n_tokens.append(kwargs["input_ids"].numel()),
        with_kwargs=True,
    )
    try:
        return work(), sum(n_tokens)
    finally:
        hook.remove()


@pytest.mark.parametrize("name", NAMES)
def test_a_piece_runs_the_tokens_that_it_says(loaded, name):
    cost = costs(loaded)[name]
    rng = np.random.default_rng(0)
    assert sum(trial.n_tokens for trial in cost.trials) == cost.n_tokens > 0
    for trial in cost.trials:
        for size in (1, 5, trial.most):
            told, ran = counted(loaded, lambda t=trial, n=size: t.run(rng, n))
            assert told == ran > 0
            assert told <= cost.n_tokens


@pytest.mark.parametrize("name", NAMES)
def test_a_probe_says_how_long_all_of_it_takes(loaded, name):
    cost = costs(loaded)[name]
    # A model that is known to need a tenth of a millisecond for each token at least.
    hook = loaded.backbone.register_forward_pre_hook(
        lambda _module, _args, kwargs: time.sleep(1e-4 * kwargs["input_ids"].numel()),
        with_kwargs=True,
    )
    try:
        speed = cost.probe(max_seconds=0.05)
    finally:
        hook.remove()
    assert 0 < speed.tokens_per_second < 1e4
    assert speed.seconds == pytest.approx(cost.n_tokens / speed.tokens_per_second)
    assert speed.seconds > 1e-4 * cost.n_tokens


def test_a_probe_ends_when_all_was_run_or_its_time_is_over(loaded):
    cost = costs(loaded)["mediate"]
    _, ran = counted(loaded, lambda: cost.probe(max_seconds=60))
    assert cost.n_tokens <= ran < 8 * cost.n_tokens
    _, ran = counted(loaded, lambda: cost.probe(max_seconds=0))
    assert 0 < ran < cost.n_tokens


def test_a_sum_is_tried_in_all_its_parts_and_nothing_takes_no_time(loaded):
    one, other = (costs(loaded)[name] for name in ("patch", "layers"))
    assert (one + other).trials == (*one.trials, *other.trials)
    facts = describe_cost(PatchCost(), probe_seconds=1, price_per_hour=2.0)
    assert (facts["estimated_seconds"], facts["estimated_cost"]) == (0, 0)
    assert "estimated_seconds" not in describe_cost(one)
    facts = describe_cost(one, probe_seconds=0)
    assert "estimated_cost" not in facts
    assert (facts["conditions"], facts["done"]) == (one.n_conditions, 0)
