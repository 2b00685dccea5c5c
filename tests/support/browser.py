"""A headless Chromium, what its console and network said, and what stands on a page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    BROWSER is None or DRIVER is None, reason="needs chromium and chromedriver"
)

VIEWS = ["comparison", "cases", "changes", "curves", "hubs", "map"]
SCREENS = {"desktop": (1280, 900), "phone": (390, 844), "narrow": (360, 740)}
SWITCHES = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
OPEN = "return [...document.querySelectorAll('[role=tabpanel]')].filter(p => p.offsetHeight > 0)"
WIDE = """
const limit = document.documentElement.clientWidth;
const inside = element => element.closest('.scroll') !== null;
return [...document.body.querySelectorAll('*')]
  .filter(e => e.getBoundingClientRect().right > limit + 1 && !inside(e.parentElement))
  .map(e => e.tagName + '.' + e.className);
"""


def browser(profile: Path) -> Iterator[Any]:
    """A browser that keeps what its console and its network saw."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for switch in (*SWITCHES, f"--user-data-dir={profile}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=str(DRIVER))
    started = webdriver.Chrome(options=options, service=service)
    yield started
    started.quit()


# Charts in sight that are not drawn, and images in sight.
UNDRAWN = "[...document.querySelectorAll('.plot')].filter(p => p.offsetWidth && !p.dataset.drawn)"
SEEN = "[...document.querySelectorAll('img[data-picture]')].filter(image => image.offsetWidth)"
# Controls of the page that a finger would miss: below 44 pixels in height.
SMALL = """
return [...document.querySelectorAll('button, select, input')]
  .filter(e => e.offsetWidth && e.getBoundingClientRect().height < 44)
  .map(e => e.outerHTML.slice(0, 80));
"""


def wait(driver: Any, condition: str) -> None:
    WebDriverWait(driver, 20).until(lambda browser: browser.execute_script(condition))


def visit(driver: Any, page: Path, screen: str = "desktop", scheme: str = "light") -> None:
    """Open the page afresh, at its first view."""
    width, height = SCREENS[screen]
    metrics = {"width": width, "height": height, "mobile": screen != "desktop"}
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {**metrics, "deviceScaleFactor": 1}
    )
    feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    driver.get("about:blank")
    complaints(driver)
    driver.get(page.as_uri())


def complaints(driver: Any) -> list[str]:
    """What the console said and what was asked of the network since the last call."""
    said = [f"{entry['level']}: {entry['message']}" for entry in driver.get_log("browser")]
    for entry in driver.get_log("performance"):
        event = json.loads(entry["message"])["message"]
        if event["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
            url = event["params"].get("request", event["params"])["url"]
            if not url.startswith(("file:", "data:", "about:")):
                said.append(f"asked the network for {url}")
    return said


def shown(driver: Any) -> list[str]:
    """The views that can be seen, which must be the one whose tab is selected."""
    found = [panel.get_attribute("id") for panel in driver.execute_script(OPEN)]
    chosen = driver.find_elements("css selector", "[role=tab][aria-selected=true]")
    assert [tab.get_attribute("aria-controls") for tab in chosen] == found
    return found


def background(driver: Any) -> int:
    """How bright the page is, 0 to 255."""
    colour = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    return int(colour.split("(")[1].split(",")[0])
