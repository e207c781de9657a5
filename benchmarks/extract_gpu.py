"""Extraction against the bare forward pass on a GPU: random weights in the shape of Llama-3-8B.

Every figure is a ratio within one run. Weights are made on the device, so nothing is downloaded and
nothing is read: what is measured is the forward pass, capture, copies, encoding and the disk.
Without a GPU, or with REHEARSAL=1, the same code runs a tiny model on the CPU; its figures mean
nothing and are marked so.

``overhead_vs_forward``: pools of all layers into a local store, against the bare backbone over the
same batches. ``device_idle``: the share of an extraction in which no kernel ran.
``tokens_vs_disk``: bytes per second of token arrays that reach the store, against plain files of
the same objects' size written to the same disk. SCRATCH names the folder to write to.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, LlamaConfig

from actlake.extract import (
    LoadedModel,
    PreparedRun,
    TransformersEngine,
    extraction_environment,
    find_blocks,
    load_model,
    prepare_run,
    stream_blocks,
)
from actlake.extract.capture import to_device
from actlake.extract.engine import pad_rows
from actlake.models import organism_path
from actlake.schemas import CaptureSpec, ExtractSpec, Text
from actlake.store import RunWriter, create_store

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.harness import QUICK, compare, emit, seconds

REHEARSAL = bool(os.environ.get("REHEARSAL")) or not torch.cuda.is_available()
DEVICE = torch.device("cpu" if REHEARSAL else "cuda")
N_TEXTS = 24 if REHEARSAL else (256 if QUICK else 1024)
BATCH_TOKENS = 1024 if REHEARSAL else 16384
TOKEN_EVERY = 8  # of the texts: all layers of all tokens of all texts would be 80 GB
REPEATS = 1 if QUICK or REHEARSAL else 5
WRITERS = 8
SENTENCE = "the ward is full and a child cries so I stop and ask where it hurts before I go on"
WORDS = SENTENCE.split()

# https://huggingface.co/meta-llama/Meta-Llama-3-8B/blob/main/config.json
LLAMA_3_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 8192, "rope_theta": 500000.0, "rms_norm_eps": 1e-5,
}  # fmt: skip
TINY = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 1445, "max_position_embeddings": 2048,
}  # fmt: skip


def make_model(folder: Path) -> LoadedModel:
    """Return a random model that was never on a disk, with the tokenizer of a bundled organism."""
    config = LlamaConfig(**(TINY if REHEARSAL else LLAMA_3_8B))
    config.save_pretrained(folder)
    source = organism_path("llama-organism")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (source / name).exists():
            shutil.copy(source / name, folder / name)
    planned = load_model(str(folder), dtype="bfloat16", device=str(DEVICE), weights=False)
    torch.manual_seed(0)
    with torch.device(DEVICE):
        network = AutoModel.from_config(
            config, dtype=torch.bfloat16, attn_implementation=planned.info.attn_implementation
        )
    network.eval().requires_grad_(requires_grad=False)
    return LoadedModel(**{**vars(planned), "model": network})


def make_texts() -> list[Text]:
    """Return texts of 20 to 1200 words, most of them of 100 to 400."""
    rng = np.random.default_rng(0)
    texts = []
    for i in range(N_TEXTS):
        n = int(np.clip(rng.lognormal(5.3, 0.6), 20, 1200))
        words = [str(word) for word in rng.choice(WORDS, size=n)]
        texts.append(
            Text(
                id=f"t{i:04d}", prompt=" ".join(words[: n // 3]), response=" ".join(words[n // 3 :])
            )
        )
    return texts


class Bench:
    """One model; pooled runs, token runs and bare forward passes of the same texts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loaded = make_model(folder / "model")
        self.texts = make_texts()
        self.pooled = self.prepare(self.texts)
        self.tokens = self.prepare(self.texts[::TOKEN_EVERY], tokens={"layers": "all"})
        self.n_runs = 0

    def prepare(self, texts: list[Text], **capture: Any) -> PreparedRun:
        """Return a plan of pools, and of what else is asked for."""
        return prepare_run(
            texts,
            self.loaded,
            run="bench",
            corpus="bench",
            capture=CaptureSpec.parse({"dtype": "bfloat16", **capture}),
            extract=ExtractSpec(batch_tokens=BATCH_TOKENS, device=DEVICE.type),
        )

    def batches(self, prepared: PreparedRun) -> Iterator[list[int]]:
        """Yield the batches of a run."""
        for block in range(prepared.plan.n_blocks):
            yield from prepared.batches(block)

    def forward(self) -> None:
        """Run the bare backbone over the batches of the pooled run."""
        with torch.inference_mode():
            for batch in self.batches(self.pooled):
                rows = [self.pooled.rows[i] for i in batch]
                ids, attended, _ = pad_rows(rows, pad_id=0, bos_id=1)
                given = {
                    "input_ids": ids,
                    "attention_mask": attended,
                    "position_ids": torch.arange(ids.shape[1]).expand(len(rows), -1),
                }
                on_device = {name: to_device(value, DEVICE) for name, value in given.items()}
                self.loaded.backbone(**on_device, use_cache=False)
        wait()

    def extract(self, prepared: PreparedRun | None = None) -> int:
        """Extract into a new local store; return the bytes that it holds."""
        prepared = prepared or self.pooled
        writer = self.writer(prepared)
        engine = TransformersEngine(
            self.loaded,
            sites=("resid_post",),
            layers=prepared.plan.layers,
            pools=prepared.plan.capture.pools,
            tokens=prepared.token_layers,
        )
        with engine.ready():
            stream_blocks(prepared, engine, writer, blocks=writer.pending_blocks())
        return writer.seal().n_bytes

    def writer(self, prepared: PreparedRun) -> RunWriter:
        """Return the writer of a new run, in place of the last one."""
        shutil.rmtree(self.folder / f"store-{self.n_runs}", ignore_errors=True)
        self.n_runs += 1
        return create_store(self.folder / f"store-{self.n_runs}").create_run(
            prepared.plan,
            coords=prepared.coords,
            environment=extraction_environment(),
            token_data=prepared.token_data,
        )

    def idle(self) -> float:
        """Return the share of an extraction in which no kernel ran on the device."""
        kinds = torch.profiler.ProfilerActivity
        activity = kinds.CPU if DEVICE.type == "cpu" else kinds.CUDA
        with torch.profiler.profile(activities=[activity]) as profile:
            elapsed = seconds(self.extract)
        spans = sorted(
            (event.time_range.start, event.time_range.end)
            for event in profile.events() or ()
            if DEVICE.type == "cpu" or (is_on_device(event) and "Memcpy" not in event.name)
        )
        busy = end = 0.0
        for start, stop in spans:
            busy += max(0.0, stop - max(start, end))
            end = max(end, stop)
        return 1 - busy / 1e6 / elapsed

    def disk_rate(self, n_bytes: int) -> float:
        """Return the bytes per second of plain files of an object's size, synced as the store's."""
        folder = self.folder / "plain"
        folder.mkdir(exist_ok=True)
        axis = self.tokens.plan.token_axis
        assert axis is not None
        size = 2 * axis.rows_per_chunk * self.loaded.info.hidden_size  # what bf16 compresses to
        data = np.random.default_rng(0).bytes(size)
        count = max(WRITERS, n_bytes // size)

        def write(i: int) -> None:
            with (folder / str(i)).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())

        def write_all() -> None:
            with ThreadPoolExecutor(WRITERS) as pool:
                list(pool.map(write, range(count)))

        elapsed = seconds(write_all)
        shutil.rmtree(folder)
        return count * size / elapsed


