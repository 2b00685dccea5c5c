"""The tree in CONTRIBUTING.md is the tree of the checkout; editors find definitions in it."""

from __future__ import annotations

import re
import subprocess
import tomllib

import pytest
from places import ROOT

ROOMS = ("extract", "fuse", "evaluate", "pipelines")


def test_the_tree_names_every_folder_and_top_module_once() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    tree = re.search(r"```text\n(.*?)```", text, re.DOTALL)
    assert tree
    named = [line.split()[0] for line in tree[1].splitlines()]
    assert all(len(line.split()) > 1 for line in tree[1].splitlines())
    assert [name for name in named if not (ROOT / name).exists()] == []
    in_rooms = {f"{room}/" for room in ROOMS}
    for room in ROOMS:
        in_rooms |= {
            f"{room}/{path.name}/"
            for path in (ROOT / room).iterdir()
            if path.is_dir() and path.name != "__pycache__"
        }
        in_rooms |= {
            f"{room}/{path.name}"
            for path in (ROOT / room).glob("*.py")
            if path.name != "__init__.py"
        }
    assert sorted(name for name in named if name.startswith(ROOMS)) == sorted(in_rooms)


def test_make_lists_its_targets() -> None:
    done = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, check=True)
    assert {"install", "check", "types", "quick", "test", "clean"} <= set(done.stdout.split())


def test_an_editor_finds_definitions_in_the_checkout() -> None:
    """The links in `typings` are what an editable install puts on the path."""
    jedi = pytest.importorskip("jedi", reason="needs jedi: pip install jedi")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pyright"]
    paths = [str(ROOT / path) for path in settings["extraPaths"]]
    project = jedi.Project(ROOT, added_sys_path=paths)
    code = "from hada.fuse.network.fuser import Fuser\nFuser\n"
    (definition,) = jedi.Script(code, path=ROOT / "x.py", project=project).goto(
        2, 2, follow_imports=True
    )
    assert definition.module_path.resolve() == ROOT / "fuse" / "network" / "fuser.py"
    line = definition.module_path.read_text().splitlines()[definition.line - 1]
    assert line.startswith("class Fuser")
