"""The figures of interventions show what the rows say."""

import re

import numpy as np
import pandas as pd
import pytest

from actlake.analyze.intervention_charts import (
    matched_chart,
    patch_chart,
    transfer_chart,
    write_chart,
)
from actlake.schemas import InvalidInputError, StorageError

COMMON = {"model": "m<1>", "n_pairs": 7}


def matched_rows(n_layers=3):
    rng = np.random.default_rng(0)
    records = []
    for layer in range(n_layers):
        for what, index in [("patch", 0), ("steer", 0), *(("random", i) for i in range(4))]:
            estimate = rng.normal()
            records.append(
                {**COMMON, "layer": layer, "what": what, "index": index, "arm": "full",
                 "position": "suffix" if what == "patch" else "response", "estimate": estimate,
                 "ci_low": estimate - 0.2, "ci_high": estimate + 0.2}
            )  # fmt: skip
    return pd.DataFrame(records)


def patch_rows(*, small=False, n_layers=3):
    records = [
        {**COMMON, "mode": mode, "arm": arm, "layer": layer, "position": position,
         "estimate": 0.1 * layer, "effect": 0.001 * layer, "small_total": small}
        for mode in ("denoise", "noise")
        for arm in ("full", "coordinate", "random")
        for layer in range(n_layers)
        for position in ("prompt-all", "-1")
    ]  # fmt: skip
    return pd.DataFrame(records)


def transfer_rows():
    records = []
    for direction, role in [("diff_means", "own"), ("mapped-ridge", "mapped"),
                            ("random_source-ridge-0", "random_source")]:  # fmt: skip
        for alpha in (-1.0, 1.0):
            records.append(
                {**COMMON, "metric": "shift", "direction": direction, "role": role,
                 "alpha_separation": alpha, "estimate": alpha / 2, "ci_low": alpha / 2 - 0.1,
                 "ci_high": alpha / 2 + 0.1, "source_model": "s"}
            )  # fmt: skip
    records.append({**records[0], "metric": "effect"})
    return pd.DataFrame(records)


def drawn(spec, tmp_path):
    path = write_chart(spec, tmp_path / "deep" / "figure.svg")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<svg ")
    assert write_chart(spec, tmp_path / "again.svg").read_text(encoding="utf-8") == text
    return text


def values_of(spec):
    """Return all values that a chart holds."""
    return [value for values in spec["datasets"].values() for value in values]


def test_patching_beside_steering_shows_both_at_every_layer(tmp_path):
    rows = matched_rows()
    spec = matched_chart(rows)
    kept = [v for v in values_of(spec) if "series" in v]
    own = rows[rows["what"] != "random"]
    assert {(v["layer"], round(v["estimate"], 4)) for v in kept} == {
        (r.layer, round(r.estimate, 4)) for r in own.itertuples()
    }
    text = drawn(spec, tmp_path)
    for words in ("patch of all of the residual at suffix", "steering as far at response",
                  "effect [nats]", "layer", "m&lt;1&gt;, 7 pairs"):  # fmt: skip
        assert words in text
    # Two bars and two marks a layer, a tick for every random direction.
    assert len(re.findall(r'role="graphics-symbol"|<path|<line', text)) > 3 * 4


def test_patches_are_a_map_of_layer_and_position(tmp_path):
    text = drawn(patch_chart(patch_rows()), tmp_path)
    for words in ("denoise", "noise", "full", "coordinate", "prompt-all", "share of the total"):
        assert words in text
    assert "random" not in text
    assert text.count("0.20") == 2 * 2 * 2  # layer 2 of every mode, arm and position
    # Where the runs do not differ there is no ratio to show.
    text = drawn(patch_chart(patch_rows(small=True)), tmp_path)
    assert "effect [nats]" in text
    assert "do not differ enough" in text
    assert text.count("0.002") == 2 * 2 * 2
    many = drawn(patch_chart(patch_rows(n_layers=40)), tmp_path)
    assert "3.90" not in many  # figures in so many cells could not be read


def test_a_transfer_shows_the_own_the_mapped_and_the_controls(tmp_path):
    spec = transfer_chart(transfer_rows())
    text = drawn(spec, tmp_path)
    for words in ("diff_means", "mapped-ridge", "s to m&lt;1&gt;", "class separations"):
        assert words in text
    shown = [v for v in values_of(spec) if "direction" in v]
    assert {v["direction"] for v in shown} >= {"random_source-ridge-0", "diff_means"}


def test_what_cannot_be_drawn_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="no row of patch or steer"):
        matched_chart(matched_rows().query("what == 'random'"))
    with pytest.raises(InvalidInputError, match="no row of shuffled"):
        patch_chart(patch_rows(), arms=("shuffled",))
    with pytest.raises(InvalidInputError, match="own or mapped"):
        transfer_chart(transfer_rows().query("role == 'random_source'"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="figure cannot be written"):
        write_chart(matched_chart(matched_rows()), tmp_path / "file" / "figure.svg")
