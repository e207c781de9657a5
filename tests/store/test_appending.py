"""Appending texts to a run: nothing that is stored is touched, readers see old or new."""

from __future__ import annotations

import json
from contextlib import suppress

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner

from actlake.cli import cli
from actlake.schemas import (
    AlreadyExistsError,
    CorruptError,
    IncompleteError,
    InvalidInputError,
    NotFoundError,
    NotPulledError,
    StorageError,
    digest_json,
)
from actlake.store import (
    apply_repair,
    content_digest,
    corpus_digest,
    create_store,
    finish_append,
    new_texts,
    open_run,
    open_runs,
    part_names,
    plan_append,
    plan_repair,
    pull,
    push,
    read_catalog,
    read_texts,
    sealed_parts,
    verify_run,
    write_card,
)
from actlake.store.failures import Failure, storage_error
from actlake.store.retry import RetryingBackend, RetryPolicy
from actlake.store.store import Store
from tests.store.appends import (
    added_coords,
    added_lengths,
    added_plan,
    append,
    joined_values,
    start_append,
)
from tests.store.faults import Death
from tests.store.forging import edit, flip
from tests.store.samples import (
    ENVIRONMENT,
    LENGTHS,
    make_coords,
    make_plan,
    make_tokens,
    make_values,
    with_tokens,
    write_run,
)
from tests.store.small import fill_store, make_texts, small_coords, small_store

IDS = [text.id for text in make_texts(20)]
NAME = "resid_post_mean_response"


@pytest.fixture
def filled(store):
    fill_store(store)
    return store


# -- what readers see


@pytest.mark.parametrize("chunks", [{}, "job", None])
@pytest.mark.parametrize("tokens", [False, True])
def test_a_reader_sees_all_texts_in_one_dataset(store, chunks, tokens):
    head = fill_store(store, tokens=tokens)
    plans = [head, added_plan(tokens=tokens), added_plan(16, 3, tokens=tokens, rows=2)]
    append(store, plans[1])
    append(store, plans[2], 16)
    assert sealed_parts(store, "tiny") == ["tiny", "tiny~1", "tiny~2"]
    run = open_run(store, "tiny", chunks=chunks)
    assert run["text"].values.tolist() == IDS[:19]
    for name, values in joined_values(*plans).items():
        assert run[name].dtype == np.float32
        np.testing.assert_array_equal(run[name].values, values)
    np.testing.assert_array_equal(run.sel(text=IDS[12])[NAME].values, run[NAME].values[12])
    assert run["layer"].values.tolist() == [0, 2, 4]
    assert run["arm"].values.tolist() == [text.arm for text in make_texts(19)]
    lengths = [3] * 19
    if tokens:
        lengths = [*LENGTHS[:10], *LENGTHS[3:9], *LENGTHS[3:6]]
    np.testing.assert_array_equal(np.diff(run["token_offset"].values), lengths)
    assert run.sizes["token"] == sum(lengths)
    if tokens:
        np.testing.assert_array_equal(run["token_text"].values, np.repeat(range(19), lengths))
        positions = np.concatenate([np.arange(n) for n in lengths])
        np.testing.assert_array_equal(run["token_position"].values, positions)
    assert run.attrs["parts"] == "tiny tiny~1 tiny~2"
    assert run.attrs["corpus"] == "demo demo+10 demo+16"
    assert run.attrs["content_digest"] == content_digest(store, "tiny")


def test_chunks_are_those_of_the_parts_and_never_mix_layers(filled):
    append(filled)
    run = open_run(filled, "tiny")
    assert run[NAME].chunks == ((4, 4, 2, 4, 2), (1, 1, 1), (8,))
    assert open_run(filled, "tiny", chunks="job")[NAME].chunks == ((10, 6), (1, 1, 1), (8,))


def test_nothing_that_was_stored_is_touched():
    store = small_store()
    before = {k: v for k, v in store.backend.objects.items() if k != "catalog.json"}
    append(store)
    after = store.backend.objects
    assert {key: after[key] for key in before} == before
    new = set(after) - set(before) - {"catalog.json"}
    assert all(key.startswith(("runs/tiny/appended/1/", "corpora/demo+10/")) for key in new)


