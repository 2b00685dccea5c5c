"""What clients may ask: the shapes of requests, their limits, and how a body is read."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
from typing import Annotated, Any, Literal

import msgspec
import PIL.Image
from starlette.exceptions import HTTPException
from starlette.requests import Request

from hada.extract.datasets.images import ImageError, open_image

MOST_TOP, MOST_TEXTS, MOST_IMAGES, MOST_CHARACTERS = 1000, 256, 16, 4000
# A JSON body of texts; images have the server's own limit.
TEXT_BYTES = 4 << 20
# So much of a body that is too large is read and thrown away, so that its client hears why.
_DRAINED_BYTES, _DRAINED_SECONDS = 256 << 20, 20.0

Top = Annotated[int, msgspec.Meta(ge=1, le=MOST_TOP)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=MOST_CHARACTERS)]
Find = Literal["images", "captions"]


class TextQuery(msgspec.Struct, forbid_unknown_fields=True):
    """A sentence. `find` is `images` unless said; `split` the first that is served."""

    text: Text
    top: Top = 10
    find: Find = "images"
    split: str | None = None


class BatchQuery(msgspec.Struct, forbid_unknown_fields=True):
    """Sentences and images (base64 of a file's bytes): texts find images, images find captions.

    `find` is for both where it is given.
    """

    texts: Annotated[list[Text], msgspec.Meta(max_length=MOST_TEXTS)] = []
    images: Annotated[list[str], msgspec.Meta(max_length=MOST_IMAGES)] = []
    top: Top = 10
    find: Find | None = None
    split: str | None = None


class Hit(msgspec.Struct):
    """One result. `models` are the models' own cosines, `picture` where to get the image."""

    place: int
    score: float
    id: str
    models: dict[str, float] = {}
    captions: list[str] = []
    picture: str | None = None


class Results(msgspec.Struct):
    """The results of one query, best first."""

    split: str
    find: Find
    results: list[Hit]


class Batch(msgspec.Struct):
    """The results of every query of a batch, texts first."""

    answers: list[Results]


class Problem(msgspec.Struct):
    """What was wrong with a request."""

    error: str


async def read_body(request: Request, most: int) -> bytes:
    """The body of a request, at most `most` bytes; else 413, once the client has sent it."""
    declared = request.headers.get("content-length", "")
    large = declared.isdigit() and int(declared) > most
    parts: list[bytes] = []
    size, began = 0, asyncio.get_running_loop().time()
    async for part in request.stream():
        size += len(part)
        large = large or size > most
        if not large:
            parts.append(part)
            continue
        parts.clear()
        late = asyncio.get_running_loop().time() - began > _DRAINED_SECONDS
        if late or size > _DRAINED_BYTES:
            break
    if large:
        raise HTTPException(413, f"the body is too large: at most {most:,} bytes are taken")
    return b"".join(parts)


def parsed(body: bytes, kind: Any) -> Any:
    """A JSON body as one of the shapes above; 400 says what is wrong."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HTTPException(400, f"not the JSON that is expected: {error}") from error


def checked_text(text: str) -> str:
    """A query that says something; 400 otherwise."""
    if not text.strip():
        raise HTTPException(400, "the query is empty: expected a sentence")
    return text


def from_base64(text: str, most: int) -> bytes:
    """The bytes of an image in a batch; 400 or 413 where they are none."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise HTTPException(400, "an image of the batch is no base64") from error
    if len(data) > most:
        raise HTTPException(413, f"an image of the batch is above {most:,} bytes")
    return data


def decoded(data: bytes, most_pixels: int) -> PIL.Image.Image:
    """The picture in the bytes of a file; 400 where there is none, 413 where it is too large.

    Its size is read before it is decoded.
    """
    if not data:
        raise HTTPException(400, "the body is empty: expected the bytes of an image file")
    try:
        with PIL.Image.open(io.BytesIO(data)) as image:
            width, height = image.size
    except Exception:  # what a decoder raises on hostile bytes; open_image says it for people
        width = height = 0
    if width * height > most_pixels:
        raise HTTPException(
            413, f"the image has {width} x {height} pixels: at most {most_pixels:,} are taken"
        )
    try:
        return open_image(data, name="sent")
    except ImageError as error:
        # Without the decoder's own words, which may name places of the machine.
        reason = error.reason.partition(" (")[0]
        raise HTTPException(400, f"the image cannot be used: {reason}") from error
