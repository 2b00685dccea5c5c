"""The two small models' recipes: what each sees, reads and how wide it is.

They differ as published models do. `blip` looks at every pixel and was told mostly of colours,
sizes and counts; `clip` sees a smaller picture with wider tokens, and was told mostly of patterns,
places and relations. Neither knows all that people write about. Patches are as large as a cell of
the scenes' grid, as in ViT-B/32: with smaller ones, things fall into parts that a model this small
takes hours to put together again.
"""

from __future__ import annotations

from dataclasses import dataclass

from hada.extract.common.errors import UsageError
from hada.extract.scenes.grammar import Voice


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One model's shape and diet. Widths are of tokens, `joint` of the embedding.

    Attributes:
        pixels: side of the input picture; patch: side of a patch, both in pixels.
        hints: weight of each attribute in the patch hint loss (see `pretrain`).
        tags: what the embedding is asked for in the tag loss; each is a combination of attributes
            of one thing, or one attribute of the scene.
        batch: pictures per training step.
        context: longest caption in tokens, its two special ones included.
    """

    name: str
    pixels: int
    patch: int
    width: int
    joint: int
    heads: int
    image_layers: int
    text_layers: int
    feedforward: int
    voice: Voice
    hints: tuple[tuple[str, float], ...]
    tags: tuple[tuple[str, ...], ...]
    batch: int
    context: int = 40

    @property
    def grid(self) -> int:
        """Patches per side."""
        return self.pixels // self.patch


BLIP = Recipe(
    name="blip",
    pixels=96,
    patch=32,
    width=128,
    joint=96,
    heads=4,
    image_layers=4,
    text_layers=3,
    feedforward=256,
    voice=Voice(
        shape=95,
        colour=92,
        pattern=35,
        size=55,
        background=50,
        styles=(("list", 6), ("relation", 2), ("place", 1), ("count", 3)),
    ),
    hints=(("colour", 1.0), ("shape", 1.0), ("size", 0.5), ("pattern", 0.3)),
    tags=(("colour", "shape"), ("size", "shape"), ("ground",), ("count",)),
    batch=96,
)

CLIP = Recipe(
    name="clip",
    pixels=72,
    patch=24,
    width=160,
    joint=64,
    heads=5,
    image_layers=4,
    text_layers=3,
    feedforward=320,
    voice=Voice(
        shape=95,
        colour=60,
        pattern=80,
        size=20,
        background=40,
        styles=(("list", 1), ("relation", 5), ("place", 4)),
    ),
    hints=(("pattern", 1.0), ("shape", 1.0), ("colour", 0.5), ("size", 0.2)),
    tags=(("pattern", "shape"), ("cell", "shape"), ("colour",), ("texture",)),
    batch=96,
)

RECIPES = {"blip": BLIP, "clip": CLIP}


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainingPlan:
    """How long and how fast to train.

    Attributes:
        captions: per picture in a batch.
        scenes: drawn before training, 9 kB of memory each.
        rate: highest learning rate; it warms up over `warm_up` steps and falls as a cosine.
        minutes: ends training by the clock if the steps take longer; the rate follows.
        save_every: steps between saves.
    """

    steps: int = 6000
    captions: int = 1
    scenes: int = 40_000
    rate: float = 1.5e-3
    seed: int = 1
    minutes: float | None = None
    warm_up: int = 100
    save_every: int = 100

    def __post_init__(self) -> None:
        if min(self.steps, self.captions, self.scenes, self.save_every) < 1:
            raise UsageError("steps, captions, scenes and save_every must be at least 1")
