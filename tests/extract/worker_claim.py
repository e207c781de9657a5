"""Another process that holds a claim: ``worker_claim.py STORE RUN BLOCK`` until stdin closes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from actlake.store import open_store
from actlake.store.block_claims import BlockClaims


@contextmanager
def claim_in_other_process(url: str, run: str, block: int) -> Iterator[None]:
    command = [sys.executable, __file__, url, run, str(block)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "claimed\n"
        yield
        process.kill()


def main() -> None:
    store = open_store(sys.argv[1])
    _, plan_id = store.read_plan_and_id(sys.argv[2])
    claims = BlockClaims(store, store.keys(sys.argv[2]), plan_id=plan_id, writer="abc")
    claims.acquire(int(sys.argv[3]))
    print("claimed", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
