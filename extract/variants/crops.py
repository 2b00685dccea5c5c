"""Random crops of every image and their expansions, encoded once, for WCA and LGCA.

A crop is a square of a random share of the shorter side at a random place; an expansion has the
same centre, is `expand` times as wide, and is moved to lie inside the picture. Which crops a
picture gets depends on the seed and on its pixels alone, not on batch, thread or machine.

The store is one of the model's, `<model>@crops-<name>`, without captions: an image's "tokens" are
the embeddings of the whole picture, then of its crops (round 0), then of all their first
expansions, and so on, at unit length.

Shape letters: B pictures, P renderings of one (1 + count * (rounds + 1)), E embedding width.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from hada.extract.backbones.base import Backbone, Encoded
from hada.extract.common.errors import UsageError
from hada.extract.spec import TokenSpec
from hada.extract.variants.changed import ChangedBackbone

Box = tuple[float, float, float]  # left, top and side, in pixels


@dataclass(frozen=True, kw_only=True)
class CropPlan:
    """What is cut out of each picture.

    `count` crops of `low` to `high` times the shorter side, each expanded `rounds` times by
    `expand`. WCA's released code draws from 0.1 to 0.9, though its configuration says 0.5.
    """

    name: str
    count: int = 60
    rounds: int = 0
    low: float = 0.5
    high: float = 0.9
    expand: float = 1.2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or self.rounds < 0 or self.expand <= 1:
            raise UsageError("--crops: expected count >= 1, rounds >= 0 and expand > 1")
        if not 0 < self.low <= self.high <= 1:
            raise UsageError("--crops: expected 0 < low <= high <= 1")

    @classmethod
    def parse(cls, text: str) -> Self:
        """From what the command line takes.

        >>> CropPlan.parse("lgca:count=8,seed=3")
        CropPlan(name='lgca', count=8, rounds=3, low=0.5, high=0.9, expand=1.2, seed=3)
        """
        name, _, rest = text.partition(":")
        presets: dict[str, dict[str, Any]] = {"wca": {}, "lgca": {"count": 32, "rounds": 3}}
        if name not in presets:
            raise UsageError(f"--crops {text!r}: expected wca or lgca, e.g. lgca:count=16,rounds=2")
        kinds = {"count": int, "rounds": int, "seed": int, "low": float, "high": float}
        kinds["expand"] = float
        values = dict(presets[name])
        for part in filter(None, rest.split(",")):
            key, _, value = part.partition("=")
            try:
                values[key] = kinds[key](value)
            except (KeyError, ValueError):
                known = ", ".join(kinds)
                raise UsageError(
                    f"--crops {text!r}: {part!r} is not NAME=NUMBER with one of {known}"
                ) from None
        return cls(name=name, **values)

    @property
    def renderings(self) -> int:
        """P: the whole picture, its crops, and their expansions."""
        return 1 + self.count * (self.rounds + 1)

    def boxes(self, picture: PIL.Image.Image) -> list[list[Box]]:
        """Per round the boxes of all crops, crop after crop."""
        content = hashlib.sha256(f"{self.seed}\0{picture.size}\0".encode() + picture.tobytes())
        random = np.random.default_rng(int.from_bytes(content.digest()[:8], "big"))
        shorter = min(picture.size)
        first = []
        for _ in range(self.count):
            side = max(1, int(random.uniform(self.low, self.high) * shorter))
            left = int(random.integers(0, picture.width - side + 1))
            top = int(random.integers(0, picture.height - side + 1))
            first.append((float(left), float(top), float(side)))
        rounds = [first]
        for _ in range(self.rounds):
            rounds.append([expanded(box, picture.size, self.expand) for box in rounds[-1]])
        return rounds


def expanded(box: Box, size: tuple[int, int], factor: float) -> Box:
    """The box `factor` times as wide around its centre, moved and limited to the picture.

    >>> expanded((252, 45, 350), (640, 427), 1.2)
    (217.0, 7.0, 420.0)
    """
    left, top, side = box
    wide = min(factor * side, float(min(size)))
    moved = (
        min(max(start + (side - wide) / 2, 0.0), limit - wide)
        for start, limit in zip((left, top), size, strict=True)
    )
    return (*moved, wide)  # type: ignore[return-value]


class CropBackbone(ChangedBackbone):
    """A backbone that answers with the embeddings of a picture's crops in place of its tokens."""

    # Crops depend on the picture; nothing of it can be sent to another process beforehand.
    preprocessor: Any = None

    def __init__(self, inner: Backbone, plan: CropPlan) -> None:
        width = inner.spec.embedding_width
        if width is None:
            raise UsageError(
                f"model {inner.spec.name!r} has no joint space, so its crops have no score"
            )
        settings = {"crops": dataclasses.asdict(plan)}
        spec = dataclasses.replace(
            inner.spec,
            normalized=True,
            caption=None,
            image=TokenSpec(width=width, count=plan.renderings, global_source="pooled"),
            preprocessing={**inner.spec.preprocessing, **settings},
        )
        super().__init__(inner, spec)
        self._images, self.plan = inner, plan

    def encode_captions(self, ids: Sequence[Sequence[int]]) -> Encoded:
        """Tokens of the model, and embeddings of unit length, as the images' are."""
        found = self.inner.encode_captions(ids)
        assert found.embeddings is not None
        return Encoded(found.values, found.lengths, _unit(found.embeddings))

    def preprocess(self, image: PIL.Image.Image) -> NDArray[np.float32]:
        """(3 P, H, W): the whole picture, then its crops."""
        parts = [self._images.preprocess(image)]
        for boxes in self.plan.boxes(image):
            for left, top, side in boxes:
                corners = (round(left), round(top), round(left + side), round(top + side))
                parts.append(self._images.preprocess(image.crop(corners)))
        return np.concatenate(parts)

    def encode_images(self, pixels: NDArray[np.float32]) -> Encoded:
        """(B, 3 P, H, W) -> B P rows of unit length, and B embeddings of whole pictures."""
        batch, _, height, wide = pixels.shape
        count = self.plan.renderings
        renderings = pixels.reshape(batch * count, 3, height, wide)
        found = self._images.encode_images(renderings).embeddings
        assert found is not None
        rows = _unit(found)
        return Encoded(
            values=rows,
            lengths=np.full(batch, count, np.int64),
            embeddings=np.ascontiguousarray(rows[::count]),
        )


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), "f4")
