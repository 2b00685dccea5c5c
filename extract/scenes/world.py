"""Scenes and their random generation: a pure function of (seed, split, index).

A picture holds two to five things on a grid of three by three cells, over a background. Scenes come
in families: one prototype is drawn per family, and each member of the family changes a few of its
attributes. Most attributes are therefore shared with many other pictures, which is what makes the
retrieval hard: the gist of a caption finds the family, and only its details find the picture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

SHAPES = (
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "diamond",
    "cross",
    "ring",
    "hexagon",
    "crescent",
)
COLOURS = (
    "red",
    "orange",
    "yellow",
    "green",
    "teal",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
)
SIZES = ("small", "medium", "large")
PATTERNS = ("solid", "striped", "dotted", "checked", "outlined")
GROUNDS = ("grey", "cream", "sky", "mint", "lilac")
TEXTURES = ("plain", "lined", "speckled", "tiled", "halved")

GRID = 3  # cells per side
FAMILY_SIZE = 8  # pictures that share one prototype
CHANGES = (1, 2, 2, 3, 3, 4)  # how many attributes a member changes, one draw from these
JITTER = 3  # pixels a thing may stand off its cell's centre, each way

_MASK64 = (1 << 64) - 1
_T = TypeVar("_T")


class Dice:
    """A stream of integers fixed by its key, the same on every machine and Python version.

    The standard library promises a stable sequence for ``random.random()`` only, not for
    ``choice`` or ``shuffle``, so the few draws needed are made here (SplitMix64 over a SHA-256 of
    the key) with integers alone.

    >>> Dice(0, "test", 7).below(100) == Dice(0, "test", 7).below(100)
    True
    """

    __slots__ = ("_state",)

    def __init__(self, *key: int | str) -> None:
        text = "/".join(str(part) for part in key)
        self._state = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")

    def below(self, n: int) -> int:
        """One of 0 .. n-1; the bias of the modulus is below 2**-50 for the n used here."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK64
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
        return (z ^ (z >> 31)) % n

    def chance(self, percent: int) -> bool:
        """True in `percent` of a hundred draws."""
        return self.below(100) < percent

    def pick(self, items: Sequence[_T]) -> _T:
        return items[self.below(len(items))]

    def weighted(self, items: Sequence[tuple[_T, int]]) -> _T:
        """One item of (item, whole-number weight) pairs."""
        left = self.below(sum(weight for _, weight in items))
        for item, weight in items:
            left -= weight
            if left < 0:
                return item
        raise AssertionError("weights sum to less than the draw")

    def shuffled(self, items: Sequence[_T]) -> list[_T]:
        """A new list in random order (Fisher-Yates)."""
        out = list(items)
        for i in range(len(out) - 1, 0, -1):
            j = self.below(i + 1)
            out[i], out[j] = out[j], out[i]
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """One object; `column` and `row` count cells from the top left, `dx` and `dy` are pixels."""

    shape: str
    colour: str
    size: str
    pattern: str
    column: int
    row: int
    dx: int = 0
    dy: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Two to five things, no two in one cell, over a background."""

    things: tuple[Thing, ...]
    ground: str
    texture: str


def sample_scene(seed: int, split: str, index: int, family_size: int = FAMILY_SIZE) -> Scene:
    """The scene with this number in this split; neighbours of one family share a prototype.

    Args:
        seed: Of the data set.
        split: The name of the split.
        index: The number of the picture in it, from 0.
        family_size: How many consecutive pictures share a prototype.
    """
    scene = _prototype(seed, split, index // family_size)
    dice = Dice(seed, split, index)
    for _ in range(dice.pick(CHANGES)):
        scene = _change(scene, dice)
    things = tuple(
        replace(
            thing,
            dx=dice.below(2 * JITTER + 1) - JITTER,
            dy=dice.below(2 * JITTER + 1) - JITTER,
        )
        for thing in scene.things
    )
    return replace(scene, things=things)


@lru_cache(maxsize=1024)
def _prototype(seed: int, split: str, family: int) -> Scene:
    dice = Dice(seed, split, "family", family)
    count = dice.weighted(((2, 2), (3, 4), (4, 3), (5, 1)))
    cells = dice.shuffled(range(GRID * GRID))[:count]
    return Scene(
        things=tuple(_thing(cell, dice) for cell in cells),
        ground=dice.pick(GROUNDS),
        texture=dice.pick(TEXTURES),
    )


def _thing(cell: int, dice: Dice) -> Thing:
    return Thing(
        shape=dice.pick(SHAPES),
        colour=dice.pick(COLOURS),
        size=dice.pick(SIZES),
        pattern=dice.pick(PATTERNS),
        column=cell % GRID,
        row=cell // GRID,
    )


_CHANGE_WEIGHTS = (
    ("colour", 5),
    ("shape", 5),
    ("pattern", 4),
    ("size", 2),
    ("move", 3),
    ("swap", 3),
    ("add", 1),
    ("drop", 1),
    ("ground", 1),
    ("texture", 1),
)


def _change(scene: Scene, dice: Dice) -> Scene:
    """The scene with one attribute drawn anew; a change that is not possible changes nothing."""
    kind = dice.weighted(_CHANGE_WEIGHTS)
    things = list(scene.things)
    at = dice.below(len(things))
    taken = {(thing.column, thing.row) for thing in things}
    cells = [c for c in range(GRID * GRID) if (c % GRID, c // GRID) not in taken]
    if kind == "colour":
        things[at] = replace(things[at], colour=dice.pick(COLOURS))
    elif kind == "shape":
        things[at] = replace(things[at], shape=dice.pick(SHAPES))
    elif kind == "pattern":
        things[at] = replace(things[at], pattern=dice.pick(PATTERNS))
    elif kind == "size":
        things[at] = replace(things[at], size=dice.pick(SIZES))
    elif kind == "move":
        cell = dice.pick(cells)
        things[at] = replace(things[at], column=cell % GRID, row=cell // GRID)
    elif kind == "swap":
        other = (at + 1) % len(things)
        a, b = things[at], things[other]
        things[at] = replace(a, column=b.column, row=b.row)
        things[other] = replace(b, column=a.column, row=a.row)
    elif kind == "add" and len(things) < 5:
        things.append(_thing(dice.pick(cells), dice))
    elif kind == "drop" and len(things) > 2:
        del things[at]
    elif kind == "ground":
        return replace(scene, ground=dice.pick(GROUNDS))
    elif kind == "texture":
        return replace(scene, texture=dice.pick(TEXTURES))
    return replace(scene, things=tuple(things))