def test_a_part_is_an_ordinary_group_and_can_be_opened_alone(filled):
    append(filled)
    plain = xr.open_zarr(f"{filled.url}/runs/tiny/appended/1/data.zarr", consolidated=True)
    np.testing.assert_array_equal(plain[NAME].values, make_values(added_plan())[NAME])
    alone = open_run(filled, "tiny~1")
    assert alone["text"].values.tolist() == IDS[10:16]
    assert filled.run_ids() == ["tiny"]
    assert part_names(filled, "tiny~1") == ["tiny~1"]


def test_the_run_is_as_it_was_until_the_part_is_sealed(filled):
    opened = open_run(filled, "tiny")
    digest = content_digest(filled, "tiny")
    writer = append(filled, blocks=[0], seal=False)
    assert open_run(filled, "tiny")["text"].values.tolist() == IDS[:10]
    assert content_digest(filled, "tiny") == digest
    partial = open_run(filled, "tiny", allow_partial=True)
    assert partial["committed"].values.tolist() == [True] * 14 + [False] * 2
    assert partial.attrs["content_digest"] == "unsealed"
    with pytest.raises(IncompleteError):
        open_run(filled, "tiny~1")
    writer.write_block(1, {k: v[4:] for k, v in make_values(added_plan()).items()})
    assert open_run(filled, "tiny").sizes["text"] == 10
    writer.seal()
    assert open_run(filled, "tiny").sizes["text"] == 16
    assert content_digest(filled, "tiny") != digest
    # A reader that opened before reads on, the run as it was.
    np.testing.assert_array_equal(opened[NAME].values, make_values(make_plan())[NAME])


def test_a_run_that_is_not_finished_can_be_appended_to(store):
    fill_store(store, blocks=[0, 1], seal=False)
    append(store)
    with pytest.raises(IncompleteError, match="2 of 10 rows"):
        open_run(store, "tiny")
    seen = open_run(store, "tiny", allow_partial=True)
    assert seen["committed"].values.tolist() == [True] * 8 + [False] * 2 + [True] * 6
    plan = store.read_plan("tiny")
    write_run(store, plan, blocks=[2], coords=small_coords(plan))
    assert open_run(store, "tiny").sizes["text"] == 16


def test_two_runs_that_grew_are_aligned_by_text(filled):
    fill_store(filled, run="other")
    append(filled)
    other = make_plan("other", n_texts=6).model_copy(update={"corpus": "demo+10"})
    other = other.model_copy(update={"corpus_digest": added_plan().corpus_digest})
    append(filled, other)
    runs = open_runs(filled)
    assert list(runs) == ["other", "tiny"]
    assert all(run["text"].values.tolist() == IDS[:16] for run in runs.values())
    append(filled, added_plan(16, 2), 16)  # one of them only
    runs = open_runs(filled)
    assert all(run["text"].values.tolist() == IDS[:16] for run in runs.values())


def test_a_run_with_the_longest_name_can_be_appended_to(store):
    name = "r" * 120
    fill_store(store, run=name)
    append(store, added_plan(run=name))
    assert part_names(store, name) == [name, f"{name}~1"]
    assert open_run(store, name).sizes["text"] == 16
    assert verify_run(store, f"{name}~1").ok
    plan = make_plan().to_dict()
    for wrong in ("", "r" * 121, f"{'r' * 121}~1", "tiny~0", "tiny~1000"):
        with pytest.raises(InvalidInputError, match="run"):
            type(added_plan()).parse({**plan, "run": wrong})


# -- what is refused


def test_texts_that_are_there_are_refused_by_name(filled):
    plan = added_plan(8, 4)
    with pytest.raises(AlreadyExistsError, match=f"has 2 of these texts already: '{IDS[8]}', "):
        append(filled, plan, 8)
    append(filled)
    with pytest.raises(AlreadyExistsError, match=f"already: '{IDS[15]}'"):
        append(filled, added_plan(15, 2), 15)
    assert part_names(filled, "tiny") == ["tiny", "tiny~1"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 3}, r"seed \(stored 0, got 3\)"),
        ({"codec": "crc32c"}, r"codec \(stored .*, got .crc32c.\)"),
        (
            {"tokenizer": {"chat_template_digest": digest_json("x")}},
            "tokenizer.chat_template_digest",
        ),
        ({"model": {"dtype": "bfloat16"}}, r"model.dtype \(stored .float32., got .bfloat16.\)"),
        ({"model": {"revision": "main"}}, r"model.revision \(stored null, got .main.\)"),
        ({"capture": {"max_tokens": 7}}, r"capture.max_tokens \(stored 4096, got 7\)"),
        ({"arrays": make_plan(n_texts=6).arrays[:2]}, r"arrays \(stored"),
    ],
)
def test_a_run_that_was_made_otherwise_is_refused_with_the_keys_named(filled, change, said):
    plan = added_plan()
    for key, value in change.items():
        if isinstance(value, dict):
            value = getattr(plan, key).model_copy(update=value)
        plan = plan.model_copy(update={key: value})
    with pytest.raises(AlreadyExistsError, match=said):
        append(filled, plan)
    assert part_names(filled, "tiny") == ["tiny"]


