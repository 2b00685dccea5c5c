"""SigLIP 2 NaFlex of `dual`: images keep their shape, so they have different numbers of patches."""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from hada.extract.backbones.base import Encoded
from hada.extract.backbones.dual_base import DualBackbone, Seen, run_tower
from hada.extract.backbones.preprocessing import PackedPatches
from hada.extract.backbones.torch_base import encoded, with_pooled
from hada.extract.spec import TokenSpec

# Two shapes at once: the probe is a batch with padding in it.
_PROBES = ((64, 48), (40, 90))


class NaflexBackbone(DualBackbone):
    """A SigLIP 2 whose processor fills at most so many patches, whatever an image's shape is.

    The pooled vector stands in front of an image's patches, as in every SigLIP.
    """

    preprocessor: PackedPatches

    def image_rows(self, width: int, height: int) -> int:
        """The patches of an image of a size in pixels, and the pooled row."""
        rows, columns = self.preprocess(PIL.Image.new("RGB", (width, height)))[0, :2]
        return int(rows * columns) + 1

    def preprocess(self, image: PIL.Image.Image) -> NDArray[np.float32]:
        """(1 + P, D): the grid's height and width, then the patches, then padding."""
        return self.preprocessor(image)

    def encode_images(self, pixels: NDArray[np.float32]) -> Encoded:
        """(B, 1 + P, D) -> tokens of the patches that are there, and the projected embedding."""
        with self.running():
            images = self.to_device(pixels)
            seen, embeddings = self._run_images(images)
            assert seen.hidden is not None
            assert seen.pooled is not None
            tokens, mask = with_pooled(seen.pooled, seen.hidden, _unpacked(images)[2])
            return encoded(tokens, mask, embeddings)

    def _make_processor(self, processor: Any) -> PackedPatches:
        return PackedPatches(processor)

    def _run_images(self, pixels: Tensor) -> tuple[Seen, Tensor]:
        patches, shapes, real = _unpacked(pixels)

        def call() -> Any:
            return self.model.get_image_features(
                pixel_values=patches, pixel_attention_mask=real.long(), spatial_shapes=shapes
            )

        return run_tower(self.model.vision_model, call)

    def _probe_images(self) -> tuple[TokenSpec | None, int]:
        """The image side's spec and the embedding width."""
        packed = np.stack([self.preprocess(PIL.Image.new("RGB", size)) for size in _PROBES])
        with self.running():
            seen, embeddings = self._run_images(self.to_device(packed))
        assert seen.hidden is not None
        spec = TokenSpec(width=int(seen.hidden.shape[-1]), count=None, global_source="pooled")
        return spec, int(embeddings.shape[-1])


def _unpacked(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, 1 + P, D) -> patches (B, P, D), shapes (B, 2) and which patches are real (B, P)."""
    shapes = pixels[:, 0, :2].round().long()
    patches = pixels[:, 1:].contiguous()
    places = torch.arange(patches.shape[1], device=pixels.device)
    return patches, shapes, places < shapes.prod(dim=1, keepdim=True)
