"""Augmented views of images, independent of batch, thread and machine.

View 0 is a model's evaluation transform. Views 1 to K are renderings as the papers trained with:
a random crop of half to all of the area, a flip, and two random operations of strength 7 of 10.
A view is a store of its own beside view 0's, `<model>@view<k>`, without captions: text has no
views.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import PIL.Image
import torch
from torchvision import transforms

from hada.extract.backbones.base import Backbone
from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.extract.variants.changed import ChangedBackbone

# torchvision draws from PyTorch's global generator: one view at a time, its state put back.
_GENERATOR = threading.Lock()


@dataclass(frozen=True)
class View:
    """One view: its number, from 1, and the seed of all views."""

    number: int
    seed: int

    def settings(self) -> dict[str, Any]:
        """What decides how the view looks, for the spec."""
        return {
            "view": self.number,
            "seed": self.seed,
            "augmentation": "RandomResizedCrop(0.5, 1), flip, torchvision RandAugment(2, 7 of 10)",
        }

    def render(
        self, picture: PIL.Image.Image, image_id: str, size: tuple[int, int]
    ) -> PIL.Image.Image:
        """The view of a picture; the same for the same seed, number and id.

        Args:
            picture: Upright and RGB.
            image_id: Decides the view, with the view's seed and number.
            size: The model's input size, (height, width) in pixels.
        """
        name = f"{self.seed}\0{self.number}\0{image_id}".encode()
        seed = int.from_bytes(hashlib.sha256(name).digest()[:7], "big")
        augment = transforms.Compose(
            [
                transforms.RandomResizedCrop(
                    size, scale=(0.5, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
                ),
                transforms.RandomHorizontalFlip(),
                transforms.RandAugment(num_ops=2, magnitude=7, num_magnitude_bins=11),
            ]
        )
        with _GENERATOR:
            state = torch.get_rng_state()
            try:
                torch.default_generator.manual_seed(seed)
                rendered: PIL.Image.Image = augment(picture)
            finally:
                torch.set_rng_state(state)
        return rendered


def viewed(backbone: Backbone, view: View) -> Backbone:
    """The same backbone under the spec of a view's store: no captions, the view recorded.

    Args:
        backbone: A loaded model.
        view: What its images are changed to.
    """
    spec = replace(
        backbone.spec,
        caption=None,
        preprocessing={**backbone.spec.preprocessing, **view.settings()},
    )
    return cast(Backbone, ChangedBackbone(backbone, spec))


def pictures_only(dataset: CaptionDataset) -> CaptionDataset:
    """The dataset without its captions."""
    return replace(
        dataset, caption_ids=(), captions=(), caption_to_image=np.zeros(0, dtype=np.int64)
    )
