"""Run `actlake demo` in a fresh folder and measure it as a user would feel it.

The last line is one JSON object: wall seconds, peak resident memory, and what the study found.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    """Measure one whole demo in a process of its own."""
    out = Path(tempfile.mkdtemp(prefix="actlake-bench-"))
    command = [str(Path(sys.executable).with_name("actlake")), "demo", "--out", str(out)]
    began = time.monotonic()
    child = os.spawnv(os.P_NOWAIT, command[0], command)  # wait4 gives its rusage
    _, status, usage = os.wait4(child, 0)
    seconds = time.monotonic() - began
    if os.waitstatus_to_exitcode(status) != 0:
        sys.exit(f"actlake demo failed with {os.waitstatus_to_exitcode(status)}")
    summary = json.loads((out / "results" / "summary.json").read_text())
    shutil.rmtree(out)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes there, kilobytes here
    print(
        json.dumps(
            {
                "demo_seconds": round(seconds, 1),
                "demo_peak_rss_mb": round(usage.ru_maxrss * unit / 2**20),
                "auroc_best": {row["run"]: row["auroc"] for row in summary},
                "steer_effect_vs_random": {row["run"]: row["steer_vs_random"] for row in summary},
            }
        )
    )


if __name__ == "__main__":
    main()
