import numpy as np
import pytest

from actlake.extract import load_model
from actlake.schemas import InvalidInputError, PatchSpec
from actlake.steer import align_contrasts, attribute_patches, sweep_patches
from tests.steer.contrasts import organism_contrasts
from tests.steer.linear_net import HIDDEN, N_LAYERS, linear_cases, linear_model

pytestmark = pytest.mark.torch
KEYS = ["arm", "layer", "position"]


def exact(loaded, cases, positions, direction=None):
    arms = ("full",) if direction is None else ("full", "coordinate")
    spec = PatchSpec(positions=positions, arms=arms, modes=("denoise",), n_bootstrap=10)
    rows = sweep_patches(loaded, cases, spec=spec, direction=direction).rows
    return rows.set_index(KEYS)["effect"].sort_index()


def test_in_a_linear_net_the_guess_is_the_patch():
    loaded, cases = linear_model(), linear_cases()
    v = np.random.default_rng(0).standard_normal(HIDDEN)
    v /= np.linalg.norm(v)
    positions = ("prompt-all", "suffix", -2, "response")
    guess = attribute_patches(loaded, cases, positions=positions, direction=v)
    assert len(guess) == 2 * N_LAYERS * 4
    assert guess["attribution"].abs().is_monotonic_decreasing
    guess = guess.set_index(KEYS)["attribution"].sort_index()
    patched = exact(loaded, cases, positions, v)
    # The only non-linear part is the normaliser, which cancels between one-token completions.
    np.testing.assert_allclose(guess, patched.reindex(guess.index), atol=1e-5)
    assert patched.abs().max() > 0.05


def test_on_an_organism_the_guess_ranks_the_places_as_the_patches_do():
    loaded = load_model("bundled:phi3-organism", head=True, device="cpu")
    cases = align_contrasts(loaded, organism_contrasts(3))
    positions = ("suffix", "prompt-last", "response")
    guess = attribute_patches(loaded, cases, positions=positions)
    guess = guess.set_index(KEYS)["attribution"].sort_index()
    patched = exact(loaded, cases, positions)
    agreement = np.corrcoef(guess.rank(), patched.reindex(guess.index).rank())[0, 1]
    assert agreement > 0.6
    best = guess.abs().sort_values().index[-4:]
    assert {position for _, _, position in best} == {"response"}
    assert min(layer for _, layer, _ in best) >= 3


def test_nothing_to_attribute_is_refused():
    with pytest.raises(InvalidInputError, match="0 positions"):
        attribute_patches(linear_model(), linear_cases(n=1), positions=())
