"""Batches on their way to the host: bounded, in order, and unharmed by what runs meanwhile."""

import threading

import pytest
import torch

from actlake.extract.host_copies import HostCopies
from actlake.extract.pipe import Stopped

pytestmark = pytest.mark.torch


def batch(seed, *, n=7, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.randn(n, 4, 32, generator=generator)
    tokens = torch.randn(5 * n, 2, 32, generator=generator).bfloat16()
    return {"pooled": pooled.to(device), "tokens": tokens.to(device)}


def same(seen, wanted):
    return set(seen) == set(wanted) and all(
        seen[name].device.type == "cpu"
        and seen[name].dtype == wanted[name].dtype
        and torch.equal(seen[name], wanted[name].cpu())
        for name in wanted
    )


def test_a_batch_arrives_as_it_was():
    copies = HostCopies(2, threading.Event())
    first, second = (copies.start(batch(seed, n=3 + seed)) for seed in range(2))
    assert same(second.wait(), batch(1, n=4))
    assert same(first.wait(), batch(0, n=3))


def test_a_third_batch_waits_until_one_of_two_is_released():
    copies = HostCopies(2, threading.Event())
    under_way = [copies.start(batch(seed)) for seed in range(2)]
    begun = threading.Event()
    late = []

    def start_another():
        late.append(copies.start(batch(2)))
        begun.set()

    thread = threading.Thread(target=start_another)
    thread.start()
    assert not begun.wait(0.3)
    assert same(under_way[0].wait(), batch(0))
    under_way[0].release()
    assert begun.wait(10)
    thread.join()
    assert same(late[0].wait(), batch(2))
    assert same(under_way[1].wait(), batch(1))


def test_who_waits_for_a_slot_leaves_when_the_pipeline_stops():
    stop = threading.Event()
    copies = HostCopies(1, stop)
    held = copies.start(batch(0))
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(Stopped):
        copies.start(batch(1))
    assert same(held.wait(), batch(0))


@pytest.mark.gpu
def test_on_a_gpu_copies_overlap_with_what_computes_and_overwrites():
    """The values of a copy to pageable memory on the same stream, though their tensors are gone."""
    copies = HostCopies(2, threading.Event())
    noise = torch.randn(4096, 4096, device="cuda")
    for seed in range(20):
        device = batch(seed, n=200 + seed, device="cuda")
        scaled = {name: (values * 2).contiguous() for name, values in device.items()}
        wanted = {name: values.cpu() for name, values in scaled.items()}
        torch.cuda._sleep(10_000_000)  # the copy must wait for what computes
        scaled = {name: (values * 2).contiguous() for name, values in device.items()}
        arriving = copies.start(scaled)
        del scaled  # the allocator may give their memory to the next lines
        for _ in range(3):
            torch.full((200 + seed, 4, 32), float("nan"), device="cuda")
            noise = (noise @ noise).tanh()
        seen = arriving.wait()
        assert all(values.is_pinned() for values in seen.values())
        assert same(seen, wanted)
        arriving.release()


@pytest.mark.gpu
def test_a_run_on_a_gpu_is_that_of_the_cpu(tmp_path):
    import numpy as np

    from actlake.corpus import corpus_info
    from actlake.extract import extract_run
    from actlake.schemas import CaptureSpec, ExtractSpec
    from actlake.store import create_store, open_run
    from tests.extract.test_run import TEXTS
    from tests.extract.tiny import tiny_folder

    folder = tiny_folder("llama", tmp_path / "tiny-llama")
    capture = CaptureSpec.parse({"sites": ["resid_pre", "resid_post"], "tokens": {}})
    runs = []
    for device in ("cpu", "cuda"):
        store = create_store(tmp_path / device)
        spec = ExtractSpec(
            chunk_size=7, batch_tokens=200, device=device, attn_implementation="eager"
        )
        extract_run(
            store, TEXTS, corpus_info("c", TEXTS), model=str(folder), run="r", capture=capture,
            extract=spec,
        )  # fmt: skip
        runs.append(open_run(store, "r").compute())
    cpu, gpu = runs
    for name in cpu.data_vars:
        if not name.startswith("resid_"):
            continue
        scale = float(np.abs(cpu[name]).max())
        np.testing.assert_allclose(gpu[name], cpu[name], rtol=1e-3, atol=1e-4 * scale)
