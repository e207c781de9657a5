"""What a suite over pooled activations alone leaves out."""

from __future__ import annotations


def without_ablation(parts: dict[str, str]) -> dict[str, str]:
    """Return the states of the other parts: ablation has neither tokens nor variants here."""
    assert parts["ablation"].startswith("left out: run ")
    return {name: state for name, state in parts.items() if name != "ablation"}
