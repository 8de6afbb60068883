"""Open a page in headless Chromium; tests that use it skip with a reason where Chromium is absent."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Opened:
    """What the browser saw: console errors, charts on the page, charts that were drawn."""

    errors: list[str]
    charts: int
    drawn: int
    text: str


@contextmanager
def chromium(width: int = 1200, height: int = 900) -> Iterator[object]:
    """Yield a selenium driver on Debian's Chromium with the network switched off."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("chromium and chromedriver are not installed: apt-get install chromium chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = browser
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--window-size={width},{height}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    session = webdriver.Chrome(options=options, service=Service(driver))
    session.command_executor.client_config.timeout = 280  # drawing is slow where other tests share the cores
    try:
        yield session
    finally:
        session.quit()


def open_page(path: Path, screenshot: Path | None = None, seconds: float = 120) -> Opened:
    """Open a local page, wait until every chart is drawn, and report what went wrong."""
    with chromium() as session:
        session.get(path.resolve().as_uri())
        deadline = time.monotonic() + seconds
        # a chart counts as drawn when its figure is in the page, not merely asked for
        count = (
            "return [document.querySelectorAll('.chart').length,"
            " document.querySelectorAll('.chart[data-drawn] .main-svg:first-of-type').length]"
        )
        charts, drawn = session.execute_script(count)
        while drawn < charts and time.monotonic() < deadline:
            time.sleep(0.2)
            charts, drawn = session.execute_script(count)
        if screenshot:
            tall = session.execute_script("return document.documentElement.scrollHeight")
            session.set_window_size(1200, min(tall + 150, 16000))
            time.sleep(0.5)
            session.save_screenshot(str(screenshot))
        errors = [entry["message"] for entry in session.get_log("browser") if entry["level"] == "SEVERE"]
        text = session.execute_script("return document.body.innerText")
    return Opened(errors, charts, drawn, text)
