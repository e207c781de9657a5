"""The report's interventions and its sample browser in headless Chromium."""

from __future__ import annotations

import time

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from actlake.analyze.report import write_report
from tests.analyze.chromium import open_page, states, wait_for
from tests.analyze.intervention_data import all_tables, scored
from tests.analyze.report_data import small_input
from tests.analyze.test_report_browser import HOSTILE, browser

__all__ = ["browser"]  # a fixture

RUNS = ("llama-organism", "phi3-organism", "gemma2-organism")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    return write_report(small_input(tables=all_tables(RUNS)), path)


def rows_shown(browser):
    return browser.execute_script(
        "return [...document.querySelectorAll('table.samples tbody tr')].map(r => "
        "[...r.querySelectorAll('.text')].map(t => t.textContent))"
    )


def status(browser):
    return browser.find_element(By.ID, "sample-status").text


def choose(browser, name, value):
    Select(browser.find_element(By.ID, f"sample-{name}")).select_by_visible_text(value)


def enter(browser, name, value):
    box = browser.find_element(By.ID, f"sample-{name}")
    box.clear()
    box.send_keys(value)


def test_every_chart_of_an_intervention_is_drawn_without_a_message(browser, page):
    open_page(browser, page)
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    wait_for(
        browser,
        "return [...document.querySelectorAll('[data-chart]')]"
        ".every(e => ['drawn', 'failed'].includes(e.dataset.state))",
    )
    assert {state for state, _ in states(browser)} == {"drawn"}
    counts = browser.execute_script(
        "return Object.fromEntries(['patching', 'matched', 'mediation', 'doses', 'negative',"
        "'task-free', 'steer-transfer'].map(id => [id, [...document.getElementById(id)"
        ".closest('section').querySelectorAll('[data-chart]')].map(e =>"
        " e.querySelectorAll('svg .mark-symbol path, svg .mark-line path, svg .mark-rect path')"
        ".length)]))"
    )
    assert {name: len(marks) for name, marks in counts.items()} == {
        "patching": 3 * 2 * 5, "matched": 3, "mediation": 3 * 2 * 2, "doses": 3 * 2,
        "negative": 3 * 4, "task-free": 3, "steer-transfer": 3,
    }  # fmt: skip
    assert min(min(marks) for marks in counts.values()) >= 3
    assert browser.get_log("browser") == []


def test_hypotheses_stand_right_after_the_findings_with_an_answer_and_a_reason_each(browser, page):
    open_page(browser, page)
    heads = browser.execute_script(
        "return [...document.querySelectorAll('main h2')].map(h => h.id)"
    )
    assert heads[:2] == ["findings", "hypotheses"]
    table = browser.find_element(By.CSS_SELECTOR, "table.hypotheses")
    rows = table.find_elements(By.CSS_SELECTOR, "tbody tr")
    assert [r.find_element(By.CLASS_NAME, "id").text for r in rows] == [
        f"H{i}" for i in range(1, 10)
    ]
    for row in rows:
        answer, because = row.find_elements(By.TAG_NAME, "td")
        assert answer.text[0] in "✓✗?"
        assert answer.text[2:] in {"supported", "not supported", "cannot tell"}
        assert len(because.text) > 10
    # The section of the ablation is not in the study file.
    assert "no section [ablation]" in rows[2].text


@pytest.mark.parametrize("width", [390, 1280])
def test_interventions_never_make_the_page_scroll_sideways(browser, page, width):
    open_page(browser, page, width=width)
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    time.sleep(0.2)  # toggle events are queued
    wait_for(
        browser,
        "return [...document.querySelectorAll('[data-chart]')]"
        ".every(e => e.dataset.state === 'drawn')",
    )
    whole, window = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert whole <= window
    outside = browser.execute_script(
        "const w = document.documentElement.clientWidth;"
        "return [...document.querySelectorAll('.card, .panel, .panel svg, .sample-controls > *')]"
        ".filter(e => e.getBoundingClientRect().right > w + 1).map(e => e.className)"
    )
    assert outside == []


