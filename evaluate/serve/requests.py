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
# That a text must say something is checked apart (`checked_text`), with words for people.
_SAYS = {"pattern": r"\S"}
Text = Annotated[
    str, msgspec.Meta(min_length=1, max_length=MOST_CHARACTERS, extra_json_schema=_SAYS)
]
Base64 = Annotated[
    str,
    msgspec.Meta(
        extra_json_schema={"contentEncoding": "base64", "pattern": "^[A-Za-z0-9+/]+={0,2}$"}
    ),
]
Find = Literal["images", "captions"]


class TextQuery(msgspec.Struct, forbid_unknown_fields=True):
    """A sentence. `find` is `images` unless said; `split` the first that is served.

    `ranks` asks for each model's own rank of every result, which takes longer.
    """

    text: Text
    top: Top = 10
    find: Find = "images"
    split: str | None = None
    ranks: bool = False


class BatchQuery(msgspec.Struct, forbid_unknown_fields=True):
    """Sentences and images (base64 of a file's bytes): texts find images, images find captions.

    `find` is for both where it is given.
    """

    texts: Annotated[list[Text], msgspec.Meta(max_length=MOST_TEXTS)] = []
    images: Annotated[list[Base64], msgspec.Meta(max_length=MOST_IMAGES)] = []
    top: Top = 10
    find: Find | None = None
    split: str | None = None
    ranks: bool = False


class LookQuery(msgspec.Struct, forbid_unknown_fields=True):
    """A sentence and the id of an image: what the run looks at in both is wanted."""

    text: Text
    id: str
    split: str | None = None


class Hit(msgspec.Struct):
    """One result.

    `models` are the models' own cosines, `ranks` their own ranks from 1 where asked for (equal
    cosines share one), `picture` where to get the image.
    """

    place: int
    score: float
    id: str
    models: dict[str, float] = {}
    ranks: dict[str, int] = {}
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


class Heat(msgspec.Struct):
    """A model's patches: `heat` from 0 to 1, row by row, on a scale that all images share.

    `cut`: the patches cover the square in the image's middle; else all of it. `most` is the largest
    weight, in times uniform.
    """

    model: str
    heat: list[list[float]]
    cut: bool
    most: float


class Patch(msgspec.Struct):
    """A patch of a model; rows and columns count from 0."""

    model: str
    row: int
    column: int


class Word(msgspec.Struct):
    """A word as a model reads it: its heat, what to say of it, and the patch that answered it."""

    text: str
    heat: float
    tip: str
    patch: Patch | None = None


class Looked(msgspec.Struct):
    """What the run looks at: heat of each model with square patches, and the words per model."""

    heats: list[Heat]
    words: dict[str, list[Word]]


class Limits(msgspec.Struct):
    """Of a request: bytes and pixels of an image, and the most results of a query."""

    bytes: int
    pixels: int
    top: int


class Info(msgspec.Struct):
    """What is searched. `looks` says whether `/api/look` has something to show."""

    name: str
    kind: Literal["run", "model"]
    models: list[str]
    dataset: str
    splits: dict[str, dict[str, int]]
    looks: bool
    limits: Limits
    version: str


class Health(msgspec.Struct):
    """`ok` where the server answers."""

    status: str


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
        plain = msgspec.json.decode(body)
        # JSON has one kind of number: 10.0 is a whole one.
        top = plain.get("top") if isinstance(plain, dict) else None
        if isinstance(top, float) and top.is_integer():
            plain["top"] = int(top)
        return msgspec.convert(plain, kind)
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