def test_other_token_layers_are_refused(store):
    fill_store(store, tokens=True)
    plan = added_plan()
    plan = with_tokens(plan, LENGTHS[3:9], layers=(0, 2))
    with pytest.raises(
        AlreadyExistsError, match=r"token_axis.layers \(stored \[2, 4\], got \[0, 2\]\)"
    ):
        append(store, plan)


def test_only_runs_can_be_appended_to_and_only_so(filled):
    with pytest.raises(NotFoundError):
        append(filled, added_plan(run="none"))
    writer = append(filled)
    with pytest.raises(InvalidInputError, match="append_run"):
        write_run(filled, writer.plan)
    with pytest.raises(InvalidInputError, match="name of the run"):
        append(filled, writer.plan)
    with pytest.raises(AlreadyExistsError, match="it is a part itself"):
        plan_append(filled, "tiny~1")
    with pytest.raises(InvalidInputError, match="tilde"):
        type(writer.plan).parse({**make_plan().to_dict(), "run": "a~1"})


def test_an_append_that_was_begun_must_be_finished_first(filled):
    append(filled, blocks=[1], seal=False)
    with pytest.raises(AlreadyExistsError, match=r"not finished \(tiny~1\)"):
        append(filled, added_plan(10, 7))
    writer = append(filled)  # the same again goes on
    assert writer.plan.run == "tiny~1"
    assert open_run(filled, "tiny").sizes["text"] == 16


def test_nothing_is_appended_to_a_partial_copy(filled, tmp_path):
    pull(filled, tmp_path / "copy", layers=[2])
    with pytest.raises(AlreadyExistsError, match="partial copy"):
        append(create_store(tmp_path / "copy"))


def test_new_texts_are_those_that_the_run_lacks(filled):
    append(filled)
    grown = make_texts(18)
    found = new_texts(filled, plan_append(filled, "tiny"), grown)
    assert [text.id for text in found] == IDS[16:18]
    changed = [*grown[:12], grown[12].model_copy(update={"response": "other"}), *grown[13:]]
    with pytest.raises(AlreadyExistsError, match=f"other words under the ids of 1 .*'{IDS[12]}'"):
        new_texts(filled, plan_append(filled, "tiny"), changed)


def test_texts_are_read_from_all_corpora(filled):
    append(filled)
    info, texts = read_texts(filled, "tiny")
    assert info.id == "demo"
    digests = [filled.read_plan(name).corpus_digest for name in ("tiny", "tiny~1")]
    assert corpus_digest(filled, "tiny") == digest_json(digests)
    assert corpus_digest(filled, "tiny~1") == digests[1]
    assert texts == make_texts(16)


# -- every fault at every call


class Faulty:
    """A storage whose call number ``at`` goes wrong once."""

    def __init__(self, inner, at: int, fault: str) -> None:
        self._inner, self._at, self._fault = inner, at, fault
        self.location = inner.location
        self.n_calls = 0

    async def get_async(self, key, *, max_bytes):
        return self._inner.get(key, max_bytes=max_bytes)

    def _call(self, name, *args, **kwargs):
        self.n_calls += 1
        work = getattr(self._inner, name)
        if self.n_calls != self._at:
            return work(*args, **kwargs)
        if self._fault == "death":
            raise Death
        answer = Failure("timeout")
        if self._fault in {"death after", "lost reply"}:
            list(found) if (found := work(*args, **kwargs)) and name == "walk" else None
        if self._fault == "death after":
            raise Death
        if self._fault == "403":
            answer = Failure("answer", status=403, code="AccessDenied")
        raise storage_error(answer, doing=name, location=self.location)

    def __getattr__(self, name):
        if name not in {"get", "put", "create", "delete", "size", "walk", "children", "clean"}:
            raise AttributeError(name)
        return lambda *args, **kwargs: self._call(name, *args, **kwargs)


def objects_of_the_run(store) -> dict[str, bytes]:
    """Return everything that two runs of the same append must have alike."""
    plain = ("/data.zarr/", "/plan.json", "texts.parquet")
    return {k: v for k, v in store.backend.objects.items() if any(part in k for part in plain)}


