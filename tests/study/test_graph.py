"""The tasks of a study: what is done is found, what fails stops only what needs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from actlake.graph import Graph, Task
from actlake.schemas import InvalidInputError, NotFoundError
from actlake.stages import Results
from actlake.store import create_store


class Work:
    """Tasks that write what they got, and can be told to fail."""

    def __init__(self, folder, store):
        self.results = Results(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.store = store
        self.did = []
        self.broken = {}
        self.sealed = True

    def task(self, stage, *needs, where="cpu", subject="phi", **specs):
        def make(folder):
            if stage in self.broken:
                raise self.broken[stage]
            self.did.append(stage)
            (folder / "rows.csv").write_text(stage)

        return Task(stage, subject, where, needs=needs, specs=specs, make=make)

    def graph(self, *, seed=0):
        extract = Task(
            "extract", "phi", "gpu",
            act=lambda say: setattr(self, "sealed", True),
            content=lambda: {"content": "abc"} if self.sealed else None,
        )  # fmt: skip
        tasks = [
            extract,
            self.task("probe", "extract of phi", seed=seed),
            self.task("pca", "extract of phi"),
            self.task("steer", "probe of phi", where="gpu"),
            self.task("doses", "steer of phi"),
        ]
        return Graph(tasks, results=self.results, store=self.store)

    def run(self, *, seed=0, **chosen):
        graph = self.graph(seed=seed)
        self.said = []
        outcomes = graph.carry_out(graph.select(**chosen), say=self.said.append)
        return {o.task.stage: o.state for o in outcomes}


@pytest.fixture
def store(tmp_path):
    return create_store(str(tmp_path / "store"))


@pytest.fixture
def work(tmp_path, store):
    return Work(tmp_path / "results", store)


def test_everything_is_done_once(work):
    assert set(work.run().values()) == {"done", "was done"}
    assert work.did == ["probe", "pca", "steer", "doses"]
    assert set(work.run().values()) == {"was done"}
    assert len(work.did) == 4


def test_another_setting_does_again_what_follows_from_it_and_nothing_else(work):
    work.run()
    work.did.clear()
    assert work.run(seed=1)["pca"] == "was done"
    assert work.did == ["probe", "steer", "doses"]
    work.did.clear()
    assert set(work.run(seed=0).values()) == {"was done"}  # the store kept the old results
    assert work.did == []


def test_a_failure_stops_only_what_needs_it_and_says_how_to_go_on(work):
    work.broken = {"steer": InvalidInputError("layer 40 does not exist")}
    states = work.run()
    assert states == {
        "extract": "was done", "probe": "done", "pca": "done", "steer": "failed", "doses": "waits"
    }  # fmt: skip
    assert any("steer of phi: failed: layer 40 does not exist" in line for line in work.said)
    assert any("doses of phi: waits: needs steer of phi first" in line for line in work.said)
    work.broken = {}
    assert work.run() == {
        "extract": "was done", "probe": "was done", "pca": "was done", "steer": "done",
        "doses": "done",
    }  # fmt: skip


def test_a_defect_of_one_stage_is_kept_with_its_details(work):
    work.broken = {"pca": ZeroDivisionError("division by zero")}
    assert work.run()["pca"] == "failed"
    (details,) = work.results.folder.glob("failed-pca-phi.txt")
    assert "ZeroDivisionError" in details.read_text()
    assert "doses" in work.did


def test_ctrl_c_leaves_what_is_done(work):
    work.broken = {"steer": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        work.run()
    work.broken = {}
    assert work.run()["probe"] == "was done"


def test_two_machines_share_a_study_over_the_store(work, tmp_path, store):
    work.sealed = False
    gpu = work.run(where="gpu")
    assert gpu == {"extract": "done", "probe": "done", "steer": "done"}
    laptop = Work(tmp_path / "laptop", store)
    found = laptop.run(where="cpu")
    assert found == {"probe": "was done", "pca": "done", "doses": "done"}
    assert laptop.did == ["pca", "doses"]
    assert (laptop.results.stage("phi", "steer") / "rows.csv").read_text() == "steer"


def test_the_laptop_waits_for_the_gpu(work):
    work.sealed = False
    assert set(work.run(where="cpu").values()) == {"waits"}
    assert work.did == []


def test_stages_can_be_chosen(work):
    assert work.run(only=["probe"]) == {"probe": "done"}
    assert list(work.run(until="steer")) == ["extract", "probe", "steer"]
    with pytest.raises(InvalidInputError, match=r"no stage 'stear'.*'steer'"):
        work.run(only=["stear"])


def test_results_that_are_not_there_cannot_be_brought(work):
    graph = work.graph()
    with pytest.raises(NotFoundError, match="probe of phi is not done"):
        graph.bring(graph.tasks[1])


def test_a_store_that_cannot_be_written_keeps_nobody_from_analysing(work, store):
    # A file where the folder of results would be: every write there fails.
    (Path(store.url.removeprefix("file://")) / "results").write_text("")
    assert work.run()["doses"] == "done"
    assert any("kept in" in line and "only:" in line for line in work.said)
    assert set(work.run().values()) == {"was done"}


def test_tasks_that_contradict_each_other_are_refused(work):
    probe = work.task("probe")
    for tasks, message in (
        ([probe, probe], "is twice"),
        ([work.task("steer", "probe of phi")], "do not come before it"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            Graph(tasks, results=work.results, store=work.store)
