"""Pictures of every mode and in every state of decay."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hada.extract.common.errors import DatasetError
from hada.extract.datasets import images
from hada.extract.datasets.image_files import InParquet
from hada.extract.datasets.images import ImageError, open_image, size_of


def ramp(width: int = 40, height: int = 30) -> Image.Image:
    """Red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, x * 0 + 99], axis=-1).astype(np.uint8))


def array(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def test_rgb_is_untouched(tmp_path: Path) -> None:
    np.testing.assert_array_equal(array(open_image(saved(ramp(), tmp_path / "a.png"))), ramp())


def test_bytes_and_paths(tmp_path: Path) -> None:
    path = saved(ramp(), tmp_path / "a.png")
    np.testing.assert_array_equal(
        array(open_image(path.read_bytes())), array(open_image(str(path)))
    )
    with pytest.raises(ImageError, match=r"picture shard\.tar/1\.png: not a picture"):
        open_image(b"nothing", name="shard.tar/1.png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = ramp().transpose(undo[orientation]) if orientation > 1 else ramp()
    opened = open_image(saved(stored, tmp_path / "a.png", exif=exif))
    np.testing.assert_array_equal(array(opened), ramp())


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_ignored(tmp_path: Path) -> None:
    path = saved(ramp(), tmp_path / "a.jpg", exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff\0")
    assert open_image(path).size == (40, 30)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_modes(tmp_path: Path, mode: str) -> None:
    suffix = "tif" if mode in ("CMYK", "YCbCr") else "png"
    opened = open_image(saved(ramp().convert(mode), tmp_path / f"a.{suffix}"))
    expected = ramp().convert(mode).convert("RGB")
    assert np.abs(array(opened) - array(expected)).max() <= 2


def test_cmyk_jpeg(tmp_path: Path) -> None:
    opened = open_image(saved(ramp().convert("CMYK"), tmp_path / "a.jpg", quality=100))
    assert np.abs(array(opened) - np.asarray(ramp()).astype(int)).mean() < 5


def test_transparency_is_dropped_as_the_official_pipelines_do(tmp_path: Path) -> None:
    layers = [*ramp().split(), Image.new("L", ramp().size, 0)]
    opened = open_image(saved(Image.merge("RGBA", layers), tmp_path / "a.png"))
    np.testing.assert_array_equal(array(opened), ramp())
    palette = ramp().quantize(16)
    path = saved(palette, tmp_path / "p.png", transparency=bytes(range(16)))
    np.testing.assert_array_equal(array(open_image(path)), palette.convert("RGB"))


def test_16_bits_keep_their_brightness(tmp_path: Path) -> None:
    gray = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, axis=0)
    opened = open_image(saved(Image.fromarray(gray), tmp_path / "a.png"))
    np.testing.assert_array_equal(array(opened)[0, :, 0], np.arange(256))
    opened = open_image(saved(Image.fromarray(gray.astype(np.int32)), tmp_path / "a.tif"))
    np.testing.assert_array_equal(array(opened)[0, :, 0], np.arange(256))


def test_floats(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 256, dtype=np.float32)[None].repeat(4, axis=0)
    opened = open_image(saved(Image.fromarray(values), tmp_path / "a.tif"))
    np.testing.assert_array_equal(array(opened)[0, :, 0], np.arange(256))
    with pytest.raises(ImageError, match="no agreed white point"):
        open_image(saved(Image.fromarray(values - 5), tmp_path / "b.tif"))
    with pytest.raises(ImageError, match="no agreed white point"):
        open_image(saved(Image.fromarray(values * np.nan), tmp_path / "c.tif"))


def test_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert open_image(path).getpixel((4, 4)) == (255, 0, 0)


def test_extreme_shapes(tmp_path: Path) -> None:
    assert open_image(saved(Image.new("RGB", (1, 1)), tmp_path / "a.png")).size == (1, 1)
    wide = saved(Image.new("L", (30000, 3)), tmp_path / "b.png")
    assert open_image(wide).size == (30000, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp"])
def test_truncated(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(Image.fromarray(noise), tmp_path / f"a.{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError) as caught:
        open_image(path)
    assert caught.value.path == str(path)
    assert caught.value.reason
    assert isinstance(caught.value, DatasetError)


def test_damaged_in_the_middle(tmp_path: Path) -> None:
    data = bytearray(saved(ramp(200, 200), tmp_path / "a.png").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 20] = b"\xff" * 20
    with pytest.raises(ImageError, match="cannot be decoded"):
        open_image(bytes(data))


def test_not_a_picture(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "b.jpg").write_text("<html>404</html>")
    for name in ("a.jpg", "b.jpg"):
        with pytest.raises(ImageError, match="not a picture"):
            open_image(tmp_path / name)
    with pytest.raises(ImageError, match="no such file"):
        open_image(tmp_path / "missing.jpg")
    with pytest.raises(ImageError, match="not a regular file"):
        open_image(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.jpg")
        with pytest.raises(ImageError, match="not a regular file"):
            open_image(tmp_path / "pipe.jpg")


def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 20,000 x 20,000 in one bit: a few kilobytes on disk, 1.2 GB as RGB.
    stream = io.BytesIO()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    Image.new("1", (20000, 20000)).save(stream, "PNG")
    monkeypatch.undo()
    with pytest.raises(ImageError, match="too large"):
        open_image(stream.getvalue())
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    with pytest.raises(ImageError, match="40 x 30, at most 100 pixels"):
        open_image(saved(ramp(), tmp_path / "a.png"))


def test_from_threads(tmp_path: Path) -> None:
    paths = [saved(ramp(20 + n, 30), tmp_path / f"{n}.jpg") for n in range(16)]
    expected = [array(open_image(path)) for path in paths]
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(expected, pool.map(open_image, paths), strict=True):
            np.testing.assert_array_equal(one, array(other))


def test_wide_grays_are_rounded_to_the_nearest(tmp_path: Path) -> None:
    """255 / 65535 of each value: 128 lies below one half, 129 above, and 40000 gives 155.6."""
    gray = np.array([[0, 128, 129, 385, 386, 40000, 65535]], np.uint16)
    opened = open_image(saved(Image.fromarray(gray), tmp_path / "a.png"))
    assert array(opened)[0, :, 0].tolist() == [0, 0, 1, 1, 2, 156, 255]
    floats = np.array([[0.0, 0.4 / 255, 0.6 / 255, 1.0]], np.float32)
    opened = open_image(saved(Image.fromarray(floats), tmp_path / "b.tif"))
    assert array(opened)[0, :, 0].tolist() == [0, 0, 1, 255]


def test_a_folder_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="is not a regular file"):
        open_image(tmp_path)


def test_a_parquet_file_that_was_damaged_since_is_an_image_error(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra parquet")
    file = tmp_path / "a.parquet"
    file.write_bytes(b"PAR1" + b"x" * 64)
    with pytest.raises(ImageError, match="cannot be read"):
        open_image(InParquet(str(file), "image", 0, 0))


@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tiff", "ppm"])
def test_the_size_in_the_header_is_that_of_the_opened_image(
    tmp_path: Path, suffix: str, orientation: int | None
) -> None:
    options = {}
    if orientation is not None and suffix in ("jpg", "png", "webp", "tiff"):
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    path = saved(ramp(), tmp_path / f"a.{suffix}", **options)
    assert size_of(str(path)) == open_image(path).size


def test_the_size_needs_no_pixels(tmp_path: Path) -> None:
    path = saved(ramp(400, 300), tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes()[:1500])
    assert size_of(str(path)) == (400, 300)
    path.write_bytes(b"no image")
    with pytest.raises(ImageError, match="not a picture"):
        size_of(str(path))
    with pytest.raises(ImageError, match="no such file"):
        size_of(str(tmp_path / "none.jpg"))
