"""Headless Chromium without a network, for tests that look at the report as a person does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)


def _needed(*names: str) -> str:
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        pytest.fail(
            f"none of {names} is on PATH: these tests look at the report in a real browser; "
            "install chromium and chromium-driver (tests/install-chromium.sh)"
        )
    return found


@contextmanager
def chromium(profile: Path, downloads: Path | None = None) -> Iterator[webdriver.Chrome]:
    """Start the browser, yield its driver and end it; what it saves goes to ``downloads``."""
    options = webdriver.ChromeOptions()
    options.binary_location = _needed("chromium", "chromium-browser", "google-chrome")
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(_needed("chromedriver")))
    try:
        driver.set_page_load_timeout(60)
        if downloads is not None:
            where = {"behavior": "allow", "downloadPath": str(downloads)}
            driver.execute_cdp_cmd("Page.setDownloadBehavior", where)
        yield driver
    finally:
        driver.quit()


def open_page(browser, path: Path, *, width: int = 1280, scripts: bool = True) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not scripts})
    browser.get_log("browser")  # what earlier pages said is theirs
    browser.get(path.as_uri())
    if scripts:
        wait_for(browser, "return document.documentElement.dataset.charts === 'done'")


def wait_for(browser, condition: str) -> None:
    WebDriverWait(browser, 60, poll_frequency=0.05).until(lambda b: b.execute_script(condition))


def states(browser) -> list[tuple[str | None, bool]]:
    """The state of every chart, and whether it lies in a closed box."""
    found = browser.execute_script(
        "return [...document.querySelectorAll('[data-chart]')].map("
        "e => [e.dataset.state || null, !!e.closest('details:not([open])')])"
    )
    return [(state, closed) for state, closed in found]
