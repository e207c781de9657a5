"""The analyses against the arithmetic that they cannot do without, and against plain loops.

Every figure is a ratio within one run, on a run of 32 layers, 400 texts, 4096 wide in a local
store. QUICK=1 uses 8 layers of 1024. Those of ``analyze_scale`` follow: a run of tokens that does
not fit into memory, and a cluster.
"""

from __future__ import annotations

import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from actlake.analyze import analyze_run, random_run
from actlake.analyze.auroc import auroc
from actlake.analyze.flips import draw_flips, flip_scores
from actlake.analyze.nulls import drawn_aurocs, isotropic_directions
from actlake.analyze.probes import Tuning, fit_diff_means
from actlake.analyze.rowspace import pair_space
from actlake.analyze.schedule import one_blas_thread
from actlake.analyze.splits import pair_table, scenario_folds
from actlake.schemas import (
    AnalyzeSpec,
    ArraySpec,
    CaptureSpec,
    EnvironmentInfo,
    ModelInfo,
    RandomSpec,
    RunPlan,
    Text,
    TokenizerInfo,
    digest_json,
)
from actlake.store import create_store, open_run, rows_per_block, text_coords

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.analyze_scale import scale_figures
from benchmarks.harness import QUICK, compare, emit, seconds

N_LAYERS, HIDDEN = (8, 1024) if QUICK else (32, 4096)
N_SCENARIOS, PAIRS_EACH = 20, 10
N_DRAWS = 1000
REPEATS = 3 if QUICK else 5
POOL = "mean_response"
NAME = f"resid_post_{POOL}"
RUN = "bench"


def make_texts() -> list[Text]:
    """Return 400 texts: 200 pairs of 20 scenarios and two generators."""
    rng = np.random.default_rng(1)
    words = ["the", "robot", "opens", "a", "door", "slowly", "and", "waits", "there", "again"]
    return [
        Text(
            id=f"{arm[:3]}-{number:04d}",
            response=" ".join(rng.choice(words, 12)),
            arm=arm,
            pair=f"p{number:04d}",
            scenario=f"s{number // PAIRS_EACH:02d}",
            generator=f"g{number % 2}",
        )
        for number in range(N_SCENARIOS * PAIRS_EACH)
        for arm in ("positive", "negative")
    ]


