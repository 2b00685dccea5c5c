"""The report in a real browser: every view by mouse and by keyboard, light, dark and on a phone."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from pathlib import Path
from typing import Any

import makers
import pytest

pytest.importorskip("selenium", reason="needs selenium: pip install selenium")

from browser import (
    SCREENS,
    SEEN,
    SMALL,
    UNDRAWN,
    VIEWS,
    WIDE,
    background,
    complaints,
    needs_browser,
    shown,
    visit,
    wait,
)
from click.testing import CliRunner
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from hada.evaluate.cli import evaluate
from hada.evaluate.search.query import as_page
from hada.extract.cli import extract
from hada.fuse.cli import fuse

EVIL = """</script><script>owned=1</script>"'<img src=x onerror=owned=2><b id=owned>{{7*7}}$hada"""
pytestmark = [needs_browser, pytest.mark.slow]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_every_view_by_mouse(driver: Any, report_page: Path, screen: str, scheme: str) -> None:
    visit(driver, report_page, screen, scheme)
    assert shown(driver) == ["comparison"]
    assert (background(driver) > 200) == (scheme == "light")
    for name in VIEWS:
        driver.find_element("id", f"tab-{name}").click()
        assert shown(driver) == [name]
        assert driver.execute_script(WIDE) == []
        width = driver.execute_script("return document.documentElement.scrollWidth")
        assert width == SCREENS[screen][0] or screen == "desktop"
        wait(driver, f"return {UNDRAWN}.length === 0")
        small = driver.execute_script(SMALL)
        assert small == [], f"too small to be touched in {name}"
    driver.find_element("id", "tab-cases").click()
    assert driver.execute_script(f"return {SEEN}.length") > 0
    wait(driver, f"return {SEEN}.every(image => image.naturalWidth > 0)")
    assert complaints(driver) == []


def test_every_view_by_keyboard(driver: Any, report_page: Path) -> None:
    visit(driver, report_page)

    def press(key: str) -> None:
        ActionChains(driver).send_keys(key).perform()

    def focused() -> str:
        return str(driver.switch_to.active_element.get_attribute("id"))

    press(Keys.TAB)
    assert focused() == "tab-comparison"
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert driver.execute_script(outline) == "solid"  # the focus can be seen
    for name in [*VIEWS[1:], VIEWS[0]]:  # and around
        press(Keys.ARROW_RIGHT)
        assert (focused(), shown(driver)) == (f"tab-{name}", [name])
    for key, name in ((Keys.ARROW_LEFT, "map"), (Keys.HOME, "comparison"), (Keys.END, "map")):
        press(key)
        assert (focused(), shown(driver)) == (f"tab-{name}", [name])
    press(Keys.HOME)
    press(Keys.TAB)  # out of the tabs: provenance, opened and closed again
    assert focused() == "open-provenance"
    press(Keys.ENTER)
    assert driver.execute_script("return document.getElementById('provenance').open")
    assert "hada-evaluate report" in driver.find_element("id", "provenance").text
    press(Keys.ESCAPE)
    assert not driver.execute_script("return document.getElementById('provenance').open")
    assert focused() == "open-provenance"
    press(Keys.TAB)
    assert focused() == "baseline"
    seen = []
    for _ in range(20):
        press(Keys.TAB)
        seen.append(driver.switch_to.active_element.get_attribute("class"))
    assert "scroll" in seen  # what can be scrolled, can be by keyboard
    driver.refresh()
    assert complaints(driver) == []


def test_a_reload_keeps_the_view(driver: Any, report_page: Path) -> None:
    visit(driver, report_page)
    driver.find_element("id", "tab-hubs").click()
    driver.refresh()
    assert shown(driver) == ["hubs"]


def test_the_check_itself_notices(driver: Any, report_page: Path, tmp_path: Path) -> None:
    """A script that fails, a picture from elsewhere and an overflow are all seen."""
    bad = (
        "<script>null.x</script><img src='http://127.0.0.1:9/x.png' alt=''>"
        "<div style='width:2000px'>wide</div></body>"
    )
    page = tmp_path / "bad.html"
    page.write_text(without_policy(report_page.read_text()).replace("</body>", bad))
    visit(driver, page, "phone")
    assert driver.execute_script(WIDE) != []
    said = "\n".join(complaints(driver))
    assert "Cannot read properties of null" in said
    assert "asked the network for http://127.0.0.1:9/x.png" in said


def without_policy(text: str) -> str:
    changed = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    assert changed != text
    return changed


