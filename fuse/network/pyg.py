"""PyTorch Geometric's layers, imported only where a graph needs them, and quietly."""

from __future__ import annotations

import importlib
import warnings
from typing import Any


def layer(name: str) -> Any:
    """A class of `torch_geometric.nn`; raises `ImportError` that says what to install."""
    try:
        with warnings.catch_warnings():
            # It scripts a few helpers when imported, which torch deprecates.
            warnings.filterwarnings("ignore", message=".*torch.jit.*")
            module = importlib.import_module("torch_geometric.nn")
    except ImportError as error:
        raise ImportError(
            "this graph needs PyTorch Geometric: pip install torch-geometric"
        ) from error
    return getattr(module, name)
