"""Stores, checkpoints and commands for what carries a published name."""

from __future__ import annotations

import re

import numpy as np
import torch
from click.testing import CliRunner

from hada.extract.spec import ModelSpec, StoreSpec, TokenSpec
from hada.extract.store import open_store, write_store
from hada.fuse.cli import fuse

MANIFEST = """\
schema: 1
defaults: {dataset: toy}
stores: stores
runs: runs
datasets:
  toy:
    reader: karpathy
    root: .
    annotations: toy.json
    images: .
    splits: {train: {}, val: {}, test: {}}
"""
NAMES = ("one", "two")
WIDE, FIRST, SECOND = 10, 4, 10  # as in HADA-LAVIS, the second embedding is as wide as a token
SIDES = ("image", "caption")


def command(folder, *words):
    """Run `hada-fuse` in a folder that has the manifest; its output's last line."""
    (folder / "toy.yaml").write_text(MANIFEST)
    result = CliRunner().invoke(fuse, [*map(str, words), "--manifest", "toy.yaml"])
    assert result.exit_code == 0, result.stderr or repr(result.exception)
    return (result.stdout.strip().splitlines() or [""])[-1]


def put_stores(root, split, sides, owner, *, normalized=(False, False), bare=False):
    """Stores of models "one" and "two"; `sides` hold items {"x1", "x2", "p1", "p2"}.

    With `bare` the second keeps embeddings only, as CLIP does for HADA-LAVIS.
    """
    made = []
    for number, name in enumerate(NAMES, start=1):
        width = sides["image"][0][f"x{number}"].shape[1]
        tokens = None if bare and number == 2 else TokenSpec(width=width, count=None)
        spec = StoreSpec(
            model=ModelSpec(
                name=name,
                family="fake",
                weights_digest=f"{name}-weights",
                embedding_width=len(sides["image"][0][f"p{number}"]),
                normalized=normalized[number - 1],
                image=tokens,
                caption=tokens,
            ),
            dataset="toy",
            split=split,
            dataset_digest="d" * 16,
            dtype="float32",
        )
        path = root / "stores" / "toy" / split / name
        write_store(
            path,
            spec,
            ids={side: [f"{side}{n}" for n in range(len(sides[side]))] for side in SIDES},
            caption_to_image=np.asarray(owner),
            embeddings={s: np.stack([i[f"p{number}"] for i in sides[s]]) for s in SIDES},
            tokens=tokens and {s: [np.asarray(i[f"x{number}"]) for i in sides[s]] for s in SIDES},
        )
        made.append(open_store(path))
    return made


def random_sides(images, per, seed=0):
    """Made-up features of both sides, no row of unit length, and each caption's image."""
    rng = np.random.default_rng(seed)

    def item(longest):
        return {
            "x1": rng.normal(size=(rng.integers(2, longest), WIDE)).astype(np.float32),
            "x2": rng.normal(size=(rng.integers(2, longest), WIDE)).astype(np.float32),
            "p1": 3 * rng.normal(size=FIRST).astype(np.float32),
            "p2": 2 * rng.normal(size=SECOND).astype(np.float32),
        }

    owner = np.repeat(np.arange(images), per)
    return {"image": [item(6) for _ in range(images)], "caption": [item(5) for _ in owner]}, owner


def as_tensors(sides):
    return {s: [{k: torch.tensor(v) for k, v in i.items()} for i in sides[s]] for s in SIDES}


def their_names(branch):
    """A branch's tensors under the authors' names, the norms that never act included."""
    found = {}
    for name, value in branch.state_dict().items():
        key = re.sub(r"^project\.(\d)\.", lambda m: f"enc.gcn.trans_{int(m.group(1)) + 1}.", name)
        key = re.sub(r"^graph\.(attention|layers\.0\.conv)\.", "enc.gcn.gcn.conv.0.", key)
        key = re.sub(r"^graph\.(layers\.0\.)?mix\.", "enc.gcn.gcn.conv_lin.0.", key)
        key = re.sub(r"^graph\.(layers\.0\.)?norm\.", "enc.gcn.gcn.norm.0.", key)
        key = key.replace("head.", "enc.lin." if branch.graph is not None else "enc.")
        found[re.sub(r"(?<!gcn)\.(linear|norm)\.(?!0\.)", r".\1.0.", key)] = value.clone()
    if branch.graph is None:
        found |= {
            f"enc.norm.0.{k}": torch.rand(branch.config.out_width) for k in ("weight", "bias")
        }
    return found


def stir(branch):
    """Give running statistics values that tell them apart."""
    with torch.no_grad():
        for name, value in branch.named_buffers():
            if name.endswith("running_mean"):
                value.copy_(torch.randn_like(value) * 0.3)
            elif name.endswith("running_var"):
                value.copy_(torch.rand_like(value) + 0.5)
    return branch


def checkpoint(path, fuser, disc, **more):
    """A file as the authors' `save_model` writes it without its optimiser."""
    content = {
        "epoch": 3,
        "img_encoder": their_names(fuser.image),
        "cap_encoder": their_names(fuser.caption),
        "discriminator": disc,
        "temp_para": torch.nn.Parameter(torch.tensor(0.05)),
        "best_loss": np.float64(1.5),
    }
    torch.save(content | more, path)
    return path