def test_the_browser_of_samples_shows_strengths_side_by_side(browser, page):
    open_page(browser, page)
    heads = [h.text for h in browser.find_elements(By.CSS_SELECTOR, "table.samples thead th")]
    assert heads == [
        "prompt", *(f"α = {a} class separations" for a in ("−2", "−1", "0", "1", "2")),
    ]  # fmt: skip
    first = rows_shown(browser)[0]
    assert first[0] == "You are at work in place 0."
    assert first[1].endswith("(llama-organism, diff_means, prompt 0, -2)")
    assert first[5].endswith("(llama-organism, diff_means, prompt 0, 2)")
    assert status(browser) == "Prompts 1 to 4 of 6; 30 texts pass."
    assert browser.get_log("browser") == []


def test_samples_are_filtered_by_model_direction_scenario_strength_and_score(browser, page):
    open_page(browser, page)
    choose(browser, "model", "gemma2-organism")
    choose(browser, "direction", "random-0")
    choose(browser, "scenario", "place_1")
    shown = rows_shown(browser)
    assert len(shown) == 2
    assert shown[0][1].endswith("(gemma2-organism, random-0, prompt 1, -2)")
    assert status(browser) == "Prompts 1 to 2 of 2; 10 texts pass."

    for alpha in ("-2", "-1", "1"):
        browser.find_element(By.CSS_SELECTOR, f"#sample-strengths input[value='{alpha}']").click()
    assert [len(row) for row in rows_shown(browser)] == [3, 3]  # the prompt and two strengths

    choose(browser, "direction", "diff_means")
    choose(browser, "scenario", "all")
    choose(browser, "score", "empathy words")
    enter(browser, "least", "0.45")
    shown = rows_shown(browser)
    assert {text[-4:] for row in shown for text in row[1:]} == {", 2)"}
    assert status(browser) == "Prompts 1 to 4 of 6; 6 texts pass."
    assert "does not pass the filters" in browser.find_element(By.CSS_SELECTOR, ".samples").text
    enter(browser, "most", "0.46")
    assert rows_shown(browser) == []
    assert browser.find_element(By.CSS_SELECTOR, "#sample-browser .absent").is_displayed()
    browser.find_element(By.ID, "sample-most").clear()
    browser.find_element(By.ID, "sample-most").send_keys("9")
    enter(browser, "words", "PROMPT 5, 2")
    assert status(browser) == "Prompts 1 to 1 of 1; 1 text passes."


def test_the_browser_of_samples_is_worked_by_keys_alone(browser, page):
    open_page(browser, page)
    browser.execute_script("document.getElementById('sample-model').focus()")
    order = []
    for _ in range(14):
        active = browser.switch_to.active_element
        order.append(active.get_attribute("id") or active.get_attribute("type") or "scroll")
        active.send_keys(Keys.TAB)
    names = ("model", "direction", "scenario", "score", "least", "most", "words")
    assert order[:7] == [f"sample-{name}" for name in names]
    assert order[7:12] == ["checkbox"] * 5
    assert "sample-later" in order
    later = browser.find_element(By.ID, "sample-later")
    later.send_keys(Keys.ENTER)
    assert status(browser).startswith("Prompts 5 to 6 of 6")
    assert not browser.find_element(By.ID, "sample-later").is_enabled()
    nameless = browser.execute_script(
        "return [...document.querySelectorAll('.sample-controls input, .sample-controls select')]"
        ".filter(e => !e.labels.length || !e.labels[0].textContent.trim()).length"
    )
    assert nameless == 0


def test_hostile_samples_are_shown_and_not_run(browser, tmp_path):
    hostile = scored(("llama-organism",), n_prompts=2, text=HOSTILE).assign(
        prompt_text=HOSTILE, scenario=HOSTILE, direction=HOSTILE
    )
    tables = all_tables(("llama-organism",)) | {"scored": hostile}
    path = write_report(small_input(tables=tables), tmp_path / "report.html")
    open_page(browser, path)
    assert rows_shown(browser)[0] == [HOSTILE] * 11
    assert browser.execute_script("return window.pwned") is None
    assert browser.find_elements(By.CSS_SELECTOR, "img:not(.static)") == []
    assert browser.get_log("browser") == []


def test_without_scripts_the_first_prompt_of_each_model_stands_there(browser, page):
    open_page(browser, page, scripts=False)
    try:
        found = browser.find_elements(By.CSS_SELECTOR, "#sample-browser tbody tr")
        assert len(found) == 3 * 5
        assert "diff_means, prompt 0, -2" in found[0].text
    finally:
        open_page(browser, page)
