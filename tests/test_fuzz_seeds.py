"""Every parser that `benchmarks/fuzz.py` feeds is one of today's, and reads its own examples."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from places import ROOT

pytestmark = pytest.mark.slow

sys.path.insert(0, str(ROOT / "benchmarks"))
from fuzz import told  # noqa: E402
from fuzz_parsers import PARSERS  # noqa: E402


@pytest.mark.parametrize("name", PARSERS)
def test_a_parsers_examples_end_well(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in ("regions", "imports", "checkpoint"):
        pytest.importorskip("atheris")
    monkeypatch.chdir(tmp_path)
    parse, examples = PARSERS[name].make(tmp_path)
    assert examples
    for example in examples:
        told(parse, example)
