"""What a reader can do with the page: choose, search, and take the numbers away as CSV."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from actlake.analyze.report_charts import Panel
from actlake.analyze.report_filters import Filter, Item, filterable, filterable_table
from actlake.analyze.report_page import Column, Page, grid
from tests.analyze.chromium import chromium, open_page, states, wait_for

FORMULA = '=HYPERLINK("http://x.invalid","a")'
MODELS = ("alpha", "beta")
ROWS = [
    {
        "model": MODELS[i % 2],
        "n": i,
        "text": f"text number {i}",
        "value": f"\N{MINUS SIGN}0.{i:03d}",
    }
    for i in range(30)
]
ROWS[3] |= {"text": FORMULA, "value": "–"}
COLUMNS = [
    Column("model", lambda r: r["model"]),
    Column("text", lambda r: r["text"], "long"),
    Column("value", lambda r: r["value"], "number"),
]


def dots(panel: Panel, values):
    marks = panel.chart(values, "points").mark_point()
    rule = panel.chart([{"y": 0.5}], "chance").mark_rule()
    return panel.spec([marks.encode(x="x:Q", y="y:Q"), rule.encode(y="y:Q")], height=100)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    page = Page(title="Filters", meta="", version="0")
    body = filterable_table(
        COLUMNS,
        ROWS,
        label="Texts",
        filters=[Filter("model", lambda r: r["model"]), Filter("kind", lambda _: "one")],
        page_size=10,
    )
    page.add("texts", "Texts", body)
    items = []
    for model in MODELS:
        values = [
            {"x": i, "y": i / 8 + 0.5, "text": FORMULA if i == 2 else "a, b"} for i in range(4)
        ]
        panel = page.panel(model, dots(Panel(), values))
        items.append(Item(grid([panel], width="10rem"), {"model": model}))
    page.add("drawings", "Drawings", filterable(items, label="Charts", filters=["model"]))
    for i in range(5):
        page.add(f"more{i}", f"More {i}", "<p>…</p>" * 40, lead=f"Finding <{i}>")
    path: Path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(page.to_html(), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def downloads(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("downloads")
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory, downloads):
    with chromium(tmp_path_factory.mktemp("profile"), downloads) as driver:
        yield driver


def shown(browser, section: str) -> list[str]:
    found: list[str] = browser.execute_script(
        "return [...document.querySelectorAll(`#${arguments[0]} ~ * [data-item]`)]"
        ".filter(e => e.getClientRects().length).map(e => e.textContent)",
        section,
    )
    return found


def saved(browser, downloads: Path, button) -> list[list[str]]:
    for old in downloads.iterdir():
        old.unlink()
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    button.send_keys(Keys.ENTER)
    end = time.monotonic() + 20
    while not (done := list(downloads.glob("*.csv"))):
        assert time.monotonic() < end, "no CSV was saved"
        time.sleep(0.05)
    with done[0].open(encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file))


def test_a_choice_and_words_leave_the_rows_that_have_both(browser, page):
    open_page(browser, page)
    assert len(shown(browser, "texts")) == 10
    choices = browser.find_elements(By.CSS_SELECTOR, "#texts ~ .filterable select")
    assert len(choices) == 1  # a filter with one value is no choice
    Select(choices[0]).select_by_visible_text("beta")
    assert len(shown(browser, "texts")) == 10
    box = browser.find_element(By.CSS_SELECTOR, "#texts ~ .filterable input")
    box.send_keys("NUMBER 2")
    left = shown(browser, "texts")
    assert [row.split("−")[0] for row in left] == [
        f"betatext number {i}" for i in (21, 23, 25, 27, 29)
    ]
    assert browser.find_element(By.CSS_SELECTOR, "#texts ~ .filterable .count").text == "5 of 30"


def test_more_rows_show_on_demand_by_keyboard(browser, page):
    open_page(browser, page)
    more = browser.find_element(By.CSS_SELECTOR, "#texts ~ .filterable .more")
    for expected in (20, 30):
        more.send_keys(Keys.ENTER)
        assert len(shown(browser, "texts")) == expected
    assert not more.is_displayed()


def test_the_csv_of_a_table_holds_the_rows_that_were_chosen(browser, page, downloads):
    open_page(browser, page)
    Select(browser.find_element(By.CSS_SELECTOR, "#texts ~ .filterable select")).select_by_value(
        "beta"
    )
    button = browser.find_element(By.CSS_SELECTOR, "#texts ~ .filterable button.csv")
    lines = saved(browser, downloads, button)
    assert lines[0] == ["model", "text", "value"]
    assert len(lines) == 1 + 15  # also those behind "show more"
    assert lines[1] == ["beta", "text number 1", "-0.001"]
    assert lines[2] == ["beta", "'" + FORMULA, ""]
    assert browser.get_log("browser") == []


def test_the_csv_of_a_chart_is_its_own_data(browser, page, downloads):
    open_page(browser, page)
    button = browser.find_element(By.CSS_SELECTOR, "#drawings ~ .filterable button.csv")
    assert button.get_attribute("aria-label") == "alpha: save as CSV"
    lines = saved(browser, downloads, button)
    assert lines[0] == ["part", "x", "y", "text"]
    assert lines[1:5] == [
        ["points", str(i), f"{i / 8 + 0.5:g}", "'" + FORMULA if i == 2 else "a, b"]
        for i in range(4)
    ]
    assert lines[5] == ["chance", "", "0.5", ""]


def test_a_chart_that_a_choice_hid_is_drawn_when_it_shows(browser, page):
    open_page(browser, page)
    assert [state for state, _ in states(browser)] == ["drawn", "drawn"]
    choice = Select(browser.find_element(By.CSS_SELECTOR, "#drawings ~ .filterable select"))
    choice.select_by_value("beta")
    assert len(shown(browser, "drawings")) == 1
    choice.select_by_index(0)
    wait_for(
        browser, "return [...document.querySelectorAll('.live svg')].every(e => e.clientWidth)"
    )
    assert len(shown(browser, "drawings")) == 2


def test_many_sections_are_listed_with_their_findings(browser, page):
    open_page(browser, page)
    listed = browser.find_elements(By.CSS_SELECTOR, "nav.contents li")
    assert len(listed) == 7
    assert listed[2].text == "More 0\nFinding <0>"
    listed[-1].find_element(By.TAG_NAME, "a").click()
    wait_for(browser, "return !!document.querySelector('nav.bar a[aria-current]')")


def test_without_scripts_all_rows_show_and_no_control(browser, page):
    open_page(browser, page, scripts=False)
    document = browser.execute_cdp_cmd("DOM.getDocument", {"depth": -1})["root"]["nodeId"]

    def nodes(selector: str) -> list[int]:
        query = {"nodeId": document, "selector": selector}
        found: list[int] = browser.execute_cdp_cmd("DOM.querySelectorAll", query)["nodeIds"]
        return found

    assert len(nodes("tr[data-item]:not([hidden])")) == 30
    assert nodes("button:not([hidden])") == []
    assert len(nodes(".filters[hidden]")) == 2
