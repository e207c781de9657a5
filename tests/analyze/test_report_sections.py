"""The report's sections on a study's further analyses: their sentences, figures and tables."""

from __future__ import annotations

import json
import re
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from actlake.analyze.report import write_report
from actlake.schemas import InvalidInputError
from tests.analyze.chromium import chromium, open_page, states, wait_for
from tests.analyze.report_data import MODELS, realistic_input, small_input
from tests.analyze.report_study import analysis_tables

HOSTILE = '</script><script>window.pwned=1</script><img src=x onerror="window.pwned=1">'
SECTIONS = ["nulls", "confounds", "ablation", "tsne", "geometry", "similarity", "transfer"]


@cache
def tables() -> dict[str, pd.DataFrame]:
    return analysis_tables()


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("report")
    return write_report(realistic_input(tables=tables()), folder / "report.html")


@pytest.fixture(scope="module")
def page(path) -> str:
    text: str = path.read_text(encoding="utf-8")
    return text


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


def anchors(page: str) -> list[str]:
    return re.findall(r'<h2 id="(\w+)">', page)


def section(page: str, anchor: str) -> str:
    """The words of one section."""
    body = page[page.index(f'<h2 id="{anchor}">') :]
    body = body[: body.index("</section>")]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body)).replace("&#x27;", "'")


def lead(page: str, anchor: str) -> str:
    body = page[page.index(f'<h2 id="{anchor}">') :]
    found = re.search(r'<p class="lead">(.*?)</p>', body[: body.index("</section>")])
    assert found is not None, anchor
    return found[1].replace("&#x27;", "'")


