"""Activations that people have already become a run like any other."""

import json
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actlake.analyze import probe_run
from actlake.corpus import corpus_info
from actlake.schemas import (
    AlreadyExistsError,
    ArmNames,
    BagOfWordsSpec,
    InvalidInputError,
    MissingDependencyError,
    NotFoundError,
    NumericalError,
    ProbeSpec,
    RandomSpec,
    Text,
)
from actlake.store import create_store, import_run, open_run, prepare_import, verify_run

N_TEXTS, N_LAYERS, HIDDEN = 24, 3, 8
ARRAY = "resid_post_mean_response"


def make_texts():
    """Pairs over six scenarios, longest first: the order of the files is not the store's."""
    return [
        Text(
            id=f"{arm[:3]}-{k:02d}",
            response="word " * (N_TEXTS - k) + arm,
            arm=arm,
            pair=f"p{k:02d}",
            scenario=f"s{k % 6}",
        )
        for k in range(N_TEXTS // 2)
        for arm in ("positive", "negative")
    ]


TEXTS = make_texts()
VALUES = np.random.default_rng(0).standard_normal((N_TEXTS, N_LAYERS, HIDDEN)).astype(np.float32)
VALUES[::2, :, 0] += 3  # the positive arm


def write_safetensors(path, arrays):
    """Write the format by its definition; bfloat16 as its bit patterns."""
    names = {"float64": "F64", "float32": "F32", "float16": "F16", "uint16": "BF16", "int64": "I64"}
    header, at = {}, 0
    for name, array in arrays.items():
        span = [at, at + array.nbytes]
        kind = names[array.dtype.name]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": span}
        at = span[1]
    head = json.dumps(header).encode()
    data = b"".join(array.tobytes() for array in arrays.values())
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)


def prepare(*paths, texts=TEXTS, **options):
    given = {"run": "mine", "corpus": "pairs", "model": "me/model", "pool": "mean_response"}
    return prepare_import(paths, texts, **{**given, **options})


def stored(tmp_path, prepared, *, texts=TEXTS):
    store = create_store(tmp_path / "store")
    import_run(store, prepared, texts, info=corpus_info("pairs", texts, arms=ArmNames()))
    return store


def assert_holds(ds, values=VALUES, *, texts=TEXTS):
    """Every row is that of its text, whatever the order."""
    found = ds[ARRAY].sel(text=[text.id for text in texts]).values
    np.testing.assert_array_equal(found, values)


def test_one_stacked_file_becomes_a_run_that_opens_verifies_and_probes(tmp_path):
    np.save(tmp_path / "acts.npy", VALUES)
    prepared = prepare(tmp_path / "acts.npy", rows=7)
    store = stored(tmp_path, prepared)
    ds = open_run(store, "mine")
    assert_holds(ds)
    ordered = sorted(TEXTS, key=lambda t: (t.n_chars, t.id))
    assert ds["text"].values.tolist() == [t.id for t in ordered] != [t.id for t in TEXTS]
    assert ds["label"].values.tolist() == [int(t.arm == "positive") for t in ordered]
    assert ds.attrs["model"] == "me/model"
    assert ds[ARRAY].attrs["token_mask"] == "not known: imported"
    assert verify_run(store, "mine", full=True).ok
    result = probe_run(
        ds,
        store.read_corpus("pairs")[1],
        spec=ProbeSpec(n_bootstrap=10, c_grid=(1.0,)),
        random=RandomSpec(n_directions=9),
        bow=BagOfWordsSpec(),
        scheduler="threads",
    )
    rows = result.rows
    found = rows[(rows.analysis == "probe") & (rows.metric == "auroc")]
    assert set(found.layer) == {0, 1, 2}
    assert (found.estimate > 0.9).all()


def test_parts_are_stacked_in_the_order_that_a_person_counts(tmp_path):
    for index, rows in enumerate(np.split(np.arange(N_TEXTS), 12)):
        np.save(tmp_path / f"part_{index}.npy", VALUES[rows])  # part_10 after part_9
    prepared = prepare(tmp_path, rows=5)
    assert prepared.summary()["files"] == 12
    assert_holds(open_run(stored(tmp_path, prepared), "mine"))


def test_files_of_a_layer_each_name_their_layers(tmp_path):
    folder = tmp_path / "acts"
    folder.mkdir()
    for index, layer in enumerate((2, 10, 11)):
        np.save(folder / f"layer_{layer}.npy", VALUES[:, index])
    prepared = prepare(folder, n_layers=12)
    assert prepared.arrangement == "per layer"
    ds = open_run(stored(tmp_path, prepared), "mine")
    assert ds["layer"].values.tolist() == [2, 10, 11]
    assert ds.attrs["n_layers"] == 12
    assert_holds(ds)


