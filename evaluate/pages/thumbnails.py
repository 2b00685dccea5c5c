"""Small images for a page that needs no other file: data URIs, and heat maps to lay over them."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hada.extract.datasets.image_files import ImageFile
from hada.extract.datasets.images import open_image

THUMBNAIL = 168  # pixels of the longer side
PICTURE = 320  # of one that can be enlarged
_HEAT = (255, 96, 0)
OPAQUE = 200  # of 255, where the heat is 1


def thumbnail(image_file: ImageFile, *, pixels: int = THUMBNAIL) -> str:
    """An image as a small JPEG data URI, its longer side of at most so many pixels.

    Raises `ImageError` where the file cannot be read.
    """
    image = open_image(image_file)
    image.thumbnail((pixels, pixels))
    data = io.BytesIO()
    # A small one is shown enlarged, where the blocks of a JPEG are seen.
    image.save(data, "JPEG", quality=75 if max(image.size) > pixels // 2 else 92)
    return _uri("jpeg", data)


@dataclass
class Pictures:
    """The images of a page, each of them once: a page names them by their number in `uris`."""

    uris: list[str] = field(default_factory=list)
    _numbers: dict[ImageFile, int] = field(default_factory=dict)

    def number(self, path: ImageFile) -> int:
        """The number of an image; raises `ImageError` where the file cannot be read."""
        if path not in self._numbers:
            self.uris.append(thumbnail(path, pixels=PICTURE))
            self._numbers[path] = len(self.uris) - 1
        return self._numbers[path]


def heat_map(heat: NDArray[np.float64]) -> str:
    """(S, S) heat from 0 (clear) to 1 as a PNG of S by S pixels to lay over an image."""
    pixels = np.zeros((*heat.shape, 4), np.uint8)
    pixels[..., :3] = _HEAT
    pixels[..., 3] = np.rint(OPAQUE * np.clip(heat, 0, 1))
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG", optimize=True)
    return _uri("png", data)


def _uri(kind: str, data: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"
