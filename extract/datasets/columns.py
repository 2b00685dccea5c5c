"""Which column of a table is the image, which are captions: by the names that people use."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hada.extract.common.errors import DatasetError, nearest
from hada.extract.common.plain_words import MEANINGS
from hada.extract.common.shapes import listed

# In the order in which they are looked for. What is left out on purpose: "id", "url", "label".
IMAGE = (
    *("image", "file_name", "filename", "image_path", "filepath", "file_path", "image_file"),
    *("image_name", "img_path", "img", "file", "path", "images", "img_name", "imagepath"),
    *("photo", "picture", "image_filename", "name", "key", "image_id", "img_id"),
)
CAPTION = (
    *("caption", "captions", "text", "texts", "sentence", "sentences", "raw", "comment"),
    *("comments", "description", "title", "alt_text", "alt", "txt", "query"),
)
SPLIT = ("split", "set", "subset", "partition")
_NUMBERED = re.compile(r"(.+?)[ _-]?\d+")
_IMAGE_NAME = re.compile(r"\S.*\.(?:jpe?g|png|webp|bmp|gif|tiff?)", re.IGNORECASE)


@dataclass(frozen=True)
class Columns:
    """Positions of the columns that count; `split` is None where there is none."""

    image: int
    captions: tuple[int, ...]
    split: int | None = None


def looks_like_an_image(text: str) -> bool:
    """Whether a cell is the name of an image file."""
    return _IMAGE_NAME.fullmatch(text.strip()) is not None


def find_columns(
    names: Sequence[str], asked: Mapping[str, tuple[str, ...]], where: str
) -> Columns | None:
    """The columns of a table by its header; None where the names say nothing and none were asked.

    Args:
        names: The header.
        asked: What the user said: column names by meaning.
        where: The header's place for messages.

    Raises:
        DatasetError: A column that was asked for is not there, or one of two meanings is missing.
    """
    plain = [" ".join(name.split()).strip("\ufeff \"'").lower() for name in names]
    for wanted in (name for group in asked.values() for name in group):
        if wanted.lower() not in plain:
            raise DatasetError(f"{where}: no column {wanted!r}. {nearest(wanted, names)}")

    def chosen(meaning: str, known: Sequence[str]) -> tuple[int, ...]:
        if meaning in asked:
            return tuple(plain.index(name.lower()) for name in asked[meaning])
        for name in known:
            if name in plain:
                return (plain.index(name),)
        numbered = [
            (number, match[1])
            for number, name in enumerate(plain)
            if (match := _NUMBERED.fullmatch(name)) and match[1] in known
        ]
        return tuple(number for number, stem in numbered if stem == numbered[0][1])

    image, captions, split = (
        chosen(meaning, known)
        for meaning, known in zip(MEANINGS, (IMAGE, CAPTION, SPLIT), strict=True)
    )
    if "caption" not in asked and len(captions) == 1:
        # `caption, caption_2, caption_3`: the numbered ones belong to the plain one.
        stem = plain[captions[0]]
        captions += tuple(
            number
            for number, name in enumerate(plain)
            if (match := _NUMBERED.fullmatch(name)) and match[1] == stem and number not in captions
        )
    if not image and not captions:
        return None
    if not image or not captions:
        missing = "image" if not image else "captions"
        example = "image=COLUMN" if not image else "caption=COLUMN"
        raise DatasetError(
            f"{where}: no column looks like the {missing}; the columns are {listed(names)}. "
            f"Say which it is: --columns {example}"
        )
    return Columns(image[0], captions, split[0] if split else None)


def cell_captions(cell: str) -> list[str]:
    """The captions in a cell: a list where it is written as one, else the text itself.

    >>> cell_captions('["a dog", "a cat"]'), cell_captions("a [red] dog")
    (['a dog', 'a cat'], ['a [red] dog'])
    """
    text = cell.strip()
    if not (text.startswith("[") and text.endswith("]") and text[1:].lstrip()[:1] in ("'", '"')):
        return [cell]
    try:
        items = json.loads(text)
    except ValueError:
        try:
            items = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return [cell]
    if isinstance(items, list) and all(isinstance(item, str) for item in items):
        return items
    return [cell]
