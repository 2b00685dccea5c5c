"""Where the golden vectors lie, and how the authors' names map onto ours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


def folder() -> Path:
    """The folder of golden vectors; skips the test, with the reason, where there is none."""
    shared = Path(os.environ.get("HADA_SHARED", ROOT.parent / "shared"))
    path = shared / "golden" / "hada"
    if not path.is_dir():
        pytest.skip(f"no golden vectors at {path} (set HADA_SHARED)")
    return path


def load_npz(name: str) -> dict[str, np.ndarray]:
    """One golden .npz as a dict."""
    with np.load(folder() / name, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def load_safetensors(name: str) -> dict[str, Any]:
    """One golden .safetensors as float32 (and integer) tensors."""
    from safetensors.torch import load_file

    tensors = load_file(folder() / name)
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def our_keys(official: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A branch's tensors under the authors' names -> under ours.

    enc.gcn.trans_2.linear.0.weight -> project.1.linear.weight, and so on.
    """
    renamed = {}
    for key, value in official.items():
        if not key.startswith(prefix + "enc."):
            continue
        name = key[len(prefix) + len("enc.") :]
        for model in range(9):
            name = name.replace(f"gcn.trans_{model + 1}.", f"project.{model}.")
        name = name.replace("gcn.gcn.conv.0.", "graph.attention.")
        name = name.replace("gcn.gcn.conv_lin.0.", "graph.mix.")
        name = name.replace("gcn.gcn.norm.0.", "graph.norm.")
        name = name.replace("linear.0.", "linear.").replace("norm.0.", "norm.")
        if name.startswith("lin."):
            name = "head." + name[len("lin.") :]
        renamed[name] = value
    return renamed


def features(tensors: dict[str, Any]) -> Any:
    """The authors' HADA batch (node_albef, n_node_albef, cls_albef, ...) as our `Features`."""
    import torch

    from hada.fuse.graph import Layout
    from hada.fuse.model import Features

    x = {k: torch.as_tensor(v) for k, v in tensors.items()}
    names = ("albef", "dot")
    return Features(
        tuple(x[f"node_{n}"] for n in names),
        tuple(Layout.build(x[f"n_node_{n}"].numpy(), global_last=False) for n in names),
        tuple(x[f"cls_{n}"] for n in names),
    )
