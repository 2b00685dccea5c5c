"""Scene to image in whole numbers, so that the same scene gives the same bytes everywhere.

Shapes are tested pixel by pixel with integer arithmetic instead of a drawing library's rasteriser,
whose edges move between its versions; the PNG holds its pixels uncompressed, because what zlib and
zlib-ng make of the same pixels differs. Pictures are `SIDE` x `SIDE` palette images. For pixels as
an RGB array, index `PALETTE` with the result of `render`.
"""

from __future__ import annotations

import struct
import zlib
from functools import cache

import numpy as np
from numpy.typing import NDArray

from hada.extract.scenes.world import COLOURS, GRID, GROUNDS, SIZES, TEXTURES, Scene, Thing

SIDE = 96  # pixels
CELL = SIDE // GRID
RADIUS = {"small": 8, "medium": 12, "large": 15}  # pixels from the centre to the rim

_THING_RGB = {
    "red": (214, 39, 40),
    "orange": (255, 140, 20),
    "yellow": (245, 220, 40),
    "green": (44, 150, 50),
    "teal": (20, 170, 170),
    "blue": (40, 80, 215),
    "purple": (130, 50, 170),
    "pink": (250, 120, 180),
    "brown": (125, 75, 35),
    "black": (30, 30, 34),
}
# Each ground has a base tone and a second tone for its texture.
_GROUND_RGB = {
    "grey": ((188, 188, 190), (160, 160, 164)),
    "cream": ((244, 232, 200), (224, 206, 160)),
    "sky": ((190, 218, 245), (158, 192, 228)),
    "mint": ((198, 236, 208), (164, 210, 178)),
    "lilac": ((222, 206, 240), (196, 174, 220)),
}
_WHITE = 0
_THING_AT = 1
_GROUND_AT = _THING_AT + len(COLOURS)

PALETTE: NDArray[np.uint8] = np.array(
    [(255, 255, 255)]
    + [_THING_RGB[name] for name in COLOURS]
    + [tone for name in GROUNDS for tone in _GROUND_RGB[name]],
    dtype=np.uint8,
)
"""(colours, 3) RGB of each palette number."""

# Corners in hundredths of the radius, x to the right and y down.
_POLYGONS = {
    "triangle": ((0, -95), (95, 80), (-95, 80)),
    "star": (
        (0, -100),
        (25, -34),
        (95, -31),
        (40, 13),
        (59, 81),
        (0, 42),
        (-59, 81),
        (-40, 13),
        (-95, -31),
        (-25, -34),
    ),
    "heart": (
        (0, 95),
        (-95, -5),
        (-95, -50),
        (-70, -85),
        (-35, -85),
        (0, -45),
        (35, -85),
        (70, -85),
        (95, -50),
        (95, -5),
    ),
    "hexagon": ((50, -87), (100, 0), (50, 87), (-50, 87), (-100, 0), (-50, -87)),
}


def render(scene: Scene) -> NDArray[np.uint8]:
    """Palette numbers of the picture, (SIDE, SIDE)."""
    return render_with_owners(scene)[0]


