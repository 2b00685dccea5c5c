"""From an image file to a model's input, as every decoding thread and process computes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from hada.extract.datasets import images
from hada.extract.datasets.image_files import ImageFile

if TYPE_CHECKING:
    from hada.extract.variants.views import View

# A model that resizes the shorter side to S makes S * S times this many pixels of such a picture:
# 340 MB in each decoding thread at S = 336. The same for all models, so that all fail alike.
MAX_ASPECT = 1000


@dataclass(frozen=True)
class PictureReader:
    """Decodes, augments where a view is asked for, and preprocesses.

    It can be pickled where `preprocess` can, and then travels to worker processes.
    `size` is the model's input (height, width); only views need it.
    """

    preprocess: Callable[[PIL.Image.Image], NDArray[np.float32]]
    view: View | None = None
    size: tuple[int, int] = (0, 0)

    def read(self, path: ImageFile, image_id: str) -> NDArray[np.float32]:
        """(3, H, W); raises `ImageError` with the reason. Safe to call from threads."""
        return self.prepared(images.open_image(path), path, image_id)

    def prepared(
        self, picture: PIL.Image.Image, path: ImageFile, image_id: str
    ) -> NDArray[np.float32]:
        """As `read`, of an image that has been opened."""
        check_aspect(picture.size, path)
        try:
            if self.view is not None:
                picture = self.view.render(picture, image_id, self.size)
            return self.preprocess(picture)
        except (OSError, ValueError, ArithmeticError, MemoryError) as error:
            reason = f"cannot be preprocessed ({type(error).__name__}: {error})"
            raise images.ImageError(str(path), reason) from error


def check_aspect(size: tuple[int, int], path: ImageFile) -> None:
    """Raise `ImageError` for an image of a (width, height) that no model is given."""
    if max(size) > MAX_ASPECT * min(size):
        sides = f"{size[0]} x {size[1]}, at most {MAX_ASPECT} to 1"
        raise images.ImageError(str(path), f"too elongated ({sides})")