def test_layers_inside_sharded_safetensors(tmp_path):
    for shard, rows in enumerate((slice(0, 10), slice(10, None))):
        arrays = {f"model.layers.{i}": VALUES[rows, i] for i in range(N_LAYERS)}
        write_safetensors(tmp_path / f"shard-{shard}.safetensors", arrays)
    assert_holds(open_run(stored(tmp_path, prepare(tmp_path, rows=4)), "mine"))


def test_a_file_of_each_text_is_found_by_its_id(tmp_path):
    folder = tmp_path / "acts"
    folder.mkdir()
    for text, values in zip(TEXTS, VALUES, strict=True):
        np.save(folder / f"{text.id}.npy", values)
    prepared = prepare(folder, layers=[0, 4, 8])
    assert prepared.arrangement == "per text"
    ds = open_run(stored(tmp_path, prepared), "mine")
    assert ds["layer"].values.tolist() == [0, 4, 8]
    assert_holds(ds)


def test_a_single_layer_needs_no_name_but_its_number(tmp_path):
    np.save(tmp_path / "acts.npy", VALUES[:, 1])
    with pytest.raises(InvalidInputError, match="names neither a layer nor a text"):
        prepare(tmp_path / "acts.npy")
    ds = open_run(stored(tmp_path, prepare(tmp_path / "acts.npy", layers=[12])), "mine")
    assert ds["layer"].values.tolist() == [12]
    assert_holds(ds, VALUES[:, [1]])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_bfloat16_and_float16_become_float32_exactly(tmp_path_factory, seed):
    folder = tmp_path_factory.mktemp("exact")
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2**16, (N_TEXTS, 1, HIDDEN), dtype=np.uint16)
    bits[(bits & 0x7F80) == 0x7F80] = 0x3F80  # neither infinite nor NaN
    write_safetensors(folder / "acts.safetensors", {"acts": bits})
    prepared = prepare(folder / "acts.safetensors")
    assert prepared.plan.model.dtype == "bfloat16"
    wide = (bits.astype(np.uint32) << 16).view(np.float32)
    rows = prepared.rows(slice(0, N_TEXTS))
    np.testing.assert_array_equal(rows.view(np.uint32), wide[prepared.order].view(np.uint32))
    half = rng.standard_normal((N_TEXTS, 1, HIDDEN)).astype(np.float16)
    np.save(folder / "half.npy", half)
    rows = prepare(folder / "half.npy").rows(slice(0, N_TEXTS))
    np.testing.assert_array_equal(rows, half.astype(np.float32)[prepared.order])


def test_float64_is_taken_where_nothing_is_rounded(tmp_path):
    np.save(tmp_path / "exact.npy", VALUES.astype(np.float64))
    assert_holds(open_run(stored(tmp_path, prepare(tmp_path / "exact.npy")), "mine"))
    np.save(tmp_path / "rounded.npy", VALUES.astype(np.float64) + 1e-12)
    prepared = prepare(tmp_path / "rounded.npy", run="other")
    with pytest.raises(InvalidInputError, match="float64 with values that float32 cannot hold"):
        stored(tmp_path, prepared)


def test_what_is_not_known_is_said_to_be_unknown(tmp_path):
    np.save(tmp_path / "acts.npy", VALUES)
    plan = prepare(tmp_path / "acts.npy").plan
    assert plan.tokenizer.digest is None
    assert plan.model.content_digest is None
    assert (plan.n_tokens, plan.model.architecture) == (0, "unknown")


def test_importing_the_same_again_does_nothing_and_other_files_are_refused(tmp_path):
    np.save(tmp_path / "acts.npy", VALUES)
    store = stored(tmp_path, prepare(tmp_path / "acts.npy"))
    before = dict(store.backend.walk("runs"))
    info = corpus_info("pairs", TEXTS, arms=ArmNames())
    import_run(store, prepare(tmp_path / "acts.npy"), TEXTS, info=info)
    assert dict(store.backend.walk("runs")) == before
    np.save(tmp_path / "acts.npy", VALUES + 1)
    with pytest.raises(AlreadyExistsError, match="imported_digest"):
        import_run(store, prepare(tmp_path / "acts.npy"), TEXTS, info=info)


