"""The review form as a rater uses it: filled in and downloaded in headless Chromium, offline."""

from __future__ import annotations

import shutil

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

from actlake.corpus import corpus_info, draw_review, read_answers, write_review
from tests.corpus.made import corpus

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)


def needed(*names: str) -> str:
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        pytest.fail(f"none of {names} is on PATH: see tests/install-chromium.sh")
    return found


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(tmp_path_factory, downloads):
    options = webdriver.ChromeOptions()
    options.binary_location = needed("chromium", "chromium-browser", "google-chrome")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    driver = webdriver.Chrome(options=options, service=Service(needed("chromedriver")))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


def choose(browser, item, name, value):
    query = f'input[name="{item}:{name}"][value="{value}"]'
    browser.execute_script("document.querySelector(arguments[0]).click()", query)


def test_a_rater_answers_and_the_tool_reads_it(browser, downloads, tmp_path):
    texts = corpus(3, 2)
    key = draw_review(corpus_info("made", texts), texts, n=3)
    paths = write_review(tmp_path, key, texts)
    browser.get(paths["form.html"].as_uri())
    submit = "document.querySelector('button[type=submit]').click()"
    state = "return document.getElementById('state').textContent"
    browser.execute_script("document.getElementById('rater').value = 'Ann O\\'Hara'")
    browser.execute_script(submit)
    assert browser.execute_script(state) == "3 items are not answered"
    for item in key.items:
        a, b = (2, 0) if item.a == "positive" else (0, 2)
        for name, value in (("score_a", a), ("score_b", b), ("verdict", "accept")):
            choose(browser, item.item, name, value)
    comment = 'odd, "quoted"\nline é'
    browser.execute_script(
        "document.querySelector(arguments[0]).value = arguments[1]",
        f'textarea[name="{key.items[1].item}:comment"]',
        comment,
    )
    browser.execute_script(submit)
    WebDriverWait(browser, 30).until(lambda _: (downloads / "Ann-O-Hara.csv").exists())
    answers = read_answers(downloads / "Ann-O-Hara.csv", key)
    assert [a.rater for a in answers] == ["Ann-O-Hara"] * 3
    assert answers[1].comment.split() == comment.split()
    assert [(a.score_a, a.score_b) for a in answers] == [
        (2, 0) if item.a == "positive" else (0, 2) for item in key.items
    ]
