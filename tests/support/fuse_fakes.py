"""Small stores of made-up models: noisy partial views of one hidden vector per image."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hada.extract.spec import ModelSpec, StoreSpec, TokenSpec
from hada.extract.store import StoreReader, open_store, write_store
from hada.fuse.network.config import BranchConfig

HIDDEN = 12
# Each model sees a part of the hidden vector: together they see all of it.
SEES = {"left": slice(0, 8), "right": slice(4, 12), "flat": slice(2, 10)}
WIDTH = {"left": 10, "right": 14, "flat": 9}
EMBEDDING = 8


def hidden(split: str, images: int, per: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(I, hidden), (T, hidden) and caption_to_image, the same for every model of a split."""
    rng = np.random.default_rng(sum(map(ord, split)))
    image = rng.normal(size=(images, HIDDEN))
    owner = np.repeat(np.arange(images), per)
    caption = image[owner] + 0.3 * rng.normal(size=(len(owner), HIDDEN))
    return image, caption, owner


def spec(
    model: str, split: str, digest: str = "d" * 16, shards: tuple[int, int] = (256, 2048)
) -> StoreSpec:
    """The spec of a made-up store; `flat` keeps embeddings only, `right` reads its last token."""
    width = WIDTH[model]
    place = "last" if model == "right" else "first"
    tokens = model != "flat"
    return StoreSpec(
        model=ModelSpec(
            name=model,
            family="fake",
            weights_digest=f"{model}-weights",
            embedding_width=EMBEDDING,
            normalized=False,
            image=TokenSpec(width=width, count=3, global_token=place) if tokens else None,
            caption=TokenSpec(width=width, count=None, global_token=place) if tokens else None,
        ),
        dataset="toy",
        split=split,
        dataset_digest=digest,
        dtype="float32",
        rows_per_shard={"image": shards[0], "caption": shards[1]},
    )


def make_store(
    root: Path,
    model: str,
    split: str,
    *,
    images: int = 40,
    per: int = 2,
    noise: float = 0.5,
    **changes: object,
) -> StoreReader:
    """Write and open one store below `root`; `changes` go to the spec or the ids."""
    image, caption, owner = hidden(split, images, per)
    maps = np.random.default_rng(sum(map(ord, model)))
    into = maps.normal(size=(2, HIDDEN, WIDTH[model])) / np.sqrt(HIDDEN)
    rng = np.random.default_rng(sum(map(ord, model + split)))
    seen = np.zeros(HIDDEN)
    seen[SEES[model]] = 1
    embeddings, tokens = {}, {}
    for number, (side, values) in enumerate((("image", image), ("caption", caption))):
        noisy = seen * (values + noise * rng.normal(size=values.shape))
        embeddings[side] = noisy[:, SEES[model]].astype(np.float32)
        lengths = np.full(len(values), 3) if side == "image" else rng.integers(1, 5, len(values))
        tokens[side] = []
        for row, count in zip(noisy, lengths, strict=True):
            some = 0.3 * rng.normal(size=(count, WIDTH[model])) + row @ into[number]
            tokens[side].append(some.astype(np.float32))
    ids = {
        "image": [f"i{n}" for n in range(images)],
        "caption": [f"i{owner[n]}#{n}" for n in range(len(owner))],
    }
    ids |= {side: changes.pop(side) for side in ("image", "caption") if side in changes}
    made = spec(model, split, **changes)
    path = root / "toy" / split / model
    write_store(
        path,
        made,
        ids=ids,
        caption_to_image=owner,
        embeddings=embeddings,
        tokens=tokens if model != "flat" else None,
    )
    return open_store(path)


MANIFEST = """\
schema: 1
defaults: {dataset: toy, models: [left, right]}
stores: stores
runs: runs
datasets:
  toy:
    reader: karpathy
    root: .
    annotations: toy.json
    images: .
    published: "made by the tests"
    splits: {train: {}, val: {}, test: {}}
models:
  left: {family: fake, weights: none}
  right: {family: fake, weights: none}
  flat: {family: fake, weights: none}
"""


def make_world(root: Path, models: tuple[str, ...] = ("left", "right")) -> Path:
    """A manifest with stores of the train and val split; returns the manifest's path."""
    for model in models:
        make_store(root / "stores", model, "train", images=40)
        make_store(root / "stores", model, "val", images=16)
    manifest = root / "toy.yaml"
    manifest.write_text(MANIFEST)
    return manifest


def paper_branch(**changes):
    """A branch of the paper's first network, with some settings changed."""
    widths = dict.fromkeys(("node_width", "head_width", "graph_width", "out_width"), 512)
    return BranchConfig(**{**widths, "norm": "batch", "inputs": "as-is", **changes})
