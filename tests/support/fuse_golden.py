"""Where the golden vectors lie, and how the authors' names map onto ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import golden_files
import numpy as np


def folder() -> Path:
    """The folder of the fusion's golden vectors."""
    return golden_files.golden_root() / "hada"


def load_npz(name: str) -> dict[str, np.ndarray]:
    """One golden .npz as a dict."""
    with np.load(golden_files.at_hand(folder() / name), allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def load_safetensors(name: str) -> dict[str, Any]:
    """One golden .safetensors as float32 (and integer) tensors."""
    from safetensors.torch import load_file

    tensors = load_file(golden_files.at_hand(folder() / name))
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def our_keys(official: dict[str, Any], prefix: str = "", like: Any = None) -> dict[str, Any]:
    """A branch's tensors (or gradients, or changed buffers) under our names.

    `like` holds the whole encoder's names where `official` holds only some of them.
    """
    from hada.fuse.exchange.official import our_names

    own = {k.removeprefix(prefix): v for k, v in official.items() if k.startswith(prefix)}
    names = our_names(own if like is None else like)
    return {names[key]: value for key, value in own.items() if key in names}


def features(tensors: dict[str, Any]) -> Any:
    """The authors' HADA batch (node_albef, n_node_albef, cls_albef, ...) as our `Features`."""
    import torch

    from hada.fuse.batch import Features, Layout

    x = {k: torch.as_tensor(v) for k, v in tensors.items()}
    names = ("albef", "dot")
    return Features(
        tuple(x[f"node_{n}"] for n in names),
        tuple(Layout.build(x[f"n_node_{n}"].numpy(), global_last=False) for n in names),
        tuple(x[f"cls_{n}"] for n in names),
    )
