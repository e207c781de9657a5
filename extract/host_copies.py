"""Copies of a batch's arrays off the device, beside the forward passes that follow.

On a CUDA device they run on a stream of their own, into pinned memory that is used again:
allocating pinned memory waits for the whole device, and a copy into other memory is no overlap.
Elsewhere there is nothing to copy, and the rest is the same.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from .pipe import Pipe

__all__ = ["HostArrays", "HostCopies"]

_HEADROOM = 8  # a buffer is made larger than needed by this share: batches differ a little


@dataclass
class _Slot:
    """Pinned buffers of one batch, by the names of its arrays; they grow as they must."""

    buffers: dict[str, torch.Tensor] = field(default_factory=dict)

    def like(self, name: str, array: torch.Tensor) -> torch.Tensor:
        """Return pinned memory of the shape, type and strides of ``array``: one plain copy."""
        n_bytes = array.numel() * array.element_size()
        held = self.buffers.pop(name, None)
        if held is None or held.numel() < n_bytes:
            held = None  # freed before its successor is made
            size = n_bytes + n_bytes // _HEADROOM
            held = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        self.buffers[name] = held
        flat = held[:n_bytes].view(array.dtype)
        return torch.as_strided(flat, array.shape, _strides(array))


def _strides(array: torch.Tensor) -> tuple[int, ...]:
    """Return the strides of ``array`` where it has no gaps, else those of a plain copy."""
    return torch.empty_like(array, device="meta").stride()


class HostArrays:
    """The arrays of one batch on their way to the host."""

    def __init__(self, arrays: Mapping[str, torch.Tensor], slot: _Slot, free: Pipe[_Slot]) -> None:
        self._arrays = dict(arrays)
        self._events: list[torch.cuda.Event] = []
        self._slot = slot
        self._free = free

    def note(self, event: torch.cuda.Event) -> None:
        """Wait for ``event`` too before the arrays are read."""
        self._events.append(event)

    def wait(self) -> dict[str, torch.Tensor]:
        """Return the arrays, on the host, when they are there; valid until ``release``."""
        for event in self._events:
            event.synchronize()
        return self._arrays

    def release(self) -> None:
        """Give the memory back to a batch that comes later."""
        self._arrays = {}
        self._free.put(self._slot)


class HostCopies:
    """Begins copies, of which at most ``n_slots`` are under way or not released.

    Parameters
    ----------
    n_slots
        2 is a double buffer: one batch is copied while another is read.
    stop
        Ends the waiting for a free slot.
    """

    def __init__(self, n_slots: int, stop: threading.Event) -> None:
        self._free: Pipe[_Slot] = Pipe(n_slots, stop)
        for _ in range(n_slots):
            self._free.put(_Slot())
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def start(self, arrays: Mapping[str, torch.Tensor]) -> HostArrays:
        """Begin to copy a batch's arrays when a slot is free; what computes them may still run.

        Raises
        ------
        Stopped
            If the pipeline stops first.
        """
        slot = self._free.get()
        host = {
            name: slot.like(name, array) if array.is_cuda else array.cpu()
            for name, array in arrays.items()
        }
        copies = HostArrays(host, slot, self._free)
        for device in {array.device for array in arrays.values() if array.is_cuda}:
            stream = self._stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for name, array in arrays.items():
                    if array.device == device:
                        host[name].copy_(array, non_blocking=True)
                        # Its memory is another tensor's only when this copy is over.
                        array.record_stream(stream)
            copies.note(stream.record_event())
        return copies

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return self._streams[device]