def make_store(folder: Path) -> tuple[Any, list[Text], np.ndarray]:
    """Write the run: noise, with a signal that grows over the layers; bf16 values."""
    texts = make_texts()
    n = len(texts)
    digest = digest_json("bench")
    plan = RunPlan(
        run=RUN, corpus="bench", corpus_digest=digest,
        model=ModelInfo(
            name="bench", content_digest=digest, architecture="None", n_layers=N_LAYERS,
            hidden_size=HIDDEN, n_parameters=0, dtype="bfloat16", attn_implementation="sdpa",
        ),
        tokenizer=TokenizerInfo(digest=digest, vocab_size=1),
        capture=CaptureSpec(pools=(POOL,)), layers=tuple(range(N_LAYERS)), n_texts=n, n_tokens=n,
        rows_digest=digest, rows_per_block=rows_per_block(n, HIDDEN), batch_tokens=1,
        arrays=(
            ArraySpec(name=NAME, dims=("text", "layer", "hidden"), shape=(n, N_LAYERS, HIDDEN)),
        ),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    values = rng.standard_normal((n, N_LAYERS, HIDDEN), dtype=np.float32)
    positive = np.array([t.arm == "positive" for t in texts])
    values[positive, :, :8] += np.linspace(0, 1, N_LAYERS, dtype=np.float32)[:, None]
    values.view(np.uint32)[...] &= np.uint32(0xFFFF0000)
    store = create_store(folder)
    environment = EnvironmentInfo(actlake="bench", python="3", platform="bench")
    writer = store.create_run(plan, coords=text_coords(texts), environment=environment)
    for block in range(plan.n_blocks):
        rows = plan.block_rows(block)
        writer.write_block(block, {NAME: values[rows.start : rows.stop]})
    writer.seal()
    return store, texts, values


def bytes_read() -> int:
    """Return what this process has read so far, from the disk or its cache (Linux)."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


def random_baseline(store: Any, values: np.ndarray) -> dict[str, float]:
    """Time 1000 directions on all layers, reading included, against GEMMs and a loop."""
    spec = RandomSpec(n_directions=N_DRAWS)
    directions = isotropic_directions(N_DRAWS, HIDDEN, seed=spec.seed)
    layers = [np.ascontiguousarray(values[:, layer]) for layer in range(N_LAYERS)]

    def ours() -> None:
        random_run(open_run(store, RUN, chunks="job"), spec=spec)

    def products() -> None:
        # One thread per core and layer, as we run: on a busy machine the faster arrangement.
        with one_blas_thread(), ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda x: x @ directions, layers))

    ours()
    faster = compare("random_vs_gemm", ours, products, repeats=REPEATS)

    labels = np.arange(len(layers[0])) % 2 == 0
    n_looped = N_DRAWS // 10

    def loop() -> None:
        for k in range(n_looped):
            roc_auc_score(labels, layers[0] @ directions[:, k])

    scale = N_LAYERS * N_DRAWS / n_looped
    theirs = seconds(loop) * scale
    print(f"random_vs_sklearn_loop: {theirs:.1f} s, scaled from {n_looped} directions, one layer")
    mine = min(seconds(ours) for _ in range(REPEATS))
    before = bytes_read()
    ours()
    n_read = bytes_read() - before
    folder = Path(store.url.removeprefix("file://"))
    needed = sum(p.stat().st_size for p in folder.glob(f"runs/{RUN}/data.zarr/{NAME}/c/**/*")
                 if p.is_file())  # fmt: skip
    return {
        "random_vs_gemm": round(1 / faster, 3),
        "random_vs_sklearn_loop": round(theirs / mine, 1),
        "random_seconds": round(mine, 3),
        "bytes_read_vs_needed": round(n_read / needed, 4),
    }


def label_flips(store: Any) -> dict[str, float]:
    """Time 1000 refits under pair flips of one layer against refitting in a loop."""
    ds = open_run(store, RUN, chunks=None)
    table = pair_table(ds)
    x = ds[NAME].isel(layer=-1).values[table.rows].astype(np.float64)
    folds = scenario_folds(table, max_folds=100, seed=0).folds
    signs = draw_flips(table.n_pairs, n_draws=N_DRAWS, seed=0)
    everything = [np.arange(table.n_pairs)]
    n_looped = 2

    def all_draws(method: Any) -> np.ndarray:
        space = pair_space(x)
        scores = flip_scores(
            space.points, folds, signs, methods=[method], tuning=Tuning(), hidden=HIDDEN
        )
        areas: np.ndarray = drawn_aurocs(scores[method], members=everything)[0]
        return areas

    def loop() -> list[float]:
        areas = []
        for draw in range(1, 1 + n_looped):
            flipped = np.where(signs[None, :, draw, None] < 0, x[::-1], x)
            scores = np.empty(x.shape[:2])
            for fold in folds:
                probe = fit_diff_means(flipped[:, fold.train])
                scores[:, fold.test] = probe.score(flipped[:, fold.test])
            areas.append(auroc(scores.ravel(), table.labels))
        return areas

    with one_blas_thread():  # as every layer of a run has it
        return _flip_figures(all_draws, loop, n_looped=n_looped)


def _flip_figures(all_draws: Any, loop: Any, *, n_looped: int) -> dict[str, float]:
    same = np.abs(all_draws("diff_means")[1 : 1 + n_looped] - loop()).max()
    if same > 1e-3:
        sys.exit(f"the draws differ from the refits by {same}")
    ratio = compare(
        f"label_flip ({N_DRAWS} draws against {n_looped} refits)",
        lambda: all_draws("diff_means"), loop, repeats=REPEATS,
    )  # fmt: skip
    return {
        "label_flip_1000_vs_refit_loop": round(ratio * N_DRAWS / n_looped, 1),
        "label_flip_lda_seconds": round(seconds(lambda: all_draws("lda")), 2),
        "label_flip_ridge_seconds": round(seconds(lambda: all_draws("ridge")), 2),
    }


def whole_suite(store: Any, texts: list[Text]) -> dict[str, float]:
    """Time every analysis of one model, with five probes and 1000 draws of each null."""
    spec = AnalyzeSpec()
    took = seconds(lambda: analyze_run(open_run(store, RUN, chunks="job"), texts, spec=spec))
    return {"suite_seconds_per_model": round(took, 1)}


def main() -> None:
    """Run everything; print the figures."""
    with tempfile.TemporaryDirectory(prefix="actlake-bench-") as folder:
        store, texts, values = make_store(Path(folder))
        figures: dict[str, Any] = {"quick": QUICK, **random_baseline(store, values)}
        del values
        figures |= label_flips(store)
        figures |= whole_suite(store, texts)
    emit(figures | scale_figures())


if __name__ == "__main__":
    main()
