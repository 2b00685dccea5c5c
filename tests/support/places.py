"""Where the project and its tests' helpers lie, and the project's commands."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"
PROGRAMS = ROOT / "tests" / "programs"


def commands() -> dict[str, str]:
    """The name of every command -> `module:function`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return dict(project["scripts"])
