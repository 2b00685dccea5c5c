"""Stores of multi-vector models and of others, drawn at random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hada.extract.common.arrays import unit_rows
from hada.extract.spec import ModelSpec, StoreSpec, TokenSpec
from hada.extract.store import StoreReader, open_store, write_store

OWNER = np.array([0, 0, 1, 2, 2, 2, 3, 4, 4, 5])
IMAGES, WIDTH = 6, 8


def spec(name: str, split: str, dtype: str, **model: Any) -> StoreSpec:
    """A store's spec of the data set d."""
    return StoreSpec(
        model=ModelSpec(name=name, family="import", weights_digest="w", **model),
        dataset="d",
        split=split,
        dataset_digest=split,
        dtype=dtype,
        rows_per_shard={"image": 2, "caption": 3},
    )


def write(folder: Path, made: StoreSpec, owner: Any = OWNER, **features: Any) -> StoreReader:
    """A store of captions and their images."""
    path = folder / "stores" / "d" / made.split / made.model.name
    ids: Any = {
        "image": [f"{made.split}{k}" for k in range(max(owner) + 1)],
        "caption": [f"{made.split}{k}c" for k in range(len(owner))],
    }
    write_store(path, made, ids=ids, caption_to_image=owner, **features)
    return open_store(path)


def multi_vector(
    folder: Path,
    *,
    split: str = "val",
    dtype: str = "float16",
    name: str = "colpali",
    owner: Any = OWNER,
    related: bool = True,
) -> tuple[StoreReader, list[Any], list[Any]]:
    """Ragged unit vectors with their mean in front; the vectors alone, as the model gives them."""
    draw = np.random.default_rng([3, len(split)])
    count = max(owner) + 1
    topics = draw.normal(size=(count, WIDTH))

    def items(owners: Any, longest: int) -> list[Any]:
        return [
            unit_rows(topics[o] + draw.normal(size=(draw.integers(1, longest + 1), WIDTH))).astype(
                dtype
            )
            for o in owners
        ]

    shown = range(count) if related else draw.permutation(count)
    images, captions = items(shown, 7), items(owner, 5)
    tokens = {
        side: [np.concatenate([x.mean(0, keepdims=True), x]).astype(dtype) for x in part]
        for side, part in (("image", images), ("caption", captions))
    }
    ragged = TokenSpec(width=WIDTH, count=None, global_source="pooled")
    made = spec(
        name, split, dtype, embedding_width=None, normalized=False, image=ragged, caption=ragged,
        preprocessing={"class": "MultiVectorEncoder"},
    )  # fmt: skip
    return write(folder, made, owner, tokens=tokens), images, captions


def projected(
    folder: Path,
    *,
    split: str = "val",
    name: str = "clip",
    seed: int = 0,
    owner: Any = OWNER,
    related: bool = False,
) -> Any:
    """A model whose embeddings are a projection of the global token, with a bias, as BLIP's are.

    Returns its store, and the tokens of both sides in the joint space, at unit length.
    """
    draw, fixed = np.random.default_rng([seed, len(split)]), np.random.default_rng(9)
    maps = [(fixed.normal(size=(d, 4)), fixed.normal(size=4)) for d in (3, 2)]
    image = draw.normal(size=(max(owner) + 1, 5, 3))
    caption = draw.normal(size=(len(owner), 4, 2))
    if related:
        caption += image[owner, :1, :2]
        maps[1] = (maps[0][0][:2], maps[0][1])
    sides = {"image": list(image), "caption": [x[: 2 + k % 3] for k, x in enumerate(caption)]}
    # The images' global token is the first one, the captions' the last.
    embeddings = {
        "image": image[:, 0] @ maps[0][0] + maps[0][1],
        "caption": np.stack([x[-1] @ maps[1][0] + maps[1][1] for x in sides["caption"]]),
    }
    made = spec(
        name, split, "float32", embedding_width=4, normalized=False,
        image=TokenSpec(width=3, count=5),
        caption=TokenSpec(width=2, count=None, global_token="last"),
    )  # fmt: skip
    store = write(
        folder,
        made,
        owner,
        tokens={side: [x.astype("f4") for x in items] for side, items in sides.items()},
        embeddings={side: x.astype("f4") for side, x in embeddings.items()},
    )
    joint = [
        [unit_rows(x @ weight + bias) for x in items]
        for items, (weight, bias) in zip(sides.values(), maps, strict=True)
    ]
    return store, joint[0], joint[1]


def slow(images: list[Any], captions: list[Any]) -> Any:
    """(I, T) the mean over a caption's tokens of the best image token, number by number."""
    scores = np.zeros((len(images), len(captions)))
    for i, image in enumerate(images):
        for t, caption in enumerate(captions):
            best = [
                max(float(np.dot(c, v)) for v in image.astype("f8")) for c in caption.astype("f8")
            ]
            scores[i, t] = sum(best) / len(best)
    return scores
