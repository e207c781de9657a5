"""Steering with directions of another model, beside the model's own and every control."""

import re

import numpy as np
import pandas as pd
import pytest

from actlake.extract import load_model
from actlake.schemas import (
    CaptureSpec,
    Direction,
    DirectionSet,
    InvalidInputError,
    SteerSpec,
    SteerTransferRow,
    SteerTransferSpec,
)
from actlake.steer import compare_transfer, kept_scores, sweep_direction, weigh_transfer
from actlake.steer.transfer_verdicts import decide_transfer
from tests.extract.tiny import tiny_folder
from tests.steer.test_sweep import PAIRS

pytestmark = pytest.mark.torch

CAPTURE = CaptureSpec()
SPEC = SteerTransferSpec(alphas=(-2.0, 0.0, 1.5), n_bootstrap=200)
NORM = 2.5


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(str(tiny_folder("llama", tmp_path_factory.mktemp("m") / "tiny")), head=True)


def unit(seed):
    v = np.random.default_rng(seed).standard_normal(32)
    return v / np.linalg.norm(v)


def direction(loaded, method, vector, *, role=None, map_="ridge", index=0, **changes):
    mapped = None
    if role is not None:
        mapped = {
            "role": role, "map": map_, "index": index, "source_model": "other", "source_run": "o",
            "source_layer": 2, "source_method": "diff_means", "n_anchors": 40,
            "cosine": float(vector @ unit(0)), "map_r2": 0.5,
        }  # fmt: skip
    values = {
        "method": method, "site": "resid_post", "layer": 1, "pool": "mean_response",
        "vector": vector.tolist(), "norm": NORM, "bias": 0.0, "model": loaded.info.name,
        "run": "r", "mapped": mapped,
    }  # fmt: skip
    return Direction.parse(values | changes)


def directions(loaded, mapped, *, n_draws=20):
    controls = [
        direction(loaded, f"{role}-{i}", unit(100 * k + i), role=role, map_=map_, index=i)
        for k, (role, map_) in enumerate(
            [("random_source", "ridge"), ("permuted_anchors", "ridge"),
             ("random_orthogonal", "orthogonal")], start=1,
        )
        for i in range(n_draws)
    ]  # fmt: skip
    own = direction(loaded, "diff_means", unit(0))
    return DirectionSet(
        directions=(own, direction(loaded, "mapped-ridge", mapped, role="mapped"), *controls)
    )


def test_every_direction_does_what_a_sweep_says_it_does(loaded):
    found = directions(loaded, unit(7), n_draws=2)
    result = compare_transfer(loaded, found, PAIRS, spec=SPEC, capture=CAPTURE, mean_norm=5.0)
    shifts = result.rows[result.rows["metric"] == "shift"].set_index(
        ["direction", "alpha_separation"]
    )
    assert sorted(shifts.loc["mapped-ridge"].index) == [-2.0, -1.0, 1.0, 1.5]
    assert sorted(shifts.loc["random_source-1"].index) == [-1.0, 1.0]
    for d in (found.directions[0], found.directions[1], found.directions[3]):
        # The strength is the target's own class separation, whatever the mapped norm.
        swept = sweep_direction(
            loaded, d.model_copy(update={"norm": NORM}), PAIRS, capture=CAPTURE, mean_norm=5.0,
            spec=SteerSpec(alphas=(-2.0, -1.0, 1.0, 1.5), n_random=0),
        ).rows.set_index("alpha_separation")  # fmt: skip
        for alpha, row in shifts.loc[d.method].iterrows():
            theirs = swept.loc[alpha]
            assert row["estimate"] == pytest.approx(theirs["estimate"], abs=5e-5)
            for unit_ in ("alpha_raw", "alpha_norm", "alpha_angle"):
                assert row[unit_] == pytest.approx(theirs[unit_], rel=1e-3)
    rows = result.rows.set_index(["direction", "metric"])
    baseline = rows.loc[("unsteered", "baseline")]
    unsteered = result.samples[result.samples["role"] == "unsteered"]
    assert baseline["estimate"] == pytest.approx(unsteered["difference"].mean())
    assert (unsteered["shift"] == 0).all()
    assert len(unsteered) == len(PAIRS)
    effect = rows.loc[("mapped-ridge", "effect"), "estimate"]
    odd = [shifts.loc[("mapped-ridge", a), "estimate"] for a in (1.0, -1.0)]
    assert effect == pytest.approx((odd[0] - odd[1]) / 2)
    own = rows.loc[("diff_means", "effect"), "estimate"]
    assert rows.loc[("mapped-ridge", "difference"), "estimate"] == pytest.approx(effect - own)


