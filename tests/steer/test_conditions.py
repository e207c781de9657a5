"""Outcomes of patches are kept one by one, and a sweep goes on where it was interrupted."""

import numpy as np
import pandas as pd
import pytest
import torch

from actlake.extract import load_model
from actlake.schemas import InvalidInputError, MatchedSpec, MediateSpec, PatchSpec
from actlake.steer import (
    Patch,
    align_contrasts,
    compare_with_steering,
    mediate,
    sweep_patches,
    weigh_comparison,
    weigh_mediation,
    weigh_sweep,
)
from actlake.steer import conditions as kept_conditions
from actlake.steer.conditions import run_conditions
from tests.extract.tiny import tiny_folder
from tests.steer.contrasts import CONTRASTS
from tests.steer.linear_net import HIDDEN, linear_cases, linear_model

pytestmark = pytest.mark.torch

SPEC = PatchSpec(
    layers=(0, 2), positions=("suffix", "response"), arms=("full", "coordinate", "random"),
    n_random=2, n_bootstrap=20,
)  # fmt: skip
N_CELLS = 2 * 2 * 2 * 4


def unit(seed=0, width=32):
    v = np.random.default_rng(seed).standard_normal(width)
    return v / np.linalg.norm(v)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(str(tiny_folder("llama", tmp_path_factory.mktemp("m") / "tiny")), head=True)


@pytest.fixture(scope="module")
def cases(loaded):
    # The bundled third is the first under another name.
    other = CONTRASTS[2].model_copy(update={"prompt": "the boy has fallen and the boy has fallen"})
    return align_contrasts(loaded, [*CONTRASTS[:2], other])


class StopError(Exception):
    pass


def stop_after(loaded, n):
    """Make the model fail at its n-th pass from now on."""
    passes = []

    def count(*_args):
        passes.append(1)
        if len(passes) >= n:
            raise StopError

    return loaded.network.register_forward_hook(count)


def same(ours, theirs):
    """Hold tables of unlike batches against each other; a rank may turn where two nearly tie."""
    ranks = ["p_value", "p_value_max"]
    ours, theirs = (table.drop(columns=ranks, errors="ignore") for table in (ours, theirs))
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-4, atol=1e-5)


def n_passes(loaded, work):
    passes = []
    hook = loaded.network.register_forward_hook(lambda *_: passes.append(1))
    try:
        return work(), len(passes)
    finally:
        hook.remove()


def test_a_sweep_goes_on_where_it_was_interrupted(loaded, cases, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_conditions, "_PATCHES_PER_PART", 10)
    folder = tmp_path / "kept"
    whole = sweep_patches(loaded, cases, spec=SPEC, direction=unit())
    cost = weigh_sweep(loaded, cases, spec=SPEC, direction=unit(), folder=folder)
    assert (cost.n_conditions, cost.n_kept) == (3 * N_CELLS, 0)
    assert not folder.exists()
    hook = stop_after(loaded, 24)
    told = []
    with pytest.raises(StopError):
        sweep_patches(
            loaded, cases, spec=SPEC, direction=unit(), folder=folder,
            progress=lambda *now: told.append(now),
        )  # fmt: skip
    hook.remove()
    left = weigh_sweep(loaded, cases, spec=SPEC, direction=unit(), folder=folder)
    # What was told of is kept, and an interruption loses no more than the part that was run.
    assert left.n_kept == told[-1][0] > N_CELLS
    assert left.n_kept + left.n_conditions == told[-1][1] == 3 * N_CELLS
    assert left.n_forwards < cost.n_forwards
    (folder / ".part-0.parquet.partial").write_bytes(b"cut off")
    done, passes = n_passes(
        loaded, lambda: sweep_patches(loaded, cases, spec=SPEC, direction=unit(), folder=folder)
    )
    same(done.samples, whole.samples)
    same(done.rows, whole.rows)
    # Passes over shared beginnings go through the backbone alone.
    assert passes <= left.n_forwards <= passes + 3 * 3 * 10
    again, passes = n_passes(
        loaded, lambda: sweep_patches(loaded, cases, spec=SPEC, direction=unit(), folder=folder)
    )
    assert passes == 0
    pd.testing.assert_frame_equal(again.rows, done.rows)


