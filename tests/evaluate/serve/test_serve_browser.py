"""The server's page in a real browser: a sentence, an image, a token, a phone."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("selenium", reason="needs selenium: pip install selenium")
pytest.importorskip("starlette", reason="needs starlette: pip install 'hada[serve]'")
pytest.importorskip("uvicorn", reason="needs uvicorn: pip install 'hada[serve]'")
pytest.importorskip("prometheus_client", reason="needs its package: pip install 'hada[serve]'")

from browser import SMALL
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait
from served_runs import TOKEN, make_served, serving

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None or DRIVER is None, reason="needs chromium and chromedriver"),
]
SWITCHES = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
LOADED = """
const images = [...document.querySelectorAll('#results img')];
return images.length > 0 && images.every(image => image.complete && image.naturalWidth > 0);
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_served(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(executable_path=str(DRIVER))
    )
    yield browser
    browser.quit()


def results(driver: Any, count: int, says: str) -> list[str]:
    """The results' texts, once there are so many with all their pictures and the status says so."""
    wait = WebDriverWait(driver, 60)
    status = driver.find_element("css selector", "#status")
    wait.until(lambda _: says in status.text)
    wait.until(lambda _: len(driver.find_elements("css selector", "#results li")) == count)
    wait.until(lambda _: driver.execute_script(LOADED))
    return [item.text for item in driver.find_elements("css selector", "#results li")]


def ask(driver: Any, text: str) -> None:
    box = driver.find_element("css selector", "#text")
    box.clear()
    box.send_keys(text + "\n")


def test_a_sentence_and_an_image_find_results_with_pictures(driver: Any, project: Path) -> None:
    with serving(project, "out", "--split", "val") as (address, _):
        for width, height in ((1280, 900), (360, 740)):
            driver.set_window_size(width, height)
            driver.get(address)
            about = driver.find_element("css selector", "#about")
            WebDriverWait(driver, 30).until(lambda _, about=about: "val: 5 images" in about.text)
            ask(driver, "red above blue")
            found = results(driver, 5, "5 images of val")
            assert all({"one", "two"} <= set(text.split()) for text in found)
            file = driver.find_element("css selector", "#file")
            file.send_keys(str(project / "data/images/val_001.jpg"))
            results(driver, 10, "10 captions of val")
            wide = driver.execute_script(
                "return document.documentElement.scrollWidth - window.innerWidth"
            )
            assert wide <= 0, f"{width} pixels: the page is {wide} too wide"
        file = driver.find_element("css selector", "#file")
        file.send_keys(str(project / "data_manifest.yaml"))
        status = driver.find_element("css selector", "#status")
        WebDriverWait(driver, 30).until(lambda _: "the image cannot be used" in status.text)
    complaints = [
        line for line in driver.get_log("browser") if "status of 400" not in line["message"]
    ]
    assert complaints == []


# How far each heat map lies from the part of its image that it is of, in pixels,
# and how many of their pixels are not clear.
LAID = """
return [...document.querySelectorAll('#look .frame')].map(frame => {
  const image = frame.querySelector('img'), canvas = frame.querySelector('canvas');
  const whole = frame.getBoundingClientRect(), laid = canvas.getBoundingClientRect();
  const most = Math.max(image.naturalWidth, image.naturalHeight);
  const width = whole.width * image.naturalWidth / most;
  const height = whole.height * image.naturalHeight / most;
  const pen = canvas.getContext('2d');
  const pixels = pen.getImageData(0, 0, canvas.width, canvas.height).data;
  let hot = 0;
  for (let k = 3; k < pixels.length; k += 4) hot += pixels[k] > 0;
  return [laid.width - width, laid.height - height,
    laid.left + laid.width / 2 - whole.left - whole.width / 2,
    laid.top + laid.height / 2 - whole.top - whole.height / 2, hot];
});
"""


def test_what_matched_is_shown_over_the_image(driver: Any, project: Path) -> None:
    with serving(project, "out", "--split", "val") as (address, _):
        wait = WebDriverWait(driver, 30)
        driver.get_log("browser")
        for width, height in ((1280, 900), (390, 844)):
            metrics = {"width": width, "height": height, "mobile": width < 500}
            driver.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride", {**metrics, "deviceScaleFactor": 1}
            )
            driver.get(address)
            about = driver.find_element("css selector", "#about")
            wait.until(lambda _, about=about: "val: 5 images" in about.text)
            ask(driver, "red above blue")
            found = results(driver, 5, "5 images of val")
            for model in ("one", "two"):
                shown = [re.search(model + r"\s+-?0\.\d+\s+rank (\d)", text) for text in found]
                # Each place once; equal cosines share one.
                assert {int(x[1]) for x in shown if x} <= {1, 2, 3, 4, 5}
                assert all(shown), found
                assert "1" in {x[1] for x in shown if x}
            for query in ("text", "image"):
                if query == "image":
                    file = driver.find_element("css selector", "#file")
                    file.send_keys(str(project / "data/images/val_001.jpg"))
                    results(driver, 10, "10 captions of val")
                driver.execute_script("document.querySelector('#results .look').click()")
                wait.until(lambda _: len(driver.execute_script(LAID)) == 2)
                wait.until(
                    lambda _: all(
                        abs(x) < 1 for row in driver.execute_script(LAID) for x in row[:4]
                    )
                )
                assert any(row[4] for row in driver.execute_script(LAID)), "all is clear"
                words = driver.find_elements("css selector", "#look .words button")
                assert len(words) >= 4
                for word in words:
                    driver.execute_script("arguments[0].click()", word)
                    assert word.get_attribute("aria-pressed") == "true"
                said = driver.find_elements("css selector", "#look .said")
                assert all("times uniform, answered by" in one.text for one in said)
                wide = driver.execute_script(
                    "const d = document.getElementById('look'); "
                    "return Math.max(d.scrollWidth - d.clientWidth, "
                    "document.documentElement.scrollWidth - window.innerWidth)"
                )
                assert wide <= 0
                assert driver.execute_script(SMALL) == []
                driver.find_element("css selector", "#look form button").click()
                assert not driver.find_element("css selector", "#look").is_displayed()
            driver.find_element("css selector", "#find").send_keys("captions")
            ask(driver, "red above blue")
            results(driver, 10, "10 captions of val")
            # A sentence and a caption have no patches.
            assert driver.find_elements("css selector", "#results .look") == []
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    # Reading a canvas back, as this test does, is slow.
    log = driver.get_log("browser")
    assert [line for line in log if "getImageData" not in line["message"]] == []


def test_the_page_asks_for_the_token(driver: Any, project: Path) -> None:
    with serving(project, "out", "--split", "val", HADA_TOKEN=TOKEN) as (address, _):
        driver.get(address)
        wait = WebDriverWait(driver, 30)
        box = driver.find_element("css selector", "#token")
        wait.until(lambda _: box.is_displayed())
        box.send_keys(TOKEN + "\n")
        about = driver.find_element("css selector", "#about")
        wait.until(lambda _: "val: 5 images" in about.text)
        assert not box.is_displayed()
        ask(driver, "red above blue")
        results(driver, 5, "5 images of val")