def chart(page: str, heading: str) -> dict[str, list[dict[str, Any]]]:
    """The datasets of the chart under a heading."""
    place = re.search(rf'<h4>{re.escape(heading)}</h4></div><div data-chart="(c\d+)"', page)
    found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', page, re.S)
    assert place is not None, heading
    assert found is not None
    datasets = json.loads(found[1])["charts"][place[1]]["datasets"]
    return {
        name: [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
        for name, table in datasets.items()
    }


def small_page(tmp_path: Path, changed: dict[str, pd.DataFrame]) -> str:
    written = write_report(small_input(tables=changed), tmp_path / "report.html")
    return written.read_text(encoding="utf-8")


def only(name: str) -> dict[str, pd.DataFrame]:
    """The table of one analysis, of the one model of the small report."""
    table = tables()[name]
    return {name: table[table["run"] == "llama-organism"].reset_index(drop=True)}


def test_every_analysis_has_its_section_in_the_order_of_the_story(page):
    assert anchors(page) == [
        "findings", "hypotheses", "measures", "auroc", "depth", "nulls", "confounds", "ablation",
        "pca", "tsne", "geometry", "similarity", "transfer", "steering", "numbers", "provenance",
    ]  # fmt: skip


def test_what_was_not_run_has_no_section(tmp_path):
    page = small_page(tmp_path, {})
    assert not set(SECTIONS) & set(anchors(page))
    assert "depth" not in anchors(page)  # there is one model alone


def test_every_section_says_what_it_finds_its_controls_and_its_caveat(page):
    for anchor in SECTIONS:
        text = section(page, anchor)
        assert lead(page, anchor).endswith("."), anchor
        assert "Controls." in text, anchor
        assert "Mind." in text, anchor
        assert "How to read" in text, anchor
    for anchor in SECTIONS:  # the contents repeat the finding
        contents = page[page.index('<nav class="contents"') :]
        assert f'<a href="#{anchor}">' in contents[: contents.index("</nav>")]


def test_the_whole_report_stays_under_five_megabytes(page):
    assert len(page.encode()) < 5_000_000


def test_the_lead_on_nulls_counts_the_models_that_beat_each(page):
    found = lead(page, "nulls")
    assert "label flips, refitted in 3 of 3" in found
    assert "isotropic directions in 0 of 3" in found  # .03 a layer is .09 over layers
    assert "covariance-matched directions in 0 of 3" in found
    assert "logistic has no closed form" in section(page, "nulls")


def test_the_bands_of_a_null_are_those_of_its_table(page):
    drawn = chart(page, "llama-organism, balanced")
    bands = tables()["bands"]
    mine = bands[(bands["run"] == "llama-organism") & (bands["subset"] == "balanced")]
    assert len(drawn["nulls"]) == len(mine[mine["layer"].notna()]) == 3 * MODELS["llama-organism"]
    assert {r["kind"] for r in drawn["largest over layers"]} == {r["kind"] for r in drawn["nulls"]}
    assert {r["limit"] for r in drawn["largest over layers"]} == {0.65}
    p = chart(page, "p by layer: llama-organism, balanced")["p"]
    assert all(r["p_value"] <= r["p_value_max"] for r in p)


def test_confounds_are_said_in_numbers_and_in_words(page):
    found = lead(page, "confounds")
    assert "separates the arms with AUROC 0.540 (0.490 to 0.590)" in found
    assert "On shortcut words are at the ceiling." in found
    text = section(page, "confounds")
    assert "Selectivity: phi3-organism 0.270; llama-organism 0.270" in text
    assert "ceiling: this dataset cannot separate semantic from lexical evidence" in text
    assert "generator: all texts have one generator" in text
    residual = [r for r in tables()["confounds"].to_dict("records") if r["analysis"] == "residual"]
    quoted = next(
        r for r in residual
        if r["run"] == "llama-organism" and r["layer"] == 4 and r["subset"] == "all"
        and r["metric"] == "auroc_residualised"
    )  # fmt: skip
    assert f"{quoted['estimate']:.3f} (llama-organism)" in found


def test_an_arm_stands_beside_as_many_random_words(page):
    drawn = chart(page, "llama-organism, shortcut, re-extracted (layer 3)")
    learned = next(r for r in drawn["estimates"] if r["label"] == "learned words removed (k = 16)")
    assert learned["estimate"] == pytest.approx(-0.46)
    assert learned["control"] == pytest.approx(-0.01)
    assert (learned["control_low"], learned["control_high"]) == pytest.approx((-0.03, 0.01))
    words = [r for r in drawn["estimates"] if r["series"] == "bag of words"]
    assert {r["estimate"] for r in words} == {-0.3}
    found = lead(page, "ablation")
    assert "a lexical shortcut on shortcut; partly lexical on all; not lexical on balanced" in found
    assert found.endswith("(llama-organism and gemma2-organism).")
    text = section(page, "ablation")
    assert "words that are put in have no activations" in text
    assert "brisk 3 of 3" in text


def test_the_seeds_of_tsne_show_the_same_texts_and_the_warning(page):
    body = page[page.index('<h2 id="tsne">') :]
    names = re.findall(r'data-chart="(c\d+)"', body[: body.index("</section>")])
    assert len(names) == 3 * len(MODELS)
    seeds = [chart(page, "seed 0"), chart(page, "seed 2")]
    assert [r["text"] for r in seeds[0]["texts"]] == [r["text"] for r in seeds[1]["texts"]]
    assert len(seeds[0]["texts"]) <= 120
    text = section(page, "tsne")
    assert "distances and cluster sizes are not interpretable" in text
    assert "100 of 300 texts are drawn" in text


def test_the_cosine_matrix_is_symmetric_with_reliabilities_on_its_diagonal(page):
    cells = chart(page, "llama-organism, raw")["cells"]
    by_place = {(c["x"], c["y"]): c["value"] for c in cells}
    assert len(cells) == len(by_place) == 9
    for (x, y), value in by_place.items():
        assert by_place[y, x] == value
        assert value == 0.9 if x == y else value < 0
    rows = tables()["geometry"]
    mine = rows[(rows["run"] == "llama-organism") & (rows["metric"] == "cosine")]
    mine = mine[(mine["space"] == "raw") & (mine["layer"] == 4)]  # the layer that is quoted
    for row in mine.to_dict("records"):
        assert by_place[row["contrast"], row["other"]] == pytest.approx(row["estimate"], abs=1e-4)


def test_every_layer_of_two_models_has_its_cell(page):
    cells = chart(page, "phi3-organism and llama-organism")["cells"]
    assert len(cells) == MODELS["phi3-organism"] * MODELS["llama-organism"]
    assert next(c["value"] for c in cells if (c["x"], c["y"]) == ("3", "5")) == pytest.approx(0.7)
    assert "are most alike at layers" in lead(page, "similarity")


def test_a_transfer_stands_beside_its_ceiling_and_its_controls(page):
    cells = chart(page, "ridge map")["cells"]
    assert {(c["x"], c["y"]): c["value"] for c in cells if c["x"] != c["y"]} == {
        (target, source): 0.88 for target in MODELS for source in MODELS if target != source
    }
    assert {c["value"] for c in cells if c["x"] == c["y"]} == {0.95}
    lines = chart(page, "phi3-organism to llama-organism")["estimates"]
    assert [r["label"] for r in lines][:3] == [
        "trained on the target (ceiling)", "ridge map", "bag of words (floor)"
    ]  # fmt: skip
    assert len(lines) == 7
    found = lead(page, "transfer")
    assert "reaches AUROC 0.88, the target's own 0.95" in found
    assert "0 of 6 beat random source directions" in found
    assert "which 10 draws could not show" in found


def test_a_table_without_a_needed_column_is_refused_by_name(tmp_path):
    table = only("transfer")["transfer"].drop(columns="source_run")
    with pytest.raises(InvalidInputError, match=r"'transfer' lacks the columns \['source_run'\]"):
        small_page(tmp_path, {"transfer": table})


@pytest.mark.parametrize("name", ["confounds", "geometry", "ablation", "similarity"])
def test_estimates_that_are_all_missing_leave_their_reasons(tmp_path, name):
    table = only(name)[name] if name != "similarity" else tables()[name]
    table = table.assign(estimate=np.nan, reason="the disk was full")
    page = small_page(tmp_path, {name: table})
    if name in anchors(page) and name != "geometry":
        assert "the disk was full" in section(page, name)


def test_hostile_names_are_only_shown(tmp_path):
    changed = {}
    for name in ("ablation", "ablation_verdicts", "ablation_words", "tsne", "geometry"):
        table = only(name)[name]
        columns = {"verdict", "word", "text", "caption", "contrast", "arm", "lexicon", "subset"}
        changed[name] = table.assign(**dict.fromkeys(columns & set(table), HOSTILE))
    page = small_page(tmp_path, changed)
    assert "<script>window" not in page
    assert "<img src=x" not in page
    assert page.count("</script>") == 3
    assert "&lt;script&gt;window.pwned=1" in page


def open_all(browser) -> None:
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    time.sleep(0.2)  # toggle events are queued
    wait_for(
        browser,
        "return [...document.querySelectorAll('[data-chart]')]"
        ".every(e => e.dataset.state === 'drawn')",
    )


def test_every_chart_is_drawn_and_nothing_is_said_to_the_console(browser, path):
    open_page(browser, path)
    assert {state for state, closed in states(browser) if not closed} == {"drawn"}
    open_all(browser)
    marks = browser.execute_script(
        "return [...document.querySelectorAll('[data-state=drawn]')].map(e => e.querySelectorAll("
        "'svg .mark-symbol path, svg .mark-line path, svg .mark-rect path').length)"
    )
    assert min(marks) >= 1
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_never_scrolls_sideways(browser, path, width):
    open_page(browser, path, width=width)
    open_all(browser)
    outside = browser.execute_script(
        "const w = document.documentElement.clientWidth;"
        "return [...document.querySelectorAll('.panel, .panel svg, figcaption, .filters > *, p')]"
        ".filter(e => e.getBoundingClientRect().right > w + 1)"
        ".map(e => e.outerHTML.slice(0, 80))"
    )
    assert outside == []
    page, window = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert page <= window


def test_the_forest_plots_are_chosen_by_model_and_subset(browser, path):
    open_page(browser, path)
    box = browser.find_element(By.CSS_SELECTOR, "#ablation ~ figure .filterable")
    choices = [Select(e) for e in box.find_elements(By.TAG_NAME, "select")]
    choices[0].select_by_visible_text("gemma2-organism")
    choices[1].select_by_visible_text("balanced")
    heads = [e.text for e in box.find_elements(By.TAG_NAME, "h4") if e.is_displayed()]
    assert heads == [
        "gemma2-organism, balanced, re-pooled (layer 3)",
        "gemma2-organism, balanced, re-extracted (layer 3)",
    ]
    assert box.find_element(By.CLASS_NAME, "count").text == "2 of 12"
