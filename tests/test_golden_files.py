"""The golden vectors in the project: whole, as their sums say, and none above the limits."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import golden_files
import pytest
from places import SUPPORT

FOLDER = golden_files.ARCHIVES


def sums(name: str) -> dict[str, str]:
    """File -> digest, from a file as `sha256sum` writes it."""
    lines = (FOLDER / name).read_text().splitlines()
    return {file: digest for digest, file in (line.split("  ") for line in lines)}


def test_every_archive_is_the_one_that_was_summed() -> None:
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in FOLDER.glob("*.tar.xz")
    }
    assert found == sums("SHA256SUMS")


def test_the_archives_hold_the_files_that_were_summed_and_no_other(golden_root: Path) -> None:
    found = {
        path.relative_to(golden_root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in golden_root.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    assert found == sums("CONTENTS.sha256")
    assert not [name for name in found if name.startswith(golden_files.LARGE)]


def test_every_backbone_and_every_file_of_the_fusion_but_the_large_is_there() -> None:
    names = set(sums("CONTENTS.sha256"))
    assert {name.split("/")[1] for name in names if name.startswith("backbones/")} == {
        "albef",
        "blip2",
        "blip_base",
        "lightningdot",
        "openclip",
        "preproc",
        "uniter",
    }
    assert len([name for name in names if name.startswith("hada/")]) == 14


def test_without_the_folder_beside_the_project_only_what_is_large_is_missing(
    tmp_path: Path,
) -> None:
    code = (
        "import golden_files, pytest\n"
        "root = golden_files.golden_root()\n"
        "assert golden_files.at_hand(root / 'hada' / 'edges.npz').exists()\n"
        "assert not golden_files.at_hand(root / 'hada' / 'misspelt.npz').exists()\n"
        "for name in golden_files.LARGE:\n"
        "    try: golden_files.at_hand(root / name)\n"
        "    except pytest.skip.Exception: continue\n"
        "    raise AssertionError(name)\n"
    )
    environment = {"HADA_SHARED": str(tmp_path / "nowhere"), "PYTHONPATH": str(SUPPORT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@pytest.mark.parametrize("name", ["README.md", "SHA256SUMS", "CONTENTS.sha256"])
def test_what_they_are_is_said(name: str) -> None:
    text = (FOLDER / name).read_text()
    archives = [path.name.removesuffix(".tar.xz") for path in FOLDER.glob("*.tar.xz")]
    assert name == "CONTENTS.sha256" or all(archive in text for archive in archives)
