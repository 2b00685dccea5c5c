"""What all tests share: places, and small datasets made on the spot."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator
from pathlib import Path

import golden_files
import pytest

# Workers beside each other would spin on the same cores; it must be said before torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The contract suites lie in the package: their assertions shall explain themselves too.
pytest.register_assert_rewrite(
    "hada.extract.testing.backbone_contract", "hada.extract.testing.store_contract"
)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test for a GPU is collected everywhere, and says where it cannot run."""
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip(f"needs a CUDA GPU, and torch {torch.__version__} sees none")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Nothing that is made while tests are found is garbage; to look took a quarter of that time.

    Afterwards it is collected in larger portions than those of a small program.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.set_threshold(20_000, 10, 10)
        gc.enable()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Checkpoints, photographs and the largest vectors; they are not part of the project."""
    folder = golden_files.shared_folder()
    if not folder.is_dir():
        pytest.skip("needs the shared folder of checkpoints and photographs beside the checkout")
    return folder


@pytest.fixture(scope="session")
def golden_root() -> Path:
    """The golden vectors: those of tests/golden, and the large ones where they are at hand."""
    return golden_files.golden_root()


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in an empty folder, offline, with no HADA variables set."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if (name.startswith("HADA_") and name != "HADA_SHARED") or name.endswith("_ROOT"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
