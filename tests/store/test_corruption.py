"""A damaged or hostile store is refused, and says which object and which rows."""

import pytest

from actlake.schemas import CorruptError, InvalidInputError
from actlake.store import open_run, verify_run
from tests.store.forging import edit, flip
from tests.store.samples import make_plan, write_run

DATA = "runs/tiny/data.zarr"
CHUNK = "resid_post_mean_response/c/1/2/0"


def test_a_flipped_bit_is_found_with_its_rows(any_store):
    write_run(any_store, make_plan())
    flip(any_store, f"{DATA}/{CHUNK}")
    report = verify_run(any_store, "tiny")
    assert not report.ok
    (fault,) = report.faults
    assert (fault.key, fault.rows) == (CHUNK, (4, 8))
    assert "sha256" in fault.reason
    with pytest.raises(CorruptError, match=f"{CHUNK}.*checksum"):
        open_run(any_store, "tiny")["resid_post_mean_response"].sel(layer=4).compute()


@pytest.mark.parametrize("sealed", [True, False])
def test_a_missing_chunk_never_reads_as_data(any_store, sealed):
    write_run(any_store, make_plan(), seal=sealed)
    any_store.backend.delete(f"{DATA}/{CHUNK}")
    ds = open_run(any_store, "tiny")
    ds["resid_post_mean_response"].sel(layer=2).compute()
    with pytest.raises(CorruptError, match=f"{CHUNK}.*is missing"):
        ds["resid_post_mean_response"].sel(layer=4).compute()
    (fault,) = verify_run(any_store, "tiny").faults
    assert (fault.key, fault.reason, fault.rows) == (CHUNK, "missing", (4, 8))


@pytest.mark.parametrize("change", [b"", b"x" * 20, b"x" * 5000])
def test_an_object_of_another_size_is_refused(store, change):
    write_run(store, make_plan())
    store.backend.put(f"{DATA}/{CHUNK}", change)
    with pytest.raises(CorruptError, match=CHUNK):
        open_run(store, "tiny")["resid_post_mean_response"].compute()
    (fault,) = verify_run(store, "tiny").faults
    assert fault.rows == (4, 8)


def test_sealing_notices_an_object_that_has_gone(store):
    writer = write_run(store, make_plan(), seal=False)
    store.backend.delete(f"{DATA}/{CHUNK}")
    with pytest.raises(CorruptError, match=f"{CHUNK}.*now there is nothing"):
        writer.seal()
    assert store.read_seal("tiny") is None


def test_verification_can_be_restricted(store):
    plan = make_plan()
    write_run(store, plan)
    flip(store, f"{DATA}/{CHUNK}")
    whole = verify_run(store, "tiny")
    n_objects = store.read_seal("tiny").n_objects
    assert whole.n_objects == n_objects
    assert verify_run(store, "tiny", layers=[0, 2]).ok
    (fault,) = verify_run(store, "tiny", layers=[4]).faults
    assert (fault.key, fault.rows, fault.layer) == (CHUNK, (4, 8), 4)
    n_chunks = 3 * (2 * 3 + 1)  # blocks x (pools x layers + norms)
    some = verify_run(store, "tiny", sample=0.2, seed=1)
    assert some.n_objects == n_objects - n_chunks + 5
    assert some == verify_run(store, "tiny", sample=0.2, seed=1)
    found = [not verify_run(store, "tiny", sample=0.2, seed=seed).ok for seed in range(40)]
    assert any(found)
    assert not all(found)
    with pytest.raises(InvalidInputError, match=r"no layers \[1\]; it has \[0, 2, 4\]"):
        verify_run(store, "tiny", layers=[1])
    for share in (0, -0.5, 1.5, float("nan")):
        with pytest.raises(InvalidInputError, match="a share above 0"):
            verify_run(store, "tiny", sample=share)