def attempt_with(store, at: int, fault: str) -> int:
    """Append with one fault; return the calls that were made."""
    faulty = Faulty(store.backend, at, fault)
    backend = RetryingBackend(faulty, policy=RetryPolicy(attempts=3, base_seconds=0))
    with suppress(Death, StorageError):
        append(Store(store.location, backend=backend, info=store.info))
    return faulty.n_calls


FAULTS = ["death", "death after", "lost reply", "403"]


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_leave_the_old_run_or_the_new_one(fault):
    check_faults(fault, first=1 + FAULTS.index(fault), step=19)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_any_call_leaves_the_old_run_or_the_new_one(fault):
    check_faults(fault, first=1, step=1)


def check_faults(fault: str, *, first: int, step: int) -> None:
    """Append with a fault at every ``step``-th call, look, and append again."""
    whole = small_store()
    n_calls = attempt_with(whole, 0, fault)
    assert n_calls > 60
    expected = objects_of_the_run(whole)
    old, new = make_values(make_plan())[NAME], joined_values(make_plan(), added_plan())[NAME]
    seen = set()
    for at in [*range(first, n_calls - 2, step), *range(n_calls - 2, n_calls + 1)]:
        store = small_store()
        opened = open_run(store, "tiny", chunks=None)
        attempt_with(store, at, fault)
        found = open_run(store, "tiny", chunks=None)[NAME].values
        seen.add(len(found))
        np.testing.assert_array_equal(found, new if len(found) == 16 else old)
        np.testing.assert_array_equal(opened[NAME].values, old)
        append_again(store)
        assert objects_of_the_run(store) == expected, at
        assert not [k for k in store.backend.objects if "/staged/" in k or "/claims/" in k]
        for name in part_names(store, "tiny"):
            assert verify_run(store, name).ok, at
    assert seen == ({10, 16} if fault != "lost reply" else {16})


def append_again(store) -> None:
    """Do what the command does when it is run again: nothing, where all texts are there."""
    if new_texts(store, plan_append(store, "tiny"), make_texts(16)):
        append(store)
    else:
        finish_append(store, "tiny")


# -- verifying, repairing, copying


def test_all_parts_verify(filled):
    append(filled)
    for name in part_names(filled, "tiny"):
        report = verify_run(filled, name, full=True)
        assert report.ok, report.faults
    catalog = read_catalog(filled)
    assert [entry.run for entry in catalog.runs] == ["tiny", "tiny~1"]


def test_a_flipped_bit_in_a_part_is_found_and_mended(filled):
    append(filled)
    append(filled, added_plan(16, 3), 16)
    flip(filled, f"runs/tiny/appended/1/data.zarr/{NAME}/c/1/0/0")
    assert verify_run(filled, "tiny").ok
    assert verify_run(filled, "tiny~2").ok
    repair = plan_repair(filled, "tiny~1")
    assert (repair.blocks, repair.text_ids) == ((1,), tuple(IDS[14:16]))
    apply_repair(filled, repair)
    # Readers see what comes before it; the same append mends it, though another came after.
    assert open_run(filled, "tiny").sizes["text"] == 10
    append(filled)
    assert open_run(filled, "tiny")["text"].values.tolist() == IDS[:19]
    assert all(verify_run(filled, name, full=True).ok for name in part_names(filled, "tiny"))


def test_the_command_that_mends_a_part_appends(filled):
    append(filled)
    flip(filled, f"runs/tiny/appended/1/data.zarr/{NAME}/c/1/0/0")
    command = ["store", "repair", filled.url, "tiny~1", "--json"]
    found = json.loads(CliRunner().invoke(cli, command).stdout)
    assert found["texts"] == IDS[14:16]
    assert f"--corpus GROWN.jsonl --store {filled.url} --run tiny --append" in found["command"]
    done = CliRunner().invoke(cli, ["store", "verify", filled.url, "tiny", "--json"])
    assert done.exit_code == 1
    assert [report["ok"] for report in json.loads(done.stdout)] == [True, False]


def test_a_part_of_another_run_is_refused():
    store = small_store()
    append(store)
    key = "runs/tiny/appended/1/plan.json"
    change = digest_json("x")
    edit(store, key, lambda plan: plan["continues"].update(plan_id=change))
    with pytest.raises(CorruptError):
        open_run(store, "tiny")
    assert verify_run(store, "tiny").ok
    (fault, *_) = verify_run(store, "tiny~1").faults
    assert not verify_run(store, "tiny~1").ok
    assert fault.key in {"plan.json", "run.json"}


