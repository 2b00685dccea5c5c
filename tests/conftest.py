"""What all tests share: places, and small datasets made on the spot."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from places import ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Golden vectors, checkpoints and photographs; they are not part of the project."""
    folder = Path(os.environ.get("HADA_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("needs the shared folder of golden vectors beside the checkout")
    return folder


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in an empty folder, offline, with no HADA variables set."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if (name.startswith("HADA_") and name != "HADA_SHARED") or name.endswith("_ROOT"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
