"""Image files to upright RGB, from any mode that Pillow decodes, or one error with the reason."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from hada.extract.common.errors import DatasetError
from hada.extract.datasets.image_files import ImageFile, InParquet, InTar

# Pillow's own threshold for its warning (a quarter of a GiB as RGB); a picture above it is
# refused here instead, without touching the process-wide warning filters from a worker thread.
MAX_PIXELS = 89_478_485
_ORIENTATION = 0x0112
# Orientations that exchange width and height.
_TURNED = (5, 6, 7, 8)
# Formats whose decoder keeps the size and the orientation that the header says.
_SIZE_IN_HEADER = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
_WIDE_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")


class ImageError(DatasetError):
    """One picture that cannot be used: `path` names it and `reason` says why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"picture {path}: {reason}")
        self.path = path
        self.reason = reason


def open_image(
    source: str | os.PathLike[str] | bytes | ImageFile, *, name: str | None = None
) -> Image.Image:
    """The picture at a place, or in the bytes of a file, as an upright "RGB" image in memory.

    EXIF orientation is applied, the first frame of an animation is taken, 16-bit and float
    brightness is scaled to 8 bits, and transparency is dropped (not blended), as the official
    pipelines of CLIP, BLIP and ALBEF do. Safe to call from threads.

    Args:
        source: A path, the bytes of a file, or a member of an archive.
        name: Stands for bytes in messages.

    Raises:
        ImageError: The file is missing, damaged, or no picture.
    """
    label = name or ("<bytes>" if isinstance(source, bytes) else str(source))
    with _opened(source, label) as image:
        image.load()
        return _upright(_to_rgb(image, label), image)


def size_of(source: ImageFile) -> tuple[int, int]:
    """(width, height) of what `open_image` gives; of most formats only the header is read.

    Raises `ImageError` where that tells that the image cannot be used.
    """
    with _opened(source, str(source)) as image:
        if image.format in _SIZE_IN_HEADER:
            width, height = image.size
            return (height, width) if _orientation(image) in _TURNED else (width, height)
    return open_image(source).size


@contextmanager
def _opened(
    source: str | os.PathLike[str] | bytes | ImageFile, label: str
) -> Iterator[Image.Image]:
    """The file, its header read; what goes wrong with it inside is raised as an `ImageError`."""
    stream: io.BytesIO | str
    if isinstance(source, bytes):
        stream = io.BytesIO(source)
    elif isinstance(source, InTar | InParquet):
        stream = io.BytesIO(_contents(source))
    else:
        stream = os.fspath(source)
        if not os.path.isfile(stream):  # a FIFO would block for ever
            reason = "is not a regular file" if os.path.exists(stream) else "no such file"
            raise ImageError(label, reason)
    try:
        with Image.open(stream) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(label, _too_large(image.size))
            yield image
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(label, f"too large to decode safely ({error})") from error
    except UnidentifiedImageError as error:
        raise ImageError(label, "not a picture in any known format") from error
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        raise ImageError(label, f"cannot be decoded ({type(error).__name__}: {error})") from error


def _contents(source: InTar | InParquet) -> bytes:
    try:
        return source.read_bytes()
    except OSError as error:
        raise ImageError(str(source), f"cannot be read ({error.strerror or error})") from error
    except DatasetError as error:
        raise ImageError(str(source), str(error).removeprefix(f"{source}: ")) from error
    except Exception as error:  # pyarrow's, on a parquet file that was damaged since
        raise ImageError(
            str(source), f"cannot be read ({type(error).__name__}: {error})"
        ) from error


def _too_large(size: tuple[int, int]) -> str:
    return f"too large to decode safely ({size[0]} x {size[1]}, at most {MAX_PIXELS} pixels)"


def _upright(rgb: Image.Image, original: Image.Image) -> Image.Image:
    """`rgb` turned as the EXIF data of `original` asks; unreadable EXIF turns nothing."""
    orientation = _orientation(original)
    if orientation is None:
        return rgb
    # A fresh block with this one tag: the other tags may be broken and are not needed.
    rgb.getexif()[_ORIENTATION] = orientation
    return ImageOps.exif_transpose(rgb)


def _orientation(image: Image.Image) -> int | None:
    """What the EXIF data say of an image that has to be turned, None of any other."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a picture is worth keeping though its metadata is broken
        return None
    return None if orientation in (None, 1) else orientation


def _to_rgb(image: Image.Image, label: str) -> Image.Image:
    """A copy in mode "RGB", detached from the open file."""
    if image.mode in _WIDE_MODES:
        image = _to_8_bits(image, label)
    elif image.mode == "P" and "transparency" in image.info:
        # Straight to RGB would give the same colours with a warning.
        image = image.convert("RGBA")
    rgb = image.convert("RGB")
    rgb.info.clear()
    return rgb


def _to_8_bits(image: Image.Image, label: str) -> Image.Image:
    """Gray of 16 or 32 bits, or of floats, as "L": convert() would clip it to white."""
    values = np.asarray(image, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;16"):
        top = 65535.0
    elif low >= 0 and high <= 1 and image.mode == "F":
        top = 1.0
    elif low >= 0 and high <= 65535:
        top = 255.0 if high <= 255 else 65535.0
    else:  # NaN ends here too
        raise ImageError(label, f"gray values from {low:g} to {high:g}: no agreed white point")
    return Image.fromarray(np.rint(values * (255.0 / top)).astype(np.uint8))
