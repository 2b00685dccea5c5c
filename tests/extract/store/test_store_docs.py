"""The commands and programs of docs/store.md, run as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import makers
import pytest
from click.testing import CliRunner
from places import ROOT

from hada.extract.cli import extract
from hada.extract.store_cli import store

TEXT = (ROOT / "docs" / "store.md").read_text()
COMMANDS: dict[str, Any] = {"hada-extract": extract, "hada-store": store}


def test_the_page_works(tmp_path: Path) -> None:
    """On the tests' small data set under the names that the page uses."""
    pytest.importorskip("upath", reason="needs universal-pathlib: pip install 'hada[remote]'")
    manifest = makers.make_project(tmp_path)
    text = manifest.read_text()
    for here, there in (
        ("tiny:", "scenes:"),
        (": tiny", ": scenes"),
        ("one", "blip"),
        ("two", "clip"),
    ):
        text = text.replace(here, there)
    manifest.write_text(text)
    blocks = re.findall(r"^```(console|python)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert [kind for kind, _ in blocks].count("console") >= 3
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, "docs/store.md", "exec"), {})
            continue
        for line in block.splitlines():
            command, *arguments = shlex.split(line.removeprefix("$ "))
            result = CliRunner().invoke(COMMANDS[command], arguments)
            assert result.exit_code == 0, f"{line}\n{result.output}"


def test_the_page_names_every_choice() -> None:
    from hada.extract.spec import STORE_DTYPES
    from hada.extract.store.formats import SHARDED

    for word in (*STORE_DTYPES, *SHARDED, "pool:K", "none", "errors.jsonl"):
        assert word in TEXT
