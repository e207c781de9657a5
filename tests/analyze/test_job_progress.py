"""Progress says how many jobs are done, how fast, and how long the rest takes."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

from actlake import job_progress as room
from actlake.job_progress import job_progress


def test_lines_have_a_rate_and_the_time_left(monkeypatch, capsys):
    monkeypatch.setattr(room, "LINE_SECONDS", 0.0)
    with job_progress("one") as told:
        for done in (3, 4, 5):  # two were read: they are no work of this call
            told(done, 5)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert re.fullmatch(r"one: 3 of 5 jobs, \S+ jobs/s, [\d,]+ s left", lines[0])
    assert re.fullmatch(r"one: 5 of 5 jobs, \S+ jobs/s", lines[2])


def test_without_a_terminal_lines_are_few(capsys):
    with job_progress("one") as told:
        for done in range(1, 1001):
            told(done, 1000)
    assert capsys.readouterr().err.splitlines()[-1].startswith("one: 1,000 of 1,000 jobs")
    with job_progress("nothing"):
        pass
    assert capsys.readouterr().err == ""


BAR = """
import time
from actlake.job_progress import job_progress
with job_progress("two") as told:
    for done in range(6, 11):
        time.sleep(0.15)
        told(done, 10)
"""


def test_on_a_terminal_there_is_a_bar_with_rate_and_time_left():
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))  # one has a size
    with subprocess.Popen(
        [sys.executable, "-c", BAR], stderr=theirs, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:  # fmt: skip
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 4096):
                shown += part
        except OSError:  # the other side was closed
            pass
        assert process.wait(timeout=60) == 0
    os.close(ours)
    text = shown.decode()
    assert re.search(r"two:.*\d+/10 \[00:0\d<00:0\d, +[\d.]+job/s\]", text), text
