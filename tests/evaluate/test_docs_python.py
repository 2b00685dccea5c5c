"""The Python programs of README and docs/python.md, run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import makers
import numpy as np
import pytest
from places import ROOT


def programs(page: str) -> list[str]:
    return re.findall(
        r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL
    )


def test_the_readmes_program(report_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the names of a small project in place of those of `scenes`."""
    monkeypatch.chdir(report_project)
    (code,) = (code for code in programs("README.md") if "recall(" in code)
    for here, there in (
        ("scenes/blip+clip-fast-s0", "tiny/mine"),
        ("scenes/test", "tiny/val"),
        ('"test"', '"val"'),
        ('"blip", "clip"', '"one", "two"'),
    ):
        assert here in code
        code = code.replace(here, there)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    images, captions = names["images"], names["captions"]
    assert isinstance(images, np.ndarray)
    assert isinstance(captions, np.ndarray)
    assert (len(images), len(captions)) == (20, 40)
    assert images.shape[1] == captions.shape[1]
    result = names["result"]
    assert isinstance(result, dict)
    assert any(method["kind"] == "hada" for method in result["methods"])


def test_the_program_of_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    makers.make_dataset(tmp_path / "drawn", splits={"train": [1] * 16})
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(sorted((tmp_path / "drawn/images").glob("*.jpg"))):
        image.rename(tmp_path / "photos" / image.name)
        text = f"a drawing of two colours\nthe image with number {number}\n"
        (tmp_path / "photos" / image.name).with_suffix(".txt").write_text(text)
    (code,) = programs("docs/python.md")
    assert sum(bool(line.strip()) for line in code.splitlines()) < 45
    names: dict[str, object] = {}
    exec(compile(code, "docs/python.md", "exec"), names)
    printed = capsys.readouterr().out
    for method in ("blip", "clip", "mean of cosines", "HADA"):
        assert re.search(rf"^{method}.* RSum \d", printed, re.MULTILINE), method
    assert Path(str(names["page"])).read_text().startswith("<!doctype html>")
    images, captions = names["image_vectors"], names["caption_vectors"]
    assert isinstance(images, np.ndarray)
    assert isinstance(captions, np.ndarray)
    assert (len(images), len(captions)) == (4, 8)