def test_more_layers_and_contrasts_add_to_what_is_there(loaded, cases, tmp_path):
    sweep_patches(loaded, cases[:2], spec=SPEC, direction=unit(), folder=tmp_path)
    more = SPEC.model_copy(update={"layers": (0, 1, 2)})
    cost = weigh_sweep(loaded, cases, spec=more, direction=unit(), folder=tmp_path)
    assert (cost.n_kept, cost.n_conditions) == (2 * N_CELLS, N_CELLS + 3 * N_CELLS // 2)
    found = sweep_patches(loaded, cases, spec=more, direction=unit(), folder=tmp_path)
    same(found.rows, sweep_patches(loaded, cases, spec=more, direction=unit()).rows)
    # Another direction has conditions of its own; those of the full residual are shared.
    other = weigh_sweep(loaded, cases, spec=more, direction=unit(1), folder=tmp_path)
    assert other.n_kept == 3 * 3 * 2 * 2
    totals = more.model_copy(update={"outcome": "total", "n_bootstrap": 30})
    assert (
        weigh_sweep(loaded, cases, spec=totals, direction=unit(), folder=tmp_path).n_forwards == 0
    )
    found = sweep_patches(loaded, cases, spec=totals, direction=unit(), folder=tmp_path)
    same(found.rows, sweep_patches(loaded, cases, spec=totals, direction=unit()).rows)


def test_patching_mediation_and_the_comparison_share_their_outcomes(loaded, cases, tmp_path):
    sweep_patches(loaded, cases, spec=SPEC, direction=unit(), folder=tmp_path)
    spec = MediateSpec(layers=(0, 2), position="suffix", n_random=2, n_bootstrap=20)
    cost = weigh_mediation(loaded, cases, spec=spec, direction=unit(), folder=tmp_path)
    assert (cost.n_conditions, cost.n_forwards) == (0, 0)
    found, passes = n_passes(
        loaded, lambda: mediate(loaded, cases, spec=spec, direction=unit(), folder=tmp_path)
    )
    assert passes == 0
    same(found.rows, mediate(loaded, cases, spec=spec, direction=unit()).rows)
    matched = MatchedSpec(layers=(0, 2), n_random=2, n_bootstrap=20)
    cost = weigh_comparison(loaded, cases, unit(), spec=matched, folder=tmp_path)
    assert (cost.n_kept, cost.n_conditions) == (3 * 2, 3 * 2 * 3)
    found = compare_with_steering(loaded, cases, unit(), spec=matched, folder=tmp_path)
    same(found.rows, compare_with_steering(loaded, cases, unit(), spec=matched).rows)
    # A step is of the size of the patch beside it: another patch, another step.
    other = matched.model_copy(update={"position": "response"})
    cost = weigh_comparison(loaded, cases, unit(), spec=other, folder=tmp_path)
    assert (cost.n_kept, cost.n_conditions) == (3 * 2, 3 * 2 * 3)


def test_other_states_and_tokens_are_other_conditions(loaded, cases, tmp_path):
    case = cases[0]
    spec = SPEC.model_copy(update={"arms": ("full",), "positions": ("all",)})
    sweep_patches(loaded, cases[:1], spec=spec, folder=tmp_path)
    n_tokens = case.n_prompt + len(case.completions[0])
    zeros = {("source", "positive"): np.zeros((4, n_tokens, 32), dtype=np.float32)}
    states = {case.contrast.id: zeros}
    cost = weigh_sweep(loaded, [case], spec=spec, states=states, folder=tmp_path)
    assert (cost.n_kept, cost.n_conditions) == (0, 4)
    lent = sweep_patches(loaded, [case], spec=spec, states=states, folder=tmp_path)
    same(lent.rows, sweep_patches(loaded, [case], spec=spec, states=states).rows)
    (same_tokens,) = align_contrasts(loaded, CONTRASTS[2:])
    assert weigh_sweep(loaded, [same_tokens], spec=spec, folder=tmp_path).n_conditions == 0
    longer = case.contrast.model_copy(update={"positive": "I stop to help the boy"})
    (other,) = align_contrasts(loaded, [longer])
    assert weigh_sweep(loaded, [other], spec=spec, folder=tmp_path).n_kept == 0


def test_outcomes_of_another_model_are_refused(loaded, cases, tmp_path):
    spec = SPEC.model_copy(update={"arms": ("full",)})
    sweep_patches(loaded, cases[:1], spec=spec, folder=tmp_path)
    model, other = linear_model(), linear_cases(n=1)
    with pytest.raises(InvalidInputError, match="outcomes made with another model"):
        mediate(
            model, other, spec=MediateSpec(layers=(1,), n_bootstrap=5),
            direction=unit(width=HIDDEN), folder=tmp_path,
        )  # fmt: skip


def test_a_bare_function_cannot_be_kept(loaded, cases, tmp_path):
    patch = Patch("base", 1, "suffix", lambda clean, c, _mask: clean.states("source", c, 1))
    free = run_conditions(loaded, cases[:1], [patch], batch_tokens=500)
    assert torch.isfinite(torch.from_numpy(free.patched)).all()
    with pytest.raises(InvalidInputError, match="does not say what it writes"):
        run_conditions(loaded, cases[:1], [patch], batch_tokens=500, folder=tmp_path)