def test_a_text_in_two_parts_is_found(monkeypatch):
    store = small_store()
    monkeypatch.setattr(
        "actlake.store.store.appended_part",
        lambda store, plan, ids: plan.model_copy(
            update={"run": "tiny~1", "continues": plan_append(store, "tiny").continues}
        ),
    )
    append(store, added_plan(8, 4), 8)
    with pytest.raises(CorruptError, match="stands in two parts"):
        open_run(store, "tiny")
    faults = verify_run(store, "tiny~1", full=True).faults
    assert any(f"text '{IDS[8]}' stands in 'tiny' already" in fault.reason for fault in faults)


@pytest.mark.parametrize("copy", [pull, push])
def test_a_copy_has_all_parts(filled, tmp_path, copy):
    append(filled)
    done = copy(filled, create_store(tmp_path / "copy"))
    assert [(t.run, t.whole) for t in done] == [("tiny", True), ("tiny~1", True)]
    there = create_store(tmp_path / "copy")
    assert content_digest(there, "tiny") == content_digest(filled, "tiny")
    assert read_texts(there, "tiny") == read_texts(filled, "tiny")
    assert all(verify_run(there, name, full=True).ok for name in part_names(there, "tiny"))
    append(filled, added_plan(16, 2), 16)
    done = copy(filled, there)  # what was appended since
    assert [t.n_copied > 0 for t in done] == [False, False, True]
    assert open_run(there, "tiny").sizes["text"] == 18


def test_some_layers_of_all_parts_are_copied(filled, tmp_path):
    append(filled)
    pull(filled, tmp_path / "copy", runs=["tiny"], layers=[4], pools=["mean_response"])
    copy = create_store(tmp_path / "copy")
    seen = open_run(copy, "tiny", pulled_only=True)
    assert seen["layer"].values.tolist() == [4]
    expected = joined_values(make_plan(), added_plan())[NAME]
    np.testing.assert_array_equal(seen[NAME].values[:, 0], expected[:, 2])
    with pytest.raises(NotPulledError, match="--run tiny --layer 2"):
        open_run(copy, "tiny")[NAME].sel(layer=2).values  # noqa: B018
    assert all(verify_run(copy, name, full=True).ok for name in part_names(copy, "tiny"))


def test_a_split_that_only_a_part_has_is_copied(store, tmp_path):
    plan = make_plan()
    write_run(store, plan, coords={**make_coords(plan), "split": np.array(["train"] * 10)})
    new = added_plan()
    coords = {**added_coords(new), "split": np.array(["test"] * 6)}
    writer = store.append_run(
        new,
        coords=coords,
        environment=ENVIRONMENT,
        token_data=make_tokens(new, added_lengths(new)),
    )
    for block in range(2):
        writer.write_block(
            block, {k: v[4 * block : 4 * block + 4] for k, v in make_values(new).items()}
        )
    writer.seal()
    pull(store, tmp_path / "copy", splits=["test"])
    seen = open_run(tmp_path / "copy", "tiny", pulled_only=True)
    assert seen["text"].values.tolist() == IDS[10:16]
    with pytest.raises(InvalidInputError, match="has no split 'dev'"):
        pull(store, tmp_path / "other", splits=["dev"])


def test_the_card_names_every_part_with_its_digest(filled):
    append(filled)
    write_card(filled, data_license="cc-by-4.0", model_licenses={"tiny": "mit"})
    readme = filled.backend.get("README.md", max_bytes=10**6).decode()
    assert readme.count("| mit |") == 2
    for name in ("tiny", "tiny~1"):
        assert f"| {name} | {filled.read_seal(name).tree_digest} |" in readme
    assert 'open_run(".", "tiny")' in readme


@pytest.mark.parametrize("seal", [True, False])
def test_appending_works_on_every_storage(any_store, seal):
    fill_store(any_store, seal=seal)
    append(any_store)
    assert open_run(any_store, "tiny").sizes["text"] == 16
    assert verify_run(any_store, "tiny~1").ok


def test_another_append_is_refused_before_the_first_has_a_block():
    store = small_store()
    first = start_append(store, added_plan())
    with pytest.raises(AlreadyExistsError, match="not finished"):
        start_append(store, added_plan(11, 3), 11)
    assert first.plan.run == "tiny~1"
