"""Where the golden vectors lie: in the project as archives, the large ones in a folder beside it.

`tests/golden/README.md` says what they are and where they come from.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

ARCHIVES = ROOT / "tests" / "golden"
# Too large for the project; a folder beside the checkout may hold them. Ends in / where a folder.
LARGE = (
    "hada/hada_m_C5_mh_weights_f16.safetensors",
    "hada/hada_m_C5_forward_img.npz",
    "hada/hada_m_C5_forward_cap.npz",
    "backbones/blip_large_like/",
)


def shared_folder() -> Path:
    """The folder beside the checkout, whether or not it is there."""
    return Path(os.environ.get("HADA_SHARED", ROOT.parent / "shared"))


@functools.cache
def golden_root() -> Path:
    """All golden vectors that are at hand: the project's, unpacked once, and links to large ones.

    A file of the project is never taken from the folder beside it.
    """
    root = Path(tempfile.mkdtemp(prefix="hada-golden-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    for archive in sorted(ARCHIVES.glob("*.tar.xz")):
        with tarfile.open(archive) as file:
            file.extractall(root, filter="data")
    for name in LARGE:
        source = shared_folder() / "golden" / name
        if source.exists():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).symlink_to(source.resolve())
    return root


def ids_of(expected: Any, mask: str = "attention_mask") -> tuple[list[list[int]], Any]:
    """Golden captions as their own ids, without padding, and which of (T, L) ids these are."""
    real = expected[mask] > 0
    return [row[keep].tolist() for row, keep in zip(expected["input_ids"], real, strict=True)], real


def at_hand(path: Path) -> Path:
    """The path; skips the test where it is one of the large vectors and is not here."""
    if not path.exists() and path.is_relative_to(golden_root()):
        relative = path.relative_to(golden_root()).as_posix()
        if f"{relative}/".startswith(tuple(name.rstrip("/") + "/" for name in LARGE)):
            pytest.skip(f"golden vectors too large for the project: {relative}")
    return path
