"""Values that name their writer, and a worker process: ``racing.py URL OPTIONS ID SHARE``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from actlake.store import BlockClaimedError, create_store, open_run
from tests.store.samples import make_plan, with_tokens, write_run

STEP = 100


def race_plan(*, n_blocks: int = 6, rows: int = 2, tokens: bool = False):
    plan = make_plan("race", n_texts=n_blocks * rows, rows=rows, n_layers=3, hidden=8)
    return with_tokens(plan, rows=4) if tokens else plan


def _rows(plan, spec, block: int) -> slice:
    found: slice = plan.token_axis.tokens(block) if spec.is_tokens else plan.block_rows(block)
    return found


def writer_values(plan, block: int, writer: int) -> dict[str, np.ndarray]:
    """Return a block whose every value says who wrote it and where it belongs."""
    values = {}
    for spec in plan.arrays:
        rows = _rows(plan, spec, block)
        shape = (rows.stop - rows.start, *spec.shape[1:])
        values[spec.name] = np.full(shape, writer * STEP + block, dtype=np.float32)
    return values


def authors(store, plan) -> dict[int, int]:
    """Return who wrote each block that a reader sees, after checking that nothing is mixed."""
    ds = open_run(store, plan.run, allow_partial=True, chunks=None)
    seen = ds["committed"].values
    found = {}
    for block in range(plan.n_blocks):
        rows = plan.block_rows(block)
        parts = [ds[spec.name].values[_rows(plan, spec, block)].ravel() for spec in plan.arrays]
        values = np.concatenate(parts)
        assert len(set(seen[rows])) == 1
        if not seen[rows][0]:
            assert np.isnan(values).all(), f"block {block} shows what is not committed"
            continue
        assert len(set(values)) == 1, f"block {block} mixes {set(values)}"
        writer, place = divmod(int(values[0]), STEP)
        assert place == block
        found[block] = writer
    return found


def main() -> None:
    url, options, me = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
    index, count = (int(part) for part in sys.argv[4].split("/"))
    plan = race_plan()
    store = create_store(url, storage_options=options)
    writer = write_run(store, plan, blocks=[], seal=False)
    print("ready", flush=True)
    sys.stdin.readline()  # all begin together
    refused = []
    while mine := [b for b in writer.pending_blocks() if b % count == index - 1]:
        for block in mine:
            try:
                if writer.claim_block(block):
                    time.sleep(0.02)  # the forward pass
                    writer.write_block(block, writer_values(plan, block, me))
            except BlockClaimedError as err:
                refused.append(str(err))
                time.sleep(0.01)
    if not writer.pending_blocks():
        writer.seal()
    print(json.dumps(refused), flush=True)


if __name__ == "__main__":
    main()
