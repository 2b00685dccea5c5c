"""Evaluation transforms as values: they can be pickled, so a worker process needs no model.

Nothing heavy is imported here; what a transform wraps brings its own library along.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Squash:
    """(3, S, S): squashed to a square, not cropped, as the transforms of ALBEF and BLIP do."""

    size: int

    def __call__(self, image: PIL.Image.Image) -> NDArray[np.float32]:
        shape = (self.size, self.size)
        resized = image.convert("RGB").resize(shape, PIL.Image.Resampling.BICUBIC)
        mean, std = np.array(MEAN, dtype=np.float32), np.array(STD, dtype=np.float32)
        values = (np.asarray(resized, dtype=np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(values.transpose(2, 0, 1))


@dataclass(frozen=True)
class Transform:
    """(3, H, W) by a transform of torchvision that ends in a tensor."""

    transform: Callable[[PIL.Image.Image], Any]

    def __call__(self, image: PIL.Image.Image) -> NDArray[np.float32]:
        return np.ascontiguousarray(self.transform(image).numpy(), dtype=np.float32)


@dataclass(frozen=True)
class Processor:
    """(3, H, W) by an image processor of transformers, in its PIL form."""

    processor: Any

    def __call__(self, image: PIL.Image.Image) -> NDArray[np.float32]:
        pixels = self.processor(images=image.convert("RGB"), return_tensors="np")["pixel_values"]
        return np.ascontiguousarray(pixels[0], dtype=np.float32)


@dataclass(frozen=True)
class PackedPatches:
    """(1 + P, D) by the processor of SigLIP 2 NaFlex, in its PIL form.

    The first row begins with the height and the width of the grid of patches; rows of padding are
    at the end.
    """

    processor: Any

    def __call__(self, image: PIL.Image.Image) -> NDArray[np.float32]:
        found = self.processor(images=image.convert("RGB"), return_tensors="np")
        patches = found["pixel_values"][0]
        packed = np.zeros((len(patches) + 1, patches.shape[1]), np.float32)
        packed[0, :2], packed[1:] = found["spatial_shapes"][0], patches
        return packed
