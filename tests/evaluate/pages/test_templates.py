"""Templates escape what they are given, and the chart library is the one that its folder names."""

from __future__ import annotations

import hashlib
import re
from importlib import resources

import pytest
from jinja2 import UndefinedError

from hada.evaluate.pages.document import document, policy
from hada.evaluate.pages.page import comparison
from hada.evaluate.pages.provenance import VEGA, VEGA_LITE
from hada.evaluate.pages.rendering import CHART_SCRIPTS, PACKAGE, asset, render

EVIL = "</script><script>window.owned = 1</script>\"'<img src=x onerror=alert(1)>&{{ 7 * 7 }}"


def test_the_chart_library_is_what_its_folder_says() -> None:
    folder = resources.files(PACKAGE) / "vendor"
    lines = (folder / "SHA256SUMS").read_text().split("\n")
    named = dict(reversed(line.split("  ")) for line in lines if line)
    files = {file.name for file in folder.iterdir()} - {"README.md", "SHA256SUMS"}
    assert set(named) == files
    for name, digest in named.items():
        data = (folder / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest
        assert b"</script" not in data
        assert b"\r" not in data  # a browser hashes what it read, without them
    readme = (folder / "README.md").read_text()
    assert f"`vega` {VEGA}" in readme
    assert f"`vega-lite` {VEGA_LITE}" in readme
    assert f'version="{VEGA}"' in asset(CHART_SCRIPTS[0])
    assert f'"{VEGA_LITE}"' in asset(CHART_SCRIPTS[1])


def test_no_script_is_made_of_text() -> None:
    """The policy has no `unsafe-eval`; our scripts ask for none, and put in no HTML."""
    folder = resources.files(PACKAGE) / "templates"
    scripts = [file.read_text() for file in folder.iterdir() if file.name.endswith(".js")]
    assert len(scripts) >= 4
    for text in scripts:
        assert not re.search(
            r"innerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(", text
        )
    assert "unsafe" not in policy("", ["1"])


def test_what_a_template_is_given_is_escaped() -> None:
    hit = {"place": 1, "score": 0.5, "text": EVIL, "picture": "", "id": EVIL, "models": {EVIL: 0.1}}
    queries = [{"query": EVIL, "hits": [{**hit, "link": f"file:///{EVIL}"}]}]
    text = document("search.html", title=EVIL, style="", side=EVIL, about=EVIL, queries=queries)
    assert "<script>" not in text
    assert "<img" not in text
    assert text.count("&lt;script&gt;window.owned") == 8
    assert "49" not in text


def test_a_name_that_is_missing_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'about' is undefined"):
        render("search.html", title="", style="", side="", policy="", scripts=())


def test_the_comparison_escapes_names_in_text_and_attributes() -> None:
    figures = {f"{way}_R@{k}": 50.0 for way in ("i2t", "t2i") for k in (1, 5, 10)}
    method = {
        "name": EVIL,
        "kind": "model",
        "note": EVIL,
        "metrics": figures | {"rsum": 300.0},
        "rsum_interval": {"low": 290.0, "high": 310.0, "half_width": 10.0},
        "gain": None,
    }
    protocol = {
        "dataset": EVIL, "split": EVIL, "images": 3, "captions": 9, "score": EVIL,
        "intervals": EVIL, "ties": EVIL, "compared_with": None,
    }  # fmt: skip
    text = comparison({"protocol": protocol, "methods": [method]})
    assert "<script" not in text
    assert "<img" not in text
    assert 'data-method="&lt;/script&gt;' in text
