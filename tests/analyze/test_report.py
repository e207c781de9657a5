"""The report's numbers, words and file, without a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlake.analyze import pca_run, probe_run
from actlake.analyze.report import ReportInput, write_report
from actlake.analyze.report_charts import auroc_domain
from actlake.analyze.report_findings import steering_effect
from actlake.analyze.report_numbers import decimal, interval, printable
from actlake.schemas import (
    BagOfWordsSpec,
    InvalidInputError,
    MissingDependencyError,
    PcaSpec,
    ProbeSpec,
    RandomSpec,
)
from tests.analyze.report_data import BOW, MODELS, realistic_page, small_input

HOSTILE = '</script><script>window.pwned=1</script><img src=x onerror="window.pwned=1">'


@pytest.fixture(scope="module")
def page() -> str:
    return realistic_page()


def small_page(tmp_path, **changes: Any) -> str:
    path = write_report(small_input(**changes), tmp_path / "report.html")
    return path.read_text(encoding="utf-8")


def charts_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', page, re.S)
    assert found is not None
    charts: dict[str, Any] = json.loads(found[1])
    for chart in charts["charts"].values():
        for name, table in chart["datasets"].items():
            rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
            chart["datasets"][name] = rows
    return charts


def words_of(page: str) -> str:
    """The text that a reader sees, without tags, scripts and styles."""
    bare = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", bare))


def test_a_realistic_report_stays_under_three_megabytes(page):
    assert len(page.encode()) < 3_000_000


def test_no_part_of_the_page_comes_from_elsewhere(page):
    bare = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    targets = re.findall(r'\b(?:src|href|srcset|data|poster|action)="([^"]*)"', bare)
    assert targets
    assert [t for t in targets if not t.startswith(("data:", "#"))] == []
    assert "url(" not in bare
    assert "@import" not in bare


def test_the_policy_names_exactly_the_scripts_of_the_page(page):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    allowed = set(re.findall(r"'sha256-([^']+)'", policy[1]))
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    digests = {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts}
    assert digests == allowed
    assert "default-src 'none'" in policy[1]


def test_every_chart_has_a_static_drawing(page):
    names = re.findall(r'data-chart="(c\d+)"', page)
    drawings = re.findall(r'data-chart="c\d+"><img class="static" src="data:image/svg', page)
    assert set(names) == set(charts_of(page)["charts"])
    assert len(drawings) == len(names)
    # 3 models: one subset chart and one steering curve each, 4 subsets in 3 pools, 4 of PCA; 4
    # subsets by relative depth.
    assert len(names) == 3 * (1 + 1 + 4 * 3 + 4) + 4


def test_sections_come_in_the_order_of_the_story(page):
    anchors = re.findall(r'<h2 id="(\w+)">', page)
    assert anchors == [
        "findings", "hypotheses", "measures", "auroc", "depth", "pca", "steering", "numbers",
        "provenance",
    ]  # fmt: skip


def test_findings_put_the_bag_of_words_beside_every_estimate(page):
    text = words_of(page)
    for subset, bow in BOW.items():
        assert f"bag of words {bow:.3f}" in text, subset
    assert text.count("Ceiling: this dataset cannot separate semantic from lexical") == 3
    assert "not distinguishable from the bag of words on plain" in text
    assert "on shortcut the words alone are at the ceiling" in text


def test_a_bag_of_words_below_chance_is_no_lower_a_bar_than_chance(tmp_path):
    rows = small_input().rows.copy()
    balanced = (rows["subset"] == "balanced") & rows["metric"].isin(["auroc", "auroc_nested"])
    rows.loc[balanced & (rows["analysis"] == "probe"), ["ci_low", "ci_high"]] = [0.45, 0.62]
    rows.loc[balanced & (rows["analysis"] == "probe"), "estimate"] = 0.54
    page = words_of(small_page(tmp_path, rows=rows))
    assert "not distinguishable from the bag of words on plain and balanced" in page
    assert "the probe's own interval includes chance" in page.replace("&#x27;", "'")


def test_the_quoted_number_is_nested_and_never_the_best_layer(tmp_path):
    inputs = small_input()
    rows = inputs.rows
    probes = rows[(rows["analysis"] == "probe") & (rows["subset"] == "balanced")]
    of_pool = probes[(probes["pool"] == "mean_response") & (probes["method"] == "diff_means")]
    nested = of_pool[of_pool["metric"] == "auroc_nested"]["estimate"].iloc[0]
    best = of_pool[of_pool["metric"] == "auroc"]["estimate"].max()
    assert decimal(nested) != decimal(best)
    text = words_of(small_page(tmp_path))
    findings = text[text.index("Brackets hold") : text.index("How to read")]
    assert f"Probe {decimal(nested)}" in findings
    assert f"Probe {decimal(best)}" not in findings


def test_the_test_split_is_not_mixed_into_the_curves(page):
    """One value per layer and method in every panel, whatever else the rows hold."""
    charts = charts_of(page)
    layers = [
        [row["layer"] for row in data]
        for chart in charts["charts"].values()
        for data in chart["datasets"].values()
        if data and "method" in data[0]
    ]
    assert len(layers) == 3 * 4 * 3 * 2
    assert all(len(set(found)) == len(found) for found in layers)
    assert "Key numbers by train→test split" in words_of(page)


def test_pca_shows_the_selected_layer_alone(page):
    charts = charts_of(page)
    points = [
        row
        for chart in charts["charts"].values()
        for data in chart["datasets"].values()
        for row in data
        if "pc1" in row
    ]
    assert len(points) == 3 * 560
    text = words_of(page)
    for n_layers in MODELS.values():
        assert f"mean_response, layer {n_layers // 2 + 1} (the layer that the inner folds" in text


def test_analyses_that_were_not_run_are_said_to_be_missing(tmp_path):
    page = small_page(tmp_path, pca=None, pca_points=None, steering=None, null=None)
    text = words_of(page)
    assert "PCA was not run in this study." in text
    assert "Steering was not run in this study." in text
    assert "Random directions were not run." in text
    assert "steering Not run for this model." in text


def test_a_report_of_nothing_says_so(tmp_path):
    empty = pd.DataFrame()
    path = write_report(ReportInput(title="Empty", study={}, rows=empty), tmp_path / "r.html")
    assert "No probe was run" in words_of(path.read_text(encoding="utf-8"))


def test_a_missing_estimate_shows_its_reason(tmp_path):
    inputs = small_input()
    rows = inputs.rows.copy()
    rows["reason"] = None
    gone = (rows["subset"] == "balanced") & (rows["analysis"] == "probe")
    rows.loc[gone, ["estimate", "ci_low", "ci_high"]] = np.nan
    rows.loc[gone, "reason"] = "only one scenario"
    text = words_of(small_page(tmp_path, rows=rows))
    findings = text[text.index("Brackets hold") : text.index("How to read")]
    assert "balanced Not estimated: only one scenario." in findings
    curves = text[text.index("AUROC by layer #") : text.index("PCA #")]
    assert "Not estimated: only one scenario." in curves


def test_provenance_names_models_digests_seeds_and_the_study(page):
    text = words_of(page)
    block = text[text.index("Provenance #") :]
    for wanted in (*MODELS, "sha256:5e2d91ab", "eager", "float32", "2 CPU cores", "random.seed"):
        assert wanted in block
    assert "&quot;n_directions&quot;: 1000" in block


def test_hostile_text_is_only_shown(tmp_path):
    inputs = small_input()
    points = inputs.pca_points
    assert points is not None
    page = small_page(
        tmp_path,
        title=HOSTILE,
        rows=inputs.rows.assign(model=HOSTILE, verdict=HOSTILE),
        pca_points=points.assign(text=HOSTILE, scenario=HOSTILE, subset=HOSTILE),
        study={"name": HOSTILE, HOSTILE: 1},
        runs=[{"run": HOSTILE, "model": {"name": HOSTILE}}],
        arm_names={"positive": HOSTILE, "negative": "b", "neutral": "c"},
        environment={HOSTILE: HOSTILE},
    )
    assert "<script>window" not in page
    assert "<img src=x" not in page
    assert page.count("</script>") == 3  # the page's own
    assert "&lt;script&gt;window.pwned=1&lt;/script&gt;" in page


def test_the_same_results_write_the_same_bytes_and_nothing_else(tmp_path):
    first = write_report(small_input(), tmp_path / "deep" / "report.html")
    before = first.read_bytes()
    assert write_report(small_input(), first) == first
    assert first.read_bytes() == before
    assert [p.name for p in first.parent.iterdir()] == ["report.html"]


def test_a_table_without_a_needed_column_is_refused_by_name(tmp_path):
    rows = small_input().rows.drop(columns=["estimate"])
    with pytest.raises(InvalidInputError, match=r"'rows' lacks the columns \['estimate'\]"):
        write_report(small_input(rows=rows), tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_chart_library_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "altair", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'actlake\[report\]'"):
        write_report(small_input(), tmp_path / "report.html")


def test_the_tables_of_the_analyses_go_in_as_they_are(synthetic_run, tmp_path):
    run = synthetic_run(n_test_scenarios=2, n_neutral=4, strength=1.5)
    spec = ProbeSpec(n_bootstrap=50)
    random, words = RandomSpec(n_directions=100), BagOfWordsSpec()
    result = probe_run(run.ds, run.texts, spec=spec, random=random, bow=words)
    pca = pca_run(run.ds, spec=PcaSpec(n_components=3))
    inputs = ReportInput(
        title="Synthetic",
        study={},
        rows=result.rows,
        null=result.null,
        pca=pca.rows,
        pca_points=pca.points,
        selected_layers={"synthetic": result.selected_layer},
    )
    page = write_report(inputs, tmp_path / "report.html").read_text(encoding="utf-8")
    rows = result.rows
    quoted = rows[
        (rows["metric"] == "auroc_nested")
        & (rows["analysis"] == "probe")
        & (rows["method"] == "diff_means")
        & (rows["subset"] == "balanced")
    ]
    assert len(quoted) == 1
    text = words_of(page)
    assert f"balanced Probe {decimal(quoted['estimate'].iloc[0])}" in text
    assert f"bag of words {decimal(quoted['bow_estimate'].iloc[0])}" in text
    assert "Of 100 random directions" in text


def steering_rows(own, random, alphas) -> pd.DataFrame:
    curves = [("diff_means", 0, own), *(("random", i, gain) for i, gain in enumerate(random))]
    return pd.DataFrame(
        [
            {
                "direction": name, "direction_index": i, "alpha_raw": 3 * a,
                "alpha_separation": a, "estimate": gain * a, "ci_low": None, "ci_high": None,
            }
            for name, i, gain in curves
            for a in alphas
        ]
    )  # fmt: skip


gains = st.floats(-5, 5).filter(lambda g: abs(g) > 1e-3)


@given(own=gains, random=st.lists(gains, min_size=1, max_size=30))
def test_a_straight_steering_curve_gives_its_slope_and_rank(own, random):
    effect = steering_effect(steering_rows(own, random, [-2, -1, -0.5, 0, 0.5, 1, 2]), "diff_means")
    assert effect is not None
    assert effect.slope == pytest.approx(own)
    assert effect.alpha == 1.0
    assert effect.effect == pytest.approx(own)
    beaten = sum(abs(g) >= abs(own) for g in random)
    assert effect.rank_p == (1 + beaten) / (1 + len(random))
    assert effect.outside == (own > max(random) or own < min(random))
    assert effect.monotone == (own > 0)


def test_a_curve_that_bends_back_is_not_called_monotone():
    rows = steering_rows(1.0, [0.1], [-2, -1, 0, 1, 2])
    rows.loc[(rows["direction"] == "diff_means") & (rows["alpha_separation"] == 2), "estimate"] = 0
    effect = steering_effect(rows, "diff_means")
    assert effect is not None
    assert effect.monotone_near
    assert not effect.monotone


@given(st.lists(st.floats(0, 1), max_size=20))
def test_the_auroc_axis_cuts_off_no_value(values):
    low, high = auroc_domain(values)
    assert low <= 0.4
    assert high >= 1.0
    assert all(low <= v <= high for v in values)


@given(st.text())
def test_shown_text_has_no_invisible_or_unencodable_characters(text):
    shown = printable(text)
    shown.encode("utf-8")
    assert all(c.isprintable() or c == "\n" for c in shown)


@given(st.floats(-1e6, 1e6), st.integers(0, 6))
def test_a_shown_decimal_reads_back_within_half_a_digit(value, digits):
    shown = decimal(value, digits)
    assert float(shown.replace("\N{MINUS SIGN}", "-")) == pytest.approx(
        value, abs=0.51 * 10**-digits
    )
    assert not re.fullmatch("\N{MINUS SIGN}0(\\.0*)?", shown)


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (0.98765, 1.0, "0.988 to 1.000"),
        (0.99972, 1.0, "0.9997 to 1.0000"),
        (1.0, 1.0, "1.000 to 1.000"),
        (-0.0004, 0.0004, "\N{MINUS SIGN}0.0004 to 0.0004"),
        (None, 1.0, ""),
    ],
)
def test_the_ends_of_an_interval_never_read_as_one(low, high, shown):
    assert interval(low, high) == shown