def test_a_forged_seal_or_commit_is_found(store):
    write_run(store, make_plan())
    edit(store, "runs/tiny/seal.json", lambda d: d["objects"].pop())
    reasons = {f.reason for f in verify_run(store, "tiny").faults}
    assert {"its tree digest is wrong", "its number of objects is wrong"} <= reasons


def test_a_commit_of_another_plan_is_found(store):
    write_run(store, make_plan())
    edit(store, "runs/tiny/commits/1.json", lambda d: d.update(plan_id="sha256:" + "0" * 64))
    faults = verify_run(store, "tiny").faults
    assert ("commits/1.json", (4, 8)) in {(f.key, f.rows) for f in faults}
    store.backend.delete("runs/tiny/seal.json")
    with pytest.raises(CorruptError, match="commit record of block 1"):
        open_run(store, "tiny")


@pytest.mark.parametrize("key", ["plan.json", "run.json", "seal.json", "commits/0.json"])
@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000])
def test_records_that_are_not_records_are_corrupt(store, key, data):
    write_run(store, make_plan(), seal=key == "seal.json")
    store.backend.put(f"runs/tiny/{key}", data)
    with pytest.raises(CorruptError, match=key):
        open_run(store, "tiny")


def test_a_changed_plan_no_longer_fits_its_run(store):
    write_run(store, make_plan())
    edit(store, "runs/tiny/plan.json", lambda d: d.update(seed=1))
    with pytest.raises(CorruptError, match="of plan"):
        open_run(store, "tiny")


HOSTILE = {
    "zarr v2": (lambda d: d.update(zarr_format=2), "only Zarr v3"),
    "a pickle codec": (lambda d: d["codecs"].insert(0, {"name": "numcodecs.pickle"}), "codecs"),
    "another codec": (
        lambda d: d.update(codecs=[{"name": "bytes"}, {"name": "zstd"}, {"name": "crc32c"}]),
        "codecs",
    ),
    "objects": (lambda d: d.update(data_type="object"), "data_type is 'object'"),
    "a larger shape": (lambda d: d.update(shape=[10, 3, 8 * 10**9]), "the plan says"),
    "other chunks": (
        lambda d: d["chunk_grid"]["configuration"].update(chunk_shape=[1, 1, 1]),
        "the plan says",
    ),
    "an irregular grid": (lambda d: d.update(chunk_grid={"name": "rectangular"}), "chunk_grid"),
    "a negative shape": (lambda d: d.update(shape=[-1, 3, 8]), "the plan says"),
    "a transformer": (lambda d: d.update(storage_transformers=[{"name": "x"}]), "transformers"),
    "an extension": (lambda d: d.update(evil={"must_understand": True}), "unknown fields"),
    "a group": (lambda d: d.update(node_type="group"), "expected 'array'"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_metadata_is_refused(store, case):
    change, message = HOSTILE[case]
    write_run(store, make_plan(), seal=False)
    edit(store, f"{DATA}/resid_post_last_prompt/zarr.json", change)
    with pytest.raises(CorruptError, match=message):
        open_run(store, "tiny")


def test_coordinates_of_another_length_are_refused(store):
    write_run(store, make_plan(), seal=False)
    edit(store, f"{DATA}/label/zarr.json", lambda d: d.update(shape=[10**9]))
    with pytest.raises(CorruptError, match="label"):
        open_run(store, "tiny")


def test_metadata_that_changed_after_the_seal_is_refused(store):
    write_run(store, make_plan())
    edit(store, f"{DATA}/zarr.json", lambda d: d["attributes"].update(model="another"))
    with pytest.raises(CorruptError, match="not what was sealed"):
        open_run(store, "tiny")


def test_metadata_without_end_is_not_read(store):
    write_run(store, make_plan(), seal=False)
    store.backend.put(f"{DATA}/label/zarr.json", b" " * (17 * 2**20))
    with pytest.raises(CorruptError, match="larger than"):
        open_run(store, "tiny")
