"""A direction of one made-up model as one of another, whose relation is known."""

import numpy as np
import pytest

from actlake.analyze import load_directions, map_directions, save_directions
from actlake.schemas import InvalidInputError, NotFoundError, TransferSpec

SPEC = TransferSpec(n_permuted=6, n_random=5, n_components=10)


def second_model(run, *, mixing, seed=1):
    """A wider model, whose activations are a linear image of the first's, with noise."""
    rng = np.random.default_rng(seed)
    x = run.ds["resid_post_mean_response"].values
    y = x @ mixing.T + 0.2 * rng.standard_normal((*x.shape[:2], len(mixing))) + 4
    ds = run.ds.drop_vars("resid_post_mean_response")
    ds = ds.assign(resid_post_mean_response=(("text", "layer", "hidden"), y.astype(np.float32)))
    return ds.assign_attrs(run="b", model="made/b", hidden_size=len(mixing))


@pytest.fixture(scope="module")
def related(synthetic_run):
    run = synthetic_run(n_neutral=80, hidden=10, strength=1.5, n_test_scenarios=2)
    # Far from orthogonal: a vector and a covector map to unlike directions.
    rng = np.random.default_rng(3)
    mixing = rng.standard_normal((16, 10)) * np.geomspace(0.3, 3, 10)
    return {"a": run.ds.assign_attrs(run="a"), "b": second_model(run, mixing=mixing)}, mixing


@pytest.fixture(scope="module")
def found(related):
    return map_directions(related[0], source="a", target="b", layers=(0, 1), spec=SPEC)


def cosine(a, b):
    return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def own_direction(ds, layer):
    """The difference of means over training pairs, the plain way."""
    values = ds["resid_post_mean_response"].values[:, layer].astype(np.float64)
    train = ds["split"].values != "test"
    arms = [values[train & (ds["label"].values == label)].mean(axis=0) for label in (1, 0)]
    return arms[0] - arms[1]


def test_a_steering_vector_goes_through_the_map_and_not_through_its_transpose(related):
    runs, mixing = related
    found = map_directions(runs, source="a", target="b", layers=(1, 1), spec=SPEC)
    of_a = own_direction(runs["a"], 1)
    mapped = found.get("mapped-ridge", layer=1)
    assert cosine(mapped.vector, mixing @ of_a) > 0.98
    assert mapped.norm == pytest.approx(np.linalg.norm(mixing @ of_a), rel=0.1)
    as_covector = np.linalg.pinv(mixing).T @ of_a
    assert cosine(as_covector, mixing @ of_a) < 0.8
    own = found.get("diff_means", layer=1)
    assert cosine(own.vector, own_direction(runs["b"], 1)) == pytest.approx(1, abs=1e-5)
    assert mapped.mapped.cosine == pytest.approx(cosine(mapped.vector, own.vector), abs=1e-6)
    assert mapped.mapped.map_r2 > 0.8
    assert mapped.mapped.share_kept == pytest.approx(1, abs=1e-6)
    assert (mapped.model, mapped.run, mapped.mapped.source_model) == (
        "made/b", "b", str(runs["a"].attrs["model"]),
    )  # fmt: skip


def test_every_map_has_its_controls(found):
    by_role = {}
    for direction in found.directions:
        assert direction.layer == 1
        if direction.mapped is not None:
            assert direction.mapped.source_layer == 0
            key = (direction.mapped.role, direction.mapped.map)
            by_role.setdefault(key, []).append(direction)
    assert {key: len(value) for key, value in by_role.items()} == {
        **{("mapped", m): 1 for m in SPEC.maps},
        **{("random_source", m): 5 for m in SPEC.maps},
        **{("permuted_anchors", m): 6 for m in SPEC.maps},
        ("random_orthogonal", "orthogonal"): 6,
    }
    assert len(found.directions) == 1 + 3 * 12 + 6
    for map_ in SPEC.maps:
        broken = by_role["permuted_anchors", map_]
        assert all(d.mapped.map_r2 < 0.05 for d in broken)
        random = [d.mapped.cosine for d in by_role["random_source", map_]]
        assert len(set(random)) == 5


def test_the_same_seed_draws_the_same_and_a_saved_set_comes_back(related, found, tmp_path):
    again = map_directions(related[0], source="a", target="b", layers=(0, 1), spec=SPEC)
    assert again == found
    other = SPEC.model_copy(update={"seed": 1})
    drawn = map_directions(related[0], source="a", target="b", layers=(0, 1), spec=other)
    assert drawn.get("mapped-ridge", layer=1).vector == pytest.approx(
        found.get("mapped-ridge", layer=1).vector, abs=0.2
    )
    assert drawn.get("random_source-ridge-0", layer=1) != found.get(
        "random_source-ridge-0", layer=1
    )
    loaded = load_directions(save_directions(found, tmp_path / "set"))
    assert [d.mapped for d in loaded.directions] == [d.mapped for d in found.directions]
    for ours, theirs in zip(loaded.directions, found.directions, strict=True):
        assert ours.vector == pytest.approx(theirs.vector)


def test_what_cannot_be_mapped_is_refused(related):
    runs, _ = related
    with pytest.raises(InvalidInputError, match=r"two of the runs \['a', 'b'\], got 'a' and 'a'"):
        map_directions(runs, source="a", target="a")
    with pytest.raises(InvalidInputError, match="got 'a' and 'c'"):
        map_directions(runs, source="a", target="c")
    with pytest.raises(NotFoundError, match="no layer 9"):
        map_directions(runs, source="a", target="b", layers=(0, 9), spec=SPEC)
    with pytest.raises(InvalidInputError, match="has no attn_out_mean_response"):
        map_directions(runs, source="a", target="b", site="attn_out", spec=SPEC)
    few = {name: ds.isel(text=ds["label"].values >= 0) for name, ds in runs.items()}
    with pytest.raises(InvalidInputError, match="neutral texts that the pairs do not use"):
        map_directions(few, source="a", target="b", spec=SPEC)
