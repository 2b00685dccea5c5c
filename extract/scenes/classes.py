"""Classes and true labels of `scenes`, for zero-shot classification.

    classes.json   class ("red circle") -> sentences that describe it, in the captions' words
    labels.json    picture -> the classes of all things in it

A picture holds several things, so it has several labels, and any of them is right.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from hada.extract.common import atomic
from hada.extract.scenes.words import COLOUR_WORDS, NOUNS
from hada.extract.scenes.world import COLOURS, SHAPES, sample_scene

CLASSES, LABELS = "classes.json", "labels.json"
SENTENCES = ("A {}.", "There is a {} in the picture.", "Two shapes, one of them is a {}.")


def describe_classes() -> dict[str, list[str]]:
    """Each colour with each shape, described with every pair of synonyms.

    >>> describe_classes()["red heart"][:2]
    ['A red heart.', 'There is a red heart in the picture.']
    """
    return {
        f"{colour} {shape}": [
            sentence.format(f"{word} {noun}")
            for word in COLOUR_WORDS[colour]
            for noun in NOUNS[shape]
            for sentence in SENTENCES
        ]
        for colour in COLOURS
        for shape in SHAPES
    }


def labels_of(seed: int, split: str, index: int) -> list[str]:
    """The classes of the things in one picture, each once."""
    things = sample_scene(seed, split, index).things
    return sorted({f"{thing.colour} {thing.shape}" for thing in things})


def write_classes(root: Path, seed: int, counts: Mapping[str, int]) -> None:
    """Both files, beside the data set and no part of its digest; files that are there stay."""
    if not (root / CLASSES).exists():
        atomic.write_json(root / CLASSES, describe_classes())
    if not (root / LABELS).exists():
        labels = {
            f"{split}_{index:06d}.png": labels_of(seed, split, index)
            for split, count in counts.items()
            for index in range(count)
        }
        atomic.write_bytes(root / LABELS, json.dumps(labels, indent=0).encode())