def test_an_import_that_was_stopped_goes_on(tmp_path):
    np.save(tmp_path / "acts.npy", VALUES)
    prepared = prepare(tmp_path / "acts.npy", rows=5)
    whole = stored(tmp_path, prepared)
    seal = whole.read_seal("mine")
    whole.backend.delete("runs/mine/seal.json")
    whole.backend.delete("runs/mine/commits/2.json")
    again = import_run(whole, prepared, TEXTS, info=corpus_info("pairs", TEXTS, arms=ArmNames()))
    assert again.data_digest == seal.data_digest
    assert verify_run(whole, "mine").ok


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named_and_nothing_is_written(tmp_path, bad):
    values = VALUES.copy()
    values[5, 2, 3] = bad
    np.save(tmp_path / "acts.npy", values)
    message = f"text '{TEXTS[5].id}' are not finite at layer 2; nothing was written"
    with pytest.raises(NumericalError, match=message):
        stored(tmp_path, prepare(tmp_path / "acts.npy", rows=4))
    assert list(create_store(tmp_path / "store").backend.walk("runs")) == []


class Bomb:
    """A pickle that would tell if it was ever loaded."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def test_pickles_are_refused_unread(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(InvalidInputError, match="pickles are never loaded"):
        prepare(tmp_path / "objects.npy")
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InvalidInputError, match="pickles are never loaded"):
        prepare(tmp_path / "raw.npy")


def forge(path, **change):
    write_safetensors(path, {"acts": VALUES})
    raw = path.read_bytes()
    n = struct.unpack("<Q", raw[:8])[0]
    head = json.loads(raw[8 : 8 + n])
    head["acts"].update(change)
    new = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + raw[8 + n :])


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [2**40, 2**40, 2**40]},
        {"shape": [-1, 3, 8]},
        {"shape": [24, 3, 9]},
        {"data_offsets": [0, 10**12]},
        {"data_offsets": [-8, 24 * 3 * 8 * 4 - 8]},
        {"data_offsets": [64, 64 + 24 * 3 * 8 * 4]},
        {"dtype": 7},
        {"shape": None},
    ],
)
def test_forged_safetensors_are_refused(tmp_path, change):
    forge(tmp_path / "acts.safetensors", **change)
    with pytest.raises(InvalidInputError, match=r"acts\.safetensors"):
        prepare(tmp_path / "acts.safetensors")


@pytest.mark.parametrize("raw", [b"", b"\x08", b"\xff" * 8, struct.pack("<Q", 2) + b"[]"])
def test_damaged_files_are_refused(tmp_path, raw):
    for name in ("acts.npy", "acts.safetensors"):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(InvalidInputError, match="acts"):
            prepare(tmp_path / name)


def save_all(folder, **arrays):
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"a": VALUES[:20]}, {}, "hold 20 rows, the table 24 texts"),
        ({"a": VALUES[:12], "b": VALUES[12:, :2]}, {}, "does not fit"),
        ({"a": VALUES, "b": VALUES[:, 0]}, {}, "arrays of the shapes"),
        ({"layer_0": VALUES[:, 0], "layer_1": VALUES[:9, 1]}, {}, "does not fit|9 rows"),
        ({"layer_0": VALUES[:, 0], "notes": VALUES[:, 1]}, {}, "'notes'.*names neither"),
        ({"layer_0": VALUES[:, 0]}, {"layers": [3]}, r"layers \[0\], but layers \[3\]"),
        ({"a": VALUES}, {"layers": [0, 1]}, "hold 3 layers"),
        ({"a": VALUES}, {"layers": [2, 1, 0]}, "ascending"),
        ({"a": VALUES}, {"n_layers": 2}, "does not exist"),
        ({"a": VALUES.astype(np.int32)}, {}, "is int32; expected one of"),
        ({"a": VALUES[:12], "b": VALUES[12:].astype(np.float16)}, {}, "mix the types"),
        ({TEXTS[0].id: VALUES[0]}, {}, "23 missing"),
        ({"a": VALUES[0, 0]}, {}, "expected .text, layer, hidden"),
        ({"a": VALUES}, {"pool": "mean"}, "pools"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(tmp_path, arrays, options, message):
    save_all(tmp_path, **arrays)
    with pytest.raises(InvalidInputError, match=message) as caught:
        prepare(tmp_path, **options)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there_and_kinds_that_are_not_read(tmp_path):
    with pytest.raises(NotFoundError, match="no such file"):
        prepare(tmp_path / "acts.npy")
    with pytest.raises(NotFoundError, match="no activations here"):
        prepare(tmp_path)
    (tmp_path / "acts.csv").write_text("1,2")
    with pytest.raises(InvalidInputError, match=r"expected one of \.npy"):
        prepare(tmp_path / "acts.csv")
    (tmp_path / "acts.pt").write_bytes(b"")
    with pytest.raises(MissingDependencyError, match=r"actlake\[extract\]"):
        prepare(tmp_path / "acts.pt")
