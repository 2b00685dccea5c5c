"""Pretraining scenes in memory: drawn once, captioned anew every time they are seen.

The scenes come from a split of their own ("pretrain"), so whatever seed a data set is made with,
none of its pictures is among them. Letters: B pictures, T captions, G patches per side, S pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hada.extract.pretraining.recipes import Recipe
from hada.extract.scenes.draw import PALETTE, SIDE, render_with_owners
from hada.extract.scenes.grammar import write_captions
from hada.extract.scenes.world import (
    COLOURS,
    GRID,
    GROUNDS,
    PATTERNS,
    SHAPES,
    SIZES,
    TEXTURES,
    Dice,
    Scene,
    Thing,
    sample_scene,
)

if TYPE_CHECKING:
    import torch

VALUES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": COLOURS,
    "pattern": PATTERNS,
    "size": SIZES,
}
_CELLS = tuple(str(number) for number in range(GRID * GRID))
_COUNTS = ("2", "3", "4", "5")
_TAG_VALUES = {**VALUES, "cell": _CELLS, "ground": GROUNDS, "texture": TEXTURES, "count": _COUNTS}
FAMILY_SIZE = 20  # larger than a data set's, so that siblings differ from batch to batch
SIBLINGS = 4  # pictures of one family in a batch: hard negatives, as all pictures are at test time
_LEAST_SHARE = 12  # a patch shows a thing that owns at least 1/12 of its pixels


@dataclass(frozen=True, slots=True)
class Batch:
    """B pictures as palette numbers, `per_picture` captions each, and what each patch shows.

    `captions` holds T = B * per_picture texts, those of picture b at b * per_picture onwards.
    `hints[attribute]` is (B, G*G) of class numbers, 0 where a patch shows the background.
    `tags` is (B, K), 1 where the picture has the tag (see `tag_numbers`).
    """

    pixels: NDArray[np.uint8]
    captions: list[str]
    hints: dict[str, NDArray[np.int64]]
    tags: NDArray[np.float32]


class Corpus:
    """`count` scenes with their pictures (9 kB each) and the hints for one recipe's patches."""

    def __init__(
        self,
        recipe: Recipe,
        count: int,
        seed: int,
        *,
        done: Callable[[int], None] = lambda n: None,
    ) -> None:
        self.recipe = recipe
        self.seed = seed
        self.count = count - count % FAMILY_SIZE
        self._scenes: list[Scene] = []
        self._pixels = np.empty((self.count, SIDE, SIDE), dtype=np.uint8)
        shape = (self.count, recipe.grid**2)
        self._hints = {name: np.empty(shape, dtype=np.uint8) for name in VALUES}
        self._tags = np.zeros((self.count, tag_count(recipe)), dtype=np.uint8)
        for index in range(self.count):
            scene = sample_scene(seed, "pretrain", index, FAMILY_SIZE)
            self._pixels[index], owners = render_with_owners(scene)
            shown = patch_things(owners, recipe.grid)
            for name, values in VALUES.items():
                numbers = [0, *(1 + values.index(getattr(t, name)) for t in scene.things)]
                self._hints[name][index] = np.array(numbers, dtype=np.uint8)[shown]
            self._tags[index, tag_numbers(recipe, scene)] = 1
            self._scenes.append(scene)
            done(1)

    def batch(self, size: int, per_picture: int, step: int) -> Batch:
        """The batch of this step: a function of the seed and the step alone."""
        rng = np.random.Generator(np.random.PCG64([self.seed, step]))
        families = rng.permutation(self.count // FAMILY_SIZE)[: max(1, size // SIBLINGS)]
        members = rng.permuted(np.tile(np.arange(FAMILY_SIZE), (len(families), 1)), axis=1)
        rows = (families[:, None] * FAMILY_SIZE + members[:, :SIBLINGS]).reshape(-1)
        dice = Dice(self.seed, "pretrain captions", self.recipe.name, step)
        captions: list[str] = []
        for row in rows:
            captions += write_captions(self._scenes[row], self.recipe.voice, dice, per_picture)
        hints = {name: hint[rows].astype(np.int64) for name, hint in self._hints.items()}
        return Batch(self._pixels[rows], captions, hints, self._tags[rows].astype(np.float32))

    @property
    def tag_share(self) -> NDArray[np.float64]:
        """In which share of the pictures each tag is found, (K,)."""
        return np.asarray(self._tags.mean(axis=0, dtype=np.float64))


def tag_count(recipe: Recipe) -> int:
    """K: how many tags this recipe's tag loss asks for."""
    return sum(math.prod(len(_TAG_VALUES[name]) for name in names) for names in recipe.tags)


def tag_numbers(recipe: Recipe, scene: Scene) -> list[int]:
    """Numbers (0 .. K-1) of the tags that are true of the scene, as "has a red star"."""
    numbers, base = [], 0
    for names in recipe.tags:
        for thing in scene.things:
            number = 0
            for name in names:
                values = _TAG_VALUES[name]
                number = number * len(values) + values.index(_tag_value(name, thing, scene))
            numbers.append(base + number)
        base += math.prod(len(_TAG_VALUES[name]) for name in names)
    return numbers


def _tag_value(name: str, thing: Thing, scene: Scene) -> str:
    if name == "cell":
        return str(thing.row * GRID + thing.column)
    if name == "count":
        return str(len(scene.things))
    return str(getattr(scene if name in ("ground", "texture") else thing, name))


def patch_things(owners: NDArray[np.uint8], grid: int) -> NDArray[np.int64]:
    """Which thing each of grid x grid patches shows, row by row: 0 none, k the thing k-1.

    `owners` is what `render_with_owners` gives, (SIDE, SIDE). A patch shows the thing that owns
    most of its pixels, if that is enough of them.
    """
    band = np.arange(SIDE) * grid // SIDE
    patch = (band[:, None] * grid + band[None, :]).ravel()
    kinds = 6
    counts = np.bincount(patch * kinds + owners.ravel(), minlength=grid * grid * kinds)
    counts = counts.reshape(grid * grid, kinds)[:, 1:]
    best = counts.argmax(axis=1)
    enough = counts.max(axis=1) * _LEAST_SHARE * grid * grid >= SIDE * SIDE
    return np.where(enough, best + 1, 0)


def to_input(
    pixels: NDArray[np.uint8],
    side: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device,
) -> torch.Tensor:
    """(B, S, S) palette numbers -> (B, 3, side, side), resized (bicubic) and normalised.

    Args:
        pixels: Numbers of the palette, S pixels to a side.
        side: Pixels to a side of the result.
        mean: Of the three channels, 0 to 1.
        std: Of the three channels.
        device: Where the result lies.
    """
    import torch

    rgb = torch.from_numpy(PALETTE[pixels]).to(device).permute(0, 3, 1, 2).float() / 255
    if side != SIDE:
        rgb = torch.nn.functional.interpolate(
            rgb, size=(side, side), mode="bicubic", antialias=True
        ).clamp(0, 1)
    shift = torch.tensor(mean, device=device).view(1, 3, 1, 1)
    scale = torch.tensor(std, device=device).view(1, 3, 1, 1)
    return (rgb - shift) / scale