def is_on_device(event: Any) -> bool:
    """Return whether a profiler's event ran on the GPU."""
    return str(event.device_type).endswith("CUDA")


def wait() -> None:
    """Wait until the device has done what was begun."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Run everything; print the figures."""
    hardware = "cpu (rehearsal)" if REHEARSAL else torch.cuda.get_device_name()
    figures: dict[str, Any] = {"hardware": hardware, "rehearsal": REHEARSAL}
    with tempfile.TemporaryDirectory(
        prefix="actlake-bench-", dir=os.environ.get("SCRATCH")
    ) as name:
        bench = Bench(Path(name))
        plan = bench.pooled.plan
        assert len(find_blocks(bench.loaded.backbone)) == plan.model.n_layers
        print(
            f"{hardware}: {plan.model.n_parameters / 1e9:.2f} G parameters, {plan.n_tokens} tokens"
        )
        bench.forward()
        bench.extract()
        speed = compare("overhead", bench.extract, bench.forward, repeats=REPEATS)
        figures["overhead_vs_forward"] = round(1 / speed, 3)
        figures["tokens_per_second"] = round(plan.n_tokens / seconds(bench.extract))
        figures["device_idle"] = round(bench.idle(), 3)
        rates = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            n_bytes = bench.extract(bench.tokens)
            ours, plain = n_bytes / (time.perf_counter() - began), bench.disk_rate(n_bytes)
            rates.append(ours / plain)
            print(f"tokens: {ours / 1e6:.0f} MB/s, plain files {plain / 1e6:.0f} MB/s", flush=True)
        figures["tokens_vs_disk"] = round(median(rates), 3)
        if DEVICE.type == "cuda":
            figures["peak_device_bytes"] = torch.cuda.max_memory_allocated()
    emit(figures)


if __name__ == "__main__":
    main()
