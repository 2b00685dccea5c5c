"""Results of `hada-evaluate recall` read back: their shape and their packed ranks checked.

Only what `compare` and `table` use is checked; other keys are ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from hada.evaluate.results.packing import unpack, unpack_ranks
from hada.extract.common.documents import LARGE_BYTES, read_json
from hada.extract.common.errors import UsageError, nearest
from hada.extract.common.shapes import conform, shown
from hada.fuse.ranking.ranks import KS, Ranks

# What `hada-evaluate recall` writes. Schema 2 called the methods "rungs" and `caption_to_image`
# "owner"; it is read as what it means today.
SCHEMA = 3
OLD_SCHEMA = 2
_AGAIN = "Make it again: hada-evaluate recall"
_FIGURES = (
    *(f"{way}_R@{k}" for way in ("i2t", "t2i") for k in KS),
    *(f"{way}_{what}" for way in ("i2t", "t2i") for what in ("medr", "meanr")),
    "rsum",
)
_Figure = Annotated[float, Meta(ge=0, le=1e12)]
_Count = Annotated[int, Meta(ge=1, le=2**26)]


class _Spread(TypedDict):
    half_width: _Figure


class _Fitted(TypedDict):
    split: str | None


class _Seen(TypedDict):
    how: str
    dataset: str
    split: str
    images: int | None


class _Method(TypedDict):
    fitted_on: NotRequired[list[_Fitted]]
    saw_split: NotRequired[list[_Seen] | None]
    name: str
    kind: str
    metrics: dict[str, _Figure]
    ranks: dict[str, str]
    rsum_interval: _Spread


class _Protocol(TypedDict):
    dataset: str
    split: str
    images: _Count
    captions: _Count
    folds: _Count
    dataset_digest: NotRequired[str | None]


class _Items(TypedDict):
    digest: str
    caption_to_image: str


class _Result(TypedDict):
    protocol: _Protocol
    items: _Items
    methods: Annotated[list[_Method], Meta(min_length=1)]


class _OldItems(TypedDict):
    digest: str
    owner: str


class _OldResult(TypedDict):
    protocol: _Protocol
    items: _OldItems
    rungs: Annotated[list[_Method], Meta(min_length=1)]


def read_result(path: Path) -> dict[str, Any]:
    """A result of `hada-evaluate recall` from a file.

    Args:
        path: The JSON file. Results of schema 2 are read too.

    Returns:
        The result as `hada.evaluate.recall` returns it, with today's keys whatever the schema.

    Raises:
        UsageError: The file is missing, damaged, or not a result.
    """
    result = read_json(
        path, most=LARGE_BYTES, absent="Make it first: hada-evaluate recall", remedy=_AGAIN
    )
    schema = result.get("schema") if isinstance(result, dict) else None
    key = "rungs" if schema == OLD_SCHEMA else "methods"
    if not isinstance(result, dict) or not {"protocol", "schema"} <= set(result):
        raise UsageError(f"{path}: not a result of hada-evaluate recall")
    if schema not in (OLD_SCHEMA, SCHEMA):
        raise UsageError(
            f"{path}: schema: expected {SCHEMA} or {OLD_SCHEMA}, got {shown(schema)}; run "
            "hada-evaluate recall again"
        )
    if key not in result:
        raise UsageError(f"{path}: not a result of hada-evaluate recall: {key!r} is missing")
    conform(result, _OldResult if schema == OLD_SCHEMA else _Result, str(path), remedy=_AGAIN)
    images, folds = result["protocol"]["images"], result["protocol"]["folds"]
    if images % folds:
        raise UsageError(f"{path}: protocol: {images:,} images in {folds:,} folds. {_AGAIN}")
    for number, method in enumerate(result[key]):
        for name in _FIGURES:
            if name not in method["metrics"]:
                raise UsageError(
                    f"{path}: {key}[{number}].metrics: {name!r} is missing. "
                    f"{nearest(name, method['metrics'])} {_AGAIN}"
                )
    return _renamed(result) if schema == OLD_SCHEMA else result


def _renamed(old: dict[str, Any]) -> dict[str, Any]:
    """A result of schema 2 with the keys of today."""
    items = {
        ("caption_to_image" if key == "owner" else key): value
        for key, value in old["items"].items()
    }
    result = {("methods" if key == "rungs" else key): value for key, value in old.items()}
    return result | {"items": items, "schema": SCHEMA}


def ranks_of(result: dict[str, Any], method: dict[str, Any]) -> tuple[Ranks, NDArray[np.int64]]:
    """A method's ranks, and `caption_to_image`, from a result.

    Args:
        result: As `read_result` returns it.
        method: One of its `methods`.

    Returns:
        The ranks of all queries, and (T,) the image row of every caption.

    Raises:
        UsageError: The packed numbers are damaged or cannot be ranks of these items.
    """
    images, captions = result["protocol"]["images"], result["protocol"]["captions"]
    caption_to_image = unpack(result["items"]["caption_to_image"], captions)
    if (
        caption_to_image.min() < 0
        or caption_to_image.max() >= images
        or len(np.unique(caption_to_image)) != images
    ):
        raise UsageError(f"a result's captions do not belong to its {images:,} images. {_AGAIN}")
    ranks = unpack_ranks(method["ranks"], images, captions)
    for way, gallery in (("i2t", captions), ("t2i", images)):
        low, high, tied = (getattr(ranks, f"{way}_{name}") for name in ("lo", "hi", "tied"))
        fit = (low >= 0) & (low <= high) & (high < gallery) & (tied >= 1) & (tied <= captions)
        if not fit.all():
            raise UsageError(
                f"the packed ranks of {method['name']!r} ({way}) are none of {gallery:,} places. "
                f"{_AGAIN}"
            )
    return ranks, caption_to_image
