"""Figures of the corpus room: validation speed, near-duplicates, and the bundled corpus.

``minhash_vs_allpairs`` compares finding near-duplicates among 5,000 texts with comparing all
pairs of their shingle sets in this process; both return the same duplicates. QUICK=1: 1,000 texts.
"""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path
from random import Random

from actlake.corpus import (
    bundled_corpus,
    bundled_scenarios,
    corpus_stats,
    validate_corpus,
)
from actlake.corpus.duplicates import find_near_duplicates, shingles
from actlake.schemas import Text

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.harness import QUICK, compare, emit

N_TEXTS = 1000 if QUICK else 5000
THRESHOLD = 0.6


def make_texts(sources: list[Text]) -> list[str]:
    """Return texts of the bundled corpus' own sentences; one in fifty is an edit of another."""
    rng = Random(0)
    parts = [s for t in sources for s in t.response.split(". ")]
    vocabulary = sorted({w for t in sources for w in t.response.split()})
    texts: list[str] = []
    for i in range(N_TEXTS):
        if i % 50 == 49:
            found = rng.choice(texts).split()
            for _ in range(rng.randrange(6)):
                found[rng.randrange(len(found))] = rng.choice(vocabulary)
            texts.append(" ".join(found))
        else:
            texts.append(". ".join(rng.sample(parts, 5)))
    return texts


def all_pairs(texts: list[str]) -> set[tuple[int, int]]:
    """Return the duplicates by comparing every two texts."""
    sets = [shingles(text, 3) for text in texts]
    found = set()
    for (i, a), (j, b) in itertools.combinations(enumerate(sets), 2):
        shared = len(a & b)
        if shared and shared / (len(a) + len(b) - shared) >= THRESHOLD:
            found.add((i, j))
    return found


def main() -> None:
    info, texts = bundled_corpus("empathy")
    scenarios = bundled_scenarios("empathy")
    validate_corpus(info, texts, scenarios=scenarios)  # imports, and what is read once
    began = time.perf_counter()
    report = validate_corpus(info, texts, scenarios=scenarios)
    seconds = time.perf_counter() - began
    print(f"validation of {report.n_pairs} pairs: {seconds:.2f} s", flush=True)

    many = make_texts(texts)
    found: dict[str, set[tuple[int, int]]] = {}

    def ours() -> None:
        copies = find_near_duplicates(many, threshold=THRESHOLD)
        found["minhash"] = {(c.first, c.second) for c in copies}

    def theirs() -> None:
        found["all pairs"] = all_pairs(many)

    speedup = compare("near-duplicates", ours, theirs, repeats=1)
    checks = {check.name: check.value for check in report.checks}
    stats = corpus_stats(info, texts, scenarios=scenarios)
    everything = stats.diversity[0]
    emit(
        {
            "validate_pairs_per_second": round(report.n_pairs / seconds, 1),
            "minhash_vs_allpairs": speedup,
            "minhash_texts": N_TEXTS,
            "minhash_recall": round(
                len(found["minhash"] & found["all pairs"]) / len(found["all pairs"]), 4
            ),
            "minhash_wrong": len(found["minhash"] - found["all pairs"]),
            "bow_auroc_balanced_half": checks["bow_auroc_balanced"],
            "bow_auroc_all": checks["bow_auroc_all"],
            "bow_auroc_plain_half": checks["bow_auroc_plain"],
            "surface_auroc": checks["surface_auroc_all"],
            "length_auroc": checks["length_auroc_all"],
            "n_pairs": stats.n_pairs,
            "n_scenarios": stats.n_scenarios,
            "n_neutral": report.n_neutral,
            "distinct2": everything.distinct_2,
            "vendi": everything.vendi,
            "opener_repetition": max(
                float(checks[f"opener_repetition_{arm}"] or 0) for arm in ("positive", "negative")
            ),
            "max_jaccard": max(
                float(checks[f"max_jaccard_{arm}"] or 0) for arm in ("positive", "negative")
            ),
            "passed": report.passed,
        }
    )


if __name__ == "__main__":
    main()
