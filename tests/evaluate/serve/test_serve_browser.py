"""The server's page in a real browser: a sentence, an image, a token, a phone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("selenium", reason="needs selenium: pip install selenium")
pytest.importorskip("starlette", reason="needs starlette: pip install 'hada[serve]'")
pytest.importorskip("uvicorn", reason="needs uvicorn: pip install 'hada[serve]'")
pytest.importorskip("prometheus_client", reason="needs its package: pip install 'hada[serve]'")

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
            assert all("one " in text and "two " in text for text in found)
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
