"""Extraction against the bare forward pass, on the CPU: a random Llama, 400 texts of mixed length.

Every figure is a ratio within one run. QUICK=1 uses a smaller model and fewer texts. Where
TransformerLens and nnsight are installed (the environment of ``make test-oracle``), the same
activations are brought to disk with them too.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from actlake.corpus import corpus_info
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
from actlake.extract.engine import pad_rows
from actlake.models import organism_path
from actlake.schemas import CaptureSpec, ExtractSpec, Text
from actlake.schemas.capture import TokenCapture
from actlake.store import create_store

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.harness import QUICK, compare, emit, seconds

N_TEXTS = 60 if QUICK else 400
N_LAYERS, HIDDEN = (6, 256) if QUICK else (12, 640)  # 60 M parameters
REPEATS = 1 if QUICK else 3
SENTENCE = (
    "the ward is full and a child is crying so I stop and ask where it hurts before I go on "
    "with the round that was planned for this morning"
)
WORDS = SENTENCE.split()


def make_model(folder: Path) -> None:
    """Save a random Llama with the tokenizer of a bundled organism."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1445, hidden_size=HIDDEN, intermediate_size=11 * HIDDEN // 4,
        num_hidden_layers=N_LAYERS, num_attention_heads=8, num_key_value_heads=8,
        max_position_embeddings=1024, pad_token_id=0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    source = organism_path("llama-organism")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (source / name).exists():
            shutil.copy(source / name, folder / name)