def test_the_own_direction_is_a_whole_of_itself_and_its_opposite_the_other_way(loaded):
    # The measured norm of the stream stands in where none is given.
    whole = compare_transfer(loaded, directions(loaded, unit(0)), PAIRS, spec=SPEC, capture=CAPTURE)
    ratio = whole.rows[whole.rows["metric"] == "ratio"].iloc[0]
    effect = whole.rows[whole.rows["metric"] == "effect"].iloc[0]
    assert effect["role"] == "own"
    if effect["ci_low"] * effect["ci_high"] > 0:
        assert (ratio["estimate"], ratio["ci_low"], ratio["ci_high"]) == pytest.approx((1, 1, 1))
    assert (whole.rows["alpha_norm"].dropna() * 0 == 0).all()
    other = compare_transfer(
        loaded, directions(loaded, -unit(0)), PAIRS, spec=SPEC, capture=CAPTURE
    )
    mirrored = other.rows[(other.rows["metric"] == "effect") & (other.rows["role"] == "mapped")]
    assert mirrored["estimate"].item() == pytest.approx(-effect["estimate"], abs=1e-5)
    nulls = dict(list(whole.rows[whole.rows["metric"] == "effect"].groupby("role")))
    beaten = (nulls["random_source"]["estimate"].abs() >= abs(effect["estimate"])).sum()
    assert ratio["p_value"] == pytest.approx((1 + beaten) / 21)
    beaten = (nulls["permuted_anchors"]["estimate"].abs() >= abs(effect["estimate"])).sum()
    assert ratio["p_broken"] == pytest.approx((1 + beaten) / 21)
    assert (ratio["n_draws"], ratio["n_broken"], ratio["n_orthogonal"]) == (20, 20, 20)


def test_directions_are_as_long_as_the_own_one_or_as_their_maps_made_them(loaded):
    found = directions(loaded, unit(7), n_draws=1)
    short = found.directions[1].model_copy(update={"norm": NORM / 5})
    found = DirectionSet(directions=(found.directions[0], short, *found.directions[2:]))
    mapped = SPEC.model_copy(update={"strength": "mapped"})
    sizes = {}
    for spec in (SPEC, mapped):
        rows = compare_transfer(loaded, found, PAIRS, spec=spec, capture=CAPTURE).rows
        own, theirs = (
            rows[(rows["metric"] == "effect") & (rows["role"] == role)].iloc[0]
            for role in ("own", "mapped")
        )
        assert own["alpha_separation"] == 1
        sizes[spec.strength] = theirs
    assert sizes["matched"]["alpha_raw"] == NORM
    assert sizes["mapped"]["alpha_raw"] == pytest.approx(NORM / 5)
    assert sizes["mapped"]["alpha_separation"] == pytest.approx(0.2)
    assert sizes["mapped"]["alpha_angle"] < sizes["matched"]["alpha_angle"]
    # A fifth of the push is not the whole effect.
    assert sizes["mapped"]["estimate"] != pytest.approx(sizes["matched"]["estimate"])


def ratio_row(estimate, low, high, *, p=0.048, broken=0.048, turned=0.048, n=20):
    values = {
        "analysis": "steer-transfer", "metric": "ratio", "estimate": estimate, "ci_low": low,
        "ci_high": high, "reason": None if estimate is not None else "the interval holds 0",
        "direction": "mapped-ridge", "role": "mapped", "map": "ridge", "model": "B",
        "source_model": "A", "alpha_raw": 1.0, "alpha_separation": 1.0, "alpha_norm": 1.0,
        "alpha_angle": 1.0, "p_value": p, "n_draws": n, "p_broken": broken, "n_broken": n,
        "p_orthogonal": turned, "n_orthogonal": n,
    }  # fmt: skip
    return SteerTransferRow.parse(values)


