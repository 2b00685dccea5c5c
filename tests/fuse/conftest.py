"""What the tests of fuse share."""

from __future__ import annotations

import pytest
from fuse_fakes import make_store, make_world

from hada.fuse.tokens.split import Split


@pytest.fixture(autouse=True)
def _one_thread():
    """Small tensors: more threads only cost time and the last bits' repeatability."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    root = tmp_path_factory.mktemp("stores")
    models = ("left", "right")
    return [
        Split([make_store(root, m, split, images=n) for m in models])
        for split, n in (("train", 96), ("val", 24))
    ]


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A folder with a manifest and stores, and we are in it."""
    make_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
