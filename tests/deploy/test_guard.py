"""Commands under a budget end cleanly, and what they stored can be resumed."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlake.guard import hide_secrets, read_commands, run_guarded
from actlake.schemas import InvalidInputError, JobLimits

BIN = Path(sys.executable).parent


def hours(seconds):
    return seconds / 3600


@given(
    dollars=st.none() | st.floats(0.01, 1000),
    limit=st.none() | st.floats(0.01, 1000),
    price=st.floats(0.01, 100),
)
def test_the_first_limit_counts(dollars, limit, price):
    if dollars is None and limit is None:
        with pytest.raises(InvalidInputError, match="a limit is needed"):
            JobLimits.parse({})
        return
    found = JobLimits(max_dollars=dollars, max_hours=limit, price_per_hour=price).hours
    assert dollars is None or found * price <= dollars * (1 + 1e-9)
    assert limit is None or found <= limit
    assert found in {limit, None if dollars is None else dollars / price}


def test_what_was_spent_before_the_first_command_counts(tmp_path):
    limits = JobLimits(max_dollars=1, price_per_hour=3600)
    report = run_guarded([f"touch {tmp_path}/x"], limits, started_at=time.time() - 2)
    assert report.state == "budget"
    assert report.dollars == pytest.approx(2, abs=0.5)
    assert not (tmp_path / "x").exists()


def test_a_command_that_ignores_the_signal_is_killed_after_the_grace(tmp_path):
    limits = JobLimits(max_hours=hours(0.5), grace_seconds=0.5)
    sleeper = f"{sys.executable} -c 'import time; time.sleep(60)'"
    command = f"trap '' INT; {sleeper} & echo $! > {tmp_path}/pid; wait"
    began = time.monotonic()
    assert run_guarded([command], limits).state == "budget"
    assert time.monotonic() - began < 20
    child = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 10
    while _is_alive(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _is_alive(child)


def _is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_work_that_does_nothing_is_stopped_and_work_that_computes_is_not():
    limits = JobLimits(max_hours=1, idle_minutes=1.5 / 60, grace_seconds=2)
    began = time.monotonic()
    assert run_guarded(["sleep 60"], limits).state == "idle"
    assert time.monotonic() - began < 30
    busy = f"{sys.executable} -c 'import time; t = time.time() + 4\nwhile time.time() < t: pass'"
    assert run_guarded([busy], limits).state == "done"


def test_ending_the_guard_ends_the_work_with_sigint(tmp_path):
    command = f"trap 'touch {tmp_path}/clean; exit 130' INT; touch {tmp_path}/up; sleep 60 & wait"
    (tmp_path / "stages.txt").write_text(command + "\n")
    process = subprocess.Popen([BIN / "actlake", "cloud", "guard", "--commands",
                                tmp_path / "stages.txt", "--max-hours", "1"])  # fmt: skip
    while not (tmp_path / "up").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 130
    assert (tmp_path / "clean").exists()


def test_commands_are_read_as_a_shell_would(tmp_path):
    file = tmp_path / "stages.txt"
    file.write_text("# a comment\n\necho a \\\n    b\n  echo c\n")
    assert read_commands(file) == ["echo a b", "echo c"]
    file.write_text("# nothing\n")
    with pytest.raises(InvalidInputError, match="holds no command"):
        read_commands(file)
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_commands(tmp_path / "missing")


def test_secrets_do_not_reach_a_log(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hf_abcdefgh/and/more")
    assert hide_secrets("x hf_abcdefgh/and/more y hf_abcdefgh") == "x *** y ***"


def test_a_guard_in_a_thread_works_without_signals():
    found = []
    thread = threading.Thread(
        target=lambda: found.append(run_guarded(["true"], JobLimits(max_hours=1)))
    )
    thread.start()
    thread.join(timeout=30)
    assert found[0].state == "done"


@pytest.mark.parametrize("given", [{"max_dollars": 1}, {"max_dollars": 1, "price_per_hour": 0}, {}])
def test_limits_that_limit_nothing_are_refused(given):
    with pytest.raises(InvalidInputError):
        JobLimits.parse(given)


def test_the_script_for_a_machine_gives_it_back_whatever_happened(tmp_path):
    stages = tmp_path / "stages.txt"
    root = Path(__file__).parents[2]
    env = os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}", "STORE": str(tmp_path / "s"),
        "COMMANDS": str(stages), "TEARDOWN": f"touch {shlex.quote(str(tmp_path / 'gone'))}",
    }  # fmt: skip
    for command, code in (("true", 0), ("false", 1), ("sleep 60", 3)):
        stages.write_text(command + "\n")
        done = subprocess.run(
            ["bash", root / "deploy/run.sh", "--max-hours", "0.0008", "--grace-seconds", "2"],
            env=env, check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        (tmp_path / "gone").unlink()
