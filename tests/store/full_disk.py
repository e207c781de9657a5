"""A process whose disk is too small: ``full_disk.py FOLDER KIND``; prints what happened as JSON."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from actlake.schemas import StorageError
from actlake.store import create_store, open_run, verify_run
from tests.store.samples import make_plan, make_values, write_run

DISK_BYTES = 1_500_000


def shrink_disk(folder: Path, kind: str) -> str:
    """Mount a small file system on ``folder``, or bound the size of files.

    Either way the kernel itself refuses the write, with ENOSPC or with EFBIG. Where this
    process may not mount anything, files are bounded instead.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, new_user, private, recursive = 0x20000, 0x10000000, 1 << 18, 1 << 14
    flags = new_mounts if os.getuid() == 0 else new_mounts | new_user
    options = f"size={DISK_BYTES}".encode()
    mounted = (
        kind == "disk"
        and libc.unshare(flags) == 0
        and libc.mount(b"none", b"/", None, private | recursive, None) == 0
        and libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, options) == 0
    )
    if mounted:
        return "tmpfs"
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
    return "limit"


def grow_disk(folder: Path, how: str) -> None:
    """Undo :func:`shrink_disk`, keeping what was written."""
    if how == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    remount = 32
    if libc.mount(b"none", str(folder).encode(), b"tmpfs", remount, b"size=100000000") != 0:
        raise OSError(ctypes.get_errno(), "remount failed")


def main() -> None:
    folder = Path(sys.argv[1])
    how = shrink_disk(folder, sys.argv[2])
    store = create_store(folder / "store")
    # Random bits do not compress: a block has 2 x 3 objects of 128 kB.
    plan = make_plan(n_texts=40, rows=8, hidden=4096)
    rng = np.random.default_rng(0)
    values = {
        name: rng.integers(0, 2**30, full.shape, dtype=np.uint32).view(np.float32)
        for name, full in make_values(plan).items()
    }
    if how == "limit":  # a few small blocks fit first, as they do on the small disk
        for full in values.values():
            full[:8] = 0
    writer = write_run(store, plan, blocks=[], seal=False)
    message = ""
    for block in range(plan.n_blocks):
        part = {name: full[plan.block_rows(block)] for name, full in values.items()}
        try:
            writer.write_block(block, part)
        except StorageError as err:
            message = str(err)
            break
    failed = block
    strays = [str(p) for p in folder.rglob("*.tmp-*")]
    left = [key for key, _ in store.backend.walk("runs") if f"/c/{failed}/" in key]
    committed = store.committed_blocks("tiny")
    partial = open_run(store, "tiny", allow_partial=True)["committed"].values.tolist()
    grow_disk(folder, how)
    writer = write_run(store, plan, blocks=[], seal=False)
    resumed = writer.pending_blocks()
    for block in resumed:
        part = {name: full[plan.block_rows(block)] for name, full in values.items()}
        writer.write_block(block, part)
    writer.seal()
    ds = open_run(store, "tiny")
    same = all(np.array_equal(ds[name].values, full) for name, full in values.items())
    report = {
        "how": how, "message": message, "failed": failed, "strays": strays, "left": left,
        "committed": committed, "partial": partial, "resumed": resumed, "same": same,
        "ok": verify_run(store, "tiny").ok,
    }  # fmt: skip
    print(json.dumps(report))


if __name__ == "__main__":
    main()
