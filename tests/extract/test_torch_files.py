"""Torch's files give their tensors, and never run what they bring along."""

import numpy as np
import pytest
import torch

from actlake.corpus import corpus_info
from actlake.extract import read_torch
from actlake.schemas import ArmNames, InvalidInputError, Text
from actlake.store import create_store, import_run, open_run, prepare_import, verify_run

pytestmark = pytest.mark.torch

TEXTS = [Text(id=f"t{i}", response="x" * (9 - i)) for i in range(6)]


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def test_a_saved_tensor_becomes_a_run_exactly(tmp_path):
    torch.manual_seed(0)
    acts = torch.randn(6, 2, 8).to(torch.bfloat16)
    torch.save(acts, tmp_path / "acts.pt")
    prepared = prepare_import(
        [tmp_path / "acts.pt"], TEXTS, run="mine", corpus="c", model="m", pool="last_response",
        readers={".pt": read_torch},
    )  # fmt: skip
    assert prepared.plan.model.dtype == "bfloat16"
    store = create_store(tmp_path / "store")
    import_run(store, prepared, TEXTS, info=corpus_info("c", TEXTS, arms=ArmNames()))
    assert verify_run(store, "mine").ok
    found = open_run(store, "mine")["resid_post_last_response"].sel(text=[t.id for t in TEXTS])
    np.testing.assert_array_equal(found.values, acts.float().numpy())


@pytest.mark.parametrize("shape", ["dict", "list"])
def test_containers_of_layers_name_their_tensors(tmp_path, shape):
    acts = [torch.full((6, 8), float(i), requires_grad=True) for i in range(3)]
    saved = {f"layer_{i}": a for i, a in enumerate(acts)} if shape == "dict" else acts
    torch.save(saved, tmp_path / "acts.pt")
    found = {name: (values, dtype) for name, values, dtype in read_torch(tmp_path / "acts.pt")}
    assert list(found) == ["layer_0", "layer_1", "layer_2"]
    for i, (values, dtype) in enumerate(found.values()):
        assert dtype == "float32"
        assert (values == i).all()


def test_bits_of_bfloat16_are_kept(tmp_path):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    torch.save(bits.view(torch.bfloat16), tmp_path / "acts.pt")
    ((_, values, dtype),) = read_torch(tmp_path / "acts.pt")
    assert dtype == "bfloat16"
    np.testing.assert_array_equal(values, bits.numpy().view(np.uint16))


@pytest.mark.parametrize("saved", [Bomb(), {"a": Bomb()}, {"a": 1}, [], {"a": {"b": "c"}}, 3.0])
def test_what_is_not_tensors_is_refused_unrun(tmp_path, saved):
    torch.save(saved, tmp_path / "acts.pt")
    with pytest.raises(InvalidInputError, match=r"acts\.pt"):
        read_torch(tmp_path / "acts.pt")


@pytest.mark.parametrize("raw", [b"", b"junk", b"PK\x03\x04junk"])
def test_damaged_files_are_refused(tmp_path, raw):
    (tmp_path / "acts.pt").write_bytes(raw)
    with pytest.raises(InvalidInputError, match=r"acts\.pt"):
        read_torch(tmp_path / "acts.pt")
