"""The report in a real browser: every view by mouse and by keyboard, light, dark and on a phone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("selenium", reason="needs selenium: pip install selenium")

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None, reason="needs chromium and chromedriver"
)

VIEWS = ["ladder", "curves", "changes", "won", "lost"]
SCREENS = {"desktop": (1280, 900), "phone": (360, 740)}
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


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium that keeps what its console and its network saw."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=str(DRIVER))
    browser = webdriver.Chrome(options=options, service=service)
    yield browser
    browser.quit()


def visit(driver: Any, page: Path, screen: str = "desktop", scheme: str = "light") -> None:
    """Open the page afresh, at its first view."""
    width, height = SCREENS[screen]
    metrics = {"width": width, "height": height, "mobile": screen == "phone"}
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_every_view_by_mouse(driver: Any, report_page: Path, screen: str, scheme: str) -> None:
    visit(driver, report_page, screen, scheme)
    assert shown(driver) == ["ladder"]
    assert (background(driver) > 200) == (scheme == "light")
    for name in VIEWS:
        driver.find_element("id", f"tab-{name}").click()
        assert shown(driver) == [name]
        assert driver.execute_script(WIDE) == []
        width = driver.execute_script("return document.documentElement.scrollWidth")
        assert width == SCREENS[screen][0] or screen == "desktop"
    broken = "return [...document.images].filter(image => !image.naturalWidth).length"
    assert driver.execute_script("return document.images.length") > 0
    assert driver.execute_script(broken) == 0
    assert complaints(driver) == []


def test_every_view_by_keyboard(driver: Any, report_page: Path) -> None:
    visit(driver, report_page)

    def press(key: str) -> None:
        ActionChains(driver).send_keys(key).perform()

    def focused() -> str:
        return str(driver.switch_to.active_element.get_attribute("id"))

    press(Keys.TAB)
    assert focused() == "tab-ladder"
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert driver.execute_script(outline) == "solid"  # the focus can be seen
    for name in [*VIEWS[1:], VIEWS[0]]:  # and around
        press(Keys.ARROW_RIGHT)
        assert (focused(), shown(driver)) == (f"tab-{name}", [name])
    for key, name in ((Keys.ARROW_LEFT, "lost"), (Keys.HOME, "ladder"), (Keys.END, "lost")):
        press(key)
        assert (focused(), shown(driver)) == (f"tab-{name}", [name])
    press(Keys.HOME)
    press(Keys.TAB)  # out of the tabs, to what can be scrolled in the view
    assert driver.switch_to.active_element.get_attribute("class") == "scroll"
    driver.refresh()
    assert complaints(driver) == []


def test_a_reload_keeps_the_view(driver: Any, report_page: Path) -> None:
    visit(driver, report_page)
    driver.find_element("id", "tab-won").click()
    driver.refresh()
    assert shown(driver) == ["won"]


def test_the_check_itself_notices(driver: Any, report_page: Path, tmp_path: Path) -> None:
    """A script that fails, a picture from elsewhere and an overflow are all seen."""
    bad = (
        "<script>null.x</script><img src='http://127.0.0.1:9/x.png' alt=''>"
        "<div style='width:2000px'>wide</div></body>"
    )
    page = tmp_path / "bad.html"
    page.write_text(report_page.read_text().replace("</body>", bad))
    visit(driver, page, "phone")
    assert driver.execute_script(WIDE) != []
    said = "\n".join(complaints(driver))
    assert "Cannot read properties of null" in said
    assert "asked the network for http://127.0.0.1:9/x.png" in said
