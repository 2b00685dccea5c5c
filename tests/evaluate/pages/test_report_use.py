"""The report in a real browser, used: choosers, sorting, filters, taps, large images, downloads."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

pytest.importorskip("selenium", reason="needs selenium: pip install selenium")

from browser import UNDRAWN, VIEWS, WIDE, complaints, needs_browser, visit, wait
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from hada.evaluate.pages.choose import outcomes
from hada.fuse.ranking.ranks import Ranks

pytestmark = [needs_browser, pytest.mark.slow]


def rows(driver: Any) -> list[list[str]]:
    """The table of figures: the name of a method, then its cells."""
    found: list[list[str]] = driver.execute_script(
        "return [...document.querySelectorAll('#figures tbody tr')]"
        ".map(row => [row.dataset.method, ...[...row.cells].map(cell => cell.innerText)])"
    )
    return found


def test_another_baseline_changes_the_differences(driver: Any, report_page: Path) -> None:
    visit(driver, report_page)
    data = driver.execute_script("return DATA")
    marked = {method["name"]: method["shown"] for method in data["methods"]}
    for baseline in data["differences"]:
        Select(driver.find_element("id", "baseline")).select_by_visible_text(baseline)
        for name, *cells in rows(driver):
            if name == baseline:
                assert cells[-1] == "baseline"
                continue
            gap = data["differences"][baseline][name]["rsum"]
            value, interval = cells[-1].replace("\u2212", "-").split("\n")
            assert float(value) == pytest.approx(gap["value"], abs=0.051)
            low, high = map(float, interval.split(" to "))
            assert low == pytest.approx(gap["low"], abs=0.051)
            assert high == pytest.approx(gap["high"], abs=0.051)
        wait(driver, "return document.querySelector('[data-chart=differences]').dataset.drawn")
        texts = "return [...document.querySelectorAll('[data-chart=differences] text')]"
        names = driver.execute_script(f"{texts}.map(text => text.textContent)")
        assert {marked[name] for name in marked if name != baseline} <= set(names)
        assert marked[baseline] not in names
    assert complaints(driver) == []


def test_a_column_sorts_and_says_what_it_means(driver: Any, report_page: Path) -> None:
    visit(driver, report_page)
    head = driver.find_element("css selector", "[data-sort=rsum]")
    ActionChains(driver).move_to_element(head).perform()
    assert "sum of the six recalls" in driver.find_element("id", "tip").text
    for order in ("descending", "ascending"):
        head.click()
        assert head.find_element("xpath", "..").get_attribute("aria-sort") == order
        values = [float(row[8].partition(" ")[0]) for row in rows(driver)]
        assert values == sorted(values, reverse=order == "descending")
    assert complaints(driver) == []


def test_a_tap_on_a_point_shows_its_values(driver: Any, report_page: Path) -> None:
    visit(driver, report_page, "phone")
    wait(driver, "return document.querySelector('[data-chart=differences]').dataset.drawn")
    marks = driver.find_elements("css selector", "[data-chart=differences] .mark-symbol path")
    assert marks
    spot = driver.execute_script(
        "arguments[0].scrollIntoView({block: 'center'});"
        "const box = arguments[0].getBoundingClientRect();"
        "return [box.x + box.width / 2, box.y + box.height / 2]",
        marks[0],
    )
    touch = [{"x": spot[0], "y": spot[1]}]
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        for kind, points in (("touchStart", touch), ("touchEnd", [])):
            driver.execute_cdp_cmd(
                "Input.dispatchTouchEvent", {"type": kind, "touchPoints": points}
            )
        wait(driver, "return !document.getElementById('tip').hidden")
    finally:
        driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    assert "95 % interval" in driver.find_element("id", "tip").text
    assert driver.execute_script(WIDE) == []
    assert complaints(driver) == []


CARDS = "[...document.querySelectorAll('.card')].filter(card => card.offsetWidth)"


def cards(driver: Any) -> list[int]:
    found: list[int] = driver.execute_script(f"return {CARDS}.map(c => Number(c.dataset.case))")
    return found


def test_cases_are_filtered_searched_and_paged(driver: Any, report_page: Path) -> None:
    visit(driver, report_page)
    driver.find_element("id", "tab-cases").click()
    data = driver.execute_script("return DATA")

    def choose(name: str, value: str) -> None:
        Select(driver.find_element("id", name)).select_by_value(value)

    def every() -> list[int]:
        found = cards(driver)
        while driver.find_element("id", "next").is_enabled():
            driver.find_element("id", "next").click()
            found += cards(driver)
        return found

    choose("outcome", "")
    assert len(cards(driver)) == 12
    assert sorted(every()) == list(range(len(data["cases"])))
    for way in ("i2t", "t2i"):
        choose("way", way)
        assert every() == [n for n, case in enumerate(data["cases"]) if case["way"] == way]
    choose("way", "")
    # Against one model, what that model has in the first place and the fusion has not is lost.
    model, run = data["models"][0], data["fusion"]
    choose("against", model)
    choose("outcome", "-2")
    places = [case["places"] for case in data["cases"]]
    lost = [n for n, one in enumerate(places) if one[model][1] == 1 and one[run][0] > 1]
    won = [n for n, one in enumerate(places) if one[run][1] == 1 and one[model][0] > 1]
    assert every() == lost
    choose("outcome", "2")
    assert every() == won
    assert lost or won
    choose("outcome", "")
    box = driver.find_element("id", "text")
    box.send_keys("PURPLE here")
    texts = [case["text"] for case in data["cases"]]
    wanted = [n for n, text in enumerate(texts) if "purple" in text and "here" in text]
    assert every() == wanted
    assert 0 < len(wanted) < len(texts)
    assert driver.find_element("id", "count").text == f"{len(wanted)} of {len(texts)} cases"
    box.send_keys("<b>no such")
    assert every() == []
    assert complaints(driver) == []


def test_the_page_counts_outcomes_as_python_does(driver: Any, report_page: Path) -> None:
    visit(driver, report_page)
    random = np.random.default_rng(0)
    low = random.integers(0, 14, (3, 300))
    high = low + random.integers(0, 3, low.shape) * random.integers(0, 2, low.shape)
    ranks = [Ranks(*[lo, hi, np.ones_like(lo)] * 2) for lo, hi in zip(low, high, strict=True)]
    expected = outcomes(ranks[0], ranks[1:], "i2t").tolist()
    places = [
        {"abc"[m]: [int(low[m, q]) + 1, int(high[m, q]) + 1] for m in range(3)} for q in range(300)
    ]
    script = "return arguments[0].map(one => outcomeOf(one, 'a', ['b', 'c']))"
    assert driver.execute_script(script, places) == expected
    assert len(set(expected)) == 5


def test_an_image_is_enlarged_with_its_heat(driver: Any, report_page: Path) -> None:
    for screen in ("desktop", "phone"):
        visit(driver, report_page, screen)
        driver.find_element("id", "tab-cases").click()
        shot = driver.execute_script(
            f"return {CARDS}.flatMap(card => [...card.querySelectorAll('.shot')])"
            ".find(shot => shot.querySelector('.overlay'))"
        )
        driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", shot)
        before = shot.size["width"]
        shot.send_keys(Keys.ENTER)  # by keyboard, and so by click and tap
        large = driver.find_element("id", "large")
        assert large.is_displayed()
        boxes = [image.rect for image in large.find_elements("tag name", "img")]
        assert len(boxes) == 2
        assert boxes[0] == pytest.approx(boxes[1], abs=1)  # the heat lies on exactly the image
        assert boxes[0]["width"] > 2 * before
        assert "Heat on the patches" in large.text
        assert driver.execute_script(WIDE) == []
        ActionChains(driver).send_keys(Keys.ESCAPE).perform()
        assert not large.is_displayed()
    assert complaints(driver) == []


def test_figures_and_charts_are_saved(driver: Any, report_page: Path, tmp_path: Path) -> None:
    driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    visit(driver, report_page)
    for button in driver.find_elements("css selector", "[data-csv]"):
        button.click()
    names = {"figures.csv", "differences.csv"}
    for view in VIEWS:
        driver.find_element("id", f"tab-{view}").click()
        wait(driver, f"return {UNDRAWN}.length === 0")
        for button in driver.find_elements("css selector", f"#{view} [data-svg]"):
            name = f"{button.get_attribute('data-svg')}.svg"
            driver.execute_script("arguments[0].click()", button)
            names.add(name)
            WebDriverWait(driver, 20).until(lambda _, n=name: (tmp_path / n).exists())
    WebDriverWait(driver, 20).until(lambda _: names <= {p.name for p in tmp_path.iterdir()})
    data = driver.execute_script("return DATA")
    with (tmp_path / "figures.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["score"] for row in table] == [method["name"] for method in data["methods"]]
    with (tmp_path / "differences.csv").open(newline="") as file:
        gaps = list(csv.DictReader(file))
    assert len(gaps) == 7 * (len(data["methods"]) - 1)
    for row in gaps:
        gap = data["differences"][row["baseline"]][row["method"]][row["figure"]]
        assert float(row["difference"]) == gap["value"]
    svgs = [name for name in names if name.endswith(".svg")]
    assert set(svgs) == {f"{name}.svg" for name in data["charts"]}
    for name in svgs:
        drawing = ET.parse(tmp_path / name).getroot()
        assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(list(drawing.iter())) > 20
    assert complaints(driver) == []


def test_the_scheme_recolours_the_charts(driver: Any, report_page: Path) -> None:
    fills = "return [...document.querySelectorAll('[data-chart=differences] .mark-symbol path')]"
    found = {}
    for scheme in ("light", "dark"):
        if scheme == "light":
            visit(driver, report_page, "desktop", scheme)
        else:  # while the page is open
            feature = {"name": "prefers-color-scheme", "value": scheme}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        hada = driver.execute_script(
            "return getComputedStyle(document.documentElement).getPropertyValue('--hada').trim()"
        )
        wait(driver, f"{fills}.some(path => path.getAttribute('fill') === '{hada}')")
        found[scheme] = hada
    assert found["light"] != found["dark"]
    assert complaints(driver) == []
