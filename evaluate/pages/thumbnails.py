"""Small images for a page that needs no other file: data URIs, and heat maps to lay over them."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hada.extract.datasets.image_files import ImageFile
from hada.extract.datasets.images import open_image

THUMBNAIL = 168  # pixels of the longer side
_HEAT = (255, 96, 0)


def thumbnail(image_file: ImageFile, *, square: bool = False) -> str:
    """An image as a small JPEG data URI; `square` cuts its middle out, as some models see it.

    Raises `ImageError` where the file cannot be read.
    """
    image = open_image(image_file)
    if square:
        side = min(image.size)
        image = ImageOps.fit(image, (min(side, THUMBNAIL),) * 2)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=72)
    return _uri("jpeg", data)


def heat_map(weights: NDArray[np.float64]) -> str:
    """(S, S) weights as a transparent PNG of S by S pixels, the strongest patch most opaque."""
    spread = weights - weights.min()
    opacity = spread / spread.max() if spread.max() > 0 else spread
    pixels = np.zeros((*weights.shape, 4), np.uint8)
    pixels[..., :3] = _HEAT
    pixels[..., 3] = np.rint(200 * opacity)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG", optimize=True)
    return _uri("png", data)


def _uri(kind: str, data: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"
