"""Run the bundled study in a fresh folder and open its report, as a user would feel it.

``actlake demo`` runs in a process of its own; its report is opened from disk in headless Chromium
(``CHROMIUM``, ``CHROMEDRIVER``: other programs than those on PATH). The last line is one JSON
object: wall seconds, peak resident memory, seconds by stage, the report's size, milliseconds until
it is loaded, with a drawing of every figure, and until the last of them is live (medians of five),
errors on the console, and what the study found.
``QUICK=1`` ends with the probes.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.harness import QUICK, emit

N_LOADS = 5
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
LOADED = "return performance.getEntriesByType('navigation')[0].loadEventEnd"
DRAWN = "return document.documentElement.dataset.charts === 'done'"


def run_demo(out: Path) -> tuple[dict[str, Any], float, float]:
    """Return what the study printed, its wall seconds, and its peak resident memory [MB]."""
    actlake = str(Path(sys.executable).with_name("actlake"))
    command = [actlake, "demo", "--out", str(out), "--json"]
    if QUICK:
        command = [actlake, "study", "run", "bundled:demo", "--until", "probe", *command[2:]]
    printed = out / "printed.json"
    began = time.monotonic()
    stdout = os.open(printed, os.O_WRONLY | os.O_CREAT)
    child = os.posix_spawn(
        command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, stdout, 1)]
    )
    _, status, usage = os.wait4(child, 0)  # wait4 gives its rusage
    seconds = time.monotonic() - began
    if os.waitstatus_to_exitcode(status) != 0:
        sys.exit(f"actlake demo failed with {os.waitstatus_to_exitcode(status)}")
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes there, kilobytes here
    return json.loads(printed.read_text()), seconds, usage.ru_maxrss * unit / 2**20


def open_report(path: Path, profile: Path) -> tuple[float, float, int]:
    """Return the milliseconds to the load event and to the last live figure, and the errors."""
    options = webdriver.ChromeOptions()
    options.binary_location = os.environ.get("CHROMIUM") or str(shutil.which("chromium"))
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = os.environ.get("CHROMEDRIVER") or shutil.which("chromedriver")
    browser = webdriver.Chrome(options=options, service=Service(driver))
    loaded, taken, errors = [], [], 0
    try:
        for _ in range(N_LOADS):
            browser.get("about:blank")
            began = time.perf_counter()
            browser.get(path.as_uri())
            WebDriverWait(browser, 120, poll_frequency=0.01).until(
                lambda b: b.execute_script(DRAWN)
            )
            taken.append(1000 * (time.perf_counter() - began))
            loaded.append(float(browser.execute_script(LOADED)))
            log: list[dict[str, Any]] = browser.get_log("browser")
            errors += sum(entry["level"] == "SEVERE" for entry in log)
    finally:
        browser.quit()
    return median(loaded), median(taken), errors


def main() -> None:
    """Measure one whole demo and its report."""
    with tempfile.TemporaryDirectory(prefix="actlake-bench-") as folder:
        out = Path(folder)
        printed, seconds, peak = run_demo(out)
        report = Path(printed["report"])
        load, drawn, errors = open_report(report, out / "profile")
        by_stage: defaultdict[str, float] = defaultdict(float)
        for task in printed["tasks"]:
            by_stage[task["task"].split()[0]] += task["seconds"]
        found = printed["summary"]
        emit(
            {
                "demo_study_seconds": round(seconds, 1),
                "demo_peak_rss_mb": round(peak),
                "report_mb": round(report.stat().st_size / 2**20, 2),
                "report_load_ms": round(load),
                "report_drawn_ms": round(drawn),
                "console_errors": errors,
                "unfinished": len(printed["unfinished"]),
                "stage_seconds": {
                    stage: round(taken, 1)
                    for stage, taken in sorted(by_stage.items(), key=lambda item: -item[1])
                },
                "auroc_best": {row["run"]: row["auroc"] for row in found},
                "steer_effect_vs_random": {row["run"]: row.get("steer_vs_random") for row in found},
            }
        )


if __name__ == "__main__":
    main()
