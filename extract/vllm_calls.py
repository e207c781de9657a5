"""What crosses between an engine and vLLM's worker processes: bytes, named arrays, answers.

Arrays go in numpy's own format, without pickle.
"""

from __future__ import annotations

import io
import os
import select
import signal
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import wraps
from typing import Any

import numpy as np

from ..schemas import InvalidInputError

__all__ = ["answered", "end_with", "locate", "pack_arrays", "read_answer", "unpack_arrays"]

_OK, _WRONG = b"\x00", b"\x01"


def pack_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return named arrays as bytes."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **dict[str, Any](arrays))
    return file.getvalue()


def unpack_arrays(data: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of :func:`pack_arrays`."""
    with np.load(io.BytesIO(data), allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def read_answer(answer: bytes) -> bytes:
    """Return what a method of the extension answered; raise InvalidInputError if it failed."""
    if answer[:1] == _OK:
        return answer[1:]
    raise InvalidInputError(answer[1:].decode())


def answered(method: Callable[..., bytes]) -> Callable[..., bytes]:
    """Return a method that answers exceptions: one that leaves a worker ends the whole engine."""

    @wraps(method)
    def call(*args: object) -> bytes:
        try:
            return _OK + method(*args)
        except InvalidInputError as err:
            return _WRONG + str(err).encode()
        except Exception as err:  # carried to the engine  # noqa: BLE001
            return _WRONG + f"vLLM's worker failed: {locate(err)}".encode()

    return call


def end_with(user: int) -> None:
    """End this process and vLLM's core when the process ``user`` has ended, however it did.

    Without it, an engine whose user was killed waits for requests for ever, and keeps its memory.
    """
    if user == os.getpid() or not hasattr(os, "pidfd_open"):
        return
    handle = os.pidfd_open(user)
    # The parent of a tensor-parallel worker is vLLM's core, else this process is the core. Taken
    # now and held: a number may be another process's by then.
    core = os.pidfd_open(os.getppid()) if os.getppid() != user else None

    def wait() -> None:
        ended = select.poll()
        ended.register(handle, select.POLLIN)
        ended.poll()
        if core is not None:
            with suppress(OSError):
                signal.pidfd_send_signal(core, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="actlake-user", daemon=True).start()


def locate(err: Exception) -> str:
    """Return an exception in one line, with where it was raised."""
    where = traceback.extract_tb(err.__traceback__)[-1]
    return f"{type(err).__name__}: {err} (in {where.name}, line {where.lineno})"