def render_with_owners(scene: Scene) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The picture and who owns each pixel: 0 the background, k the thing number k-1.

    Both are (SIDE, SIDE). What shows through an outlined thing belongs to the thing.
    """
    pixels = _background(scene.ground, scene.texture).copy()
    owners = np.zeros_like(pixels)
    for number, thing in enumerate(scene.things, start=1):
        body, ink = _stamp(thing.shape, thing.size, thing.pattern)
        window = _window(thing)
        colour = _THING_AT + COLOURS.index(thing.colour)
        spot = pixels[window]
        spot[ink == 1] = colour
        spot[ink == 2] = _WHITE
        owners[window][body] = number
    return pixels, owners


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """A palette PNG of (H, W) palette numbers, stored without compression."""
    height, width = pixels.shape
    rows = np.zeros((height, width + 1), dtype=np.uint8)  # filter type 0 before each row
    rows[:, 1:] = pixels
    raw = rows.tobytes()
    assert len(raw) <= 0xFFFF, "one stored deflate block holds 65,535 bytes"
    stored = struct.pack("<BHH", 1, len(raw), len(raw) ^ 0xFFFF) + raw
    deflated = b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(raw))
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"PLTE", PALETTE.tobytes())
        + _chunk(b"IDAT", deflated)
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _window(thing: Thing) -> tuple[slice, slice]:
    """Rows and columns of the picture that the thing's stamp covers.

    The stamp is kept inside the picture: a large thing in a border cell moves inwards.
    """
    radius = RADIUS[thing.size]
    low, high = radius, SIDE - 1 - radius
    x = min(max(thing.column * CELL + CELL // 2 + thing.dx, low), high)
    y = min(max(thing.row * CELL + CELL // 2 + thing.dy, low), high)
    return slice(y - radius, y + radius + 1), slice(x - radius, x + radius + 1)


@cache
def _background(ground: str, texture: str) -> NDArray[np.uint8]:
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    second = {
        "plain": np.zeros_like(x, dtype=bool),
        "lined": y % 8 < 3,
        "speckled": (x % 8 < 2) & (y % 8 < 2),
        "tiled": (x // 12 + y // 12) % 2 == 1,
        "halved": y >= SIDE // 2,
    }
    assert tuple(second) == TEXTURES
    base = _GROUND_AT + 2 * GROUNDS.index(ground)
    return np.asarray(base + second[texture], dtype=np.uint8)


@cache
def _stamp(shape: str, size: str, pattern: str) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
    """Body of a thing and its ink (0 none, 1 its colour, 2 white), both (2R+1, 2R+1)."""
    radius = RADIUS[size]
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    body = _body(shape, radius, x, y)
    if pattern == "outlined":
        return body, (body & ~_eroded(body, 2)).astype(np.uint8)
    white = {
        "solid": np.zeros_like(body),
        "striped": (x + y) % 6 < 3,
        "dotted": ((x + 1) % 5 < 2) & ((y + 1) % 5 < 2),
        "checked": ((x + radius) // 4 + (y + radius) // 4) % 2 == 0,
    }[pattern]
    ink = np.where(body, 1, 0)
    # The rim keeps the colour, so that a shape is whole whatever pattern fills it.
    ink[_eroded(body, 1) & white] = 2
    return body, ink.astype(np.uint8)


def _body(shape: str, r: int, x: NDArray[np.int_], y: NDArray[np.int_]) -> NDArray[np.bool_]:
    """Which pixels at offsets x, y from the centre lie in the shape of radius r."""
    square = x * x + y * y
    if shape in _POLYGONS:
        return _inside_polygon(_POLYGONS[shape], r, x, y)
    masks = {
        "circle": square <= r * r,
        "ring": (square <= r * r) & (4 * square >= r * r),
        "square": (100 * abs(x) <= 85 * r) & (100 * abs(y) <= 85 * r),
        "diamond": 100 * abs(x) + 72 * abs(y) <= 72 * r,
        "cross": (3 * abs(x) <= r) | (3 * abs(y) <= r),
        "crescent": (square <= r * r)
        & (100 * ((2 * x - r) * (2 * x - r) + 4 * y * y) >= 256 * r * r),
    }
    return np.asarray(masks[shape], dtype=bool)


def _inside_polygon(
    corners: tuple[tuple[int, int], ...], r: int, x: NDArray[np.int_], y: NDArray[np.int_]
) -> NDArray[np.bool_]:
    """Even-odd rule with exact cross products; corners in hundredths of r."""
    px, py = 100 * x, 100 * y
    inside = np.zeros(x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ax, ay, bx, by = ax * r, ay * r, bx * r, by * r
        crosses = (ay > py) != (by > py)
        side = (px - ax) * (by - ay) - (bx - ax) * (py - ay)
        inside ^= crosses & (side < 0 if by > ay else side > 0)
    return inside


def _eroded(body: NDArray[np.bool_], steps: int) -> NDArray[np.bool_]:
    """The body without its outermost `steps` pixels (four neighbours)."""
    for _ in range(steps):
        framed = np.pad(body, 1)
        body = body & framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
    return body


assert set(RADIUS) == set(SIZES)