def make_texts() -> list[Text]:
    """Return texts of 10 to 250 words, most of them short."""
    rng = np.random.default_rng(0)
    texts = []
    for i in range(N_TEXTS):
        n = int(np.clip(rng.lognormal(3.6, 0.7), 10, 250))
        words = [str(w) for w in rng.choice(WORDS, size=n)]
        texts.append(
            Text(
                id=f"t{i:04d}",
                prompt=" ".join(words[: n // 3]),
                response=" ".join(words[n // 3 :]),
                arm="positive" if i % 2 else "negative",
                pair=f"p{i // 2}",
                scenario=f"s{i // 20}",
            )
        )
    return texts


def run_forward(loaded: LoadedModel, prepared: PreparedRun) -> None:
    """Run the bare backbone over the batches of a plan."""
    with torch.inference_mode():
        for block in range(prepared.plan.n_blocks):
            for batch in prepared.batches(block):
                rows = [prepared.rows[i] for i in batch]
                ids, attended, _ = pad_rows(rows, pad_id=0, bos_id=1)
                loaded.backbone(
                    input_ids=ids, attention_mask=attended, use_cache=False,
                    position_ids=torch.arange(ids.shape[1]).expand(len(rows), -1),
                )  # fmt: skip


class Bench:
    """One model, one plan; each measure does the same texts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = folder / "model"
        make_model(self.model)
        self.texts = make_texts()
        self.loaded = load_model(str(self.model), device="cpu")
        self.prepared = self.prepare(16384 if not QUICK else 4096)
        self.alone = self.prepare(1)
        self.tokens = self.prepare(16384 if not QUICK else 4096, tokens=TokenCapture())
        self.n_runs = 0
        n = self.loaded.info.n_parameters / 1e6
        print(f"{n:.0f} M parameters, {self.prepared.plan.n_tokens} tokens")

    def prepare(self, batch_tokens: int, *, tokens: TokenCapture | None = None) -> Any:
        """Return the plan with batches of so many tokens, all layers token by token if asked."""
        return prepare_run(
            self.texts,
            self.loaded,
            run="bench",
            corpus="bench",
            capture=CaptureSpec(tokens=tokens),
            extract=ExtractSpec(batch_tokens=batch_tokens, chunk_size=64, device="cpu"),
        )

    def forward(self) -> None:
        """Run the bare backbone over the same batches."""
        run_forward(self.loaded, self.prepared)

    def extract(self, prepared: Any = None) -> None:
        """Pool all layers into a new local store."""
        prepared = prepared or self.prepared
        self.n_runs += 1
        store = create_store(self.folder / f"store-{self.n_runs}")
        writer = store.create_run(
            prepared.plan,
            coords=prepared.coords,
            environment=extraction_environment(),
            token_data=prepared.token_data,
        )
        engine = TransformersEngine(
            self.loaded, sites=("resid_post",), layers=prepared.plan.layers,
            pools=prepared.plan.capture.pools, tokens=prepared.token_layers,
        )  # fmt: skip
        with engine.ready():
            stream_blocks(prepared, engine, writer, blocks=writer.pending_blocks())
        writer.seal()

    def pooled_by(self, run: Callable[[torch.Tensor, torch.Tensor], list[torch.Tensor]]) -> None:
        """Bring the pools of all layers to disk, a file per batch, with another library's ``run``.

        It is given our own batches, ids and attention mask (row, token), and returns each layer's
        output (row, token, hidden).
        """
        self.n_runs += 1
        folder = self.folder / f"other-{self.n_runs}"
        folder.mkdir()
        prepared = self.prepared
        for block in range(prepared.plan.n_blocks):
            for batch in prepared.batches(block):
                rows = [prepared.rows[i] for i in batch]
                ids, attended, masks = pad_rows(rows, pad_id=0, bos_id=1)
                every = torch.arange(len(rows))
                pools = []
                for hidden in run(ids, attended):
                    kept = torch.where(masks.response[..., None], hidden, 0.0).sum(dim=1)
                    pools += [
                        kept / masks.response.sum(dim=1)[:, None],
                        hidden[every, masks.positions["last_prompt"]],
                        hidden[every, masks.positions["last_response"]],
                    ]
                torch.save(torch.stack(pools), folder / f"{batch[0]}.pt")

    def libraries(self) -> dict[str, Callable[[], None]]:
        """Return what does the same with each library that is installed."""
        found: dict[str, Callable[[], None]] = {}
        if importlib.util.find_spec("transformer_lens"):
            from transformer_lens.model_bridge import TransformerBridge

            bridge = TransformerBridge.boot_transformers(str(self.model), device="cpu")
            names = [f"blocks.{layer}.hook_out" for layer in range(N_LAYERS)]

            def lens(ids: torch.Tensor, attended: torch.Tensor) -> list[torch.Tensor]:
                with torch.inference_mode():
                    _, cache = bridge.run_with_cache(
                        ids, attention_mask=attended, names_filter=names, return_type=None
                    )
                return [cache[name] for name in names]

            found["transformerlens"] = partial(self.pooled_by, lens)
        if importlib.util.find_spec("nnsight"):
            from nnsight import NNsight

            wrapped = NNsight(AutoModelForCausalLM.from_pretrained(self.model))

            def sight(ids: torch.Tensor, attended: torch.Tensor) -> list[torch.Tensor]:
                seen = []
                with torch.inference_mode(), wrapped.trace(ids, attention_mask=attended):
                    for block in wrapped.model.layers:
                        seen.append(block.output.save())  # noqa: PERF401
                return seen

            found["nnsight"] = partial(self.pooled_by, sight)
        return found

    def naive(self, n_texts: int) -> None:
        """One causal-LM forward per text and layer with all hidden states, as scripts do."""
        model = AutoModelForCausalLM.from_pretrained(self.model)
        step = max(1, N_TEXTS // n_texts)
        with torch.inference_mode():
            for row in self.prepared.rows[::step][:n_texts]:
                ids = torch.from_numpy(row.ids).long()[None]
                for layer in range(N_LAYERS):
                    states = model(ids, output_hidden_states=True).hidden_states
                    states[layer + 1][0].mean(dim=0).numpy()


_MEMORY = """
import sys
sys.path.insert(0, {root!r})
import torch, benchmarks.extract as bench
from benchmarks.harness import peak_mib
from actlake.extract import extract_run
from actlake.corpus import corpus_info
from actlake.store import create_store
texts = bench.make_texts()
spec = bench.ExtractSpec(device="cpu", chunk_size=64, batch_tokens=4096)
def extract(model, chosen, folder):
    extract_run(create_store(sys.argv[2] + folder), chosen, corpus_info("bench", chosen),
                model=model, run="r", extract=spec)
extract("bundled:llama-organism", texts[:8], "-small")  # all that is imported on the way
base = peak_mib()
if sys.argv[3] == "extract":
    extract(sys.argv[1], texts, "-large")
else:
    loaded = bench.load_model(sys.argv[1], device="cpu")
    prepared = bench.prepare_run(texts, loaded, run="r", corpus="bench",
                                 capture=bench.CaptureSpec(), extract=spec)
    bench.run_forward(loaded, prepared)
weights = sum(f.stat().st_size for f in bench.Path(sys.argv[1]).glob("*.safetensors"))
print((peak_mib() - base) * 2**20 / weights)
"""


def peak_memory(bench: Bench, what: str = "extract") -> float:
    """Return an extraction's memory over that of a tiny one, in sizes of the weights.

    ``forward`` is the memory of the bare forward pass over the same batches.
    """
    root = str(Path(__file__).resolve().parent.parent)
    command = [sys.executable, "-c", _MEMORY.format(root=root), str(bench.model)]
    done = subprocess.run(
        [*command, str(bench.folder / f"memory-{what}"), what],
        capture_output=True,
        text=True,
        check=True,
    )
    return round(float(done.stdout.split()[-1]), 2)


def main() -> None:
    """Run everything; print the figures."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="actlake-bench-") as name:
        bench = Bench(Path(name))
        assert len(find_blocks(bench.loaded.backbone)) == N_LAYERS
        corpus_info("bench", bench.texts)
        bench.forward()
        speed = compare("overhead", bench.extract, bench.forward, repeats=2 * REPEATS + 1)
        figures["overhead_vs_forward"] = round(1 / speed, 3)
        figures["speedup_vs_batch1"] = compare(
            "batch1", bench.extract, lambda: bench.extract(bench.alone), repeats=REPEATS
        )
        slowed = compare(
            "tokens", lambda: bench.extract(bench.tokens), bench.forward, repeats=REPEATS
        )
        figures["tokens_overhead_vs_forward"] = round(1 / slowed, 3)
        for name, theirs in bench.libraries().items():
            theirs()
            figures[f"speedup_vs_{name}"] = compare(name, bench.extract, theirs, repeats=REPEATS)
        # What the bare forward pass over our batches would reach, which no extraction can beat.
        for name in [name for name in figures if name.startswith("speedup_")]:
            limit = figures[name] * figures["overhead_vs_forward"]
            figures[name.replace("speedup_vs", "limit_vs")] = round(limit, 3)
        some = 5 if QUICK else 20
        bench.naive(1)
        naive = seconds(lambda: bench.naive(some)) * N_TEXTS / some
        ours = seconds(bench.extract)
        print(f"naive: {naive:.1f} s from {some} texts, ours {ours:.1f} s")
        figures["speedup_vs_naive"] = round(naive / ours, 1)
        figures["peak_rss_vs_model"] = peak_memory(bench)
        figures["limit_peak_rss"] = peak_memory(bench, "forward")
    emit(figures)


if __name__ == "__main__":
    main()
