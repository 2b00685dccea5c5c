"""A backbone without a model: fast, deterministic, in NumPy alone, for tests and dry runs.

Pictures and captions meet in colour: a picture is its mean colour on a small grid, a caption the
mean of its words' colours ("red" is red; any other word has a fixed colour of its own), so
retrieval on plainly coloured pictures is better than chance.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from hada.extract.backbones.base import BackboneRequest, Encoded
from hada.extract.backbones.options import read_options
from hada.extract.common.errors import UsageError
from hada.extract.spec import ModelSpec, TokenSpec

_COLOURS = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "gray": (128, 128, 128),
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "cyan": (0, 255, 255),
    "magenta": (255, 0, 255),
    "orange": (255, 165, 0),
    "purple": (128, 0, 128),
    "brown": (139, 69, 19),
}
_START, _END, _FIRST_WORD = 1, 2, 3
_VOCABULARY = 4096


@dataclass(frozen=True)
class FakeOptions:
    """The sizes of a fake backbone.

    width, caption_width: D of image and caption tokens.
    image_tokens: N besides the global one; 0 keeps the global vector alone.
    pooled: both sides put a pooled vector in front, as a backbone without CLS does.
    tokens: False keeps embeddings only.
    """

    width: int = 16
    caption_width: int = 12
    image_tokens: int = 4
    embedding_width: int = 8
    image_size: int = 16
    max_tokens: int = 32
    pooled: bool = False
    tokens: bool = True


@dataclass(frozen=True)
class Shrink:
    """(3, S, S), centred around zero."""

    size: int

    def __call__(self, image: PIL.Image.Image) -> NDArray[np.float32]:
        shape = (self.size, self.size)
        small = image.convert("RGB").resize(shape, PIL.Image.Resampling.BILINEAR)
        values = np.asarray(small, dtype=np.float32) / np.float32(255) - np.float32(0.5)
        return np.ascontiguousarray(values.transpose(2, 0, 1))


class FakeBackbone:
    """See the module; `truncated` counts captions cut to `max_tokens`."""

    def __init__(self, request: BackboneRequest, options: FakeOptions) -> None:
        self.options = options
        self.preprocessor = Shrink(options.image_size)
        self.truncated = 0
        # As families whose weights have a card: its record is tested without their libraries.
        self.origin = {"licence": "none: drawn at random"}
        self._lock = threading.Lock()
        seed = zlib.crc32(request.weights.encode())
        generator = np.random.default_rng(seed)

        def matrix(rows: int, columns: int) -> NDArray[np.float32]:
            return generator.standard_normal((rows, columns), dtype=np.float32)

        self._image_map = matrix(3, options.width)
        self._caption_map = matrix(3, options.caption_width)
        self._joint_map = matrix(3, options.embedding_width)
        self._position = matrix(options.image_tokens + 1, options.width) * np.float32(0.1)
        # Row i is the colour of token id i, centred.
        self._colours = generator.uniform(-0.5, 0.5, (_VOCABULARY, 3)).astype(np.float32)
        for row, colour in enumerate(_COLOURS.values(), start=_FIRST_WORD):
            self._colours[row] = np.asarray(colour, np.float32) / np.float32(255) - np.float32(0.5)
        self.spec = self._declare(request)

    def _declare(self, request: BackboneRequest) -> ModelSpec:
        options = self.options
        image = caption = None
        if options.tokens:
            source: Literal["token", "pooled"] = "pooled" if options.pooled else "token"
            image = TokenSpec(
                width=options.width, count=options.image_tokens + 1, global_source=source
            )
            caption = TokenSpec(width=options.caption_width, count=None, global_source=source)
        return ModelSpec(
            name=request.name,
            family=request.family,
            weights_digest=hashlib.sha256(f"{request.weights} {options}".encode()).hexdigest(),
            embedding_width=options.embedding_width,
            normalized=False,
            image=image,
            caption=caption,
            preprocessing={"class": "FakeBackbone", "size": options.image_size},
            precision=request.precision,
        )

    def tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        """A start id, one id per word, an end id."""
        names = list(_COLOURS)
        free = _FIRST_WORD + len(names)
        result = []
        for caption in captions:
            ids = [_START]
            for word in re.findall(r"\w+", caption.lower()):
                known = word in _COLOURS
                number = zlib.crc32(word.encode()) % (_VOCABULARY - free)
                ids.append(_FIRST_WORD + names.index(word) if known else free + number)
            if len(ids) + 1 > self.options.max_tokens:
                ids = ids[: self.options.max_tokens - 1]
                with self._lock:
                    self.truncated += 1
            result.append([*ids, _END])
        return result

    def preprocess(self, image: PIL.Image.Image) -> NDArray[np.float32]:
        """(3, S, S), centred around zero."""
        return self.preprocessor(image)

    def encode_images(self, pixels: NDArray[np.float32]) -> Encoded:
        """The global token is the mean colour; token i the mean of the i-th stripe of rows."""
        count = self.options.image_tokens
        edges = np.linspace(0, pixels.shape[2], count + 1).astype(int)
        colours = [pixels.mean(axis=(2, 3))]
        for start, end in itertools.pairwise(edges):
            colours.append(pixels[:, :, start : max(end, start + 1)].mean(axis=(2, 3)))
        stacked = np.stack(colours, axis=1)  # (B, 1 + N, 3)
        embeddings = _project(stacked[:, 0], self._joint_map)
        if not self.options.tokens:
            return Encoded(values=None, lengths=None, embeddings=embeddings)
        tokens = _project(stacked, self._image_map) + self._position
        return Encoded(
            values=tokens.reshape(-1, self.options.width),
            lengths=np.full(len(pixels), count + 1, dtype=np.int64),
            embeddings=embeddings,
        )

    def encode_captions(self, ids: Sequence[Sequence[int]]) -> Encoded:
        """The global token is the mean colour of the words, in place of the start token's own."""
        values, lengths, means = [], [], []
        for row in ids:
            colours = self._colours[np.asarray(row)]
            mean = colours[1:-1].mean(axis=0) if len(row) > 2 else np.zeros(3, np.float32)
            rows = colours if self.options.pooled else colours[1:]
            rows = np.concatenate([mean[None], rows])
            values.append(_project(rows, self._caption_map))
            lengths.append(len(rows))
            means.append(mean)
        embeddings = _project(np.stack(means), self._joint_map)
        if not self.options.tokens:
            return Encoded(values=None, lengths=None, embeddings=embeddings)
        return Encoded(
            values=np.concatenate(values),
            lengths=np.asarray(lengths, dtype=np.int64),
            embeddings=embeddings,
        )


def _project(colours: NDArray[np.float32], matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """(..., 3) -> (..., D); summed in a fixed order, so that a batch equals its items exactly."""
    parts = colours[..., :, None] * matrix
    return cast("NDArray[np.float32]", parts[..., 0, :] + parts[..., 1, :] + parts[..., 2, :])


def load(request: BackboneRequest) -> FakeBackbone:
    """A fake backbone; `weights` is any text and seeds it. Options: the fields of `FakeOptions`."""
    known: dict[str, type] = dict.fromkeys(
        ("width", "caption_width", "embedding_width", "image_size", "max_tokens"), int
    )
    options = dict(request.options)
    image_tokens = options.pop("image_tokens", FakeOptions.image_tokens)
    if type(image_tokens) is not int or image_tokens < 0:  # 0 is allowed here
        raise UsageError(
            f"model {request.name!r}, option 'image_tokens': expected an integer >= 0, "
            f"got {image_tokens!r}"
        )
    checked = read_options(
        replace(request, options=options),
        {**known, "pooled": bool, "tokens": bool},
    )
    given: dict[str, Any] = {key: value for key, value in checked.items() if value is not None}
    return FakeBackbone(request, FakeOptions(image_tokens=image_tokens, **given))