@pytest.mark.parametrize(
    ("row", "answer", "words"),
    [
        (ratio_row(0.62, 0.5, 0.75), "transfers", r"62 % of the own direction's effect \(50 to 75"),
        (ratio_row(0.9, 0.7, 1.1), "transfers", "as much as the own one"),
        (ratio_row(-0.5, -0.7, -0.3), "opposite", "the other way: -50 %"),
        (ratio_row(0.62, 0.5, 0.75, p=0.3), "no transfer", "no more than random ones"),
        (ratio_row(0.62, 0.5, 0.75, broken=0.3), "unspecific", "that do not correspond do as"),
        (ratio_row(0.62, 0.5, 0.75, turned=0.3), "unspecific", "random rotations do as much"),
        (ratio_row(0.1, -0.1, 0.3), "no transfer", "which may be nothing"),
        (ratio_row(0.62, 0.5, 0.75, n=5), "untestable", "5 draws of a control.*draw 20 or more"),
        (ratio_row(None, None, None), "untestable", "own direction does nothing at 1 class"),
    ],
)
def test_the_verdict_says_what_the_figures_say(row, answer, words):
    (verdict,) = decide_transfer([row], at=1.0)
    assert verdict.answer == answer
    assert re.search(words, verdict.words), verdict.words
    assert verdict.ratio == row.estimate


def test_what_a_transfer_costs_is_what_it_runs(loaded):
    found = directions(loaded, unit(7), n_draws=2)
    cost = weigh_transfer(loaded, found, PAIRS, spec=SPEC, capture=CAPTURE)
    result = compare_transfer(loaded, found, PAIRS, spec=SPEC, capture=CAPTURE)
    assert cost.n_rows == cost.n_conditions == 2 * len(result.samples)


def test_a_transfer_goes_on_where_it_was_interrupted(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_scores, "_ROWS_PER_PART", 40)
    found = directions(loaded, unit(7), n_draws=2)
    whole = compare_transfer(loaded, found, PAIRS, spec=SPEC, capture=CAPTURE)
    told, passes = [], []

    class StopError(Exception):
        pass

    def count(*_args):
        passes.append(1)
        if len(told) == 4:
            raise StopError

    hook = loaded.network.register_forward_hook(count)
    with pytest.raises(StopError):
        compare_transfer(
            loaded, found, PAIRS, spec=SPEC, capture=CAPTURE, folder=tmp_path,
            progress=lambda *now: told.append(now),
        )  # fmt: skip
    left = weigh_transfer(loaded, found, PAIRS, spec=SPEC, capture=CAPTURE, folder=tmp_path)
    assert left.n_kept == told[-1][0] == 3 * 40
    assert left.n_kept + left.n_conditions == told[-1][1] == 2 * len(whole.samples)
    told.clear()
    done = compare_transfer(loaded, found, PAIRS, spec=SPEC, capture=CAPTURE, folder=tmp_path)
    pd.testing.assert_frame_equal(done.samples, whole.samples, rtol=1e-4, atol=1e-5)
    passes.clear()
    again = compare_transfer(loaded, found, PAIRS, spec=SPEC, capture=CAPTURE, folder=tmp_path)
    hook.remove()
    assert not passes
    pd.testing.assert_frame_equal(again.rows, done.rows)
    response = SPEC.model_copy(update={"positions": "response"})
    cost = weigh_transfer(loaded, found, PAIRS, spec=response, capture=CAPTURE, folder=tmp_path)
    assert cost.n_kept == 0


def test_what_does_not_fit_is_refused(loaded):
    own = direction(loaded, "diff_means", unit(0))
    mapped = direction(loaded, "mapped-ridge", unit(1), role="mapped")

    def run(*chosen, pairs=PAIRS):
        compare_transfer(loaded, DirectionSet(directions=chosen), pairs, spec=SPEC, capture=CAPTURE)

    with pytest.raises(InvalidInputError, match="got 1 and 0; `actlake analyze map`"):
        run(own)
    with pytest.raises(InvalidInputError, match="got 0 and 1"):
        run(mapped)
    with pytest.raises(InvalidInputError, match="unlike layers"):
        run(own, mapped.model_copy(update={"layer": 2}))
    with pytest.raises(InvalidInputError, match="of layer 9; tiny has layers 0 to 3"):
        run(*(d.model_copy(update={"layer": 9}) for d in (own, mapped)))
    with pytest.raises(InvalidInputError, match="comes from elsewhere"):
        run(*(d.model_copy(update={"model": "elsewhere"}) for d in (own, mapped)))
    with pytest.raises(InvalidInputError, match="no pair to steer on"):
        run(own, mapped, pairs=[])
