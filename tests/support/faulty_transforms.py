"""Transforms that end their process, hang, or cannot travel; worker processes import them."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hada.extract.backbones.fake import Shrink


@dataclass(frozen=True)
class Failing:
    """As `Shrink`, but a picture whose first pixel is nearly `colour` meets `fate`."""

    fate: str
    colour: tuple[int, int, int] = (200, 30, 120)
    size: int = 16

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        first: Any = image.getpixel((0, 0))
        if (
            max(abs(a - b) for a, b in zip(first, self.colour, strict=True)) < 20
            and image.width < 60
        ):
            if self.fate.startswith("SIG"):
                os.kill(os.getpid(), getattr(signal.Signals, self.fate))
            elif self.fate == "hang":
                time.sleep(1000)
            elif self.fate == "exit":
                os._exit(7)
            elif self.fate == "shape":
                return np.zeros((3, 1, 1), np.float32)
        return Shrink(self.size)(image)


class Homebound:
    """Pickles, but does not unpickle."""

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        return Shrink(16)(image)

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise ImportError("no such library here")


@dataclass(frozen=True)
class Slow:
    """As `Shrink`, but takes its time."""

    seconds: float
    size: int = 16

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        time.sleep(self.seconds)
        return Shrink(self.size)(image)