# Should a name or caption ever stand in a page as it is: a script, handlers, an address that is a
# script, pictures, styles, frames and forms from elsewhere, another base, a refresh to a script.
INJECTED = """
<script>window.owned = 1</script><img src=x onerror="window.owned = 2"><svg onload="window.owned=3">
<p id="styled" style="position: fixed; color: rgb(1, 2, 3)" onmouseover="window.owned = 4">x</p>
<style>h1 { color: rgb(1, 2, 3) }</style><a id="link" href="javascript:window.owned = 5">x</a>
<img src="http://127.0.0.1:PORT/x.png"><link rel="stylesheet" href="http://127.0.0.1:PORT/x.css">
<script src="http://127.0.0.1:PORT/x.js"></script><iframe srcdoc="<script>top.owned = 6</script>">
</iframe><object data="http://127.0.0.1:PORT/x"></object><base href="http://127.0.0.1:PORT/">
<form action="http://127.0.0.1:PORT/"><button id="send">x</button></form>
"""


def asked(server: socket.socket) -> list[bytes]:
    """What was sent to a server; browsers connect in advance, which sends nothing."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            stream, _ = server.accept()
            with stream:
                stream.settimeout(0.2)
                with contextlib.suppress(TimeoutError):
                    found.append(stream.recv(100))
    return [data for data in found if data]


def test_what_is_injected_does_nothing(driver: Any, report_page: Path, tmp_path: Path) -> None:
    page = tmp_path / "injected.html"
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.setblocking(False)
        evil = INJECTED.replace("PORT", str(elsewhere.getsockname()[1]))
        page.write_text(report_page.read_text().replace("<h1>", f"{evil}<h1>", 1))
        visit(driver, page)
        for name in ("link", "send", "styled"):
            driver.execute_script(f"document.getElementById('{name}').click()")
        assert driver.execute_script("return window.owned") is None
        colour = "return getComputedStyle(document.querySelector(arguments[0])).color"
        for place in ("h1", "#styled"):
            assert driver.execute_script(colour, place) != "rgb(1, 2, 3)"
        assert asked(elsewhere) == []
        said = complaints(driver)
        assert sum("Content Security Policy" in line for line in said) >= 8
        assert shown(driver) == ["comparison"]  # and the page's own script runs
    # The same without the policy is obeyed: it is the policy that stops it.
    page.write_text(without_policy(page.read_text()))
    visit(driver, page)
    assert driver.execute_script("return window.owned") is not None


@pytest.fixture(scope="module")
def evil_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run whose name, captions and image files are all script and markup."""
    folder = tmp_path_factory.mktemp("evil")
    run = f"runs/tiny/{EVIL.replace('/', '')}"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        makers.make_project(folder, splits={"train": [2] * 6, "val": [2] * 8})
        annotations = folder / "data/dataset_tiny.json"
        listed = json.loads(annotations.read_text())
        for image in listed["images"]:
            name = image["filename"]
            image["filename"] = f"{EVIL.replace('/', '')}{name}"
            (folder / "data/images" / name).rename(folder / "data/images" / image["filename"])
            for number, sentence in enumerate(image["sentences"]):
                sentence["raw"] += f" {EVIL}"
                sentence["sentid"] = f"{EVIL}{name}{number}"
        annotations.write_text(json.dumps(listed))
        for command, words in (
            (extract, ["--split", "train"]),
            (extract, ["--split", "val"]),
            (fuse, ["train", "--epochs", "1", "--set", "heads=1", "--run", run]),
            (evaluate, ["report", run, "--split", "val", "--resamples", "100"]),
        ):
            done = CliRunner().invoke(command, words)
            assert done.exit_code == 0, done.output
    return folder / run / "report-val.html"


def test_hostile_names_and_captions_are_text_in_every_view(driver: Any, evil_page: Path) -> None:
    visit(driver, evil_page)
    for name in VIEWS:
        driver.find_element("id", f"tab-{name}").click()
        wait(driver, f"return {UNDRAWN}.length === 0")
    driver.find_element("id", "tab-cases").click()
    driver.execute_script("byId('outcome').value = ''; showCases()")
    assert EVIL in driver.find_element("css selector", ".cards").text
    driver.find_element("id", "tab-map").click()
    driver.find_element("id", "open-provenance").click()
    assert driver.execute_script("return window.owned") is None
    planted = "return document.querySelectorAll('img[src=x], b.owned, #owned').length"
    assert driver.execute_script(planted) == 0
    assert complaints(driver) == []  # the policy had nothing to stop


def test_the_page_of_a_search_obeys_its_policy_too(driver: Any, tmp_path: Path) -> None:
    evil = "<script>window.owned = 1</script><img src=x onerror='window.owned = 2'>\"'"
    hits: list[dict[str, Any]] = [{"place": 1, "score": 0.5, "id": evil, "captions": [evil]}]
    page = tmp_path / "found.html"
    page.write_text(as_page(evil, hits, "image", None))
    assert "default-src 'none'" in page.read_text()
    visit(driver, page)
    assert complaints(driver) == []
    assert driver.execute_script("return window.owned") is None
    assert evil in driver.find_element("css selector", "li").text
    display = "return getComputedStyle(document.querySelector('ol')).display"
    assert driver.execute_script(display) == "grid"
