"""Machines that cost money are given back, whatever happens to them or to us."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import actlake
from actlake.cli import cli
from actlake.cloud import CloudJob, plan_job, run_job
from actlake.cloud_http import Api
from actlake.cloud_providers import PROVIDERS, Vast, connect
from actlake.schemas import (
    BudgetSpentError,
    CloudError,
    GpuWish,
    InvalidInputError,
    JobLimits,
    JobReport,
)
from tests.deploy import clouds

SECRET = "a-secret-of-the-bucket-0815"
BIN = str(Path(sys.executable).parent)


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    with clouds.serve(tmp_path / "machines", path=f"{BIN}:{os.environ['PATH']}") as served:
        for name in ("VAST_URL", "RUNPOD_REST_URL", "RUNPOD_API_URL", "LAMBDA_API_URL"):
            monkeypatch.setenv(name, served.url)
        for name in ("VAST_API_KEY", "RUNPOD_API_KEY", "LAMBDA_API_KEY"):
            monkeypatch.setenv(name, clouds.ACCOUNT_KEY)
        for name in list(os.environ):
            if name.startswith(("AWS_", "FSSPEC_", "HF_")):
                monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("PYTHONPATH", str(Path(actlake.__file__).parents[1]))
        yield served


def job(tmp_path, *commands, **given):
    settings = {
        "commands": list(commands), "store": str(tmp_path / "store"),
        "wish": GpuWish(gpu="A100"), "limits": JobLimits(max_hours=1, grace_seconds=5),
        "package": "", "poll_seconds": 0.2, "retry_seconds": 0.1, "start_minutes": 2,
        "variables": ("PYTHONPATH",),
    }  # fmt: skip
    return CloudJob(**(settings | given))


def log_of(work):
    return (Path(work.report_url) / "log.txt").read_text()


@pytest.mark.parametrize("name", list(PROVIDERS))
def test_a_job_runs_and_the_machine_is_gone(name, cloud, tmp_path):
    said = []
    work = job(tmp_path, f'echo "$STORE" > {tmp_path}/made', 'echo "key: $AWS_SECRET_ACCESS_KEY"')
    report = run_job(connect(name, ssh_key="mine"), work, say=said.append)
    assert report.state == "done"
    assert (tmp_path / "made").read_text().strip() == work.store
    assert cloud.created
    assert not cloud.machines
    by = clouds.ACCOUNT_KEY if name == "lambda" else clouds.MACHINE_KEY
    assert set(cloud.destroyed_by.values()) <= {by, clouds.ACCOUNT_KEY}
    assert "key: ***" in log_of(work)
    assert SECRET not in "".join(said) + log_of(work) + repr(work) + repr(connect(name))
    lines = [
        argv for _, _, body in cloud.requests for argv in (body or {}).get("dockerStartCmd", [])
    ]
    assert SECRET not in " ".join(lines)


@pytest.mark.parametrize("name", ["vast", "runpod"])
def test_a_machine_gives_itself_back_when_nobody_watches(name, cloud, tmp_path):
    cloud.refuse_destroy = 2  # its first tries are refused
    work = job(tmp_path, f"until [ -e {tmp_path}/go ]; do sleep 0.1; done")
    report = run_job(connect(name), work, say=lambda _: None, detach=True)
    assert report.state == "running"
    assert cloud.machines
    (tmp_path / "go").touch()
    until = time.monotonic() + 60
    while cloud.machines and time.monotonic() < until:
        time.sleep(0.1)
    assert list(cloud.destroyed_by.values()) == [clouds.MACHINE_KEY]


def test_a_creation_that_fails_half_way_leaves_no_machine(cloud, tmp_path):
    cloud.fail_after_create = 3
    with pytest.raises(CloudError, match="vast answered 500 to PUT"):
        run_job(connect("vast"), job(tmp_path, "true", n_attempts=1), say=lambda _: None)
    assert len(cloud.created) == 1  # a creation is never repeated blindly
    assert cloud.destroyed_by
    assert not cloud.machines


@pytest.mark.slow
def test_a_machine_that_never_comes_up_is_destroyed_and_the_next_offer_taken(cloud, tmp_path):
    cloud.never_up = 1
    said = []
    work = job(tmp_path, "true", start_minutes=0.25)
    assert run_job(connect("vast"), work, say=said.append).state == "done"
    assert len(cloud.created) == 2
    assert not cloud.machines
    assert any("no machine came up" in line for line in said)
    assert [path for method, path, _ in cloud.requests if method == "PUT"] == [
        "/api/v0/asks/7/", "/api/v0/asks/8/",
    ]  # fmt: skip


def test_giving_back_is_tried_until_the_machine_is_gone(cloud, tmp_path):
    cloud.never_up, cloud.refuse_destroy = 9, 6
    with pytest.raises(CloudError, match="no machine came up"):
        run_job(connect("lambda", ssh_key="mine"), job(tmp_path, "true", start_minutes=0.005),
                say=lambda _: None)  # fmt: skip
    assert not cloud.machines


def test_a_machine_that_cannot_be_given_back_is_said_loudly(cloud, tmp_path, monkeypatch):
    cloud.never_up, cloud.refuse_destroy = 9, 10**6
    monkeypatch.setattr("actlake.cloud_http.time.sleep", lambda _: None)
    work = job(tmp_path, "true", start_minutes=0.001, retry_seconds=0.001, n_attempts=1)
    with pytest.raises(CloudError, match=r"COST MONEY.*cloud\.vast\.ai.*actlake cloud down"):
        run_job(connect("vast"), work, say=lambda _: None)
    cloud.refuse_destroy = 0
    listed = CliRunner().invoke(cli, ["cloud", "ls", "--provider", "vast", "--json"])
    assert [row["label"] for row in json.loads(listed.output)] == [work.label]
    done = CliRunner().invoke(cli, ["cloud", "down", work.label, "--provider", "vast"])
    assert done.exit_code == 0, done.exception
    assert not cloud.machines


@pytest.mark.parametrize("name", list(PROVIDERS))
def test_a_price_over_the_limit_rents_nothing(name, cloud, tmp_path):
    cloud.prices = (1.51, 9.0)
    work = job(tmp_path, "true", wish=GpuWish(gpu="A100", max_price_per_hour=1.5))
    with pytest.raises(InvalidInputError, match=r"at most \$1.5 an hour; nothing was rented"):
        run_job(connect(name), work, say=lambda _: None)
    assert not cloud.created


def test_the_budget_guard_stops_the_work_and_the_exit_code_says_so(cloud, tmp_path):
    cloud.prices = (36.0,)  # a cent a second
    commands = tmp_path / "stages.txt"
    commands.write_text(
        f"trap 'touch {tmp_path}/clean; exit 130' INT; sleep 600 & wait\ntouch {tmp_path}/never\n"
    )
    words = [
        "cloud", "run", "--provider", "vast", "--gpu", "A100", "--store", str(tmp_path / "store"),
        "--commands", str(commands), "--package", "", "--max-dollars", "0.2", "--poll-seconds",
        "0.2", "--pass", "PYTHONPATH",
    ]  # fmt: skip
    done = CliRunner().invoke(cli, [*words, "--json"])
    assert isinstance(done.exception, BudgetSpentError), done.output
    assert done.exception.exit_code == 3
    report = json.loads(done.stdout)
    assert report["state"] == "budget"
    assert report["dollars"] >= 0.2
    assert (tmp_path / "clean").exists()  # it was asked to stop, not killed
    assert not (tmp_path / "never").exists()
    assert not cloud.machines


def test_an_api_that_fails_for_a_while_does_not_end_the_work(cloud, tmp_path):
    cloud.fail_list = 9
    said = []
    vast = Vast(Api(cloud.url, clouds.ACCOUNT_KEY, "vast", wait_seconds=0.01))
    assert run_job(vast, job(tmp_path, "sleep 2"), say=said.append).state == "done"
    assert len(cloud.created) == 1
    assert any("cannot be seen now" in line for line in said)
    assert not cloud.machines


def test_a_closed_terminal_does_not_keep_the_machine(cloud, tmp_path):
    def say(line):
        raise OSError(5, "Input/output error")

    assert (
        run_job(connect("lambda", ssh_key="mine"), job(tmp_path, "true"), say=say).state == "done"
    )
    assert not cloud.machines


@pytest.mark.slow
def test_a_machine_whose_own_guard_is_dead_is_destroyed_from_outside(cloud, tmp_path, monkeypatch):
    monkeypatch.setattr("actlake.cloud.UPLOAD_SECONDS", 1)
    # The command kills the guard above it, and the report stays at "running".
    work = job(
        tmp_path, "kill -STOP $PPID; sleep 600",
        limits=JobLimits(max_hours=12 / 3600, grace_seconds=1),
    )  # fmt: skip
    report = run_job(connect("lambda", ssh_key="mine"), work, say=lambda _: None)
    assert report.state == "budget"
    assert "did not stop itself" in report.message
    assert not cloud.machines


def test_a_failed_command_lets_the_next_one_run_and_fails_the_job(cloud, tmp_path):
    work = job(tmp_path, "exit 7", f"touch {tmp_path}/second")
    report = run_job(connect("runpod"), work, say=lambda _: None)
    assert (report.state, report.failed) == ("failed", (1,))
    assert (tmp_path / "second").exists()
    assert not cloud.machines


def test_an_installation_that_fails_ends_the_machine_at_once(cloud, tmp_path):
    work = job(tmp_path, "true", package=str(tmp_path / "no-such.whl"))
    with pytest.raises(CloudError, match="ended without a last report"):
        run_job(connect("vast"), work, say=lambda _: None)
    assert len(cloud.created) == 1  # the next machine would fail in the same way
    assert clouds.MACHINE_KEY in cloud.destroyed_by.values()
    log = (tmp_path / "machines/1000/job/log.txt").read_text()
    assert "the installation of actlake failed" in log
    assert SECRET not in log


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_stopping_the_command_gives_the_machine_back(number, cloud, tmp_path):
    (tmp_path / "stages.txt").write_text("sleep 600\n")
    process = subprocess.Popen(
        [f"{BIN}/actlake", "cloud", "run", "--provider", "lambda", "--ssh-key", "mine", "--store",
         str(tmp_path / "store"), "--commands", str(tmp_path / "stages.txt"), "--package", "",
         "--max-hours", "1", "--poll-seconds", "0.2", "--pass", "PYTHONPATH"],
        stderr=subprocess.PIPE, text=True,
        # A suite started in the background of a shell hands on an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    for line in process.stderr:
        if "running, 1 of 1" in line:
            break
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert "given back" in said
    assert cloud.created
    assert not cloud.machines


def test_a_dry_run_says_what_it_would_cost_and_rents_nothing(cloud, tmp_path):
    plan = plan_job(connect("vast"), job(tmp_path, "true", limits=JobLimits(
        max_dollars=5, price_per_hour=1, grace_seconds=60)))  # fmt: skip
    assert plan["dollars per hour"] == 1.0
    assert plan["stops after hours"] == 5.0
    assert plan["costs at most"] == pytest.approx(5 + 360 / 3600, abs=0.01)
    assert SECRET not in json.dumps(plan)
    assert "AWS_SECRET_ACCESS_KEY" in plan["passes"]
    (tmp_path / "stages.txt").write_text("true\n")
    shown = CliRunner().invoke(cli, [
        "cloud", "run", "--provider", "vast", "--gpu", "a100", "--store", "s3://bucket/x",
        "--commands", str(tmp_path / "stages.txt"), "--max-hours", "2", "--dry-run",
    ])  # fmt: skip
    assert shown.exit_code == 0, shown.exception
    assert "s3://bucket/x-jobs/actlake-" in shown.output
    assert not cloud.created
    assert {method for method, _, _ in cloud.requests} == {"POST"}


def test_search_is_sorted_and_filtered_here(cloud):
    cloud.prices = (3.0, 0.5, 1.0)
    shown = CliRunner().invoke(cli, ["cloud", "search", "--provider", "vast", "--gpu", "a100 sxm4",
                                     "--max-price-per-hour", "2", "--json"])  # fmt: skip
    assert [row["price_per_hour"] for row in json.loads(shown.output)] == [0.5, 1.0]
    none = CliRunner().invoke(cli, ["cloud", "search", "--provider", "runpod", "--gpu", "h100"])
    assert none.output.strip() == "nothing"  # there are none in stock


def test_a_job_without_any_limit_is_refused(cloud, tmp_path):
    (tmp_path / "stages.txt").write_text("true\n")
    done = CliRunner().invoke(cli, ["cloud", "run", "--provider", "vast", "--store", "s3://b/x",
                                    "--commands", str(tmp_path / "stages.txt")])  # fmt: skip
    assert isinstance(done.exception, InvalidInputError)
    assert "a limit is needed" in str(done.exception)
    assert not cloud.requests


def test_lambda_refuses_to_detach_since_its_machines_cannot_end_themselves(cloud, tmp_path):
    with pytest.raises(InvalidInputError, match="cannot end themselves"):
        run_job(connect("lambda"), job(tmp_path, "true"), say=lambda _: None, detach=True)


def test_a_key_never_travels_in_the_clear_nor_into_an_error(cloud):
    with pytest.raises(InvalidInputError, match="is not https"):
        Api("http://api.example.org", "k" * 20)
    wrong = Api(cloud.url, "wrong-key-123456", "vast")
    with pytest.raises(CloudError, match="401") as caught:
        wrong.call("GET", "/pods")
    assert "wrong-key-123456" not in str(caught.value)
    assert "***" in str(caught.value)
    assert "wrong-key" not in repr(wrong)


def test_the_report_is_a_record_of_its_own():
    report = JobReport(state="done", n_commands=1, n_started=1)
    assert JobReport.parse_json(report.to_json()) == report
