"""A process that writes a run slowly, to be killed: ``slow_writer.py URL OPTIONS N_BLOCKS``.

With ``append`` behind these it appends as many texts to the small run instead.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from actlake.store import create_store
from tests.store.appends import added_plan, start_append
from tests.store.samples import block_values, make_plan, write_run


def kill_plan(n_blocks: int):
    """Return a run with one row per block."""
    return make_plan("killed", n_texts=n_blocks, rows=1, n_layers=2)


def main() -> None:
    url, options, n_blocks = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
    is_append = sys.argv[4:] == ["append"]
    plan = added_plan(n=n_blocks, rows=1) if is_append else kill_plan(n_blocks)
    print("ready", flush=True)
    store = create_store(url, storage_options=options)
    if is_append:
        writer = start_append(store, plan)
    else:
        writer = write_run(store, plan, blocks=[], seal=False)
    put = store.backend.put

    def put_slowly(key: str, data: bytes) -> None:
        time.sleep(0.004)
        put(key, data)

    store.backend.put = put_slowly  # type: ignore[method-assign]
    for block in writer.pending_blocks():
        writer.write_block(block, block_values(plan, block))
        print("block", block, flush=True)
    writer.seal()
    print("sealed", flush=True)


if __name__ == "__main__":
    main()
