"""The Python programs of README and docs/python.md, run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

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
