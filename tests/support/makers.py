"""Small real datasets, manifests and stores for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hada.extract.store import Block, StoreWriter
from hada.extract.testing.store_contract import Content, make_spec

__all__ = ["COLOURS", "MANIFEST", "failed_block", "make_dataset", "make_project", "make_spec"]

MANIFEST = """\
schema: 1
defaults:
  dataset: tiny
  models: [one, two]
stores: stores
runs: runs
datasets:
  tiny:
    reader: karpathy
    root: data
    annotations: dataset_tiny.json
    images: images
    published: https://example.org/tiny
    splits:
      train: {}
      val: {}
models:
  one: {family: fake, weights: a}
  two: {family: fake, weights: b, options: {width: 10, pooled: true}}
"""


COLOURS = [
    ("red", (255, 0, 0)),
    ("green", (0, 255, 0)),
    ("blue", (0, 0, 255)),
    ("yellow", (255, 255, 0)),
    ("purple", (128, 0, 128)),
    ("black", (0, 0, 0)),
]


def make_dataset(
    root: Path, *, splits: dict[str, Sequence[int]] | None = None, seed: int = 0
) -> None:
    """Write Karpathy's layout: per split the number of captions of each image."""
    splits = splits or {"train": [3] * 12, "val": [2, 1, 3, 2, 2]}
    random = np.random.default_rng(seed)
    folder = root / "images"
    folder.mkdir(parents=True)
    images = []
    for split, counts in splits.items():
        for number, count in enumerate(counts):
            name = f"{split}_{number:03d}.jpg"
            # Two stripes of colour, and captions that name them, so that retrieval can be learned.
            top, bottom = random.choice(len(COLOURS), 2, replace=False)
            pixels = np.zeros((24, 32, 3), np.uint8)
            pixels[:12], pixels[12:] = COLOURS[top][1], COLOURS[bottom][1]
            Image.fromarray(pixels).save(folder / name, quality=95)
            words = [COLOURS[top][0], "above", COLOURS[bottom][0]]
            sentences = [
                {"raw": " ".join(words + ["here"] * k), "sentid": f"{name}-{k}"}
                for k in range(count)
            ]
            images.append({"filename": name, "split": split, "sentences": sentences})
    (root / "dataset_tiny.json").write_text(json.dumps({"dataset": "tiny", "images": images}))


def make_project(folder: Path, **options: Any) -> Path:
    """A folder with a manifest and the dataset it names; returns the manifest's path."""
    make_dataset(folder / "data", **options)
    path = folder / "data_manifest.yaml"
    path.write_text(MANIFEST)
    return path


def failed_block(content: Content, writer: StoreWriter) -> Block:
    """The second shard of images, images 2 and 3, of which the last could not be read."""
    block = content.block(writer, "image", 1, failed={3: "broken"})
    assert block.values is not None
    assert block.embeddings is not None
    block.values[3:], block.embeddings[1] = np.nan, np.nan
    return block
