import numpy as np
import pytest

from actlake.analyze import orthogonal_direction, placebo_directions
from actlake.schemas import Direction, InvalidInputError, NotFoundError

WORDS = ["robot", "door", "walks", "opens", "red", "slow"]


def respond(arm, number):
    """Positive texts are longer, by some more than by others, and no word is an arm's own."""
    n = 6 + number % 5 + (2 if arm == "positive" else 0)
    rng = np.random.default_rng(number + (1000 if arm == "positive" else 0))
    return " ".join(rng.choice(WORDS, n))


def with_length(x, texts):
    """Length is written along coordinate 1, the concept along coordinate 0."""
    x[:, :, 1] += np.array([len(t.response) for t in texts])[:, None] / 4
    return x


@pytest.fixture(scope="module")
def run(synthetic_run):
    return synthetic_run(
        pairs_per_scenario=30, strength=4.0, hidden=8, responses=respond, activations=with_length
    )


def by_method(found, layer=1):
    return {d.method: np.array(d.vector) for d in found.directions if d.layer == layer}


def test_the_orthogonal_control_loses_what_length_writes_and_keeps_the_concept(run):
    found = by_method(placebo_directions(run.ds, run.texts, pool="mean_response", layers=[0, 1]))
    label = run.ds["label"].values
    x = run.ds["resid_post_mean_response"].values[:, 1]
    own = x[label == 1].mean(axis=0) - x[label == 0].mean(axis=0)
    own /= np.linalg.norm(own)
    assert abs(own[1]) > 0.3  # length is in the direction itself
    assert abs(found["orthogonal"][1]) < 0.05
    assert found["orthogonal"][0] > 0.9


def test_shuffled_labels_lose_the_concept_and_every_draw_is_another(run):
    found = by_method(
        placebo_directions(
            run.ds, run.texts, pool="mean_response", layers=[1], kinds=["shuffled"], n_shuffled=8
        )
    )
    assert set(found) == {f"shuffled-{n}" for n in range(8)}
    vectors = np.stack(list(found.values()))
    # Halves of equal size: the concept cancels, what is left are differences between pairs.
    assert np.abs(vectors[:, 0]).mean() < 0.5
    cosines = vectors @ vectors.T
    assert np.abs(cosines[~np.eye(8, dtype=bool)]).max() < 0.999
    again = placebo_directions(
        run.ds, run.texts, pool="mean_response", layers=[1], kinds=["shuffled"], n_shuffled=8
    )
    assert np.array_equal(np.stack(list(by_method(again).values())), vectors)


def test_a_direction_of_its_own_contrast_is_projected_out_and_the_same_one_refused(run):
    def direction(vector, **changes):
        values = {
            "method": "task", "site": "resid_post", "layer": 1, "pool": "mean_response",
            "vector": (np.array(vector) / np.linalg.norm(vector)).tolist(), "norm": 2.0,
            "bias": 0.0, "model": "made/up", "run": "r",
        }  # fmt: skip
        return Direction.parse(values | changes)

    task = direction([0.3, 0, 1, 0, 0, 0, 0, 0])
    options = {"pool": "mean_response", "layers": [1], "kinds": ["orthogonal"]}
    (found,) = placebo_directions(run.ds, run.texts, against=[task], **options).directions
    assert abs(np.array(found.vector) @ np.array(task.vector)) < 1e-9
    own = direction([1, 0, 0, 0, 0, 0, 0, 0])
    left = orthogonal_direction(own, np.zeros((0, 8)), against=[task])
    cosine = np.array(own.vector) @ np.array(task.vector)
    assert left.norm == pytest.approx(own.norm * np.sqrt(1 - cosine**2))
    with pytest.raises(InvalidInputError, match=r"cosine -1\.00 with the direction"):
        orthogonal_direction(own, np.zeros((0, 8)), against=[direction([-1] + [0] * 7)])
    with pytest.raises(InvalidInputError, match="unlike places"):
        orthogonal_direction(own, np.zeros((0, 8)), against=[direction([0, 1] + [0] * 6, layer=0)])
    with pytest.raises(InvalidInputError, match="no orthogonal part is left"):
        orthogonal_direction(own, np.array([own.vector]))


def test_what_is_not_there_is_named(run):
    with pytest.raises(InvalidInputError, match=r"no layers \[7\]"):
        placebo_directions(run.ds, run.texts, pool="mean_response", layers=[7])
    with pytest.raises(NotFoundError, match="last_prompt"):
        placebo_directions(run.ds, run.texts, pool="last_prompt", layers=[0])
