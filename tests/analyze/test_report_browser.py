"""The report as a person sees it: opened from disk in headless Chromium, without a network."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

from actlake.analyze.report import write_report
from tests.analyze.chromium import chromium, open_page, states, wait_for
from tests.analyze.report_data import realistic_page, small_input

HOSTILE = '</script><script>window.pwned=1</script><img src=x onerror="window.pwned=1">'


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    path: Path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(realistic_page(), encoding="utf-8")
    return path


def test_every_figure_is_drawn_with_marks_and_no_message(browser, report):
    open_page(browser, report)
    assert {state for state, closed in states(browser) if not closed} == {"drawn"}
    marks = browser.execute_script(
        "return [...document.querySelectorAll('[data-state=drawn]')].map(e => "
        "e.querySelectorAll('svg .mark-symbol path, svg .mark-line path').length)"
    )
    assert len(marks) == 3 * (1 + 4 + 4 + 1) + 4
    assert min(marks) >= 2
    assert browser.execute_script("return document.querySelectorAll('img.static').length") == len(
        [1 for _, closed in states(browser) if closed]
    )
    assert browser.get_log("browser") == []


def test_nothing_is_asked_of_the_network(browser, report):
    open_page(browser, report)
    asked = browser.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
        ".filter(n => !n.startsWith('data:'))"
    )
    assert asked == []


def test_the_other_pools_are_drawn_when_their_box_opens(browser, report):
    open_page(browser, report)
    summary = browser.find_element(By.CSS_SELECTOR, "#auroc ~ figure details summary")
    assert summary.text == "phi3-organism: pool last_prompt"
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", summary)
    summary.click()
    wait_for(
        browser,
        "return [...document.querySelectorAll('details[open] [data-chart]')]"
        ".every(e => e.dataset.state === 'drawn')",
    )
    widths = browser.execute_script(
        "return [...document.querySelectorAll('details[open] .live svg')].map(e => e.clientWidth)"
    )
    assert len(widths) == 4
    assert min(widths) > 150
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_the_page_never_scrolls_sideways(browser, report, width):
    open_page(browser, report, width=width)
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    time.sleep(0.2)  # toggle events are queued
    wait_for(
        browser,
        "return [...document.querySelectorAll('[data-chart]')]"
        ".every(e => e.dataset.state === 'drawn')",
    )
    page, window = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert page <= window
    # A box may scroll inside; a chart or a card must fit.
    outside = browser.execute_script(
        "const w = document.documentElement.clientWidth;"
        "return [...document.querySelectorAll('.card, .panel, .panel svg, figcaption, h2')]"
        ".filter(e => e.getBoundingClientRect().right > w + 1).length"
    )
    assert outside == 0


def test_the_printed_page_is_as_wide_as_the_paper(browser, report):
    open_page(browser, report, width=720)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        page, paper = browser.execute_script(
            "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert page <= paper


def test_without_scripts_every_drawing_shows(browser, report):
    open_page(browser, report, scripts=False)
    document = browser.execute_cdp_cmd("DOM.getDocument", {"depth": -1})["root"]["nodeId"]
    images = browser.execute_cdp_cmd(
        "DOM.querySelectorAll", {"nodeId": document, "selector": "img.static"}
    )["nodeIds"]
    assert len(images) == 3 * (1 + 1 + 4 * 3 + 4) + 4
    first = browser.execute_cdp_cmd("DOM.getBoxModel", {"nodeId": images[0]})["model"]
    # A broken image would be as low as its alternative text.
    assert first["height"] > 100
    assert first["width"] > 200


def test_hostile_text_is_shown_and_not_run(browser, tmp_path):
    inputs = small_input()
    points = inputs.pca_points
    assert points is not None
    path = write_report(
        small_input(
            title=HOSTILE,
            rows=inputs.rows.assign(
                model=HOSTILE,
                verdict=HOSTILE,
                subset=inputs.rows["subset"].replace({"plain": HOSTILE}),
            ),
            pca_points=points.assign(text=HOSTILE, scenario=HOSTILE),
            study={"name": HOSTILE, HOSTILE: 1},
            runs=[{"run": HOSTILE, "model": {"name": HOSTILE}}],
            arm_names={"positive": HOSTILE, "negative": "b", "neutral": "c"},
            environment={HOSTILE: HOSTILE},
        ),
        tmp_path / "report.html",
    )
    open_page(browser, path)
    assert browser.title == HOSTILE
    assert browser.find_element(By.TAG_NAME, "h1").text == HOSTILE
    assert "failed" not in {state for state, _ in states(browser)}

    point = browser.find_element(By.CSS_SELECTOR, "#pca ~ figure .mark-symbol path")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
    ActionChains(browser).move_to_element(point).perform()
    wait_for(browser, "return !!document.querySelector('#vg-tooltip-element.visible')")
    tooltip = browser.find_element(By.ID, "vg-tooltip-element")
    assert "<script>window.pwned=1</script>" in tooltip.text

    assert browser.execute_script("return window.pwned") is None
    assert browser.find_elements(By.CSS_SELECTOR, "img:not(.static)") == []
    assert browser.execute_script("return document.scripts.length") == 3
    assert browser.get_log("browser") == []
